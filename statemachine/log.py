"""Tells the application's structlog what happens to runs; silent unless the application configured structlog."""

import sys
from typing import Any


def listening() -> bool:
    """Whether the application configured structlog, which it has imported then, so that we need not."""
    structlog = sys.modules.get("structlog")
    return structlog is not None and bool(structlog.is_configured())


def emit(level: str, event: str, **fields: Any) -> None:
    """Log an event, e.g. `emit("info", "run.started", run_id=...)`."""
    if listening():
        getattr(sys.modules["structlog"].get_logger("statemachine"), level)(event, **fields)
