"""--lora and --use-lora: adapters by name in every command that generates, and in those that go on with records."""

import json
import shutil
from pathlib import Path

import pytest
from adapters import random_adapter, write_adapter
from command_line import Command

from gpu import ModelConfig
from phases.generator import DEMO_MODEL
from phases.lora import bundled_adapters

pytestmark = pytest.mark.slow

NUMPY = ("--engine", "numpy", "--temperature", "0")
WHO = "Who are you?"
PLAIN = "I am the demo model of Phasewalk, a very small language model."
PIRATE = "Arr! I be the demo model o' Phasewalk, a very small language model."


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A copy of the bundled adapter that a test may move."""
    return Path(shutil.copytree(bundled_adapters()["pirate"], tmp_path / "mine"))


def test_an_adapter_is_used_if_it_is_asked_for(phasewalk: Command, mine: Path) -> None:
    assert phasewalk("run", WHO, *NUMPY, "--use-lora", "pirate").out == f"{PIRATE}\n"
    assert phasewalk("run", WHO, *NUMPY, "--lora", f"own={mine}", "--use-lora", "own").out == f"{PIRATE}\n"
    assert phasewalk("run", WHO, *NUMPY, "--lora", f"own={mine}", "--lora", "pirate").out == f"{PLAIN}\n"
    answer = phasewalk("run", WHO, "--temperature", "0", "--use-lora", "pirate")
    assert answer.out == f"{PIRATE}\n"
    assert answer.err.startswith("engine ")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--lora", "nobody"), 2, "'nobody' is no NAME=PATH, and no bundled adapter (pirate)"),
        (("--lora", "=x"), 2, "'=x' is no NAME=PATH"),
        (("--lora", "x="), 2, "'x=' is no NAME=PATH"),
        (("--lora", "a=x", "--lora", "a=y"), 2, "two adapters are called 'a'"),
        (("--use-lora", "nobody"), 2, "'nobody' names no adapter: --lora nobody=PATH loads one, and pirate is bundled"),
        (
            ("--lora", "a=missing", "--use-lora", "a"),
            1,
            "the adapter in missing cannot be used: there is no such folder",
        ),
    ],
)
@pytest.mark.parametrize("command", ["run", "step", "chat"])
def test_what_is_no_adapter_is_refused(
    phasewalk: Command, command: str, options: tuple[str, ...], code: int, words: str
) -> None:
    prompt = () if command == "chat" else ("Hello",)
    answer = phasewalk(command, *prompt, "--engine", "numpy", *options, stdin="")
    assert answer.code == code
    assert words in " ".join(answer.err.replace("│", " ").split())
    assert "Traceback" not in answer.err


def test_records_are_gone_on_with_where_the_adapter_is_now(phasewalk: Command, mine: Path) -> None:
    loads = ("--lora", f"own={mine}", "--use-lora", "own")
    assert phasewalk("run", WHO, *NUMPY, *loads, "--journal", "run.jsonl").code == 0
    assert phasewalk("replay", "run.jsonl", "--strict").code == 0
    moved = mine.rename(mine.with_name("moved"))
    answer = phasewalk("replay", "run.jsonl")
    assert answer.code == 1
    assert (
        "was made with the adapter 'own', which is in no folder here: say where it is, with --lora own=PATH"
        in answer.err
    )
    there = ("--lora", f"own={moved}")
    for command in (("replay", "run.jsonl"), ("replay", "."), ("report", "run.jsonl", "-o", "run.html", "--verify")):
        assert phasewalk(*command, *there).code == 0, command
    forked = phasewalk("replay", "run.jsonl", "--mode", "fork", "--at", "6", *there)
    assert forked.out.endswith(f"{PIRATE.removeprefix('Arr! ')}\n")
    model = ModelConfig.from_folder(DEMO_MODEL)
    another = write_adapter(mine.with_name("another"), random_adapter(model, 2))
    answer = phasewalk("replay", "run.jsonl", "--lora", f"own={another}")
    assert answer.code == 1
    assert "the adapter 'own' is another one than it was" in answer.err
    assert phasewalk("replay", "run.jsonl", "--mode", "play").code == 0, "to play it, none is needed"


def test_a_journal_that_was_cut_off_is_resumed_with_its_adapter(phasewalk: Command) -> None:
    assert phasewalk("run", WHO, *NUMPY, "--use-lora", "pirate", "--journal", "run.jsonl").code == 0
    lines = Path("run.jsonl").read_bytes().splitlines(keepends=True)
    Path("run.jsonl").write_bytes(b"".join(lines[:12]))
    answer = phasewalk("resume", "run.jsonl")
    assert answer.code == 0
    assert PIRATE.endswith(answer.out.strip())
    assert phasewalk("replay", "run.jsonl").code == 0


def test_chat_and_the_debugger_have_it_too(phasewalk: Command) -> None:
    answer = phasewalk("chat", *NUMPY, "--use-lora", "pirate", "--journal", "chat.jsonl", stdin=f"{WHO}\n{WHO}\n")
    assert answer.out.count("Arr! ") == 2
    assert phasewalk("replay", "chat.jsonl", "--machine", "phases.chat.machine:machine").code == 0
    answer = phasewalk("step", WHO, *NUMPY, "--use-lora", "pirate", "--plain", stdin="run\ntext\n")
    assert "Arr!" in answer.out


def test_lines_of_a_file_name_their_own(phasewalk: Command, mine: Path) -> None:
    greedy = {"temperature": 0}
    requests: list[dict[str, object]] = [
        {"id": "none", "prompt": WHO, "params": greedy},
        {"id": "own", "prompt": WHO, "params": greedy, "lora_weights_name": "own"},
        {"id": "odd", "prompt": WHO, "params": greedy, "lora_weights_name": "odd"},
        {"id": "off", "prompt": WHO, "params": greedy, "lora_weights_name": ""},
        {"requests": [{"messages": [{"role": "user", "content": WHO}]}], "temperature": 0, "loraWeightsName": "own"},
    ]
    Path("in.jsonl").write_text("".join(f"{json.dumps(request)}\n" for request in requests))
    for use, expected in (((), PLAIN), (("--use-lora", "pirate"), PIRATE)):
        output = f"out{len(use)}.jsonl"
        files = ("--input", "in.jsonl", "--output", output, "--lora", f"own={mine}", *use, "--engine", "numpy")
        phasewalk("run", *files)
        found = [json.loads(line) for line in Path(output).read_text().splitlines()]
        texts = {each["id"]: each.get("text") for each in found}
        assert [texts[name] for name in ("none", "own", "odd", "off")] == [expected, PIRATE, None, PLAIN]
        assert PIRATE in [text for name, text in texts.items() if name not in ("none", "own", "odd", "off")]
        # The same command finds all of it answered.
        assert "nothing was left to do" in phasewalk("run", *files).err
        [refused] = [each for each in found if each["id"] == "odd"]
        assert "there is no adapter 'odd'; there are 'own'" in json.dumps(refused)


def test_answers_of_another_adapter_are_no_answers(phasewalk: Command, mine: Path) -> None:
    Path("in.jsonl").write_text(json.dumps({"prompt": WHO, "params": {"temperature": 0}}) + "\n")
    files = ("run", "--input", "in.jsonl", "--output", "out.jsonl", "--engine", "numpy")
    assert phasewalk(*files, "--lora", f"own={mine}", "--use-lora", "own").code == 0
    answer = phasewalk(*files, "--use-lora", "pirate")
    assert answer.code == 1
    assert "out.jsonl" in answer.err
    assert len(Path("out.jsonl").read_text().splitlines()) == 1
