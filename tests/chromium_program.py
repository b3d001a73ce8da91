"""Says which tests need a Chromium, and skips them, visibly, where none is installed; opens pages in it."""

import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


def dump_dom(page: str, profile: Path, *options: str) -> str:
    """What a page has become after its scripts have run, in a browser that knows nothing of any other run."""
    assert CHROMIUM is not None
    profile.mkdir()
    switches = (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
    )  # fmt: skip
    command = [CHROMIUM, *switches, f"--user-data-dir={profile}", *options, "--dump-dom", page]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout
