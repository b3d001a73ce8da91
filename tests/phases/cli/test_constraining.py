"""--json-schema, --regex, --choice, --grammar: what comes, how its run is gone on with, and what is refused."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
from command_line import Command

pytestmark = pytest.mark.slow

RUN = ("run", "Tell me a story about a fox.", "--engine", "numpy", "--seed", "1")
SCHEMA = {
    "type": "object",
    "properties": {"animal": {"enum": ["cat", "fox", "owl"]}, "age": {"type": "integer", "maximum": 30}},
    "required": ["animal", "age"],
    "additionalProperties": False,
}


@pytest.fixture
def schema(tmp_path: Path) -> str:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    return "schema.json"


def test_each_kind_says_what_comes(phasewalk: Command, tmp_path: Path, schema: str) -> None:
    jsonschema.validate(json.loads(phasewalk(*RUN, "--json-schema", schema).out), SCHEMA)
    assert re.fullmatch("[0-9]{3}-[a-z]{2}\n", phasewalk(*RUN, "--regex", "[0-9]{3}-[a-z]{2}").out)
    assert phasewalk(*RUN, "--choice", "yes", "--choice", "no").out in ("yes\n", "no\n")
    (tmp_path / "sum.lark").write_text('start: "1" ("+" "1")? "."')
    assert phasewalk(*RUN, "--grammar", "sum.lark").out in ("1.\n", "1+1.\n")


def test_its_record_needs_no_option_more(phasewalk: Command, tmp_path: Path, schema: str) -> None:
    ran = phasewalk(*RUN, "--json-schema", schema, "--journal", "run.jsonl", "--phases")
    assert re.search(r"constrain .* of \d+ tokens +-> sample", ran.err)
    verified = phasewalk("replay", "run.jsonl")
    assert (verified.code, "verified" in verified.err, "lacks" in verified.err) == (0, True, False)
    for mode in ("play", "fork"):
        done = phasewalk("replay", "run.jsonl", "--mode", mode, "--at", "9", "--json")
        assert (done.code, done.err) == (0, ""), done.err
    assert phasewalk("replay", ".").code == 0
    walked = phasewalk("step", "--open", "run.jsonl", "--plain", stdin="break phase constrain\nrun\nwhere\n")
    assert ("at constrain" in walked.out, "lacks" in walked.err) == (True, False)
    assert phasewalk("report", "run.jsonl", "--verify", "-o", "run.html").code == 0
    assert "constrain" in (tmp_path / "run.html").read_text()
    traced = phasewalk("trace", "run.jsonl", "-o", "trace.json")
    assert (traced.code, "constrain" in (tmp_path / "trace.json").read_text()) == (0, True)


def test_it_is_stepped_saved_and_gone_on_with(phasewalk: Command, tmp_path: Path, schema: str) -> None:
    step = ("step", *RUN[1:], "--json-schema", schema, "--journal", "run.jsonl")
    stepped = phasewalk(*step, "--plain", stdin="next\nnext\nforce FOX\nback 2\nsave half.snap\n")
    assert "at constrain" in stepped.out
    assert "breaks" in stepped.out + stepped.err
    resumed = phasewalk("resume", "half.snap")
    jsonschema.validate(json.loads(resumed.out), SCHEMA)
    lines = (tmp_path / "run.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "killed.jsonl").write_bytes(b"".join(lines[:9]) + lines[9][:20])
    recovered = phasewalk("resume", "killed.jsonl")
    assert (recovered.code, recovered.out) == (0, resumed.out), recovered.err


def test_a_phase_of_ones_own_comes_before_it(phasewalk: Command, tmp_path: Path) -> None:
    """Whatever it does to the logits, the text is what it is to be."""
    (tmp_path / "loud.py").write_text(
        "from phases import Generation, LogitsPhase, machine\n"
        "class Loud(LogitsPhase):\n"
        "    def adjust(self, context, row, logits):\n"
        "        logits[300:] += 50\n"
        "machine = machine.insert(Loud(), before='sample')\n"
    )
    ran = phasewalk(*RUN, "--choice", "yes", "--choice", "no", "--machine", "loud.py", "--journal", "run.jsonl")
    assert ran.out in ("yes\n", "no\n")
    phases = [json.loads(line).get("p") for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert phases[3:6] == ["loud", "constrain", "sample"]
    assert phasewalk("replay", "run.jsonl", "--machine", "loud.py").code == 0


def test_what_makes_no_sense_is_refused(phasewalk: Command, tmp_path: Path, schema: str) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "bytes.lark").write_bytes(b"\xff\xfe")
    (tmp_path / "odd.json").write_text('{"type": "intger"}')
    for status, options, message in (
        (2, ("--regex", "a", "--choice", "b"), "not --regex and --choice both"),
        (2, ("--json-schema", "broken.json"), "is no JSON"),
        (2, ("--json-schema", "none.json"), "does not exist"),
        (2, ("--grammar", "bytes.lark"), "is not UTF-8 text"),
        (1, ("--json-schema", "odd.json"), "Invalid type: intger"),
        (1, ("--regex", "[a-"), "unclosed character class"),
    ):
        answer = phasewalk(*RUN, *options, "--journal", "run.jsonl")
        assert (answer.code, answer.out) == (status, ""), options
        assert message in " ".join(answer.err.replace("│", " ").split()), options
    assert not (tmp_path / "run.jsonl").exists()
