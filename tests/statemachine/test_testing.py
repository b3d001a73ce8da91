"""The rules pass sound machines, and catch each planted fault with a message that says what to mend."""

import copy
import itertools
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, find, given, settings
from hypothesis import Phase as Stage
from hypothesis import strategies as st
from statemachine_recorded import Walk, record
from statemachine_recorded import machine as walk

from statemachine import Edit, End, Journal, JournalWriter, Machine, Phase, Resources, Run, Signal, Transition, guard
from statemachine.record.records import StepRecord
from statemachine.record.replay import verify
from statemachine.record.snapshot import load, restore
from statemachine.testing import BrokenRule, Counter, MachineRules, coverage, machine_rules, machines, run_rules
from statemachine.testing.same import same

BRIEF = settings(
    max_examples=100, stateful_step_count=10, deadline=None, derandomize=True, database=None,
    phases=[Stage.generate], report_multiple_bugs=False,
)  # fmt: skip


def hold(rules: type[MachineRules], options: settings = BRIEF) -> None:
    run_rules(rules, options)


def caught(rules: type[MachineRules]) -> str:
    """The message of the rule that was broken."""
    with pytest.raises((BrokenRule, BaseExceptionGroup)) as failure:
        hold(rules)
    (error,) = broken(failure.value)
    return str(error)


def broken(error: BaseException) -> list[BrokenRule]:
    """The broken rules in an error: Hypothesis puts what does not happen every time into a group."""
    if isinstance(error, BaseExceptionGroup):
        return [found for each in error.exceptions for found in broken(each)][:1]
    return [error] if isinstance(error, BrokenRule) else []


@dataclass
class Bag:
    __pinned__: ClassVar[tuple[str, ...]] = ("buffer",)
    buffer: Any = field(default_factory=lambda: np.zeros(4, np.int64))
    seed: int = 0
    count: int = 0
    drawn: list[int] = field(default_factory=list)


class Sound(Phase[Bag, int]):
    """Draws a number into the pinned buffer; the faults below are made of it."""

    def __init__(self) -> None:
        super().__init__("draw")

    def run(self, context: Bag) -> int:
        number = random.Random(context.seed * 1000 + context.count).randrange(100)
        context.buffer[context.count % 4] = number
        return number

    def apply(self, context: Bag, outcome: int) -> None:
        context.count += 1
        context.drawn.append(outcome)


@guard
def enough(context: Bag) -> bool:
    return context.count >= 8


@guard
def lucky(context: Bag) -> bool:
    return bool(context.drawn) and context.drawn[-1] % 3 == 0


def rules_of(phase: Phase = None, *, full: Any = enough, luck: Any = lucky, **options: Any) -> type[MachineRules]:
    phase, rest = phase or Sound(), Phase("rest")
    table = [
        Transition(phase, rest, luck & ~full),
        Transition(phase, phase, ~luck & ~full),
        Transition(phase, End("end"), full),
        Transition(rest, phase),
    ]
    machine = Machine(
        "bag", start=phase, transitions=table, edits=options.pop("known", ()), signals=[Signal("skip", to=rest)]
    )
    return machine_rules(machine, st.builds(Bag, seed=st.integers(0, 3)), **options)


def test_sound_machines_pass() -> None:
    hold(rules_of())
    hold(rules_of(pinned=lambda context: [context.buffer.ctypes.data]))
    changes = {"bonus": st.fixed_dictionaries({"amount": st.integers(-1, 5)})}
    contexts = st.builds(Walk, seed=st.integers(0, 9), limit=st.integers(1, 20))
    rules = machine_rules(walk, contexts, edits=changes, may_raise=IndexError)  # when it skips the first draw
    hold(rules)
    assert not rules.coverage.never


@given(machines())
@settings(BRIEF, max_examples=10, suppress_health_check=[HealthCheck.nested_given])
def test_random_machines_pass(machine: Machine[Counter]) -> None:
    hold(machine_rules(machine, st.builds(Counter, st.integers(0, 2**32))), settings(BRIEF, max_examples=5))


