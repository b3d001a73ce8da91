"""What phases raised is recorded, verified, played, saved and recovered as every other outcome."""

import json
import signal
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import hostile
import pytest
from charging import TABLE, Charge, GatewayDown, Line, Purchase, charge, machine, ready, record
from forging import forged, with_step
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rule_checks import caught, hold, hold_and_see
from statemachine_recorded import lines

from statemachine import (
    End,
    Journal,
    JournalError,
    JournalWriter,
    Machine,
    Migration,
    Phase,
    PhaseError,
    Raised,
    Run,
    Status,
    Transition,
    play,
    recover,
    restore,
    verify,
)
from statemachine.record.snapshot import load
from statemachine.testing import coverage, machine_rules
from statemachine.views.tally import CaughtTally, Tally
from statemachine.views.trace import write_trace

SCRIPT = ("GatewayDown", "GatewayTimeout", "")
TESTS = Path(__file__).parents[2]


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    record(tmp_path / "a.jsonl", *SCRIPT)
    return tmp_path / "a.jsonl"


def test_a_journal_says_what_was_raised(recorded: Path) -> None:
    steps = [json.loads(line) for line in recorded.read_text().splitlines() if '"type":"s"' in line]
    assert [step.get("x") for step in steps[:3]] == [
        {"way": "GatewayDown", "exception": "GatewayDown", "message": "attempt 0"},
        None,
        {"way": "GatewayDown", "exception": "GatewayTimeout", "message": "attempt 1"},
    ]
    assert "o" not in steps[0]
    table = Journal.open(recorded).header.machine.transitions
    assert str(table[1]) == "charge -> back_off on GatewayDown when tries_left"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["", "GatewayDown", "GatewayTimeout", "CardRefused", "ValueError"]), max_size=5))
def test_it_verifies_and_plays(tmp_path: Path, script: list[str]) -> None:
    path = tmp_path / "any.jsonl"
    path.unlink(missing_ok=True)
    run = ready(*script, journal=JournalWriter(path))
    try:
        run.start()
    except PhaseError:
        assert "ValueError" in script
    run.close()
    verdict = verify(Journal.open(path), ready(*script))
    assert verdict.divergence is None
    assert verdict.complete
    player = Run(machine, Purchase([*script]))
    assert play(Journal.open(path), player) is None
    assert player.context.log == run.context.log
    assert list(player.steps()) == list(run.steps())
    assert player.context.line == []  # playing touches nothing that stands behind the context


def test_what_comes_out_otherwise_is_told(recorded: Path) -> None:
    journal = Journal.open(recorded)
    for script, expected in (
        (("", ""), (0, "GatewayDown: attempt 0", "nothing")),
        (("GatewayTimeout", ""), (0, "GatewayDown: attempt 0", "GatewayTimeout: attempt 0")),
        (("GatewayDown", "CardRefused"), (2, "GatewayTimeout: attempt 1", "CardRefused: attempt 1")),
        (("GatewayDown", "ValueError"), (2, "GatewayTimeout: attempt 1", "ValueError: attempt 1")),
        ((*SCRIPT[:2], "GatewayDown"), (4, "nothing", "GatewayDown: attempt 2")),
    ):
        divergence = verify_after(journal, script)
        assert divergence is not None
        assert (divergence.step, divergence.recorded, divergence.replayed) == expected
        assert divergence.field == "error"


class Scripted(Charge):
    """Raises as another script says than the context, so that only the phase differs."""

    def __init__(self, script: tuple[str, ...]) -> None:
        super().__init__("charge")
        self.script = script

    def run(self, context: Purchase) -> int:
        return super().run(Purchase([*self.script], attempts=context.attempts))


def verify_after(journal: Journal, script: tuple[str, ...]) -> Any:
    scripted = Scripted(script)
    table = [Transition(scripted, way.target, way.when, way.raises) for way in TABLE[:4]]
    other = Machine("purchase", scripted, [*table, Transition(TABLE[4].source, scripted)])
    return verify(journal, ready(*SCRIPT, of=other)).divergence


