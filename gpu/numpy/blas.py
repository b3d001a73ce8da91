"""The BLAS that NumPy computes with: which one it is, and on how many of its threads."""

import os
import threading
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

# The count of threads is the library's own, so the engines of a process that depend on it compute in turns. A fork
# takes its turn too: a child finds the count as it was, and the lock free.
_in_turns = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_in_turns.acquire, after_in_parent=_in_turns.release, after_in_child=_in_turns.release)


class _OneThread:
    """A turn with one thread: threadpoolctl's `limit`, which leaves objects for the collector of garbage each time."""

    def __init__(self, controller: ThreadpoolController) -> None:
        self._libraries = controller.lib_controllers
        self._before: list[int] = []

    def __enter__(self) -> None:
        _in_turns.acquire()
        try:
            self._before = [library.get_num_threads() for library in self._libraries]
            for library in self._libraries:
                library.set_num_threads(1)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        try:
            for library, count in zip(self._libraries, self._before, strict=False):
                library.set_num_threads(count)
        finally:
            _in_turns.release()


class Blas:
    """NumPy's BLAS as it stands in this process."""

    def __init__(self) -> None:
        loaded = ThreadpoolController().select(user_api="blas")
        places = (Path(np.__file__).parent, Path(np.__file__).parent.with_name("numpy.libs"))
        with _in_turns:  # or the count might be that of another engine's prefill
            of_numpy = [lib["filepath"] for lib in loaded.info() if Path(lib["filepath"]).parent in places]
            self._controller = loaded.select(filepath=of_numpy) if of_numpy else loaded
            self._info: list[dict[str, Any]] = self._controller.info()
        self._one_thread = _OneThread(self._controller)
        self.threads: int = max((int(library["num_threads"]) for library in self._info), default=1)

    def at_work(self, *, one_thread: bool) -> AbstractContextManager[Any]:
        """Compute on all threads or on one; another engine that needs them waits."""
        return self._one_thread if one_thread else _in_turns

    def environment(self) -> dict[str, Any]:
        """Tell what of it can change a bit."""
        config: Any = np.show_config(mode="dicts")
        built = config["Build Dependencies"]["blas"]  # all that is known of one that threadpoolctl does not
        library = self._info[0] if self._info else {}
        return {
            "blas": library.get("internal_api", built.get("name")),
            "blas_version": library.get("version", built.get("version")),
            "blas_architecture": library.get("architecture"),
            "blas_threading": library.get("threading_layer"),
            "blas_threads": self.threads,
            "openblas_coretype": os.environ.get("OPENBLAS_CORETYPE"),
        }
