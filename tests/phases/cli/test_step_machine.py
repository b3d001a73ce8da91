"""phasewalk step with a machine of any kind: what makes its context, what is recorded and opened, what is refused."""

import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Command, finish

from statemachine import Journal
from statemachine.record.records import EndRecord, PauseRecord, SignalRecord, StepRecord

pytestmark = pytest.mark.slow

LIGHTS = Path(__file__).parents[3] / "examples" / "traffic_lights.py"
TARGET = (f"{LIGHTS}:machine", "--context", f"{LIGHTS}:new_context")


@pytest.mark.parametrize("context", ["lights:new_context", "lights.py:new_context", "./lights.py:Light", "lights:make"])
@pytest.mark.parametrize("machine", ["lights.py:machine", "lights:machine", "lights"])
def test_machines_and_contexts_by_module_and_by_file(phasewalk: Command, machine: str, context: str) -> None:
    Path("lights.py").write_text(
        "from dataclasses import dataclass\nfrom functools import partial\n"
        "from statemachine import End, Machine, Phase, Transition\n"
        "print('imported')\n"
        "@dataclass\nclass Light:\n    on: bool = False\n"
        "class Switch(Phase):\n"
        "    def run(self, context):\n        assert isinstance(context, Light)\n        return True\n"
        "    def apply(self, context, outcome):\n        context.on = outcome\n"
        "switch = Switch()\nmachine = Machine('lights', switch, [Transition(switch, End('done'))])\n"
        "def new_context():\n    return Light()\n"
        "make = partial(Light, on=False)\n"
    )
    Path("lines.txt").write_text("run\ncontext\n")
    with open("lines.txt") as lines:
        answer = finish("step", machine, "--context", context, stdin=lines)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.splitlines() == [
        "imported",  # once: the phase and the context mean the same class
        "run 1  ready  at switch  step 0 of 0", "stopped: done", "run 1  done  at done  step 1 of 1",
        "* on  False -> True",
    ]  # fmt: skip


def test_a_machine_and_its_context_from_different_files(phasewalk: Command) -> None:
    Path("other.py").write_text("class Context:\n    seed, waiting, passed = 1, 2, []\n    def __init__(self):\n"
                                "        self.seed, self.waiting, self.passed = 7, 0, []\n")  # fmt: skip
    answer = phasewalk("step", f"{LIGHTS}:machine", "--context", "other.py:Context", stdin="step\ncontext\n")
    assert answer.code == 0
    assert "* waiting  0 -> 3" in answer.out


def test_what_is_recorded_is_opened(phasewalk: Command) -> None:
    answer = phasewalk("step", *TARGET, "--journal", "run.jsonl", stdin="step 2\nsignal off\n")
    assert (answer.code, answer.err) == (0, "")
    recorded = [record for record in Journal.open("run.jsonl").records() if not isinstance(record, PauseRecord)]
    assert [type(record) for record in recorded] == [StepRecord, StepRecord, SignalRecord, EndRecord]
    answer = phasewalk("step", *TARGET, "--open", "run.jsonl", stdin="run\ncontext\nevents\n")
    assert answer.out.splitlines() == [
        "run 1  recorded  at red  step 0 of 2", "stopped: the end of the record (cancelled)",
        "run 1  cancelled  at night  step 2 of 2", "  seed     7", "  waiting  0", "  passed   [3]",
        "    2 signal off",
    ]  # fmt: skip
    assert phasewalk("step", *TARGET, "--journal", "run.jsonl").code == 2  # it is there


def test_a_generation_is_recorded(phasewalk: Command, chat_folder: Path) -> None:
    options = ("--model", str(chat_folder), "--engine", "numpy", "--seed", "5", "--max-new-tokens", "4")
    live = phasewalk("step", "the quick fox", *options, "--journal", "run.jsonl", stdin="run\nback 3\nrun\ntext\n")
    assert live.code == 0
    opened = phasewalk("step", "--open", "run.jsonl", stdin="run\ntext\n")
    assert opened.out.splitlines()[-3:] == live.out.splitlines()[-3:]  # as text
    assert phasewalk("replay", "run.jsonl").code == 0
    answer = phasewalk("step", "x", *options, "--journal", "run.jsonl")
    assert (answer.code, "run.jsonl exists already" in answer.err) == (2, True)