def test_a_machine_without_the_way_diverges_where_it_was_taken(recorded: Path) -> None:
    gone = Machine("purchase", charge, [*TABLE[:1], *TABLE[3:4], Transition(charge, TABLE[1].target, raises=KeyError),
                                        TABLE[4]])  # fmt: skip
    for replay in (lambda run: verify(Journal.open(recorded), run).divergence,
                   lambda run: play(Journal.open(recorded), run)):  # fmt: skip
        divergence = replay(ready(*SCRIPT, of=gone))
        assert divergence is not None
        assert (divergence.step, divergence.field) == (0, "error")
        assert divergence.replayed == "no way on GatewayDown; there are: CardRefused, KeyError"
        assert "transition gone: charge -> back_off on GatewayDown when tries_left" in divergence.causes


def test_a_renamed_exception_is_migrated(recorded: Path) -> None:
    class LineDown(Exception):
        pass

    class Renamed(Charge):
        def run(self, context: Purchase) -> int:
            try:
                return super().run(context)
            except GatewayDown as error:
                raise LineDown(str(error)) from error

    renamed = Renamed("charge")
    table = [
        Transition(renamed, way.target, way.when, LineDown if way.raises is GatewayDown else way.raises)
        for way in TABLE[:4]
    ]
    newer = Machine("purchase", renamed, [*table, Transition(TABLE[4].source, renamed)], version=2, migrations=[
        Migration(1, errors={"GatewayDown": "LineDown", "GatewayTimeout": "LineDown"})
    ])  # fmt: skip
    assert verify(Journal.open(recorded), ready(*SCRIPT, of=newer)).verified
    assert play(Journal.open(recorded), run := ready(*SCRIPT, of=newer)) is None
    assert next(run.steps()).raised == Raised("LineDown", "LineDown", "attempt 0")


@pytest.mark.slow
def test_a_journal_from_outside_is_read_or_refused(recorded: Path, tmp_path: Path) -> None:
    def read(path: Path) -> None:
        journal = Journal.open(path)
        for run in (ready(*SCRIPT), ready(*SCRIPT)):
            hostile.check_divergence(play(journal, run))
        hostile.check_divergence(verify(journal, ready(*SCRIPT)).divergence)
        assert Tally.of(journal).shares()
        write_trace(journal, BytesIO())

    paths = hostile.files(lines(recorded), tmp_path, 600, 3)
    assert 50 < hostile.refusals(read, paths, seconds=2) < 600


def test_a_failure_that_has_a_way_by_now_diverges(tmp_path: Path) -> None:
    run = ready("ValueError", journal=JournalWriter(tmp_path / "a.jsonl"))
    with pytest.raises(PhaseError):
        run.start()
    run.close()
    newer = Machine("purchase", charge, [*TABLE, Transition(charge, "dropped", raises=ValueError)])
    divergence = verify(Journal.open(tmp_path / "a.jsonl"), ready("ValueError", of=newer)).divergence
    assert divergence is not None
    assert (divergence.field, divergence.recorded, divergence.replayed) == ("error", "ValueError: attempt 0", "nothing")


def test_a_snapshot_goes_on(tmp_path: Path) -> None:
    run = ready(*SCRIPT)
    run.until(lambda run: run.step_count == 3)
    for history in (True, False):
        run.snapshot(tmp_path / f"{history}.snap", history=history)
        other = ready(*SCRIPT)
        assert restore(load(tmp_path / f"{history}.snap"), other) is None
        if history:
            assert list(other.steps()) == list(run.steps())
            other.back(1)
            assert other.context.log == run.context.log[:2]
            other.goto(3)
        assert other.resume() is Status.DONE
        assert other.context.log[-1] == "paid 102"


