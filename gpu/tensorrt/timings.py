"""What TensorRT measured of its kernels in earlier builds, in the user's cache folder: later builds take less time."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from gpu.tensorrt.library import FLAVOUR, VERSION
from gpu.user_cache import user_cache
from gpu.whole_folder import whole_file

_LARGEST = 512 * 2**20  # bytes


class Timings:
    """The measurements of one version of TensorRT on one class of devices.

    Without them a build only takes longer, so whatever is wrong with the file is no error.
    """

    def __init__(self, device: str) -> None:
        self._path: Path = user_cache("timings") / f"{FLAVOUR}-{VERSION}-{device}.bin"
        self._cache: Any = None  # it must outlive the build

    def give(self, config: Any) -> None:
        """Let a build use what is known; TensorRT takes what does not fit it, or is damaged, for empty."""
        for known in (self._read(), b""):
            self._cache = config.create_timing_cache(known)
            if self._cache is not None and config.set_timing_cache(self._cache, False):
                return

    def keep(self) -> None:
        """Put what is known after a build in place of what was known before."""
        if self._cache is None:
            return
        with suppress(OSError), memoryview(self._cache.serialize()) as known:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self._path) as file:
                file.write(known)

    def _read(self) -> bytes:
        with suppress(OSError):
            if self._path.stat().st_size <= _LARGEST:
                return self._path.read_bytes()
        return b""
