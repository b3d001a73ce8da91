"""phasewalk run: what it prints and refuses."""

import json
import sys
from pathlib import Path

import pytest
from command_line import Command

SHORT = ("--temperature", "0", "--max-new-tokens", "6")


def test_run_streams_and_json_says_the_same(phasewalk: Command, chat_folder: Path) -> None:
    plain = phasewalk("run", "the fox", "--model", str(chat_folder), *SHORT)
    piped = phasewalk("run", "--model", str(chat_folder), *SHORT, stdin="the fox\n")
    as_json = phasewalk("run", "the fox", "--model", str(chat_folder), *SHORT, "--json")
    assert (plain.code, plain.err) == (0, "")
    assert piped == plain
    value = json.loads(as_json.out)
    assert value["text"] + "\n" == plain.out
    assert value["output_tokens"] == len(value["output_ids"]) == 6
    assert value["finish_reason"] == "length"
    messages = Path("chat.json")
    messages.write_text(json.dumps([{"role": "user", "content": "the fox"}]))
    assert phasewalk("run", "--messages", str(messages), "--model", str(chat_folder), *SHORT) == plain


def test_a_seed_repeats_the_text(phasewalk: Command, chat_folder: Path) -> None:
    options = ("run", "the fox", "--model", str(chat_folder), "--temperature", "1.5", "--max-new-tokens", "20")
    first = json.loads(phasewalk(*options, "--json").out)
    again = phasewalk(*options, "--seed", str(first["seed"]))
    assert again.out == first["text"] + "\n"


def test_stats_and_phases_go_to_stderr(phasewalk: Command, chat_folder: Path) -> None:
    answer = phasewalk("run", "the fox", "--model", str(chat_folder), *SHORT, "--stats", "--phases")
    lines = answer.err.splitlines()
    assert [line.split()[1] for line in lines[:5]] == ["tokenize", "prefill", "sample", "decode", "check_stop"]
    assert "prompt tokens" in lines[0]
    assert lines[2].endswith("-> decode  (~nothing_left)")
    assert "tokens/s" in lines[-1]
    assert "MB/token" in lines[-1]
    assert "GB/s" in lines[-1]
    value = json.loads(phasewalk("run", "x", "--model", str(chat_folder), *SHORT, "--stats", "--json").out)
    stats = value["stats"]
    assert stats["bytes_per_s"] == pytest.approx(stats["bytes_per_token"] * stats["tokens_per_s"])
    assert stats["bandwidth_share"] == pytest.approx(stats["bytes_per_s"] / stats["bandwidth_bytes_per_s"])


FAILURES = [
    (("run", ""), "row 0 is empty"),
    (("run", "word " * 400), "the capacity is 128 tokens"),
    (("run", "x", "--model", "nowhere/at/all"), "nowhere/at/all"),
    (("run", "x", "--capacity", "100000"), "128 positions"),
]


@pytest.mark.parametrize(("arguments", "message"), FAILURES)
def test_a_failure_exits_with_1_and_one_line(
    phasewalk: Command, chat_folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    model = () if "--model" in arguments else ("--model", str(chat_folder))
    answer = phasewalk(*arguments, *model)
    assert answer.code == 1
    assert message in answer.err
    assert answer.err.count("\n") == 1
    assert answer.err.startswith("phasewalk: ")
    assert answer.out in ("", "\n")


def test_no_prompt_and_no_pipe_is_a_usage_error(phasewalk: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    answer = phasewalk("run")
    assert answer.code == 2
    assert "nothing to say" in answer.err
