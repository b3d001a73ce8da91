"""phasewalk run: what it prints and refuses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Command, finish

from gpu import engines

pytestmark = pytest.mark.slow

SHORT = ("--temperature", "0", "--max-new-tokens", "6")
NUMPY = ("--engine", "numpy")


def test_run_streams_and_json_says_the_same(phasewalk: Command, chat_folder: Path) -> None:
    options = ("--model", str(chat_folder), *NUMPY, *SHORT)
    plain = phasewalk("run", "the fox", *options)
    piped = phasewalk("run", *options, stdin="the fox\n")
    as_json = phasewalk("run", "the fox", *options, "--json")
    assert (plain.code, plain.err) == (0, "")
    dashed = phasewalk("run", "-", *options, stdin="the fox\n")
    assert piped == dashed == plain
    value = json.loads(as_json.out)
    assert value["text"] + "\n" == plain.out
    assert value["output_tokens"] == len(value["output_ids"]) == 6
    assert value["finish_reason"] == "length"
    messages = Path("chat.json")
    messages.write_text(json.dumps([{"role": "user", "content": "the fox"}]))
    assert phasewalk("run", "--messages", str(messages), *options) == plain


def test_what_a_checkpoint_asks_for_and_nobody_heeds_is_told_in_a_line(
    phasewalk: Command, chat_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(chat_folder, tmp_path / "model")
    (folder / "generation_config.json").write_text('{"typical_p": 0.9}')
    options = ("run", "the fox", "--model", str(folder), *NUMPY, *SHORT)
    answer = phasewalk(*options)
    [line] = answer.err.splitlines()
    assert (answer.code, "asks for typical_p 0.9, which is not honoured" in line) == (0, True)
    refused = phasewalk(*options, "--strict")
    assert (refused.code, refused.out) == (1, "")
    assert "typical_p 0.9, which is not honoured: take it out" in refused.err


def test_a_seed_repeats_the_text(phasewalk: Command, chat_folder: Path) -> None:
    options = ("run", "the fox", "--model", str(chat_folder), "--temperature", "1.5", "--max-new-tokens", "20")
    first = json.loads(phasewalk(*options, "--json").out)
    again = phasewalk(*options, "--seed", str(first["seed"]))
    assert again.out == first["text"] + "\n"


def test_stats_and_phases_go_to_stderr(phasewalk: Command, chat_folder: Path) -> None:
    answer = phasewalk("run", "the fox", "--model", str(chat_folder), *NUMPY, *SHORT, "--stats", "--phases")
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


@pytest.mark.gpu
@pytest.mark.skipif("cuda" not in engines(), reason="needs a device")
def test_stats_tell_what_an_engine_of_a_device_did(phasewalk: Command, chat_folder: Path) -> None:
    command = ("run", "x", "--model", str(chat_folder), *SHORT, "--engine", "cuda", "--stats")
    words = phasewalk(*command, "--decode", "per-op").err
    assert " · decode path per-op (asked for) · graph hits " in words
    facts = json.loads(phasewalk(*command, "--json").out)["stats"]["engine"]
    assert facts["decode path"].startswith("per-op (the ")  # and why no other
    assert facts["graph hits"] > 0
    assert facts["graph fallbacks"] == 0


def test_ranges_for_a_profiler_are_those_of_the_phases(
    phasewalk: Command, chat_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = ("run", "the fox", "--model", str(chat_folder), *NUMPY, *SHORT)
    expected = phasewalk(*command).out
    monkeypatch.setitem(sys.modules, "nvtx", None)
    refused = phasewalk(*command, "--nvtx")
    assert refused.code == 2
    assert "pip install" in refused.err
    monkeypatch.delitem(sys.modules, "nvtx")
    (tmp_path / "nvtx.py").write_text(NVTX)
    monkeypatch.syspath_prepend(str(tmp_path))
    answer = phasewalk(*command, "--nvtx")
    monkeypatch.delitem(sys.modules, "nvtx")
    assert (answer.code, answer.out) == (0, expected)
    steps = ["sample", "decode", "check_stop"]
    assert answer.err.split() == ["tokenize", "prefill", *steps * 5, "sample", "check_stop", "detokenize"]


# What of the package nvtx is used, with words instead of ranges.
NVTX = """
import sys
from contextlib import contextmanager

@contextmanager
def annotate(message, domain):
    assert domain == "phasewalk"
    print(message, file=sys.stderr)
    yield
"""


def test_ranges_of_the_real_package_change_nothing(phasewalk: Command, chat_folder: Path) -> None:
    pytest.importorskip("nvtx")
    command = ("run", "the fox", "--model", str(chat_folder), *SHORT)
    assert phasewalk(*command, "--nvtx") == phasewalk(*command)


FAILURES = [
    (("run", "x", "--engine", "numpy", "--decode", "per-op"),
     "the engine numpy has no decode per-op: expected alone or together"),
    (("run", "x", "--engine", "numpy", "--plan", __file__),
     "the engine numpy has no option plan: leave it out, or take the engine tensorrt"),
    (("run", "", *NUMPY), "row 0 is empty"),
    (("run", "word " * 400, *NUMPY), "the capacity is 128 tokens"),
    (("run", "x", "--model", "nowhere/at/all"), "nowhere/at/all"),
    (("run", "x", "--capacity", "100000", *NUMPY), "128 positions"),
]  # fmt: skip


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


def test_an_over_long_prompt_names_the_option_as_long_as_it_helps(phasewalk: Command, chat_folder: Path) -> None:
    prompt = "word " * 400
    largest = phasewalk("run", prompt, "--model", str(chat_folder))
    assert "shorten the prompt by" in largest.err
    assert "capacity=" not in largest.err
    assert "raise" not in largest.err
    small = phasewalk("run", prompt, "--model", str(chat_folder), "--capacity", "64")
    assert "or raise --capacity (the model has 128 positions)" in small.err


def test_an_optional_journal_that_cannot_be_made_is_a_warning(phasewalk: Command, chat_folder: Path) -> None:
    arguments = ("run", "the fox", "--model", str(chat_folder), *NUMPY, *SHORT)
    without = phasewalk(*arguments)
    journal = ("--journal", "no/such/folder.jsonl")
    answer = phasewalk(*arguments, *journal, "--journal-optional")
    assert (answer.code, answer.out) == (0, without.out)
    assert answer.err.count("\n") == 1
    assert "no/such/folder.jsonl cannot be made" in answer.err
    assert "goes on without" in answer.err
    needed = phasewalk(*arguments, *journal)
    assert (needed.code, needed.out) == (2, "")
    assert "cannot be made" in needed.err


def test_an_optional_journal_on_a_full_disk_is_a_warning_in_one_line(chat_folder: Path, tmp_path: Path) -> None:
    code = (
        "import resource; from phases.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); main()"
    )
    journal = ("--journal", "a.jsonl", "--journal-optional")
    arguments = ["run", "fox", "--model", str(chat_folder), *NUMPY, *SHORT, *journal]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path,
                          check=False)  # fmt: skip
    assert done.returncode == 0
    assert done.stdout
    assert done.stderr.count("\n") == 1
    assert "cannot be written" in done.stderr


def test_what_is_piped_in_must_be_text(chat_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(b"\xff\xfe")
    with (tmp_path / "odd").open("rb") as odd:
        answer = finish("run", "--model", str(chat_folder), stdin=odd, env=os.environ | {"PYTHONIOENCODING": "utf-8"})
    assert answer.code == 2
    assert "is no utf-8 text" in answer.err
