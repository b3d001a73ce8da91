"""How much of a prompt one step feeds is said on the command line, and shown and recorded."""

import json
import re
from pathlib import Path

import pytest
from command_line import Command

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
def test_run_feeds_and_shows_a_prompt_piece_by_piece(phasewalk: Command, more: tuple[str, ...]) -> None:
    options = ("--raw", *HOW, "--max-prefill-tokens", "256", "--phases", "--journal", "a.jsonl", *more)
    answer = phasewalk("run", LONG, *options)
    assert answer.code == 0
    assert re.findall(r"(\d+) tokens are in +-> (\w+)", answer.err) == [("256", "prefill"), ("407", "sample")]
    assert Journal.open("a.jsonl").header.request["max_prefill_tokens"] == 256
    assert phasewalk("replay", "a.jsonl").code == 0
    whole = phasewalk("run", LONG, "--raw", *HOW)
    assert whole.out == answer.out


def test_chat_step_and_files_feed_as_much_too(phasewalk: Command) -> None:
    chat = phasewalk("chat", *HOW, "--max-prefill-tokens", "256", "--journal", "chat.jsonl", stdin=f"{LONG}\n")
    assert chat.code == 0
    assert len(fed(Path("chat.jsonl"))) == 2
    step = phasewalk("step", LONG, "--raw", *HOW, "--max-prefill-tokens", "256", "--plain", stdin="n\nq\n")
    assert "step 6 of 6" in step.out  # tokenize, prefill, prefill, sample, decode, check_stop
    Path("in.jsonl").write_text(json.dumps({"prompt": LONG, "raw": True, "params": {"max_new_tokens": 2}}) + "\n")
    many = phasewalk("run", "--input", "in.jsonl", "--output", "out.jsonl", "--max-prefill-tokens", "256")
    assert many.code == 0
    assert json.loads(Path("out.jsonl").read_text())["prompt_tokens"] == 407


@pytest.mark.parametrize("wrong", ["0", "-1", "x"])
def test_what_is_no_number_of_tokens_is_refused(phasewalk: Command, wrong: str) -> None:
    answer = phasewalk("run", "Hello", "--max-prefill-tokens", wrong)
    assert answer.code == 2
    assert "--max-prefill-tokens" in answer.err