def test_an_impure_guard() -> None:
    calls = itertools.count()
    impure = guard(lambda context: next(calls) % 7 == 0)
    impure.name = "enough"
    assert "guard 'enough' gave " in (message := caught(rules_of(full=impure)))
    assert message.endswith("for the same context: a guard must be pure")


def test_a_guard_that_changes_the_context() -> None:
    @guard
    def enough(context: Bag) -> bool:
        context.seed += 1
        return context.count >= 8

    message = caught(rules_of(full=enough))
    assert message.startswith("guard 'enough' changes field 'seed' (")
    assert message.endswith("): a guard must be pure")


def test_a_guard_that_gives_no_bool() -> None:
    @guard
    def enough(context: Bag) -> Any:
        return context.count // 8

    assert "guard 'enough' must return True or False, but returned 0 (int)" in caught(rules_of(full=enough))


def test_a_guard_that_is_not_total() -> None:
    @guard
    def lucky(context: Bag) -> bool:
        return context.drawn[-3] % 3 == 0

    message = caught(rules_of(luck=lucky))
    assert message.startswith("guard 'lucky' raised IndexError: list index out of range; a guard must have a value")


def test_a_buffer_that_is_bound_again() -> None:
    class Rebinding(Sound):
        def run(self, context: Bag) -> int:
            if context.count == 3:
                context.buffer = context.buffer.copy()
            return super().run(context)

    message = caught(rules_of(Rebinding()))
    assert message.startswith("phase 'draw' moved buffer 'buffer' from 0x")
    assert message.endswith(": bind it once and write into it")


def test_a_draw_without_a_seed() -> None:
    class Unseeded(Sound):
        def run(self, context: Bag) -> int:
            return random.randrange(1000)

    message = caught(rules_of(Unseeded()))
    assert "phase 'draw' gives another outcome" in message
    assert "draw from a generator that is keyed by the context and the position" in message


def test_a_field_that_apply_forgets() -> None:
    class Forgetful(Sound):
        def run(self, context: Bag) -> int:
            context.count += 1
            return super().run(context)

        def apply(self, context: Bag, outcome: int) -> None:
            context.drawn.append(outcome)

    message = caught(rules_of(Forgetful()))
    assert message == "phase 'draw' changes field 'count' (0, then 1) in run(): move that into apply()"


def test_an_apply_that_draws() -> None:
    class Drawing(Sound):
        def apply(self, context: Bag, outcome: int) -> None:
            super().apply(context, outcome)
            context.seed = random.randrange(10**6)

    message = caught(rules_of(Drawing()))
    assert message.startswith("phase 'draw' makes something else of field 'seed' (")
    assert message.endswith("it may use nothing else; what it needs belongs into the outcome")


def test_an_apply_that_uses_the_buffer() -> None:
    class Peeking(Sound):
        def apply(self, context: Bag, outcome: int) -> None:
            super().apply(context, outcome)
            context.seed = int(context.buffer.sum())

    assert "changes field 'seed'" in caught(rules_of(Peeking()))


class Listed(Phase[Bag, list[int]]):
    def __init__(self) -> None:
        super().__init__("draw")

    def run(self, context: Bag) -> list[int]:
        return [context.count]


def test_an_outcome_that_apply_changes() -> None:
    class Changing(Listed):
        def apply(self, context: Bag, outcome: list[int]) -> None:
            outcome.append(7)
            context.count += 1

    assert caught(rules_of(Changing())) == "phase 'draw' changes its outcome in apply() ([0], then [0, 7]): copy it"


def test_an_outcome_that_the_context_keeps_and_changes_later() -> None:
    class Keeping(Listed):
        def apply(self, context: Bag, outcome: list[int]) -> None:
            if context.drawn:
                context.drawn.append(7)
            else:
                context.drawn = outcome
            context.count += 1

    message = caught(rules_of(Keeping()))
    assert "the outcome of step 0, phase 'draw', was changed after it was recorded ([0], then [0, 7" in message
    assert "let apply() enter a copy of it" in message


