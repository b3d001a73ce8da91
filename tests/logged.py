"""What the package logs meanwhile, for a test; afterwards it is silent again."""

from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from structlog.testing import capture_logs
from structlog.typing import EventDict


@contextmanager
def logged() -> Iterator[list[EventDict]]:
    """Configure structlog, which makes the package talk, and give what it says."""
    structlog.configure()
    try:
        with capture_logs() as logs:
            yield logs
    finally:
        structlog.reset_defaults()
