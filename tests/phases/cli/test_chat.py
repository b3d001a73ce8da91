"""phasewalk chat: lines on stdin, a real terminal, Ctrl-C, and what it is told."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chat_checkpoint import write_chat_checkpoint
from command_line import MAIN, Command, finish, spawn

pytestmark = pytest.mark.slow

NUMPY = ("--engine", "numpy", "--temperature", "0")


def talk(phasewalk: Command, *lines: str, options: tuple[str, ...] = ()) -> tuple[int, str, list[str]]:
    answer = phasewalk("chat", *NUMPY, *options, stdin="".join(f"{line}\n" for line in lines))
    return answer.code, answer.out, answer.err.splitlines()


def test_lines_are_answered_one_after_the_other(phasewalk: Command) -> None:
    code, out, err = talk(phasewalk, "What is 7 plus 5?", "", "Count from 3 to 9.", options=("--stats",))
    assert (code, out) == (0, "7 + 5 = 12.\n3, 4, 5, 6, 7, 8, 9.\n")
    assert err == ["(12 tokens fed, 0 from the cache, 10 new)", "(12 tokens fed, 21 from the cache, 21 new)"]


def test_every_command_does_what_help_says(phasewalk: Command) -> None:
    code, out, err = talk(
        phasewalk, "What is 7 plus 5?", "/retry", "/edit What is 2 plus 2?", "/history", "/save a.json", "/back",
        "/history", "/load a.json", "/history", "/system Be kind.", "/set temperature 0.3", "/set", "/journal",
        "/help", "/quit", "What is 1 plus 1?",
    )  # fmt: skip
    assert (code, err) == (0, [])
    said = "user: What is 2 plus 2?\nassistant: 2 + 2 = 4.\n"
    settings = "temperature 0.3, top_k 40, max_new_tokens 200, stop_token_ids (5,)\n"
    before, commands = out.split("/retry", 1)
    assert before == (
        f"7 + 5 = 12.\n7 + 5 = 12.\n2 + 2 = 4.\n{said}saved, 2 messages\nback before: What is 2 plus 2?\n"
        f"loaded, 2 messages\n{said}system: Be kind.\n{settings}{settings}"
        f"{before[before.index(settings * 2) + 2 * len(settings):]}"
    )  # fmt: skip
    assert "not recorded: start with phasewalk chat --journal FILE" in before
    for name in ("edit", "back", "system", "set", "history", "save", "load", "journal", "help", "quit"):
        assert f"/{name}" in commands
    assert json.loads(Path("a.json").read_text())[0] == {"role": "user", "content": "What is 2 plus 2?"}
    assert phasewalk("run", "--messages", "a.json", *NUMPY).code == 0


WRONG = [
    ("/nope", "there is no command /nope: expected one of /retry, /edit"),
    ("/retry", "nothing was said yet"),
    ("/edit", "expected /edit TEXT"),
    ("/edit x", "nothing was said yet"),
    ("/back", "nothing was said yet"),
    ("/back -1", "expected /back [N]"),
    ("/back x", "expected /back [N]"),
    ("/set heat 1", "no field 'heat'"),
    ("/set temperature", "expected /set NAME VALUE"),
    ("/set temperature warm", "the value in JSON"),
    ("/set temperature -1", "temperature is a finite number"),
    ("/save", "expected /save FILE"),
    ("/save taken.json", "exists already"),
    ("/save no/such/folder.json", "No such file"),
    ("/load", "expected /load FILE"),
    ("/load nowhere.json", "there is no file"),
    ("/load taken.json", "is not JSON"),
    ("word " * 3000, "the capacity is 1024 tokens"),
]


def test_what_is_wrong_is_told_and_the_chat_goes_on(phasewalk: Command) -> None:
    Path("taken.json").write_text("mine")
    code, out, err = talk(phasewalk, *(line for line, _ in WRONG), "What is 7 plus 5?")
    assert (code, out) == (1, "7 + 5 = 12.\n")
    for line, (_, words) in zip(err, WRONG, strict=True):
        assert line.startswith("error: ")
        assert words in line
    assert Path("taken.json").read_text() == "mine"


def test_several_lines_can_be_one_turn(phasewalk: Command) -> None:
    said = ("What is\\", "7 plus 5?", '"""', "/one", "", "two\\", '"""', "//three", "/history")
    _, out, _ = talk(phasewalk, *said, options=("--max-new-tokens", "2"))
    users = re.findall(r"^user: (.*?)\nassistant: ", out, re.MULTILINE | re.DOTALL)
    assert users[0] == "What is\n7 plus 5?"
    assert "user: /three" in out
    # Quoted lines that begin with / are a command, as any other turn that does.


def test_an_answer_that_is_cut_off_is_told(phasewalk: Command) -> None:
    _, _, err = talk(phasewalk, "Tell me a story about a fox.", options=("--max-new-tokens", "3"))
    assert err == ["(cut off after 3 tokens)"]


def test_a_chat_goes_on_from_a_file_with_another_system_message(phasewalk: Command) -> None:
    said = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]
    Path("chat.json").write_text(json.dumps(said))
    _, out, _ = talk(phasewalk, "/history", options=("--messages", "chat.json", "--system", "d"))
    assert out == "system: d\nuser: b\nassistant: c\n"


def test_a_recorded_chat_verifies(phasewalk: Command) -> None:
    code, out, _ = talk(phasewalk, "What is 7 plus 5?", "/retry", "/journal", options=("--journal", "chat.jsonl"))
    assert code == 0
    command = re.search(r"phasewalk (replay \S+ --machine \S+)", out)
    assert command
    verified = phasewalk(*command[1].split())
    assert verified.code == 0
    assert "verified" in verified.err
    taken = phasewalk("chat", *NUMPY, "--journal", "chat.jsonl", stdin="")
    assert (taken.code, "exists already" in taken.err) == (2, True)


def test_a_model_without_a_template_is_told_once(phasewalk: Command, tmp_path: Path) -> None:
    folder = write_chat_checkpoint(tmp_path / "model", template=None)
    options = ("--model", str(folder), "--max-new-tokens", "2")
    code, _, err = talk(phasewalk, "a", "b", options=options)
    assert code == 0
    assert err.count("this model has no chat template: it is given the chat as plain lines") == 1


def test_what_comes_from_a_file_is_text(tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(b"\xff\xfe")
    with (tmp_path / "odd").open("rb") as odd:
        answer = finish("chat", *NUMPY, stdin=odd, env=os.environ | {"PYTHONIOENCODING": "utf-8"})
    assert answer.code == 2
    assert "is no utf-8 text" in answer.err


# --- processes and terminals --------------------------------------------------------------------------------------


def endless(folder: Path) -> tuple[str, ...]:
    """Options with which an answer takes minutes."""
    write_chat_checkpoint(folder, max_position_embeddings=100_000)
    (folder / "generation_config.json").write_text('{"eos_token_id": []}')
    return ("--model", str(folder), "--capacity", "100000", "--max-new-tokens", "90000")


def test_ctrl_c_stops_an_answer_and_keeps_the_chat(tmp_path: Path) -> None:
    with spawn("chat", *NUMPY, *endless(tmp_path), stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        for _ in range(2):
            process.stdin.write("fox\n")
            process.stdin.flush()
            assert process.stdout.read(5)  # it answers
            process.send_signal(signal.SIGINT)
            assert process.stderr.readline() == "(stopped)\n"
        process.stdin.write("/history\n")
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out.count("user: fox") == 2


def test_ctrl_c_while_nothing_is_answered_ends_the_chat_where_there_is_no_terminal(tmp_path: Path) -> None:
    with spawn("chat", *NUMPY, *endless(tmp_path), "--max-new-tokens", "1", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write("fox\n")
        process.stdin.flush()
        assert "cut off" in process.stderr.readline()
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err


class Terminal:
    """A command at a terminal of its own."""

    def __init__(self, *arguments: str, folder: Path) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", MAIN, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder,
            start_new_session=True,
            env=os.environ | {"TERM": "xterm", "XDG_STATE_HOME": str(folder), "PROMPT_TOOLKIT_NO_CPR": "1"},
        )  # fmt: skip
        os.close(theirs)
        self.shown = ""

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def until(self, words: str, *, after: int = 0, seconds: float = 20) -> int:
        """Read until the words are shown, and give where they end."""
        end = time.monotonic() + seconds
        while words not in self.shown[after:]:
            assert select.select([self._ours], [], [], max(0, end - time.monotonic()))[0], self.shown
            try:
                self.shown += os.read(self._ours, 65536).decode(errors="replace")
            except OSError:  # how Linux says that nobody writes any more
                pytest.fail(f"it ended: {self.shown}")
        return after + self.shown[after:].index(words) + len(words)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        while True:
            assert select.select([self._ours], [], [], 60)[0], self.shown
            try:
                self.shown += os.read(self._ours, 65536).decode(errors="replace")
            except OSError:
                break
        os.close(self._ours)
        return self.process.wait(timeout=60)


def test_at_a_terminal_lines_are_edited_and_remembered(tmp_path: Path) -> None:
    with Terminal("chat", *NUMPY, folder=tmp_path) as terminal:
        place = terminal.until("you>", after=terminal.until("Ctrl-D ends the chat"))
        terminal.type("What is 7 plus 6\x7f5?\r")  # a key for taking back
        place = terminal.until("7 + 5 = 12.", after=place)
        place = terminal.until("you>", after=place)
        terminal.type("forget this\x03")
        time.sleep(0.5)
        terminal.type("\x1b[A\r")  # Up
        place = terminal.until("7 + 5 = 12.", after=place)
        place = terminal.until("you>", after=place)
        terminal.type("one\x1b\rtwo\r/history\r")  # Alt-Enter
        place = terminal.until("user: one", after=place)
        terminal.until("you>", after=terminal.until("two", after=place))
        terminal.type("\x04")
        assert terminal.end() == 0
        assert "Traceback" not in terminal.shown
        kept = (tmp_path / "phasewalk" / "chat_history").read_text()
        assert "+What is 7 plus 5?" in kept


def test_ctrl_c_at_a_terminal_stops_an_answer(tmp_path: Path) -> None:
    with Terminal("chat", *NUMPY, *endless(tmp_path / "model"), folder=tmp_path) as terminal:
        place = terminal.until("you>", after=terminal.until("Ctrl-D ends the chat"))
        terminal.type("fox\r")
        time.sleep(3)
        terminal.process.send_signal(signal.SIGINT)
        place = terminal.until("(stopped)", after=place)
        terminal.until("you>", after=place)
        terminal.type("\x04")
        assert terminal.end() == 0


def test_at_a_terminal_one_is_told_how_to_begin(tmp_path: Path) -> None:
    for arguments, code in (((), 2), (("run",), 2)):
        with Terminal(*arguments, folder=tmp_path) as terminal:
            assert terminal.end() == code
            assert "phasewalk chat" in terminal.shown


def test_help_imports_none_of_it() -> None:
    code = (
        "import sys\nfrom phases.cli import main\nsys.argv = ['phasewalk', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n"
        "    odd = ('prompt_toolkit', 'phases.chat', 'phases.files')\n"
        "    print([name for name in sys.modules if name.startswith(odd)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "phasewalk chat" in done.stdout