@pytest.mark.parametrize(
    ("outcome", "complaint"),
    [((1, 2), "comes back from a journal as [1, 2]: declare its type"), (float("nan"), "comes back from a journal as"),
     (object(), "cannot be recorded")],
)  # fmt: skip
def test_an_outcome_that_no_journal_can_hold(outcome: Any, complaint: str) -> None:
    class Odd(Phase[Bag, Any]):
        def __init__(self) -> None:
            super().__init__("draw")

        def run(self, context: Bag) -> Any:
            return outcome

        def apply(self, context: Bag, outcome: Any) -> None:
            context.count += 1

    assert complaint in caught(rules_of(Odd()))


def test_an_edit_that_changes_the_context_before_it_is_applied() -> None:
    class Hasty(Edit[Bag, int]):
        def run(self, context: Bag, **arguments: Any) -> int:
            context.seed += 1
            return 1

        def apply(self, context: Bag, outcome: int) -> None: ...

    rules = rules_of(known=[Hasty("hasty")], edits={"hasty": st.just({})})
    assert "edit 'hasty' changes field 'seed'" in caught(rules)


def test_resources_that_a_fork_shares() -> None:
    class Summing(Sound):
        """Its outcome depends on the buffer, which neither `fork` nor `sync` keeps in step."""

        def run(self, context: Bag) -> int:
            context.buffer[0] += 1
            return int(context.buffer[0])

    assert "phase 'draw' gives another outcome" in caught(rules_of(Summing()))


def test_resources_that_keep_in_step_pass() -> None:
    class Summing(Sound):
        def run(self, context: Bag) -> int:
            context.buffer[0] += 1
            return int(context.buffer[0])

    class Held(Resources[Bag]):
        def sync(self, context: Bag) -> None:
            context.buffer[0] = context.count

        def fork(self, context: Bag) -> Bag:
            return Bag(seed=context.seed, buffer=context.buffer.copy())

        def save(self, context: Bag) -> dict[str, Any]:
            return {"buffer": context.buffer}

        def load(self, context: Bag, arrays: Any) -> None:
            context.buffer[:] = arrays["buffer"]

    hold(rules_of(Summing(), resources=Held()))


def test_a_phase_that_raises() -> None:
    class Raising(Sound):
        def run(self, context: Bag) -> int:
            if context.count == 5:
                raise OSError("no more")
            return super().run(context)

    with pytest.raises(Exception, match=r"failed in phase 'draw' at step .*OSError: no more"):
        hold(rules_of(Raising()))
    hold(rules_of(Raising(), may_raise=OSError))


def test_every_context_is_closed() -> None:
    made: list[Bag] = []
    closed: list[Bag] = []

    def make() -> Bag:
        made.append(Bag())
        return made[-1]

    machine = rules_of().given.machine
    hold(machine_rules(machine, make, close=closed.append), settings(BRIEF, max_examples=5))
    assert {id(context) for context in made} <= {id(context) for context in closed}


# --- coverage -------------------------------------------------------------------------------------------------------


def test_coverage_of_journals_and_runs_names_what_was_never_seen(tmp_path: Path) -> None:
    runs = [record(tmp_path / f"{seed}.jsonl", seed=seed, limit=3) for seed in range(2)]
    journals = [Journal.open(tmp_path / f"{seed}.jsonl") for seed in range(2)]
    found = coverage(journals, walk)
    assert found == coverage(runs, walk)
    assert sum(found.transitions.values()) == sum(run.step_count for run in runs)
    assert found.never["signals"] == ["stop", "skip"]
    assert found.never["edits"] == ["bonus"]
    assert "signals: 0 of 2 seen\n  never: stop" in str(found)
    nothing = coverage([], walk)
    assert nothing.never["transitions"] == [str(transition) for transition in walk.transitions]
    assert "draw: odd & ~far_enough" in nothing.never["rows"]
    with pytest.raises(ValueError, match="of another machine"):
        coverage(runs[0], rules_of().given.machine)


