"""Tells the application's structlog what happens to runs; silent unless the application configured structlog."""

import sys
from typing import Any


def emit(level: str, event: str, **fields: Any) -> None:
    """Log an event, e.g. `emit("info", "run.started", run_id=...)`."""
    structlog = sys.modules.get("structlog")  # an application that configured it has imported it, so we need not
    if structlog is not None and structlog.is_configured():
        getattr(structlog.get_logger("statemachine"), level)(event, **fields)