def test_a_fork_of_a_generation_is_recorded_beside_it(phasewalk: Command, chat_folder: Path) -> None:
    options = ("--model", str(chat_folder), "--engine", "numpy", "--seed", "5", "--max-new-tokens", "4")
    lines = "next 2\nfork\nforce 9\nrun\ntext\n"
    live = phasewalk("step", "the quick fox", *options, "--journal", "run.jsonl", stdin=lines)
    assert (live.code, live.err) == (0, "")
    assert phasewalk("replay", "run-2.jsonl").code == 0
    opened = phasewalk("step", "--open", "run-2.jsonl", stdin="run\ntext\n")
    assert opened.out.splitlines()[-1] == live.out.splitlines()[-1]


def test_a_record_without_its_tokenizer_shows_ids_and_says_why(
    phasewalk: Command, chat_folder: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    moved.symlink_to(chat_folder)
    options = ("--model", str(moved), "--engine", "numpy", "--max-new-tokens", "4")
    live = phasewalk("step", "the quick fox", *options, "--journal", "run.jsonl", stdin="run\ntext\n")
    moved.unlink()
    without = phasewalk("step", "--open", "run.jsonl", stdin="run\ntext\n")
    assert without.code == 0
    assert "is not a folder on this machine, so tokens are shown by their ids" in without.err
    assert "prompt ids: " in without.out
    said = phasewalk("step", "--open", "run.jsonl", "--model", str(chat_folder), stdin="run\ntext\n")
    assert said.err == ""
    assert said.out.splitlines()[-3:] == live.out.splitlines()[-3:]


def test_a_prompt_that_looks_like_a_machine_stays_a_prompt(phasewalk: Command, chat_folder: Path) -> None:
    options = ("--model", str(chat_folder), "--engine", "numpy", "--max-new-tokens", "2", "--raw")
    answer = phasewalk("step", "lights.py:machine", *options, stdin="step\ntext\n")
    assert answer.code == 0
    assert "prompt: 'lights.py:machine'" in answer.out


def test_a_picture_of_any_machine(phasewalk: Command) -> None:
    answer = phasewalk("step", *TARGET, "--screenshot", "a.svg", "--keys", "s s g escape equals_sign m", "--light")
    assert (answer.code, answer.out, answer.err) == (0, "", "")
    assert Path("a.svg").read_text().startswith("<svg")


WRONG = [
    (("--temperature", "1"), "--temperature makes no sense beside --context"),
    (("--model", "x"), "--model makes no sense beside --context"),
    (("--raw",), "--raw makes no sense beside --context"), (("--seed", "0"), "--seed makes no sense beside --context"),
    (("--engine", "auto"), "--engine makes no sense beside --context"),
    (("--machine", "x:y"), "--machine makes no sense beside --context"),
    (("--journal", "none/run.jsonl"), "cannot be made"), (("--open", "none.jsonl"), "does not exist"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "message"), WRONG)
def test_options_of_generation_are_refused_by_name(phasewalk: Command, more: tuple[str, ...], message: str) -> None:
    answer = phasewalk("step", *TARGET, *more, stdin="")
    assert (answer.code, answer.out) == (2, "")
    assert message in " ".join(answer.err.split())
    assert not list(Path().iterdir())


CONTEXTS = [
    (f"{LIGHTS}:nothing", 2, "has no attribute 'nothing'"),
    (f"{LIGHTS}:Crossing", 2, "missing a required argument: 'seed'"),
    (f"{LIGHTS}:machine", 2, "is a Machine; expected a function without arguments"),
    ("nowhere:x", 2, "cannot import 'nowhere'"), ("nowhere.py:x", 2, "there is no file nowhere.py"),
    ("bad.py:fails", 1, "bad.py, line 2: ZeroDivisionError"), ("bad.py:none", 2, "gave None; expected a function"),
    ("broken.py:x", 1, "broken.py, line 1: SyntaxError"), ("", 2, "no module's name"), ("bad.py", 2, "no attribute"),
]  # fmt: skip


@pytest.mark.parametrize(("context", "code", "message"), CONTEXTS)
def test_a_context_that_cannot_be_made(phasewalk: Command, context: str, code: int, message: str) -> None:
    Path("bad.py").write_text("def fails():\n    return 1 / 0\ndef none():\n    return None\n")
    Path("broken.py").write_text("def (\n")
    answer = phasewalk("step", f"{LIGHTS}:machine", "--context", context, "--journal", "run.jsonl", stdin="")
    assert (answer.code, answer.out) == (code, "")
    assert message in " ".join(answer.err.split())
    assert "Traceback" not in answer.err
    assert not Path("run.jsonl").exists()


def test_which_machine_has_to_be_said(phasewalk: Command) -> None:
    answer = phasewalk("step", "--context", f"{LIGHTS}:new_context", stdin="")
    assert (answer.code, "which machine? phasewalk step MODULE:NAME" in " ".join(answer.err.split())) == (2, True)
    answer = phasewalk("step", "nowhere:x", "--context", f"{LIGHTS}:new_context", stdin="")
    assert (answer.code, "cannot import 'nowhere'" in answer.err) == (2, True)


@pytest.mark.parametrize("more", [("--seed", "1"), ("--engine", "numpy"), ("x",)])
def test_a_record_is_only_walked(phasewalk: Command, more: tuple[str, ...]) -> None:
    phasewalk("step", *TARGET, "--journal", "run.jsonl", stdin="run\n")
    answer = phasewalk("step", "--open", "run.jsonl", *more, stdin="")
    assert (answer.code, "makes no sense beside --open" in " ".join(answer.err.split())) == (2, True)
    assert phasewalk("step", "--open", "run.jsonl", stdin="").code == 1  # and it is no generation
    for target in ((), TARGET):
        answer = phasewalk("step", *target, "--open", "run.jsonl", "--journal", "b.jsonl", stdin="")
        assert (answer.code, "there is nothing to record" in " ".join(answer.err.split())) == (2, True)
    assert [path.name for path in Path().iterdir()] == ["run.jsonl"]


def test_stepping_any_machine_imports_no_screen_and_no_model(tmp_path: Path) -> None:
    code = (
        "import sys; from phases.cli import main; sys.argv = ['phasewalk', 'step', *sys.argv[1:]]\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('transformers', 'tokenizers', 'textual', 'torch') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *TARGET], input="run\ncontext\ncompare\n", capture_output=True, text=True,
        check=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout.endswith("[]\n")


def test_a_snapshot_of_any_machine_is_opened_and_gone_on_with(phasewalk: Command) -> None:
    phasewalk("step", *TARGET, stdin="step 3\nsave a.snap\n")
    opened = ("step", *TARGET, "--open", "a.snap", "--journal", "run.jsonl")
    answer = phasewalk(*opened, stdin="run\nload a.snap\n")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.splitlines() == [
        "run 1  paused  at green  step 3 of 3", "stopped: done", "run 1  done  at done  step 10 of 10",
        "run 2  paused  at green  step 3 of 3",
    ]  # fmt: skip
    assert "step 0 of 10" in phasewalk("step", *TARGET, "--open", "run.jsonl", stdin="").out


def test_a_snapshot_of_another_machine_leaves_no_journal(phasewalk: Command) -> None:
    phasewalk("step", *TARGET, stdin="step 3\nsave a.snap\n")
    Path("other.py").write_text(
        "from statemachine import End, Machine, Phase, Transition\nhere = Phase('here')\n"
        "machine = Machine('other', here, [Transition(here, End('done'))])\n"
    )
    options = ("--context", f"{LIGHTS}:new_context", "--open", "a.snap", "--journal", "run.jsonl")
    answer = phasewalk("step", "other.py:machine", *options, stdin="")
    assert (answer.code, "a.snap is of another machine or context" in answer.err) == (1, True)
    assert not Path("run.jsonl").exists()


def test_a_snapshot_of_a_generation_is_opened_and_gone_on_with(phasewalk: Command, chat_folder: Path) -> None:
    options = ("--model", str(chat_folder), "--engine", "numpy", "--seed", "5", "--max-new-tokens", "4")
    saved = phasewalk("step", "the quick fox", *options, stdin="next 2\nsave a.snap\nrun\ntext\n")
    answer = phasewalk("step", "--open", "a.snap", "--journal", "run.jsonl", stdin="fork\nrun\ntext\nswitch 1\nrun\n")
    assert (answer.code, answer.err) == (0, "")
    assert saved.out.splitlines()[-1] in answer.out
    assert phasewalk("replay", "run.jsonl").code == 0