def test_coverage_is_gathered_while_rules_run() -> None:
    rules = rules_of()
    assert len(rules.coverage.never["transitions"]) == 4
    hold(rules, settings(BRIEF, max_examples=30))
    assert not {"transitions", "signals"} & set(rules.coverage.never)


# --- what it is made of ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [1, 0.5, float("nan"), "a", None, [1, {"a": {2}}], random.Random(3), np.arange(3), Bag(count=2), iter([1, 2])],
)  # fmt: skip
def test_a_copy_is_the_same(value: Any) -> None:
    assert same(value, copy.deepcopy(value))
    assert not same(value, [value])


def test_what_differs_is_not_the_same() -> None:
    moved = random.Random(3)
    moved.random()
    assert not same(random.Random(3), moved)
    assert not same(np.arange(3), np.arange(3, dtype=np.int8))
    assert not same(Bag(count=1), Bag(count=2))
    assert not same({"a": 1}, {"a": 1.0})
    assert same({"a": 1, "b": 2}, {"b": 2, "a": 1})


def test_without_hypothesis_the_error_says_how_to_get_it() -> None:
    code = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "import statemachine\n"
        "try: import statemachine.testing\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "statemachine.testing needs Hypothesis, which is not installed: pip install hypothesis\n"


def test_importing_statemachine_imports_no_hypothesis() -> None:
    code = "import statemachine, sys; print('hypothesis' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# --- defects that the rules found -----------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    return tmp_path / "a.jsonl"


def recorded(path: Path, **options: Any) -> Run[Walk]:
    return Run(walk, Walk(limit=20), journal=JournalWriter(path), keep=True, **options)


def test_going_back_from_within_a_loop_over_the_run_leaves_a_whole_journal(path: Path) -> None:
    run = recorded(path)
    run.step()
    for step in run:
        if step.number == 12 and not run.events:
            run.back(3)
            run.edit("bonus", amount=1)
    assert verify(Journal.open(path), Run(walk, Walk(limit=20))).verified


def test_digests_of_a_run_that_went_back_verify(path: Path) -> None:
    run = recorded(path, digest_every=2)
    run.until(lambda run: run.step_count == 4)
    run.back(1)
    run.resume()
    assert verify(Journal.open(path), Run(walk, Walk(limit=20))).verified


def test_going_nowhere_leaves_a_ready_run_ready(path: Path) -> None:
    run = recorded(path)
    run.goto(0)
    assert run.start() == "done"


def test_a_snapshot_from_before_the_first_step_is_restored_paused(path: Path, tmp_path: Path) -> None:
    run = recorded(path)
    run.snapshot(tmp_path / "a.snapshot")
    other = Run(walk, Walk(limit=20))
    assert restore(load(tmp_path / "a.snapshot"), other) is None
    assert other.resume() == "done"
    assert run.start() == "done"
    assert other.context == run.context


def test_find_gives_a_machine_with_a_loop() -> None:
    machine = find(machines(), lambda machine: any(way.source is way.target for way in machine.transitions))
    assert machine.start.name == "p0"


def test_an_edit_that_fails_half_way_is_undone() -> None:
    class Half(Edit[Bag, int]):
        def run(self, context: Bag, **arguments: Any) -> int:
            return 7

        def apply(self, context: Bag, outcome: int) -> None:
            context.seed = outcome
            raise OSError("disk")

    run = Run(rules_of(known=[Half("half")]).given.machine, Bag(seed=1))
    run.step()
    with pytest.raises(OSError, match="disk"):
        run.edit("half")
    assert (run.context.seed, run.context.count, run.events) == (1, 1, [])
    run.resume()


def test_a_restored_run_that_rests_has_all_its_past_in_its_journal(path: Path, tmp_path: Path) -> None:
    run = Run(walk, Walk(limit=20))
    run.until(lambda run: run.step_count == 7)
    run.snapshot(tmp_path / "a.snapshot")
    restored = recorded(path)
    assert restore(load(tmp_path / "a.snapshot"), restored) is None
    steps = [record for record in Journal.open(path).records() if isinstance(record, StepRecord)]
    assert len(steps) == 7
