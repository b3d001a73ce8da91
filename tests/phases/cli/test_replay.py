"""phasewalk replay: what it prints of a record, and what it refuses."""

import json
import os
import pty
from pathlib import Path

import pytest
from cli_records import STEERING
from command_line import Command, finish, spawn

from phases import Generator, SamplingParams
from phases.printable import printable

pytestmark = pytest.mark.slow

CORPUS = Path(__file__).parents[2] / "journals" / "schema1"  # its journals have no checksums


def test_divergence_is_told_by_the_exit_status(phasewalk: Command, tmp_path: Path) -> None:
    good = (CORPUS / "batch.jsonl").read_text()
    (tmp_path / "good.jsonl").write_text(good)
    (tmp_path / "odd.jsonl").write_text(good.replace('"p":"decode","e":4,"o":[', '"p":"decode","e":4,"o":[1', 1))
    (tmp_path / "broken.jsonl").write_text(good[:500])
    table = phasewalk("replay", ".")
    assert table.code == 3
    assert [next(word for word in ("verified", "diverged", "unusable") if word in line)
            for line in table.out.splitlines() if ".jsonl" in line] == ["unusable", "verified", "diverged"]  # fmt: skip
    odd = phasewalk("replay", "odd.jsonl", "--json")
    assert odd.code == 3
    assert json.loads(odd.out)["divergence"]["field"] == "outcome"
    broken = phasewalk("replay", "broken.jsonl")
    assert broken.code == 1
    assert broken.err.startswith("phasewalk: broken.jsonl is no journal")
    play = phasewalk("replay", "good.jsonl", "--mode", "play")
    assert play.code == 0
    assert play.out.startswith("[row 0] 3, 4, 5, 6, 7, 8, 9.\n")


def test_a_step_that_the_record_does_not_reach_is_refused(phasewalk: Command, journal: Path) -> None:
    count = json.loads(phasewalk("replay", str(journal), "--mode", "play", "--json").out)["steps"]
    for mode in ("play", "fork"):
        answer = phasewalk("replay", str(journal), "--mode", mode, "--at", "99999")
        assert (answer.code, answer.out) == (2, "")
        assert f"has {count} steps, so STEP is from 0 to {count}" in answer.err
    assert phasewalk("replay", str(journal), "--mode", "play", "--at", str(count)).code == 0
    assert phasewalk("replay", str(journal), "--mode", "play", "--at", "9" * 30).code == 2


def test_play_prints_the_text_so_far_and_where_it_rests(phasewalk: Command, journal: Path, chat_folder: Path) -> None:
    from phases import Generator

    whole = phasewalk("replay", str(journal), "--mode", "play")
    part = phasewalk("replay", str(journal), "--mode", "play", "--at", "14")
    assert part.code == 0
    assert part.out.strip()
    assert whole.out.startswith(part.out.rstrip("\n"))
    assert "14 steps, resting at sample" in part.err
    start = phasewalk("replay", str(journal), "--mode", "play", "--at", "0")
    assert (start.out, "0 steps, resting at tokenize" in start.err) == ("\n", True)
    ids = json.loads(phasewalk("replay", str(journal), "--mode", "play", "--at", "14", "--json").out)["output_ids"]
    with Generator.from_pretrained(chat_folder, max_batch=1, self_check=False) as generator:
        assert part.out == generator.tokenizer.decode(ids[0]) + "\n"


def test_text_of_a_record_never_steers_the_terminal(steering: Path) -> None:
    shown = r"\x1b[2J\x9b0m\x0dnaïve → 🦊\x07\x7f"
    for options in (("--mode", "play"), ("--mode", "play", "--at", "60")):
        answer = finish("replay", str(steering), *options)
        assert answer.out.strip()
        assert shown.startswith(answer.out.strip())
    as_json = finish("replay", str(steering), "--mode", "play", "--json")
    assert json.loads(as_json.out)["output_texts"] == [STEERING]
    assert not set("\x1b\x9b\x7f\r\x07") & set(as_json.out)
    commands = steering.with_name("commands")
    commands.write_text("run\ntext\ntimeline 99\n")
    with commands.open() as lines:
        steps = finish("step", "--open", str(steering), stdin=lines)
    assert "output: " in steps.out
    assert not set("\x1b\x9b\x7f\r\x07") & set(steps.out + steps.err)


def test_generated_text_is_escaped_on_a_terminal_and_exact_in_a_pipe(steering: Path, tmp_path: Path) -> None:
    fork = ("replay", str(steering), "--mode", "fork")
    with (tmp_path / "out").open("wb") as out:
        spawn(*fork, stdout=out).communicate(timeout=60)
    assert (tmp_path / "out").read_bytes().decode() == STEERING + "\n"
    ours, theirs = pty.openpty()
    process = spawn(*fork, stdout=theirs)
    os.close(theirs)
    process.communicate(timeout=60)
    printed = os.read(ours, 10_000).decode()
    os.close(ours)
    assert printed.replace("\r\n", "\n") == r"\x1b[2J\x9b0m\x0dnaïve → 🦊\x07\x7f" + "\n"


def test_the_rows_of_a_batch_are_told_apart(phasewalk: Command, tmp_path: Path, generator: Generator) -> None:
    run = generator.start(["the fox", "a dog"], SamplingParams(temperature=0, max_new_tokens=6), journal="batch.jsonl")
    run.start()
    texts = run.context.output_texts
    lines = "".join(f"[row {row}] {text}\n" for row, text in enumerate(texts))
    shown = printable(lines)
    assert phasewalk("replay", "batch.jsonl", "--mode", "play").out == shown
    assert phasewalk("replay", "batch.jsonl", "--mode", "fork", "--at", "4").out == lines
    value = json.loads(phasewalk("replay", "batch.jsonl", "--mode", "fork", "--at", "4", "--json").out)
    assert [row["text"] for row in value["rows"]] == texts
