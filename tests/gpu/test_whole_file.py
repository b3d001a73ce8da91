"""A file is there whole or not at all, and what a killed process left is taken away."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpu.whole_folder import whole_file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_takes_the_place_of_what_stood_there_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("before")
    with whole_file(tmp_path / "a") as file:
        file.write(b"after")
        assert (tmp_path / "a").read_text() == "before"
    assert (tmp_path / "a").read_text() == "after"
    assert names(tmp_path) == ["a"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError), whole_file(tmp_path / "a") as file:
        file.writelines([b"half", "no bytes"])  # type: ignore[list-item]
    assert names(tmp_path) == []


def test_what_a_killed_process_left_is_taken_away_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom gpu.whole_folder import whole_file\n"
        "with whole_file(Path(sys.argv[1])) as file:\n    file.write(b'half')\n    file.flush()\n    os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=False)
    assert len(names(tmp_path)) == 1
    assert names(tmp_path)[0].endswith(".part")
    mine = f".b.{os.getppid()}-{'0' * 32}.part"
    (tmp_path / mine).write_bytes(b"half")
    with whole_file(tmp_path / "c") as one, whole_file(tmp_path / "d") as other:
        one.write(b"1")
        other.write(b"2")
    assert names(tmp_path) == [mine, "c", "d"]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only /proc tells that a process has ended")
def test_a_process_that_has_ended_counts_as_such_before_its_parent_looks(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    (tmp_path / f".b.{ended.pid}-{'0' * 32}.part").write_bytes(b"half")
    with whole_file(tmp_path / "a") as file:
        file.write(b"1")
    assert names(tmp_path) == ["a"]
    ended.wait()
