"""For all tests: Ctrl-C reaches the processes that they start, and exports do not fill the user's cache folder."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu.user_cache import user_cache

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells have it for what they start with &
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """No test leaves the package talking, as it does once structlog is configured."""
    yield
    if (structlog := sys.modules.get("structlog")) is not None and structlog.is_configured():
        structlog.reset_defaults()
        pytest.fail("structlog is still configured: use tests/logged.py")


@pytest.fixture(scope="session", autouse=True)
def a_cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder for these tests alone, but for kernels, whose compilation takes minutes."""
    folder, kernels = tmp_path_factory.mktemp("cache"), user_cache("kernels")
    (folder / "phasewalk").mkdir()
    if hasattr(os, "fork"):  # where links need no privilege
        kernels.mkdir(parents=True, exist_ok=True)
        (folder / "phasewalk" / "kernels").symlink_to(kernels, target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setenv("LOCALAPPDATA", str(folder))
        yield folder / "phasewalk"
