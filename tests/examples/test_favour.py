"""The example of a phase of one's own: on the command line its runs are as any others."""

import inspect
import json
from pathlib import Path

import favour
import pytest
from command_line import Command, phasewalk

from phases import Generator, SamplingParams

pytestmark = pytest.mark.slow

__all__ = ["phasewalk"]  # a fixture

MACHINE = ("--machine", f"{favour.__file__}:machine")
PROMPT = ("Tell me a story about a fox.", "--temperature", "0", "--max-new-tokens", "15", "--engine", "numpy")
TEXT = "Once upon a time, a fox lived in a forest. One day"


def test_it_has_15_lines() -> None:
    assert len(inspect.getsource(favour.Favour).splitlines()) <= 15


def test_it_is_recorded_replayed_stepped_and_reported(phasewalk: Command, tmp_path: Path) -> None:
    run = phasewalk("run", *PROMPT, *MACHINE, "--journal", "run.jsonl", "--phases")
    assert run.out == f"{TEXT}\n"
    assert [line.split()[1] for line in run.err.splitlines()].count("favour") == 15
    assert " of 1536 tokens " in run.err
    for mode in ("verify", "play"):
        done = phasewalk("replay", "run.jsonl", "--mode", mode, *MACHINE)
        assert done.code == 0, done.err
    stepped = phasewalk("step", "--open", "run.jsonl", *MACHINE, "--plain", stdin="break phase favour\nrun\nwhere\n")
    assert "at favour" in stepped.out
    live = phasewalk("step", *PROMPT, *MACHINE, "--plain", stdin="run\ntext\n")
    assert "in a forest" in live.out
    assert phasewalk("report", "run.jsonl", *MACHINE, "--verify", "-o", "run.html").code == 0
    assert "favour" in (tmp_path / "run.html").read_text()
    assert phasewalk("trace", "run.jsonl", *MACHINE, "-o", "run.json").code == 0
    names = {event.get("name") for event in json.loads((tmp_path / "run.json").read_text())["traceEvents"]}
    assert "favour" in names
    assert phasewalk("diagram", "--journal", "run.jsonl", "-o", "run.mmd").code == 0


def test_a_word_that_is_favoured_comes_and_one_that_is_not_goes() -> None:
    params = SamplingParams(temperature=0, max_new_tokens=30)
    for words, there in (({"garden": 9.0}, "garden"), ({"big": -99.0, "city": -99.0}, "")):
        with Generator.from_pretrained(
            machine=favour.generation.insert(favour.Favour(**words), before="sample"), self_check=False
        ) as generator:
            text = generator.generate("Tell me a story about a fox.", params).text
        assert there in text
        assert " city" not in text
