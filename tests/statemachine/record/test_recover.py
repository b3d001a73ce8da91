"""A run whose process was killed goes on in its own file, and no finished phase runs again."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from killed_walk import killed
from statemachine_recorded import Draw, Walk, fresh, lines, machine, record, walk

from statemachine import (
    End,
    Journal,
    JournalError,
    JournalWriter,
    Machine,
    Phase,
    PhaseError,
    Resources,
    Run,
    Status,
    Transition,
    play,
    recover,
    verify,
)
from statemachine.record.records import PauseRecord, StepRecord

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[2]


def uninterrupted(limit: int = 20) -> Walk:
    run = Run(machine, Walk(limit=limit))
    run.start()
    return run.context


# --- a shop: what it does to the world is done once --------------------------------------------------------------


@dataclass(slots=True)
class Order:
    amount: int = 7
    log: list[str] = field(default_factory=list)


class Act(Phase[Order, str]):
    """Leaves a line in a real file, as a payment would leave one with a bank."""

    def run(self, context: Order) -> str:
        with Path(os.environ["WORLD"]).open("a") as file:
            file.write(f"{self.name} {context.amount}\n")
        if self.name == "ship" and "SLOW" in os.environ:
            print("shipping", flush=True)
            time.sleep(30)
        return self.name

    def apply(self, context: Order, outcome: str) -> None:
        context.log.append(outcome)


charge, ship = Act("charge"), Act("ship")
shop = Machine("shop", start=charge, transitions=[Transition(charge, ship), Transition(ship, End("done"))])

SHOP = """
import sys
sys.path.insert(0, "statemachine/record")
from test_recover import Order, shop
from statemachine import JournalWriter, Run
Run(shop, Order(), journal=JournalWriter(sys.argv[1], every="step")).start()
"""


def test_a_finished_charge_is_never_charged_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD", str(tmp_path / "world"))
    path = tmp_path / "a.jsonl"
    command = [sys.executable, "-c", SHOP, str(path)]
    with subprocess.Popen(command, cwd=TESTS, env=os.environ | {"SLOW": "1"}, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"shipping\n"
        process.send_signal(signal.SIGKILL)
    run = Run(shop, Order())
    assert recover(path, run, every="step") is None
    assert (run.phase_name, run.context.log) == ("ship", ["charge"])
    assert run.resume() is Status.DONE
    assert (tmp_path / "world").read_text() == "charge 7\nship 7\nship 7\n"  # ship had begun, and was not finished
    assert verify(Journal.open(path), Run(shop, Order())).verified


def test_another_order_is_refused_and_the_file_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD", str(tmp_path / "world"))
    path = tmp_path / "a.jsonl"
    Run(shop, Order(), journal=JournalWriter(path)).step()
    path.write_bytes(path.read_bytes() + b'{"type":')
    before = path.read_bytes()
    found = recover(path, other := Run(shop, Order(amount=8)))
    assert found is not None
    assert (found.step, found.field) == (0, "context")
    assert found.causes[0] == "context: amount 7 -> 8"
    assert "context: amount 7 -> 8" in found.report()
    assert (path.read_bytes(), other.journal) == (before, None)


# --- kills and tears ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["start", "iterate", "back", "signal"])
def test_killed_at_any_moment_it_goes_on_in_the_same_file(tmp_path: Path, way: str) -> None:
    path = tmp_path / "a.jsonl"
    killed(way, path, after=12_000 if way == "start" else 700)
    before = path.read_bytes()
    drawn: list[int] = []

    class Counted(Draw):
        def run(self, context: Walk) -> int:
            drawn.append(len(context.drawn))
            return super().run(context)

    run = Run(walk(Counted("draw")), Walk(limit=10**9))
    assert recover(path, run) is None
    behind = len(run.context.drawn)
    assert behind > 10
    assert drawn == []
    run.until(lambda run: len(run.context.drawn) == behind + 30)
    run.signal("stop")
    assert drawn == [*range(behind, behind + 30)]
    assert path.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    verdict = verify(Journal.open(path), Run(machine, Walk(limit=10**9)))
    assert verdict.divergence is None
    assert verdict.ended == "cancelled"


def test_a_journal_torn_at_any_byte_is_gone_on_with(tmp_path: Path) -> None:
    run = Run(machine, Walk(), journal=JournalWriter(tmp_path / "a.jsonl", every="step"))
    run.until(lambda run: run.step_count == 6)
    run.edit("bonus", amount=1)
    run.until(lambda run: run.step_count == 9)
    whole = (tmp_path / "a.jsonl").read_bytes()
    head = whole.index(b"\n") + 1
    for length in range(head, len(whole) + 1):
        path = tmp_path / "torn.jsonl"
        path.write_bytes(whole[:length])
        again = Run(machine, Walk())
        assert recover(path, again) is None
        again.start() if again.status is Status.READY else again.resume()
        assert verify(Journal.open(path), Run(machine, Walk())).verified
        path.unlink()


def test_recovered_again_and_again_it_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    run = Run(machine, Walk(limit=40), journal=JournalWriter(path))
    run.until(lambda run: run.step_count == 5)
    run.close()
    for steps in range(10, 40, 5):
        run = Run(machine, Walk(limit=40))
        assert recover(path, run) is None
        assert run.step_count == steps - 5
        run.until(lambda run, steps=steps: run.step_count == steps)  # type: ignore[misc]
        run.close()
    run = Run(machine, Walk(limit=40))
    assert recover(path, run, sync=True, every="step") is None
    run.resume()
    assert run.context == uninterrupted(40)
    verdict = verify(Journal.open(path), Run(machine, Walk(limit=40)))
    assert verdict.verified
    assert verdict.passed_over == 0


def test_a_run_that_had_gone_back_is_recovered_on_its_last_way(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    run = Run(machine, Walk(), journal=JournalWriter(path), keep=True)
    run.until(lambda run: run.step_count == 12)
    run.goto(4)
    run.edit("bonus", amount=5)
    run.until(lambda run: run.step_count == 8)
    run.journal.close()  # type: ignore[union-attr]
    again = Run(machine, Walk())
    assert recover(path, again) is None
    assert (again.step_count, again.context) == (8, run.context)
    again.resume()
    assert verify(Journal.open(path), Run(machine, Walk())).verified


def test_a_run_that_goes_back_after_it_was_recovered(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    run = Run(machine, Walk(), journal=JournalWriter(path))
    run.until(lambda run: run.step_count == 9)
    run.close()
    again = Run(machine, Walk())
    assert recover(path, again) is None
    again.goto(2)
    again.edit("bonus", amount=1)
    again.resume()
    verdict = verify(Journal.open(path), Run(machine, Walk()))
    assert (verdict.verified, verdict.passed_over) == (True, 7)


def test_a_run_that_was_done_is_done(tmp_path: Path) -> None:
    whole = record(tmp_path / "a.jsonl")
    before = (tmp_path / "a.jsonl").read_bytes()
    run = fresh(tmp_path / "a.jsonl")
    assert recover(tmp_path / "a.jsonl", run) is None
    assert (run.status, run.context) == (Status.DONE, whole.context)
    assert (tmp_path / "a.jsonl").read_bytes() == before


def test_a_run_that_failed_goes_on_and_its_file_verifies(tmp_path: Path) -> None:
    class Broken(Draw):
        def run(self, context: Walk) -> int:
            if len(context.drawn) == 7:
                raise OSError("the line is dead")
            return super().run(context)

    path = tmp_path / "a.jsonl"
    with pytest.raises(PhaseError):
        Run(walk(Broken("draw")), Walk(), journal=JournalWriter(path)).start()
    for _ in range(2):  # it fails again, then it goes on
        run = Run(walk(Broken("draw")), Walk())
        assert recover(path, run) is None
        with pytest.raises(PhaseError):
            run.resume()
    run = Run(machine, Walk())
    assert recover(path, run) is None
    assert run.resume() is Status.DONE
    assert run.context == uninterrupted()
    assert verify(Journal.open(path), Run(machine, Walk())).verified
    assert sum(line["type"] == "end" for line in lines(path)) == 4


def test_what_was_pending_still_is(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    run = Run(machine, Walk(), journal=JournalWriter(path))
    while run.phase_name != "note":
        run.step()
    run.signal("skip", wait=True)
    run.rest()
    run.journal.close()  # type: ignore[union-attr]
    for name in ("a.jsonl", "b.jsonl"):
        if name == "b.jsonl":  # killed while it was driven on, before the signal could be taken
            body = path.read_bytes().splitlines(keepends=True)
            (tmp_path / name).write_bytes(b"".join(body[: 1 + next(n for n, b in enumerate(body) if b"pending" in b)]))
        again = Run(machine, Walk())
        assert recover(tmp_path / name, again) is None
        assert again.pending == ("skip",)
        again.step()
        assert again.events[-1].name == "skip"
        assert again.pending == ()
        again.close()


def test_a_signal_that_waits_while_the_run_is_driven_is_recorded_in_time(tmp_path: Path) -> None:
    path, seen = tmp_path / "a.jsonl", []

    class Hurried(Draw):
        def run(self, context: Walk) -> int:
            if len(context.drawn) == 1:
                run.signal("again", wait=True)
            if len(context.drawn) == 3:
                seen.extend(Journal.open(path).records())
            return 2

    from dataclasses import replace

    from statemachine import Signal

    waiting = replace(walk(Hurried("draw")), signals=[Signal("again", to="draw", sources=("note",))])
    run = Run(waiting, Walk(limit=6), journal=JournalWriter(path, every="step"))
    run.start()
    assert [record.pending for record in seen if isinstance(record, PauseRecord)] == [("again",)]
    assert verify(Journal.open(path), Run(replace(machine, signals=waiting.signals), Walk(limit=6))).divergence


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_journal_that_is_still_written_is_not_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    run = Run(machine, Walk(), journal=JournalWriter(path))
    run.step()
    with pytest.raises(JournalError, match="is still being written, by another run or process: end it first"):
        recover(path, Run(machine, Walk()))
    del run  # forgotten, and so closed
    again = Run(machine, Walk())
    assert recover(path, again) is None
    with pytest.raises(JournalError, match="recorded elsewhere already"):
        recover(path, again)


def test_damage_and_pipes_are_refused(tmp_path: Path) -> None:
    record(tmp_path / "a.jsonl")
    body = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "a.jsonl").write_bytes(body.replace(b'"p":"note"', b'"p":"nope"', 1))
    with pytest.raises(JournalError, match=r"a.jsonl, line \d+: "):
        recover(tmp_path / "a.jsonl", Run(machine, Walk()))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(JournalError, match="it is no regular file"):
        recover(tmp_path / "pipe", Run(machine, Walk()))
    with pytest.raises(JournalError, match="cannot be read: No such file"):
        recover(tmp_path / "none", Run(machine, Walk()))


def test_what_somebody_else_wrote_into_the_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    run = Run(machine, Walk(), journal=JournalWriter(path))
    run.step()
    path.write_bytes(path.read_bytes() + b"something\n")
    with pytest.raises(JournalError, match="was changed by somebody else while its run was recorded"):
        run.step()


def test_resources_are_made_anew_by_a_recovery_and_not_by_a_play(tmp_path: Path) -> None:
    made: list[int] = []

    class Counting(Resources[Walk]):
        def rebuild(self, context: Walk) -> None:
            made.append(len(context.drawn))

    path = tmp_path / "a.jsonl"
    run = Run(machine, Walk(), journal=JournalWriter(path))
    run.until(lambda run: len(run.context.drawn) == 4)
    run.close()
    assert play(Journal.open(path), Run(machine, Walk(), resources=Counting())) is None
    assert made == []
    assert recover(path, Run(machine, Walk(), resources=Counting())) is None
    assert made == [4]
    steps = sum(isinstance(line, StepRecord) for line in Journal.open(path).records())
    assert steps == run.step_count
