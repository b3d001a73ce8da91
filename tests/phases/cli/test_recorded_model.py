"""Which model a record is run with: nothing that it names is asked for at the hub unless the user says so."""

import os
import pty
import shutil
from pathlib import Path

import pytest
from cli_records import record
from command_line import Command, spawn

pytestmark = pytest.mark.slow


@pytest.fixture
def foreign(chat_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A journal and a snapshot that name a model `someone/model`, which is no folder here."""
    from phases import Generator

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shutil.copytree(chat_folder, "someone/model")
    record("someone/model", Path("fox.jsonl"))
    with Generator.from_pretrained("someone/model", max_batch=1, self_check=False) as generator:
        run = generator.start("fox")
        run.until(lambda run: run.step_count == 4)
        run.snapshot(tmp_path / "fox.snap")
        run.close()
    shutil.rmtree("someone")
    return tmp_path


COMMANDS = [
    ("replay", "fox.jsonl"),
    ("replay", "fox.jsonl", "--mode", "fork", "--at", "3"),
    ("resume", "fox.snap"),
    ("report", "fox.jsonl", "-o", "fox.html", "--verify"),
]


@pytest.mark.parametrize("arguments", COMMANDS)
def test_a_model_that_only_the_record_names_is_not_asked_for(
    phasewalk: Command, foreign: Path, chat_folder: Path, arguments: tuple[str, ...]
) -> None:
    answer = phasewalk(*arguments)
    assert (answer.code, answer.out) == (1, "")
    assert "names the model 'someone/model', which is no folder here" in answer.err
    assert "--model NAME" in answer.err
    assert phasewalk(*arguments, "--model", str(chat_folder)).code == 0


def test_a_folder_that_the_record_names_is_loaded(phasewalk: Command, journal: Path) -> None:
    assert phasewalk("replay", str(journal)).code == 0


def test_a_folder_of_such_records_is_unusable_not_fetched(phasewalk: Command, foreign: Path) -> None:
    answer = phasewalk("replay", ".", "--json")
    assert answer.code == 1
    assert "--model NAME" in answer.out


@pytest.mark.parametrize(("yes", "message"), [("n", "nothing was fetched"), ("y", "hub model of that name")])
def test_on_a_terminal_the_user_is_asked(foreign: Path, yes: str, message: str) -> None:
    ours, theirs = pty.openpty()
    process = spawn("replay", "fox.jsonl", stdin=theirs, stderr=theirs, env=os.environ | {"COLUMNS": "300"})
    os.close(theirs)
    said = b""
    while b"hub? [y/N]" not in said:
        said += os.read(ours, 1000)
    os.write(ours, f"{yes}\n".encode())
    process.communicate(timeout=60)
    said = os.read(ours, 10_000)
    os.close(ours)
    assert process.returncode == 1
    assert message in said.decode()
