"""A rule-based test of any machine: Hypothesis moves runs of it in every way there is, and checks what must hold."""

import copy
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from statemachine.definition.machine import Machine
from statemachine.definition.phase import Status
from statemachine.definition.table import name_of
from statemachine.errors import IllegalMove, PhaseError
from statemachine.execution import host_state
from statemachine.execution.resources import Resources
from statemachine.execution.run import Run
from statemachine.execution.timeline import Step
from statemachine.record.exact import plain
from statemachine.record.journal import Journal
from statemachine.record.replay import play, verify
from statemachine.record.snapshot import load, restore
from statemachine.record.writer import JournalWriter
from statemachine.testing.coverage import Coverage
from statemachine.testing.same import differences, same, shown
from statemachine.testing.watch import Addresses, State, Watch

Context = TypeVar("Context")
Place = tuple[str, Mapping[Any, Any]]  # the phase that a run rests at, and what of its context counts

KEYED = "draw from a generator that is keyed by the context and the position, and read no clock"
SYNC = "or let Resources.sync put back what the step changed besides the host fields"


def machine_rules(
    machine: Machine[Context],
    contexts: st.SearchStrategy[Context] | Callable[[], Context],
    *,
    resources: Resources[Context] | None = None,
    edits: Mapping[str, st.SearchStrategy[Mapping[str, Any]]] | None = None,
    pinned: Callable[[Context], Mapping[str, int] | Iterable[int]] | None = None,
    state: State[Context] = host_state.save,
    may_raise: type[Exception] | tuple[type[Exception], ...] = (),
    max_steps: int = 60,
    close: Callable[[Context], None] | None = None,
) -> "type[MachineRules]":
    """A Hypothesis state machine that tests a machine; its `TestCase` is for pytest and unittest.

        TestTraffic = machine_rules(traffic, contexts=st.builds(Crossing, cars=st.integers(0, 9))).TestCase

    Runs are stepped, driven, paused, signalled, edited, rewound, forked, saved, restored and replayed, and must agree
    with themselves, with their journals and between both interpreters. `Rules.coverage` holds what was seen.

    Parameters
    ----------
    machine
        The machine to test.
    contexts
        Contexts as they are before a run: a strategy, or a function that makes one. Each must be a new object.
    resources
        What stands behind the contexts besides their host fields. Contexts whose resources have no `fork` of their own
        are copied deeply where a second one is needed, buffers included.
    edits
        For each of the machine's edits that is to be tried, a strategy of its arguments; ValueError is a refusal.
    pinned
        The addresses of a context's buffers, by name or in order. Unless given, those of the arrays in `__pinned__`.
    state
        A copy of what of a context counts, by name. Unless given, its host fields.
    may_raise
        Exceptions that phases may raise; the run must then rest, failed, with its context as before the phase.
    max_steps
        How far a run is driven.
    close
        Called with every context when an example is over.
    """
    strategy = contexts if isinstance(contexts, st.SearchStrategy) else st.builds(contexts)
    changes = st.one_of([st.tuples(st.just(name), arguments) for name, arguments in (edits or {}).items()])
    for name in edits or {}:
        machine.edit(name)  # raises if there is none

    class Rules(MachineRules):
        coverage = Coverage.of(machine)
        given = Given(
            machine,
            resources or Resources(),
            state,
            _addresses(pinned),
            may_raise,
            max_steps,
            close or (lambda context: None),
        )

        @initialize(context=strategy, library=st.booleans(), digest_every=st.integers(0, 2))
        def begin(self, context: Context, library: bool, digest_every: int) -> None:
            self._begin(context, library, digest_every)

        if machine.signals:

            @precondition(lambda self: not self.run.status.ended)
            @rule(name=st.sampled_from([signal.name for signal in machine.signals]))
            def signal(self, name: str) -> None:
                self._signal(name)

        if edits:

            @precondition(lambda self: not self.run.status.ended)
            @rule(change=changes)
            def edit(self, change: tuple[str, Mapping[str, Any]]) -> None:
                self._edit(*change)

    Rules.__name__ = Rules.__qualname__ = f"Rules of {machine.name}"
    Rules.TestCase.settings = settings(
        max_examples=60, stateful_step_count=12, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    return Rules


def run_rules(rules: "type[MachineRules]", options: settings | None = None) -> Coverage:
    """Run the rules here and now, as their `TestCase` would, and give what was seen; raises BrokenRule."""
    run_state_machine_as_test(rules, settings=options)
    return rules.coverage


COUNTS = st.integers(1, 6)


@dataclass(frozen=True, slots=True)
class Given:
    """What `machine_rules` was given."""

    machine: Machine[Any]
    resources: Resources[Any]
    state: State[Any]
    pinned: Addresses[Any]
    may_raise: type[Exception] | tuple[type[Exception], ...]
    max_steps: int
    close: Callable[[Any], None]


@dataclass(slots=True)
class Past:
    """What the rules noted of a run, to compare it with later."""

    places: list[Place]  # by number of steps, before the events there
    outcomes: list[Any] = field(default_factory=list)  # by number of the step, as a journal holds them
    events: list[int] = field(default_factory=list)  # the steps before which signals and edits took effect
    tip: tuple[Place, Status] | None = None  # where the run was when it went back

    def cut(self, number: int) -> None:
        """The run moves on from after so many steps: if it had gone back, what lay ahead is forgotten."""
        if self.tip:
            self.events = [event for event in self.events if event < number]
        del self.places[number + 1 :], self.outcomes[number:]
        self.tip = None

    def until(self, number: int, *, here: bool) -> "Past":
        """The past of a second run that begins after so many steps; `here`: where the first one rests."""
        events = [event for event in self.events if event < number + (here and not self.tip)]
        return Past(self.places[: number + 1], self.outcomes[:number], events)


class MachineRules(RuleBasedStateMachine):
    """The rules that hold for every machine; `machine_rules` makes them those of one.

    Attributes
    ----------
    coverage
        What all examples together have seen of the machine.
    run
        The run under test. What it is compared with was noted when it was first there.
    """

    coverage: ClassVar[Coverage]
    given: ClassVar[Given]
    run: Run[Any]

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory(prefix="machine-rules-")
        self._files = 0
        self._watch: Watch[Any] = Watch(self.given.state, self.given.pinned)
        self._watched = self._watch.machine(self.given.machine)
        self._opened: list[Run[Any]] = []
        self._contexts: list[Any] = []

    def _begin(self, context: Any, library: bool, digest_every: int) -> None:
        self._contexts.append(context)
        self._watch.check_buffers(context, "somebody")
        self._origin = host_state.save(context)
        self._interpreter: Any = "transitions" if library else "compiled"
        self._digest_every = digest_every
        self.run = self._run_of(context)
        self._past = Past([self._place()])

    def teardown(self) -> None:
        for run in self._opened:
            run.close()
        for context in self._contexts:
            self.given.close(context)
        self._folder.cleanup()

    # --- rules ----------------------------------------------------------------------------------------------------

    @precondition(lambda self: not self.run.status.ended)
    @rule(count=COUNTS)
    def step(self, count: int) -> None:
        """Step by step."""
        self._steps(count)

    @precondition(lambda self: not self.run.status.ended)
    @rule(count=COUNTS, pauses=st.booleans())
    def drive(self, count: int, pauses: bool) -> None:
        """Several steps at once, up to a breakpoint or to a pause that somebody asks for."""
        last = min(self.run.step_count + count, self.given.max_steps)
        if last <= self.run.step_count:
            return
        self._past.cut(self.run.step_count)

        def there(run: Run[Any]) -> bool:
            self._note(run)
            if run.step_count == last and pauses:
                run.pause()
            return run.step_count == last and not pauses

        with self._moving():
            self.run.until(there)

    @precondition(lambda self: not self.run.status.ended)
    @rule(count=COUNTS, back=st.integers(0, 2))
    def loop(self, count: int, back: int) -> None:
        """A loop over the run, that goes back from within."""
        last = min(self.run.step_count + count, self.given.max_steps)
        if last <= self.run.step_count:
            return
        self._past.cut(self.run.step_count)
        with self._moving():
            for step in self.run:
                self._note(self.run)
                if step.number + 1 == last:
                    self._rewind(max(0, last - back))
                    break

    @rule(count=COUNTS)
    def back_and_forth(self, count: int) -> None:
        """Going back, and forth again, is the identity."""
        run, before, number = self.run, self._place(), self.run.step_count
        status, events, there = run.status, run.events, max(0, number - count)
        run.goto(there)
        if there < number:
            self._compare(self._place(), self._past.places[there], f"going back to step {there}")
        run.goto(number)
        self._compare(self._place(), before, f"going back to step {there} and forth to {number}")
        if run.status is not status or not same(run.events, events):
            self._watch.breach(f"going back and forth makes a {status} run {run.status}, or loses one of its events")

    @precondition(lambda self: self.run.step_count > 0)
    @rule(count=COUNTS)
    def rewind(self, count: int) -> None:
        """Go back and stay there."""
        self._rewind(max(0, self.run.step_count - count))

    @precondition(lambda self: self.run.step_count > 0)
    @rule(count=COUNTS)
    def again(self, count: int) -> None:
        """Going back and stepping again gives the same steps."""
        number = self.run.step_count
        after_events = [event + 1 for event in self._past.events if event < number]
        first = max([number - count, 0, *after_events])
        expected = list(self.run.steps(first))
        if expected:
            self._rewind(first)
        for step in expected:
            if not self.run.status.ended:
                self._same_step(step, self._step(), "again, after going back,")

    @rule(count=COUNTS, ahead=st.integers(0, 3), stay=st.booleans())
    def fork(self, count: int, ahead: int, stay: bool) -> None:
        """A fork has the same past, its steps come to the same, and it leaves the run that it came from alone."""
        run, past, number = self.run, self._past, max(0, self.run.step_count - count + 1)
        before, here = self._place(), number == self.run.step_count
        recorded = list(run.steps(number, future=True))
        fork = run.fork(None if here else number, journal=JournalWriter(self._file("journal")))
        self._opened.append(fork)
        self._contexts.append(fork.context)
        self._compare(self._place(fork), before if here else past.places[number], f"forking at step {number}")
        if not same(list(fork.steps()), list(run.steps())[:number]):
            self._watch.breach(f"a fork at step {number} has other steps behind it than the run it came from")
        self.run, self._past = fork, past.until(number, here=here)
        alike = True  # until an event comes that the fork does not share
        for coming in range(number, min(number + ahead, self.given.max_steps)):
            if fork.status.ended:
                break
            alike = alike and coming not in past.events and coming - number < len(recorded)
            found = self._step()
            if alike:
                self._same_step(recorded[coming - number], found, "in a fork")
        self._compare(self._place(run), before, "moving a fork (give resources= a fork() that shares nothing)")
        if stay:
            run.close()
        else:
            fork.close()
            self.run, self._past = run, past

    @precondition(lambda self: not self.run.status.ended)
    @rule(ahead=st.integers(0, 3), stay=st.booleans())
    def save_and_restore(self, ahead: int, stay: bool) -> None:
        """A snapshot, restored on another context, is the same run: place, past and what comes next."""
        run, past, before, path = self.run, self._past, self._place(), self._file("snapshot")
        run.snapshot(path)
        self._compare(self._place(), before, "taking a snapshot")
        other = self._run_of(self._second())
        with self._moving():
            divergence = restore(load(path), other)
        if divergence:
            self._watch.breach(f"a snapshot cannot be restored:\n{divergence.report()}")
        self._compare(self._place(other), before, "restoring a snapshot")
        if not same(list(other.steps()), list(run.steps())) or not same(other.events, run.events):
            self._watch.breach("restoring a snapshot gives other steps or events than the run that was saved had")
        if other.status is not Status.PAUSED:
            self._watch.breach(f"restoring a snapshot gives a {other.status} run, not a paused one")
        self.run, self._past = other, past.until(run.step_count, here=True)
        others = self._steps(ahead)
        restored = self._past
        self.run, self._past = run, past
        mine = self._steps(ahead)
        if Status.FAILED not in (run.status, other.status):
            for expected, found in zip(mine, others, strict=True):
                self._same_step(expected, found, "after restoring a snapshot")
        if stay:
            run.close()
            self.run, self._past = other, restored
        else:
            other.close()

    @rule()
    def replay(self) -> None:
        """The journal so far plays by outcomes alone, and verifies when it is run again."""
        run, before = self.run, self._place()
        assert run.journal is not None
        if not run.journal.path.stat().st_size:  # nothing has happened
            return
        journal = Journal.open(run.journal.path)
        tip, status = self._past.tip or (before, run.status)
        context = copy.copy(run.context)
        host_state.restore(context, self._origin)
        player: Run[Any] = Run(self._watched, context)
        with self._moving():
            divergence = play(journal, player)
        if divergence:
            self._watch.breach(f"the journal cannot be played:\n{divergence.report()}")
        self._compare(self._place(player), tip, "playing the journal")
        if not same(list(player.steps()), list(run.steps(future=True))):
            self._watch.breach("playing the journal gives other steps than the run had")
        if status is not Status.FAILED:
            self._verify(journal, tip)
        self._compare(self._place(), before, "replaying on a second context (it shares something with the first)")

    def _verify(self, journal: Journal, tip: Place) -> None:
        again = self._run_of(self._second(), journalled=False)
        with self._moving():
            divergence = verify(journal, again)
        if divergence and divergence.field == "error" and self.given.may_raise:
            return
        if divergence:
            words = f"{KEYED}, {SYNC}" if divergence.field in ("outcome", "digest") else "see the report"
            self._watch.breach(
                f"phase {divergence.phase!r} gives another {divergence.field} when the journal is run again "
                f"({shown(divergence.recorded)}, then {shown(divergence.replayed)}): {words}\n{divergence.report()}"
            )
        self._compare(self._place(again), tip, "running the journal again")
        again.close()

    @invariant()
    def rests_consistently(self) -> None:
        """What is recorded stays as it was, buffers stay where they were, and the run is where its phases say."""
        if (broken := self._watch.broken) is not None:
            raise broken
        run = self.run
        self._watch.check_buffers(run.context, "somebody")
        self._check_outcomes(run)
        if run.status.ended and run.status is not Status.FAILED and not run.phase.final:
            self._watch.breach(f"the run is {run.status}, but rests at {run.phase.name!r}")

    # --- what the rules are made of ---------------------------------------------------------------------------------

    def _signal(self, name: str) -> None:
        signal = self.given.machine.signal(name)
        before = self._place()
        takes = not signal.sources or self.run.phase.name in map(name_of, signal.sources)
        if takes:
            self._past.cut(self.run.step_count)
        try:
            self.run.signal(name)
        except IllegalMove:
            if takes:
                raise
            self._compare(self._place(), before, f"refusing the signal {name!r}")
            return
        self._past.events.append(self.run.step_count)
        self.coverage.signals[name] += 1
        self._compare(self._place(), (name_of(signal.to), before[1]), f"the signal {name!r}")

    def _edit(self, name: str, arguments: Mapping[str, Any]) -> None:
        edit, context, before = self.given.machine.edit(name), self.run.context, self._place()
        try:
            outcome = edit.run(context, **arguments)
            refused = False
        except ValueError:
            refused = True
        if changed := differences(before[1], self.given.state(context)):
            self._watch.breach(f"edit {name!r} changes {', '.join(changed)} in run(): move that into apply()")
        if refused:
            return
        self._watch.check_recordable(edit, outcome)
        fields = host_state.save(context)
        self._watch.check_apply(edit, edit.apply, context, outcome)
        host_state.restore(context, fields)
        self._past.cut(self.run.step_count)
        with self._moving():
            self.run.edit(name, **arguments)
        self._past.events.append(self.run.step_count)
        self.coverage.edits[name] += 1

    def _run_of(self, context: Any, *, journalled: bool = True) -> Run[Any]:
        run = Run(
            self._watched, context, interpreter=self._interpreter, resources=self.given.resources, keep=True,
            journal=JournalWriter(self._file("journal")) if journalled else None, digest_every=self._digest_every,
        )  # fmt: skip
        self._opened.append(run)
        return run

    def _second(self) -> Any:
        """Another context with resources of its own, as the first one was before its run."""
        context = self.run.context
        if type(self.given.resources).fork is Resources.fork:
            try:
                second = copy.deepcopy(context)
            except TypeError as error:
                raise TypeError(
                    f"{type(context).__name__} cannot be copied ({error}): pass resources= with a fork() of its own"
                ) from error
        else:
            second = self.given.resources.fork(context)
        self._contexts.append(second)
        host_state.restore(second, self._origin)
        self.given.resources.sync(second)
        return second

    def _file(self, kind: str) -> Path:
        self._files += 1
        return Path(self._folder.name) / f"{self._files}.{kind}"

    def _place(self, run: Run[Any] | None = None) -> Place:
        run = run or self.run
        return run.phase.name, self.given.state(run.context)

    def _rewind(self, number: int) -> None:
        if number == self.run.step_count:
            return
        self._past.tip = self._past.tip or (self._place(), self.run.status)
        self.run.goto(number)
        self._compare(self._place(), self._past.places[number], f"going back to step {number}")

    def _steps(self, count: int) -> list[Step | None]:
        """At most so many steps, as far as the run goes; None for one that failed."""
        taken = []
        for _ in range(count):
            if not self.run.status.ended and self.run.step_count < self.given.max_steps:
                taken.append(self._step())  # noqa: PERF401  # each step decides whether there is another
        return taken

    def _step(self) -> Step | None:
        """One step, noted; None if it failed."""
        self._past.cut(self.run.step_count)
        step = None
        with self._moving():
            step = self.run.step()
            self._note(self.run)
        return step

    def _note(self, run: Run[Any]) -> None:
        """Note where the run is after a step."""
        (record,) = run.step_records(run.step_count - 1, run.step_count)
        self._past.places.append(self._place(run))
        self._past.outcomes.append(plain(record.o))
        self.coverage.add(self.given.machine, [record])
        event(str(self.given.machine.transitions[record.e]))

    @contextmanager
    def _moving(self) -> Iterator[None]:
        """Let what was broken come out as itself, and see that a failure of a phase left the context as it was."""
        number, before = self.run.step_count, self._place()
        try:
            yield
        except PhaseError as failure:
            expected = before if self.run.step_count == number else self._past.places[-1]
            if self._watch.broken is None:
                if not isinstance(failure.__cause__, self.given.may_raise):
                    raise
                self._compare(self._place(), expected, f"failing in phase {failure.phase!r}")
        if self._watch.broken is not None:
            raise self._watch.broken from None

    def _check_outcomes(self, run: Run[Any]) -> None:
        for step, outcome in zip(run.steps(future=True), self._past.outcomes, strict=True):
            if not same(plain(step.outcome), outcome):
                self._watch.breach(
                    f"the outcome of step {step.number}, phase {step.phase!r}, was changed after it was recorded "
                    f"({shown(outcome)}, then {shown(step.outcome)}): let apply() enter a copy of it"
                )

    def _compare(self, found: Place, expected: Place, after: str) -> None:
        if found[0] != expected[0]:
            self._watch.breach(f"{after} leaves the run at phase {found[0]!r}, not {expected[0]!r}")
        if changed := differences(expected[1], found[1]):
            self._check_outcomes(self.run)  # if one of them was changed, that is why
            self._watch.breach(f"{after} changes {', '.join(changed)}")

    def _same_step(self, expected: Step | None, found: Step | None, when: str) -> None:
        if expected is None or found is None:
            return
        if not same(found.outcome, expected.outcome):
            self._watch.breach(
                f"phase {expected.phase!r} gives another outcome for the same context and position "
                f"({shown(expected.outcome)}, then {when} {shown(found.outcome)}): {KEYED}, {SYNC}"
            )
        if (found.phase, found.target, found.guards) != (expected.phase, expected.target, expected.guards):
            self._watch.breach(
                f"step {expected.number} went {expected.phase} -> {expected.target} with guards {expected.guards}, "
                f"then {when} {found.phase} -> {found.target} with {found.guards}: a guard must be pure"
            )


def _addresses(
    pinned: Callable[[Any], Mapping[str, int] | Iterable[int]] | None,
) -> Addresses[Any]:
    def given(context: Any) -> Mapping[str, int]:
        assert pinned is not None
        found = pinned(context)
        return found if isinstance(found, Mapping) else {str(n): address for n, address in enumerate(found)}

    return given if pinned else _arrays


def _arrays(context: Any) -> Mapping[str, int]:
    """Where the arrays among the pinned fields of a context are."""
    found = {}
    for name in getattr(type(context), "__pinned__", ()):
        interface = getattr(getattr(context, name, None), "__array_interface__", None)
        if interface:
            found[name] = interface["data"][0]
    return found
