"""--machine: a generation with a phase of one's own is run, replayed, stepped, reported and resumed by its machine."""

import json
from pathlib import Path

import pytest
from command_line import Command

pytestmark = pytest.mark.slow

SHORT = '''
"""A generation that ends after as many tokens as its phase has counted."""

from phases import Generation, machine
from statemachine import Phase


class Shorten(Phase[Generation, int]):
    """Notes how many tokens there may be; every row ends with them."""

    def run(self, context: Generation) -> int:
        return 5

    def apply(self, context: Generation, outcome: int) -> None:
        context.budgets = [outcome for _ in context.budgets]


machine = machine.insert(Shorten(), between=("check_stop", "sample"))
'''
NO_GENERATION = """
from statemachine import End, Machine, Phase, Transition
start = Phase("start")
machine = Machine("other", start, [Transition(start, End("done"))])
"""
PROMPT = ["Count from 3 to 9", "--temperature", "0"]


@pytest.fixture
def short(tmp_path: Path) -> str:
    (tmp_path / "short.py").write_text(SHORT)
    return "short.py:machine"


@pytest.fixture
def recorded(phasewalk: Command, short: str) -> str:
    """The journal of a run by the machine in `short`."""
    answer = phasewalk("run", *PROMPT, "--machine", short, "--journal", "short.jsonl", "--json")
    assert answer.code == 0, answer.err
    result = json.loads(answer.out)
    assert result["finish_reason"] == "length"
    return "short.jsonl"


def test_it_is_run_and_replayed_in_every_mode(phasewalk: Command, short: str, recorded: str) -> None:
    verified = phasewalk("replay", recorded, "--machine", short)
    assert (verified.code, "verified" in verified.err) == (0, True), verified.err
    assert phasewalk("replay", ".", "--machine", short).code == 0
    played = phasewalk("replay", recorded, "--machine", short, "--mode", "play")
    assert (played.code, played.out) == (0, "3, 4,\n"), played
    forked = phasewalk("replay", recorded, "--machine", short, "--mode", "fork", "--at", "4", "--json")
    assert json.loads(forked.out)["finish_reason"] == "length"


def test_without_it_the_machine_that_is_missing_is_named(phasewalk: Command, recorded: str) -> None:
    for options in ((), ("--mode", "play")):
        answer = phasewalk("replay", recorded, *options)
        assert answer.code == 3
        assert "recorded by a machine with the phase shorten, which the one here lacks: name yours with --machine" in (
            " ".join(answer.err.split())
        )
    stepped = phasewalk("step", "--open", recorded, "--plain", stdin="where\n")
    assert "with the phase shorten" in " ".join(stepped.err.split())


def test_it_is_stepped_live_and_recorded(phasewalk: Command, short: str, recorded: str) -> None:
    live = phasewalk("step", *PROMPT, "--machine", short, "--plain", stdin="break phase shorten\nrun\nwhere\n")
    assert "at shorten" in live.out
    walked = phasewalk("step", "--open", recorded, "--machine", short, "--plain", stdin="run\nwhere\n")
    assert "tokens 5" in walked.out
    assert "with the phase" not in walked.err


def test_it_is_reported_and_traced(phasewalk: Command, short: str, recorded: str, tmp_path: Path) -> None:
    assert phasewalk("report", recorded, "--machine", short, "--verify", "-o", "short.html").code == 0
    assert "shorten" in (tmp_path / "short.html").read_text()
    assert phasewalk("trace", recorded, "--machine", short, "-o", "short.json").code == 0


def test_a_run_that_was_killed_or_saved_goes_on_by_it(
    phasewalk: Command, short: str, recorded: str, tmp_path: Path
) -> None:
    lines = (tmp_path / recorded).read_bytes().splitlines(keepends=True)
    (tmp_path / "killed.jsonl").write_bytes(b"".join(lines[:9]) + lines[9][:20])
    phasewalk("step", *PROMPT, "--machine", short, "--plain", stdin="break phase shorten\nrun\nsave paused.snap\n")
    for saved in ("killed.jsonl", "paused.snap"):
        refused = phasewalk("resume", saved)
        assert refused.code == 1
        assert "with the phase shorten" in " ".join(refused.err.split())
        gone_on = phasewalk("resume", saved, "--machine", short, "--json")
        assert json.loads(gone_on.out)["finish_reason"] == "length", gone_on.err


COMMANDS = (("run", "Hi"), ("step", "Hi"), ("replay", "a"), ("report", "a", "-o", "-"), ("resume", "a"), ("trace", "a"))


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_no_machine_that_generates_is_refused(
    phasewalk: Command, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "a").write_text("")
    (tmp_path / "other.py").write_text(NO_GENERATION)
    answer = phasewalk(*command, "--machine", "other.py:machine")
    assert answer.code == 2
    assert "no machine that generates: it has no phase tokenize and none prefill" in " ".join(answer.err.split())
    (tmp_path / "odd.py").write_text("1 / 0")
    answer = phasewalk(*command, "--machine", "odd.py")
    assert answer.code == 1
    assert "odd.py, line 1: ZeroDivisionError" in answer.err
