"""The command as a process: its streams, Ctrl-C, its exit status, and who else is called statemachine."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_records import STEERING
from command_line import MAIN, Answer, finish, spawn

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[3]
SHORT = ("--temperature", "0", "--max-new-tokens", "6")


# --- Ctrl-C -------------------------------------------------------------------------------------------------------


def endless(chat_folder: Path, folder: Path) -> tuple[str, ...]:
    """A command line that generates for minutes."""
    for path in chat_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((chat_folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 100_000}))
    (folder / "generation_config.json").write_text('{"eos_token_id": []}')
    sizes = ("--capacity", "100000", "--max-new-tokens", "99999")
    return ("run", "fox", "--model", str(folder), "--engine", "numpy", *sizes, "--phases")


def test_ctrl_c_cancels_at_the_next_boundary(chat_folder: Path, tmp_path: Path) -> None:
    process = spawn(*endless(chat_folder, tmp_path))
    assert process.stderr is not None
    for line in process.stderr:
        if "decode" in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "cancelled"
    assert "Traceback" not in err
    assert out


def test_ctrl_c_again_kills_what_does_not_heed_the_first(chat_folder: Path, tmp_path: Path) -> None:
    process = spawn(*endless(chat_folder, tmp_path))
    assert process.stderr is not None
    assert "tokenize" in process.stderr.readline()  # and nobody reads on: soon it waits for that
    for _ in range(200):
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=0.3)
            break
        except subprocess.TimeoutExpired:
            continue
    assert process.returncode in (130, -signal.SIGINT)  # a shell calls both 130
    assert "Traceback" not in process.communicate(timeout=60)[1]


HOLD = """
import sys

class Hold:
    def find_spec(self, name, path=None, target=None):
        if name == "gpu.load":
            print("loading", file=sys.stderr, flush=True)
            try:
                sys.stdin.readline()
            except KeyboardInterrupt:
                if {converts}:
                    raise ImportError("this module could not be imported")  # as NumPy says
                raise

sys.meta_path.insert(0, Hold())
"""


@pytest.mark.parametrize("converts", [False, True])
def test_ctrl_c_while_the_model_loads(converts: bool) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(converts=converts) + MAIN, "run", "fox"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stderr.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "")


# --- streams ------------------------------------------------------------------------------------------------------

COMMANDS = ("run", "check", "diagram", "play", "json", "help")


def command(name: str, chat_folder: Path, journal: Path) -> tuple[str, ...]:
    return {
        "run": ("run", "fox", "--model", str(chat_folder), "--engine", "numpy", *SHORT),
        "check": ("check",),
        "diagram": ("diagram",),
        "play": ("replay", str(journal), "--mode", "play"),
        "json": ("replay", str(journal), "--mode", "play", "--json"),
        "help": ("run", "--help"),
    }[name]


@pytest.mark.parametrize("name", COMMANDS)
def test_closed_streams_lead_nowhere(name: str, chat_folder: Path, journal: Path) -> None:
    arguments = command(name, chat_folder, journal)
    answer = finish(*arguments, stdin=None, stdout=None, preexec_fn=lambda: os.closerange(0, 2))
    assert answer == Answer(0, "", answer.err)
    assert "Traceback" not in answer.err
    assert finish(*arguments, stdin=None, stderr=None, preexec_fn=lambda: (os.close(0), os.close(2))).code == 0


def test_a_file_of_ours_never_takes_the_place_of_a_closed_stream(chat_folder: Path, tmp_path: Path) -> None:
    arguments = command("run", chat_folder, tmp_path)
    path = tmp_path / "run.jsonl"
    answer = finish(*arguments, "--journal", str(path), stdin=None, stdout=None, preexec_fn=lambda: os.closerange(0, 2))
    assert answer.code == 0
    assert [json.loads(line)["type"] for line in path.read_text().splitlines()][-1] == "end"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_behind_stdout_is_one_line(name: str, chat_folder: Path, journal: Path) -> None:
    with open("/dev/full", "w") as full:
        answer = finish(*command(name, chat_folder, journal), stdout=full)
    assert answer.code == 1
    assert "No space left on device" in answer.err
    assert "Traceback" not in answer.err
    assert "Exception ignored" not in answer.err


@pytest.mark.parametrize("name", COMMANDS)
def test_a_pipe_that_nobody_reads_is_no_traceback(name: str, chat_folder: Path, journal: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    answer = finish(*command(name, chat_folder, journal), stdout=write)
    os.close(write)
    assert answer == Answer(1, "", "")


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_what_stdout_cannot_encode_is_escaped(encoding: str, steering: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    play = spawn("replay", str(steering), "--mode", "play", env=environment, encoding=encoding)
    out, err = play.communicate(timeout=60)
    assert (play.returncode, "Traceback" in err) == (0, False)
    assert "na\\xefve \\u2192 \\U0001f98a" in out.replace("ï", "\\xef")
    as_json = spawn("replay", str(steering), "--mode", "play", "--json", env=environment, encoding=encoding)
    assert json.loads(as_json.communicate(timeout=60)[0])["output_texts"] == [STEERING]
    check = spawn("check", env=environment, encoding=encoding)
    out, err = check.communicate(timeout=60)
    assert (check.returncode, err) == (0, "")
    assert "generation is sound" in out


@pytest.mark.parametrize("columns", ["0", "1", "20", "many"])
def test_a_narrow_terminal_still_tells(columns: str) -> None:
    answer = finish("check", env=os.environ | {"COLUMNS": columns})
    assert answer.code == 0
    assert "sound" in answer.out
    assert "tokenize" in answer.out


# --- another package called statemachine --------------------------------------------------------------------------


def test_another_statemachine_is_told_in_one_sentence(tmp_path: Path) -> None:
    foreign = tmp_path / "site" / "statemachine"
    foreign.mkdir(parents=True)
    (foreign / "__init__.py").write_text("from statemachine.state import State\n")
    (foreign / "state.py").write_text("class State: pass\n")
    script = tmp_path / "phasewalk"  # as pip writes it
    script.write_text("import sys\nfrom phases.cli import main\nif __name__ == '__main__':\n    sys.exit(main())\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(REPOSITORY)])}

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
        )

    for arguments in (("--help",), ("run", "fox")):
        done = python(str(script), *arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("phasewalk: phasewalk needs its own package 'statemachine'")
        assert str(foreign) in done.stderr
    done = python("-c", "import phases")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: phasewalk needs its own package 'statemachine', but the one found is another")
    (foreign / "__init__.py").unlink()
    (foreign / "state.py").unlink()
    foreign.rmdir()
    assert python(str(script), "--help").returncode == 0