KILLED = """
import os, signal, sys
from charging import ready
from statemachine import JournalWriter
run = ready(*["GatewayDown"] * 2, journal=JournalWriter(sys.argv[1], every="step"))
for step in run:
    if step.number == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("last", [0, 1, 2])
def test_a_run_that_was_killed_goes_on(tmp_path: Path, last: int) -> None:
    path = tmp_path / "a.jsonl"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path), str(last)], cwd=TESTS, check=False)
    assert killed.returncode == -signal.SIGKILL
    run = ready(*["GatewayDown"] * 2)
    assert recover(path, run) is None
    assert run.step_count == last + 1
    assert next(run.steps()).raised == Raised("GatewayDown", "GatewayDown", "attempt 0")
    assert run.resume() is Status.DONE
    run.close()
    assert verify(Journal.open(path), ready(*["GatewayDown"] * 2)).verified
    assert run.context.log[-1] == "paid 102"


def test_a_phase_that_raised_left_nothing_to_digest(tmp_path: Path) -> None:
    class Digested(Charge):
        def digest(self, context: Purchase) -> list[str]:
            return [*context.line]

    digested = Digested("charge")
    table = [Transition(digested, way.target, way.when, way.raises) for way in TABLE[:4]]
    other = Machine("purchase", digested, [*table, Transition(TABLE[4].source, digested)])
    run = ready(*SCRIPT, of=other, journal=JournalWriter(tmp_path / "a.jsonl"), digest_every=1)
    run.start()
    assert run.timeline.digests == {4: ["synced", "half", "whole"]}
    assert verify(Journal.open(tmp_path / "a.jsonl"), ready(*SCRIPT, of=other)).verified


RAISED = {"way": "GatewayDown", "exception": "GatewayDown", "message": "attempt 0"}


def table(number: int, row: list[Any]) -> Any:
    def change(records: list[dict[str, Any]]) -> None:
        records[0]["machine"]["transitions"][number] = row

    return change


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (with_step(0, e=0), "takes transition [charge -> paid], which is not for GatewayDown"),
        (with_step(0, e=3), "takes transition [charge -> dropped on CardRefused], which is not for GatewayDown"),
        (with_step(0, x=None), "takes transition [charge -> back_off on GatewayDown when tries_left], but nothing was"),
        (with_step(0, x=RAISED | {"way": "Nothing"}), "which is not for Nothing"),
        (with_step(0, e=99), "names transition 99, but the header has 5"),
        (with_step(1, x=RAISED), "takes transition [back_off -> charge], which is not for GatewayDown"),
        (with_step(0, o=5), "has an outcome, and says that GatewayDown was raised"),
        (with_step(0, x=RAISED | {"more": 1}), "Object contains unknown field `more`"),
        (with_step(0, x={"way": "GatewayDown"}), "missing required field `exception`"),
        (with_step(0, x=RAISED | {"message": "x" * 5001}), "length <= 5000"),
        (with_step(0, x=RAISED | {"message": 5}), "Expected `str`"),
        (with_step(0, x="GatewayDown"), "Expected `object | null`"),
        (table(1, ["charge", "back_off", "tries_left", ["Gateway\nDown"]]), "holds control characters"),
        (table(1, ["charge", "back_off", "tries_left", "GatewayDown"]), "Expected `array`"),
    ],
)
def test_a_forged_record_is_refused_by_name(recorded: Path, tmp_path: Path, change: Any, complaint: str) -> None:
    path = forged(recorded, tmp_path / "b.jsonl", change)
    for replay in (verify, play):
        with pytest.raises(JournalError) as refused:
            replay(Journal.open(path), ready(*SCRIPT))
        assert complaint in str(refused.value)


def test_an_exception_at_a_phase_without_ways_is_refused(recorded: Path, tmp_path: Path) -> None:
    def change(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        records[0]["machine"]["transitions"][4][3] = ["GatewayDown"]
        records[2] |= {"x": RAISED}
        records[2].pop("o")
        return records[:3]

    divergence = play(Journal.open(forged(recorded, tmp_path / "b.jsonl", change)), run := ready(*SCRIPT))
    assert divergence is not None
    assert divergence.replayed == "no way on GatewayDown; there are: none"
    assert (run.step_count, run.phase_name, run.status) == (1, "back_off", Status.PAUSED)


def test_an_outcome_that_looks_like_it_is_read_as_an_outcome(tmp_path: Path) -> None:
    class Odd(Phase[dict[str, Any], dict[str, str]]):
        def run(self, context: dict[str, Any]) -> dict[str, str]:
            return RAISED

        def apply(self, context: dict[str, Any], outcome: dict[str, str]) -> None:
            context["found"] = outcome

    odd = Odd()
    looks = Machine("looks", odd, [Transition(odd, end := End("end")), Transition(odd, end, raises=GatewayDown)])
    run = Run(looks, {}, journal=JournalWriter(tmp_path / "a.jsonl"))
    run.start()
    for replay in (lambda run: verify(Journal.open(tmp_path / "a.jsonl"), run).divergence,
                   lambda run: play(Journal.open(tmp_path / "a.jsonl"), run)):  # fmt: skip
        assert replay(again := Run(looks, {})) is None
        assert again.context == {"found": RAISED}
        assert next(again.steps()).raised is None


def test_it_is_counted_traced_and_covered(recorded: Path) -> None:
    journal = Journal.open(recorded)
    tally = Tally.of(journal)
    assert tally.caught == {
        ("charge", "GatewayDown"): CaughtTally(1, "attempt 0"),
        ("charge", "GatewayTimeout"): CaughtTally(1, "attempt 1"),
    }
    assert tally.failed is None
    trace = BytesIO()
    write_trace(journal, trace)
    assert b'"raised":"GatewayTimeout: attempt 1"' in trace.getvalue()
    found = coverage(journal, machine)
    assert found.errors == {("charge", "GatewayDown"): 2, ("charge", "CardRefused"): 0}
    assert found.never["errors"] == ["charge: CardRefused"]
    assert "errors: 1 of 2 seen\n  never: charge: CardRefused" in str(found)
    assert found.transitions["charge -> back_off on GatewayDown when tries_left"] == 2


def purchases() -> st.SearchStrategy[Purchase]:
    return st.builds(Purchase, st.lists(st.sampled_from(["", "", "GatewayDown"]), max_size=4))


def test_the_rules_raise_what_the_table_has_ways_for() -> None:
    rules = machine_rules(machine, st.builds(Purchase, st.just([]), st.integers(0, 2)), resources=Line())
    hold_and_see(rules, "errors", "transitions")
    hold(machine_rules(machine, purchases(), resources=Line()))


def test_the_rules_catch_what_error_ways_get_wrong() -> None:
    class Leaks(Charge):
        def run(self, context: Purchase) -> int:
            context.log.append("tried")
            raise GatewayDown

    class Clock(Charge):
        calls = 0

        def run(self, context: Purchase) -> int:
            Clock.calls += 1
            raise GatewayDown(f"call {Clock.calls}")

    class Impure(Charge):
        calls = 0

        def apply_error(self, context: Purchase, raised: Raised) -> None:
            Impure.calls += 1
            context.attempts += 1
            context.log.append(f"{Impure.calls}")

    for phase, words in (
        (Leaks("charge"), "changes field 'log' ([], then ['tried']) in run(), and raises"),
        (Clock("charge"), "raises something else for the same context and position (GatewayDown: call"),
        (Impure("charge"), "when apply() gets the same context and outcome again"),
    ):
        table = [Transition(phase, way.target, way.when, way.raises) for way in TABLE[:4]]
        wrong = Machine("purchase", phase, [*table, Transition(TABLE[4].source, phase)])
        assert words in caught(machine_rules(wrong, purchases(), resources=Line()))
