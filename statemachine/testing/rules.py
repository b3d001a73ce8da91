"""A rule-based test of any machine: Hypothesis moves runs of it in every way there is, and checks what must hold."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import Phase as Stage
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
from statemachine.definition.phase import Phase, Status, Wait, declared_outcome
from statemachine.definition.table import name_of
from statemachine.errors import OutcomeError
from statemachine.execution import host_state
from statemachine.execution.resources import Resources
from statemachine.execution.run import Run
from statemachine.record.exact import check
from statemachine.record.journal import Journal
from statemachine.record.replay import play, verify
from statemachine.record.snapshot import load, restore
from statemachine.record.writer import JournalWriter
from statemachine.testing.bench import Bench
from statemachine.testing.coverage import Coverage
from statemachine.testing.given import Given, addresses_of
from statemachine.testing.past import Place
from statemachine.testing.same import same, shown
from statemachine.testing.subject import Subject
from statemachine.testing.watch import KEYED, State

Context = TypeVar("Context")

COUNTS = st.integers(1, 6)
AHEAD = st.none() | COUNTS  # how far a run is driven on with a signal that was left to wait
STAGES = [stage for stage in Stage if stage is not Stage.explain]  # explaining takes longer than finding and shrinking


def machine_rules(
    machine: Machine[Context],
    contexts: st.SearchStrategy[Context] | Callable[[], Context],
    *,
    resources: Resources[Context] | None = None,
    answers: Mapping[str, st.SearchStrategy[Any]] | None = None,
    signals: Mapping[str, st.SearchStrategy[Any]] | None = None,
    edits: Mapping[str, st.SearchStrategy[Mapping[str, Any]]] | None = None,
    pinned: Callable[[Context], Mapping[str, int] | Iterable[int]] | None = None,
    state: State[Context] = host_state.save,
    may_raise: type[Exception] | tuple[type[Exception], ...] = (),
    max_steps: int = 60,
    must_end: bool = False,
    close: Callable[[Context], None] | None = None,
) -> "type[MachineRules]":
    """A Hypothesis state machine that tests a machine; its `TestCase` is for pytest and unittest.

        TestTraffic = machine_rules(traffic, contexts=st.builds(Crossing, cars=st.integers(0, 9))).TestCase

    Runs are stepped, driven, paused, signalled, edited, rewound, forked, saved, restored and replayed, and must agree
    with themselves, with their journals and between both interpreters. Signals are left to wait, too, and must be taken
    as soon as they can be. `Rules.coverage` holds what was seen.

    Parameters
    ----------
    machine
        The machine to test.
    contexts
        Contexts as they are before a run: a strategy, or a function that makes one. Each must be a new object.
    resources
        What stands behind the contexts besides their host fields. Contexts whose resources have no `fork` of their own
        are copied deeply where a second one is needed, buffers included.
    answers
        For phases that wait, by name, a strategy of what they are given. Unless given, anything of the type that the
        phase declares.
    signals
        For signals that carry something, by name, a strategy of that. Unless given, anything of the type that the
        signal declares.
    edits
        For each of the machine's edits that is to be tried, a strategy of its arguments; ValueError is a refusal.
    pinned
        The addresses of a context's buffers, by name or in order. Unless given, those of the arrays in `__pinned__`.
    state
        A copy of what of a context counts, by name. Unless given, its host fields.
    may_raise
        Exceptions that phases may raise for which the table has no way; the run must then rest, failed, with its
        context as before the phase (and wait, as before, if it was given an answer). Those that it has a way for are
        raised by the test itself, too. Signals may raise them as well, in `apply`, and change nothing then.
    max_steps
        How far a run is driven.
    must_end
        A run that is left alone, without signals and edits, must come to an end or to a phase that waits, within
        `max_steps` steps of any place.
    close
        Called with every context when an example is over.
    """
    strategy = contexts if isinstance(contexts, st.SearchStrategy) else st.builds(contexts)
    changes = st.one_of([st.tuples(st.just(name), arguments) for name, arguments in (edits or {}).items()])
    for name in edits or {}:
        machine.edit(name)  # raises if there is none
    given_answers, payloads = _answers(machine, answers or {}), _payloads(machine, signals or {})
    bare = [name for name in dict.fromkeys(signal.name for signal in machine.signals) if name not in payloads]

    class Rules(MachineRules):
        coverage = Coverage.of(machine)
        given = Given(
            machine,
            resources or Resources(),
            state,
            addresses_of(pinned),
            may_raise,
            max_steps,
            must_end,
            close or (lambda context: None),
        )

        @initialize(
            context=strategy, library=st.booleans(), digest_every=st.integers(0, 2),
            storm=st.integers(0, 20) if any(way.classes for way in machine.transitions) else st.just(0),
        )  # fmt: skip
        def begin(self, context: Context, library: bool, digest_every: int, storm: int) -> None:
            self._bench.watch.storm = storm
            self._begin(context, library, digest_every)

        if given_answers:

            @precondition(lambda self: self.run.status is Status.WAITING and self.run.phase.name in given_answers)
            @rule(data=st.data())
            def answer(self, data: st.DataObject) -> None:
                self._subject.answer(data.draw(given_answers[self.run.phase.name], label=self.run.phase.name))

        if bare:

            @precondition(lambda self: not self.run.status.ended)
            @rule(name=st.sampled_from(bare), ahead=AHEAD)
            def signal(self, name: str, ahead: int | None) -> None:
                self._send(name, None, ahead)

        if payloads:

            @precondition(lambda self: not self.run.status.ended)
            @rule(
                sent=st.one_of([st.tuples(st.just(name), payload) for name, payload in payloads.items()]),
                ahead=AHEAD,
            )
            def signal_with_payload(self, sent: tuple[str, Any], ahead: int | None) -> None:
                self._send(*sent, ahead)

        if edits:

            @precondition(lambda self: not self.run.status.ended)
            @rule(change=changes)
            def edit(self, change: tuple[str, Mapping[str, Any]]) -> None:
                self._subject.edit(*change)

    Rules.__name__ = Rules.__qualname__ = f"Rules of {machine.name}"
    Rules.TestCase.settings = settings(
        max_examples=60, stateful_step_count=12, deadline=None, phases=STAGES,
        suppress_health_check=[HealthCheck.too_slow], report_multiple_bugs=False,
    )  # fmt: skip
    return Rules


def _answers(machine: Machine[Any], given: Mapping[str, st.SearchStrategy[Any]]) -> dict[str, st.SearchStrategy[Any]]:
    """A strategy for each phase that waits for an answer."""
    answered = {name_of(way.source) for way in machine.transitions}
    waits = {name: phase for name, phase in machine.phases.items() if isinstance(phase, Wait) and name in answered}
    if odd := sorted(given.keys() - waits.keys()):
        raise ValueError(f"answers are given to {', '.join(odd)}, but what waits is {', '.join(waits) or 'no phase'}")
    return {
        name: given[name] if name in given else _anything(declared_outcome(type(phase), Phase))
        for name, phase in waits.items()
    }


def _payloads(machine: Machine[Any], given: Mapping[str, st.SearchStrategy[Any]]) -> dict[str, st.SearchStrategy[Any]]:
    """A strategy of what it carries for each signal that carries something."""
    carrying = {signal.name: signal for signal in machine.signals if signal.carries}
    if odd := sorted(given.keys() - carrying.keys()):
        words = ", ".join(carrying) or "no signal"
        raise ValueError(f"signals are given to {', '.join(odd)}, but what carries something is {words}")
    return {name: given[name] if name in given else _anything(signal.payload_type) for name, signal in carrying.items()}


def _anything(declared: Any) -> st.SearchStrategy[Any]:
    """Whatever is of a type, and can be recorded: anything else is refused."""

    def recordable(value: Any) -> bool:
        try:
            check(value)
        except OutcomeError:
            return False
        return True

    return st.from_type(declared).filter(recordable)


def run_rules(rules: "type[MachineRules]", options: settings | None = None) -> Coverage:
    """Run the rules here and now, as their `TestCase` would, and give what was seen; raises BrokenRule."""
    run_state_machine_as_test(rules, settings=settings(options or rules.TestCase.settings, deadline=None))
    return rules.coverage


class MachineRules(RuleBasedStateMachine):
    """The rules that hold for every machine; `machine_rules` makes them those of one.

    Attributes
    ----------
    coverage
        What all examples together have seen of the machine.
    """

    coverage: ClassVar[Coverage]
    given: ClassVar[Given]
    _subject: Subject

    def __init__(self) -> None:
        super().__init__()
        self._bench = Bench(self.given, self.coverage)

    def _begin(self, context: Any, library: bool, digest_every: int) -> None:
        run = self._bench.begin(context, "transitions" if library else "compiled", digest_every)
        self._subject = Subject(self._bench, run)

    def teardown(self) -> None:
        self._bench.clear()

    @property
    def run(self) -> Run[Any]:
        """The run under test."""
        return self._subject.run

    # --- rules ----------------------------------------------------------------------------------------------------

    @precondition(lambda self: not self._subject.done)
    @rule(count=COUNTS)
    def step(self, count: int) -> None:
        """Step by step."""
        self._subject.steps(count)

    @precondition(lambda self: not self._subject.done)
    @rule(count=COUNTS, pauses=st.booleans())
    def drive(self, count: int, pauses: bool) -> None:
        """Several steps at once, up to a breakpoint or to a pause that somebody asks for."""
        self._subject.drive(min(self.run.step_count + count, self.given.max_steps), pauses=pauses)

    def _send(self, name: str, payload: Any, ahead: int | None) -> None:
        self._subject.signal(name, payload, wait=ahead is not None)
        if ahead is not None and not self._subject.done:
            self._subject.drive(min(self.run.step_count + ahead, self.given.max_steps), pauses=False)

    @precondition(lambda self: not self._subject.done)
    @rule()
    def run_on(self) -> None:
        """A fork of it, left alone, goes as far as it goes, so that what shows late is seen."""
        subject, before, number = self._subject, self._subject.place, self.run.step_count
        fork = Subject(self._bench, self._bench.fork(self.run, None), subject.past.until(number))
        fork.run_on()
        subject.compare(subject.place, before, "moving a fork (give resources= a fork() that shares nothing)")
        fork.run.close()

    @precondition(lambda self: not self._subject.done)
    @rule(count=COUNTS, back=st.integers(0, 2))
    def loop(self, count: int, back: int) -> None:
        """A loop over the run, that goes back from within."""
        self._subject.loop(min(self.run.step_count + count, self.given.max_steps), back)

    @precondition(lambda self: not self.run.pending)  # or else one that waits may be taken there
    @rule(count=COUNTS)
    def back_and_forth(self, count: int) -> None:
        """Going back, and forth again, is the identity."""
        subject, run, before, number = self._subject, self.run, self._subject.place, self.run.step_count
        status, events, there = run.status, run.events, max(0, number - count)
        run.goto(there)
        if there < number:
            subject.compare(subject.place, subject.past.places[there], f"going back to step {there}")
        run.goto(number)
        subject.compare(subject.place, before, f"going back to step {there} and forth to {number}")
        if run.status is not status or not same(run.events, events):
            subject.breach(f"going back and forth makes a {status} run {run.status}, or loses one of its events")

    @precondition(lambda self: self.run.step_count > 0 and not self.run.pending)
    @rule(count=COUNTS)
    def rewind(self, count: int) -> None:
        """Go back and stay there."""
        self._subject.rewind(max(0, self.run.step_count - count))

    @precondition(lambda self: self.run.step_count > 0 and not self.run.pending)
    @rule(count=COUNTS)
    def again(self, count: int) -> None:
        """Going back and stepping again gives the same steps."""
        subject, number = self._subject, self.run.step_count
        after_events = [event.number + 1 for event in subject.events if event.number < number]
        first = max([number - count, 0, *after_events])
        expected = list(self.run.steps(first))
        if expected:
            subject.rewind(first)
        for step in expected:
            if not self.run.status.ended:
                subject.same_step(step, subject.step_as(step), "again, after going back,")

    @rule(count=COUNTS, ahead=st.integers(0, 3), stay=st.booleans())
    def fork(self, count: int, ahead: int, stay: bool) -> None:
        """A fork has the same past, its steps come to the same, and it leaves the run that it came from alone."""
        subject, run, number = self._subject, self.run, max(0, self.run.step_count - count + 1)
        before, past, here = subject.place, subject.past, number == run.step_count
        recorded = list(run.steps(number, future=True))
        fork = Subject(self._bench, self._bench.fork(run, None if here else number), past.until(number))
        subject.compare(fork.place, before if here else past.places[number], f"forking at step {number}")
        if not same(list(fork.run.steps()), list(run.steps())[:number]):
            subject.breach(f"a fork at step {number} has other steps behind it than the run it came from")
        events = {event.number for event in subject.events}
        alike = True  # until an event comes that the fork does not share
        for coming in range(number, min(number + ahead, self.given.max_steps)):
            alike = alike and coming not in events and coming - number < len(recorded)
            if fork.run.status.ended or (fork.run.status is Status.WAITING and not alike):
                break
            found = fork.step_as(recorded[coming - number]) if alike else fork.step()
            if alike:
                fork.same_step(recorded[coming - number], found, "in a fork")
        fork.compare(subject.place, before, "moving a fork (give resources= a fork() that shares nothing)")
        self._stay_with(*((fork, subject) if stay else (subject, fork)))

    @precondition(lambda self: not self.run.status.ended)
    @rule(ahead=st.integers(0, 3), stay=st.booleans())
    def save_and_restore(self, ahead: int, stay: bool) -> None:
        """A snapshot, restored on another context, is the same run: place, past and what comes next."""
        subject, run, before, path = self._subject, self.run, self._subject.place, self._bench.file("snapshot")
        run.snapshot(path)
        subject.compare(subject.place, before, "taking a snapshot")
        other = self._bench.run(self._bench.second(run.context))
        with subject.moving():
            divergence = restore(load(path), other)
        if divergence:
            subject.breach(f"a snapshot cannot be restored:\n{divergence.report()}")
        restored = Subject(self._bench, other, subject.past.until(run.step_count))
        subject.compare(restored.place, before, "restoring a snapshot")
        if not same(list(other.steps()), list(run.steps())) or not same(other.events, run.events):
            subject.breach("restoring a snapshot gives other steps or events than the run that was saved had")
        if other.status not in (Status.PAUSED, Status.WAITING):
            subject.breach(f"restoring a snapshot gives a {other.status} run, not a paused one")
        mine = {step.number: step for step in subject.steps(ahead)}  # which may fail and try again where theirs do not
        for found in restored.steps(ahead):
            subject.same_step(mine.get(found.number), found, "after restoring a snapshot")
        self._stay_with(*((restored, subject) if stay else (subject, restored)))

    def _stay_with(self, subject: Subject, other: Subject) -> None:
        other.run.close()
        self._subject = subject

    @rule()
    def replay(self) -> None:
        """The journal so far plays by outcomes alone, and verifies when it is run again."""
        subject, run, before = self._subject, self.run, self._subject.place
        assert isinstance(run.journal, JournalWriter)
        if not run.journal.path.stat().st_size:  # nothing has happened
            return
        journal = Journal.open(run.journal.path)
        tip, status = subject.past.tip or (before, run.status)
        self._play(journal, tip)
        if status is not Status.FAILED:
            self._verify(journal, tip)
        subject.compare(subject.place, before, "replaying on a second context (it shares something with the first)")

    def _play(self, journal: Journal, tip: Place) -> None:
        subject, context = self._subject, copy.copy(self.run.context)
        host_state.restore(context, self._bench.origin)
        player: Run[Any] = Run(self._bench.machine, context)
        with subject.moving():
            divergence = play(journal, player)
        if divergence:
            subject.breach(f"the journal cannot be played:\n{divergence.report()}")
        subject.compare((player.phase.name, self.given.state(context)), tip, "playing the journal")
        if not same(list(player.steps()), list(self.run.steps(future=True))):
            subject.breach("playing the journal gives other steps than the run had")

    def _verify(self, journal: Journal, tip: Place) -> None:
        subject, context = self._subject, self._bench.second(self.run.context)
        with self._bench.run(context, journalled=False) as again:  # what it holds is given back however this ends
            with subject.moving(), self._bench.watch.once():  # for what it runs is compared with the record
                divergence = verify(journal, again).divergence
            if divergence and divergence.field == "error" and self.given.may_raise:
                return
            if divergence:
                words = KEYED if divergence.field in ("outcome", "digest") else "see the report"
                subject.breach(
                    f"phase {divergence.phase!r} gives another {divergence.field} when the journal is run again "
                    f"({shown(divergence.recorded)}, then {shown(divergence.replayed)}): {words}\n{divergence.report()}"
                )
            subject.compare((again.phase.name, self.given.state(context)), tip, "running the journal again")

    @invariant()
    def rests_consistently(self) -> None:
        """What is recorded stays as it was, buffers stay where they were, and the run is where its phases say."""
        watch, run = self._bench.watch, self.run
        if watch.broken is not None:
            raise watch.broken
        watch.check_buffers(run.context, "somebody")
        self._subject.check_outcomes()
        self._subject.check_pending()
        if run.status.over and not run.phase.final:
            watch.breach(f"the run is {run.status}, but rests at {run.phase.name!r}")
