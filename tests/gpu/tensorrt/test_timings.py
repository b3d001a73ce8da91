"""What was measured in earlier builds is kept whole, and is never in the way of a build."""

from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.usefixtures("builds_anywhere"),
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning"
    ),  # TensorRT for RTX takes such a cache, and makes no use of it
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    return tmp_path / "phasewalk" / "timings"


@pytest.fixture
def config() -> Any:
    from gpu.tensorrt.library import Errors, trt

    errors = Errors()
    builder = trt.Builder(errors)
    yield builder.create_builder_config()
    del builder


def test_they_are_kept_by_version_and_class(folder: Path, config: Any) -> None:
    from gpu.tensorrt.library import FLAVOUR, VERSION
    from gpu.tensorrt.timings import Timings

    timings = Timings("sm89")
    timings.give(config)
    assert config.get_timing_cache() is not None
    timings.keep()
    assert [path.name for path in folder.iterdir()] == [f"{FLAVOUR}-{VERSION}-sm89.bin"]
    assert next(folder.iterdir()).stat().st_size > 0
    Timings("sm89").give(config)


@pytest.mark.parametrize("content", [b"", b"garbage" * 99, bytes(4096)])
def test_a_damaged_file_is_ignored_and_replaced(folder: Path, config: Any, content: bytes) -> None:
    from gpu.tensorrt.timings import Timings

    timings = Timings("sm89")
    timings._path.parent.mkdir(parents=True)
    timings._path.write_bytes(content)
    timings.give(config)
    timings.keep()
    assert timings._path.read_bytes() != content
    assert len(list(folder.iterdir())) == 1


def test_a_cache_that_cannot_be_had_is_no_error(folder: Path, config: Any) -> None:
    from gpu.tensorrt.timings import Timings

    folder.parent.mkdir(parents=True)
    folder.write_text("a file where the folder should be")
    timings = Timings("sm89")
    timings.give(config)
    timings.keep()
    assert folder.is_file()


def test_a_file_that_is_absurdly_large_is_not_read(folder: Path, config: Any) -> None:
    from gpu.tensorrt.timings import Timings

    timings = Timings("sm89")
    timings._path.parent.mkdir(parents=True)
    with timings._path.open("wb") as file:
        file.truncate(2**40)
    assert timings._read() == b""
