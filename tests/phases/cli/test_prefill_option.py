"""How much of a prompt one step feeds is said on the command line, and shown and recorded."""

import json
import re
from pathlib import Path

import pytest
from command_line import Command

from phases import Generator
from statemachine import Journal

pytestmark = pytest.mark.slow

LONG = "Tell me a story about a fox. " * 45
HOW = ("--temperature", "0", "--max-new-tokens", "3", "--engine", "numpy")


def fed(path: Path) -> list[int]:
    """What the cache held after each step of Prefill."""
    return [
        json.loads(line)["o"][0] for line in path.read_text().splitlines()[1:] if json.loads(line).get("p") == "prefill"
    ]


@pytest.mark.parametrize("more", [("--prompt-logprobs", "0"), ()])
def test_run_feeds_and_shows_a_prompt_piece_by_piece(
    phasewalk: Command, demo: Generator, more: tuple[str, ...]
) -> None:
    bound = demo.engine.prefill_chunk
    options = ("--raw", *HOW, "--max-prefill-tokens", str(bound), "--phases", "--journal", "a.jsonl", *more)
    answer = phasewalk("run", LONG, *options)
    assert answer.code == 0
    assert re.findall(r"(\d+) tokens are in +-> (\w+)", answer.err) == [
        *((str(count), "prefill") for count in range(bound, 407, bound)), ("407", "sample")
    ]  # fmt: skip
    assert Journal.open("a.jsonl").header.request["max_prefill_tokens"] == bound
    assert phasewalk("replay", "a.jsonl").code == 0
    whole = phasewalk("run", LONG, "--raw", *HOW)
    assert whole.out == answer.out


def test_chat_step_and_files_feed_as_much_too(phasewalk: Command, demo: Generator) -> None:
    bound = str(demo.engine.prefill_chunk)
    chat = phasewalk("chat", *HOW, "--max-prefill-tokens", bound, "--journal", "chat.jsonl", stdin=f"{LONG}\n")
    assert chat.code == 0
    assert fed(Path("chat.jsonl"))[0] == int(bound)
    step = phasewalk("step", LONG, "--raw", *HOW, "--max-prefill-tokens", bound, "--plain", stdin="n\nq\n")
    prefills = len(range(0, 407, int(bound)))
    assert f"step {prefills + 4} of {prefills + 4}" in step.out  # with tokenize, sample, decode, check_stop
    Path("in.jsonl").write_text(json.dumps({"prompt": LONG, "raw": True, "params": {"max_new_tokens": 2}}) + "\n")
    many = phasewalk("run", "--input", "in.jsonl", "--output", "out.jsonl", "--max-prefill-tokens", bound)
    assert many.code == 0
    assert json.loads(Path("out.jsonl").read_text())["prompt_tokens"] == 407


@pytest.mark.parametrize("wrong", ["0", "-1", "x"])
def test_what_is_no_number_of_tokens_is_refused(phasewalk: Command, wrong: str) -> None:
    answer = phasewalk("run", "Hello", "--max-prefill-tokens", wrong)
    assert answer.code == 2
    assert "--max-prefill-tokens" in answer.err
