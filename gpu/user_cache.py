"""Where what can be made again lies, so that it need not be: the user's cache folder."""

import os
import sys
from pathlib import Path


def user_cache(name: str) -> Path:
    """Give our folder of this name; it may not exist yet. `XDG_CACHE_HOME` (Windows: `LOCALAPPDATA`) moves it."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "phasewalk" / name
