"""The files that commands are given: FIFOs, devices and folders are told, never waited for or replaced."""

import os
from pathlib import Path

import pytest
from command_line import Command, finish

SHORT = ("--temperature", "0", "--max-new-tokens", "6")


@pytest.fixture
def odd(tmp_path: Path) -> dict[str, Path]:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "nowhere").symlink_to("gone")
    (tmp_path / "loop").symlink_to("loop")
    names = ("fifo", "folder", "nowhere", "loop")
    return {"device": Path("/dev/zero")} | {name: tmp_path / name for name in names}


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "nowhere", "loop"])
@pytest.mark.parametrize(
    "command",
    [
        ("replay", "FILE", "--mode", "play"),
        ("resume", "FILE"),
        ("trace", "FILE"),
        ("report", "FILE", "-o", "x.html"),
        ("diagram", "--journal", "FILE"),
        ("step", "--open", "FILE"),
        ("step", "--messages", "FILE"),
        ("run", "--messages", "FILE"),
    ],
)
def test_what_is_read_is_a_regular_file(
    phasewalk: Command, odd: dict[str, Path], kind: str, command: tuple[str, ...]
) -> None:
    answer = phasewalk(*(str(odd[kind]) if word == "FILE" else word for word in command))
    assert answer.code == 2
    assert answer.out == ""
    assert "Traceback" not in answer.err


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "nowhere", "loop"])
@pytest.mark.parametrize("option", ["--journal", "--snapshot"])
def test_what_is_written_is_looked_at_before_the_run(
    phasewalk: Command, chat_folder: Path, odd: dict[str, Path], kind: str, option: str
) -> None:
    before = os.lstat(odd[kind])
    for force in ((), ("--force",)):
        answer = phasewalk("run", "fox", "--model", str(chat_folder), *SHORT, option, str(odd[kind]), *force)
        assert answer.code == 2
        assert answer.out == ""  # not a token was generated
        assert "Traceback" not in answer.err
    assert os.lstat(odd[kind])[:3] == before[:3]


@pytest.mark.parametrize("option", ["--journal", "--snapshot"])
@pytest.mark.parametrize("path", ["no/such/folder", "/proc/x", "file/x"])
def test_a_folder_that_takes_no_file_is_told_before_the_run(phasewalk: Command, option: str, path: str) -> None:
    Path("file").write_text("")
    answer = phasewalk("run", "fox", option, path)
    assert (answer.code, answer.out) == (2, "")
    assert "cannot be made" in answer.err


def test_a_snapshot_replaces_nothing_without_force(phasewalk: Command, chat_folder: Path) -> None:
    Path("kept").write_text("precious")
    arguments = ("run", "fox", "--model", str(chat_folder), *SHORT, "--snapshot")
    answer = phasewalk(*arguments, "kept")
    assert (answer.code, answer.out) == (2, "")
    assert "--force" in answer.err
    assert phasewalk(*arguments, "kept", "--force").code == 0
    assert phasewalk(*arguments, "both", "--journal", "both").code == 2


def test_resume_saves_where_it_came_from_but_nowhere_else_that_is_taken(
    phasewalk: Command, chat_folder: Path, tmp_path: Path
) -> None:
    from phases import Generator

    with Generator.from_pretrained(chat_folder, max_batch=1) as generator:
        run = generator.start("fox")
        run.until(lambda run: run.step_count == 4)
        run.snapshot(tmp_path / "fox.snap")
        run.close()
    Path("kept").write_text("precious")
    answer = phasewalk("resume", "fox.snap", "--snapshot", "kept")
    assert (answer.code, answer.out) == (2, "")
    assert "--force" in answer.err
    for options in ((), ("--snapshot", "fox.snap"), ("--snapshot", "kept", "--force"), ("--snapshot", "new")):
        assert phasewalk("resume", "fox.snap", *options).code == 0


def test_a_folder_of_journals_is_verified_whatever_lies_in_it(
    odd: dict[str, Path], journal: Path, tmp_path: Path
) -> None:
    (tmp_path / "good.jsonl").write_bytes(journal.read_bytes())
    (tmp_path / "bad[red].jsonl").write_text("{}\n")
    (tmp_path / "deep.jsonl").write_text("[" * 100_000 + "\n")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "round").symlink_to(".")
    for name in ("fifo", "loop", "nowhere"):
        odd[name].rename(tmp_path / f"{name}.jsonl")
    (tmp_path / "device.jsonl").symlink_to("/dev/zero")
    answer = finish("replay", str(tmp_path), env=os.environ | {"COLUMNS": "400"})
    assert answer.code == 1
    assert "Traceback" not in answer.err
    results = {Path(line.split("│")[1].strip()).name: line.split("│")[3].strip()
               for line in answer.out.splitlines() if ".jsonl" in line}  # fmt: skip
    assert results.pop("good.jsonl") == "verified"
    assert set(results.values()) == {"unusable"}
    assert set(results) == {f"{name}.jsonl" for name in
                            ("bad[red]", "deep", "empty", "folder", "fifo", "loop", "nowhere", "device")}  # fmt: skip
