"""A run under test: it is moved, noted, and compared with what was noted when it was there before."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from hypothesis import event

from statemachine.definition.phase import Status
from statemachine.definition.table import Signal, name_of
from statemachine.errors import GuardError, IllegalMove, PhaseError
from statemachine.execution import host_state
from statemachine.execution.run import Run
from statemachine.execution.timeline import Event, Step
from statemachine.execution.travel import state_at
from statemachine.record.exact import plain
from statemachine.record.header import step_records
from statemachine.testing.bench import Bench
from statemachine.testing.endless import endless
from statemachine.testing.past import Past, Place
from statemachine.testing.same import differences, same, shown
from statemachine.testing.watch import KEYED


class Subject:
    """A run, and what was noted of it."""

    def __init__(self, bench: Bench, run: Run[Any], past: Past | None = None) -> None:
        self.bench, self.run = bench, run
        self.past = past or Past([self.place])
        self._due: int | None = None  # the number of steps, where a signal that waited could be taken on the way

    @property
    def place(self) -> Place:
        """Where the run rests."""
        return self.run.phase.name, self.bench.given.state(self.run.context)

    @property
    def done(self) -> bool:
        """Whether it has come to its end, waits, or has gone as far as runs are driven; one that failed may go on."""
        status = self.run.status
        return status.over or status is Status.WAITING or self.run.step_count >= self.bench.given.max_steps

    @property
    def events(self) -> list[Event]:
        """The signals and edits that took effect, also those that lie ahead of a run that went back."""
        return [event for event in self.run.timeline.events if event.kind != "refused"]

    # --- moves --------------------------------------------------------------------------------------------------

    def step(self) -> Step | None:
        """One step, noted; None if it failed, or there was none to take before an answer comes."""
        self.past.cut(self.run.step_count)
        step = None
        with self.moving():
            step = self.run.step()
            if step:
                self.note()
        return step

    def step_as(self, expected: Step) -> Step | None:
        """The same step again: with the answer that it had, if the run waits for one."""
        return self.answer(expected.outcome) if self.run.status is Status.WAITING else self.step()

    def answer(self, outcome: Any) -> Step | None:
        """Give a waiting run what it waits for, noted; None if it could not be entered, which must change nothing."""
        if self.past.tip:
            self.past.cut(self.run.step_count)
        before = self.place
        with self.hearing():
            try:
                step = self.run.answer(outcome)
            except self.bench.given.may_raise:
                self.compare(self.place, before, f"refusing the answer {shown(outcome)}")
                return None
        self.note()
        return step

    def steps(self, count: int) -> list[Step]:
        """The steps that came of trying so often, as far as the run goes."""
        taken = []
        for _ in range(count):
            if not self.done and (step := self.step()):
                taken.append(step)  # noqa: PERF401  # each step decides whether there is another
        return taken

    def drive(self, last: int, *, pauses: bool) -> None:
        """On to a breakpoint after so many steps, or to a pause that somebody asks for there."""

        def there(run: Run[Any]) -> bool:
            self.note()
            if run.step_count == last and pauses:
                run.pause()
            return run.step_count == last and not pauses

        self.past.cut(self.run.step_count)
        with self.moving():
            self.run.until(there)

    def run_on(self) -> None:
        """On to an end, or as far as runs are driven; if it must end, so far again from wherever it is."""
        first, given = self.run.step_count, self.bench.given
        last = first + given.max_steps if given.must_end else given.max_steps
        if not self.done:  # a ready run becomes one that waits by being forked
            self.drive(last, pauses=False)
        if given.must_end and self.run.step_count == last and self.run.status is Status.PAUSED:
            self.breach(endless(list(self.run.steps(first)), [fields for _, fields in self.past.places[first:]]))

    def loop(self, last: int, back: int) -> None:
        """Iterate until after so many steps, then go back some from within the loop."""
        self.past.cut(self.run.step_count)
        with self.moving():
            for step in self.run:
                self.note()
                if step.number + 1 == last and not self.run.pending:
                    self.rewind(max(0, last - back))
                    break

    def rewind(self, number: int) -> None:
        """Go back to after so many steps, and see that all is as it was there."""
        if number == self.run.step_count:
            return
        self.past.tip = self.past.tip or (self.place, self.run.status)
        self.run.goto(number)
        self.compare(self.place, self.past.places[number], f"going back to step {number}")

    def signal(self, name: str, payload: Any = None, *, wait: bool = False) -> None:
        """Send a signal, and see that it is taken where it is possible.

        Where it is not, it is refused without a trace, or waits, if it may.
        """
        run, before, here = self.run, self.place, self.run.phase_name
        entry, said = self._entry(name, here), name in run.possible.signals
        possible = self._can_be_taken(name)
        if possible is not said:
            self.breach(
                f"signal {name!r} is {'not ' * possible}said to be possible at {here!r}: its guard must be pure"
            )
        for one in self.bench.given.machine.signals_named(name):
            if one.carries and (one is entry or wait):
                self.bench.watch.check_recordable(one, payload)
        with self.hearing() as heard:
            try:
                run.signal(name, payload, wait=wait)
            except IllegalMove:
                if possible or wait:
                    raise
                self.compare(self.place, before, f"refusing the signal {name!r}")
                return
            except self.bench.given.may_raise:
                self.compare(self.place, before, f"refusing what the signal {name!r} carries, {shown(payload)},")
                return
        if wait and not possible and not heard:
            self.compare(self.place, before, f"letting the signal {name!r} wait")
            return
        if entry is None or not possible:
            self.breach(
                f"signal {name!r} is taken at {here!r}, though it is not possible there: its guard must be pure"
            )
        self.past.cut(run.step_count)
        if len(heard) == 1:  # or else some that waited were taken at once
            fields = self.place[1] if entry.carries else before[1]
            self.compare(self.place, (name_of(entry.to), fields), f"the signal {name!r}")

    def _can_be_taken(self, name: str) -> bool:
        """Whether the place where the run is takes a signal of this name."""
        entry = self._entry(name, self.run.phase_name)
        return entry is not None and (entry.when is None or entry.when(self.run.context))

    def _entry(self, name: str, phase: str) -> Signal[Any, Any] | None:
        """The signal of this name that is taken at this phase, if one is."""
        if self.bench.given.machine.phases[phase].final:
            return None
        for entry in self.bench.given.machine.signals_named(name):
            if not entry.sources or phase in map(name_of, entry.sources):
                return entry
        return None

    def edit(self, name: str, arguments: Mapping[str, Any]) -> None:
        """Make an edit, after both of its halves were tried alone."""
        edit, context, before = self.bench.given.machine.edit(name), self.run.context, self.place
        possible = edit.may_be_made_at(self.run.phase_name)
        if possible is not (name in self.run.possible.edits):
            self.breach(f"edit {name!r} is {'not ' * possible}said to be possible at {self.run.phase_name!r}")
        if not possible:
            with suppress(IllegalMove):
                self.run.edit(name, **arguments)
                self.breach(f"edit {name!r} is made at {self.run.phase_name!r}, which is none of its sources")
            self.compare(self.place, before, f"refusing the edit {name!r}")
            return
        try:
            outcome = edit.run(context, **arguments)
            refused = False
        except ValueError:
            refused = True
        if changed := differences(before[1], self.bench.given.state(context)):
            self.breach(f"edit {name!r} changes {', '.join(changed)} in run(): move that into apply()")
        if refused:
            return
        self.bench.watch.check_recordable(edit, outcome)
        fields = host_state.save(context)
        self.bench.watch.check_apply(edit, edit.apply, context, outcome)
        host_state.restore(context, fields)
        self.past.cut(self.run.step_count)
        with self.moving():
            self.run.edit(name, **arguments)
        self.bench.coverage.edits[name] += 1

    @contextmanager
    def hearing(self) -> Iterator[list[Event]]:
        """Count the signals that are taken meanwhile, and list them."""
        heard: list[Event] = []
        before = self.events
        try:
            yield heard
        finally:
            known = set(map(id, before))
            heard += [event for event in self.events if event.kind == "signal" and id(event) not in known]
            for event in heard:
                self.bench.coverage.signals[event.name] += 1

    @contextmanager
    def moving(self) -> Iterator[None]:
        """Let what was broken come out as itself, and see that a failure of a phase left the context as it was."""
        number, before, watch = self.run.step_count, self.place, self.bench.watch
        self._due = None
        try:
            with self.hearing() as heard:
                yield
        except PhaseError as failure:
            expected = before if self.run.step_count == number else self.past.places[-1]
            if watch.broken is None:
                if not isinstance(failure.__cause__, self.bench.given.may_raise):
                    raise
                if any(
                    event.number == self.run.step_count for event in heard
                ):  # which the phase that failed came after
                    expected = self._recorded(self.run.timeline.events_here)
                self.compare(self.place, expected, f"failing in phase {failure.phase!r}")
        if watch.broken is not None:
            raise watch.broken from None

    def note(self) -> None:
        """Note where the run is after a step, or was, before a signal that waited was taken there."""
        number, timeline = self.run.step_count, self.run.timeline
        if self._due is not None and all(event.number != self._due for event in timeline.events):
            self.breach(f"no signal was taken after step {self._due - 1}, where one could be: its guard must be pure")
        self._due = None
        with suppress(GuardError):  # then the signal is refused, and the watch says why
            self._due = number if any(map(self._can_be_taken, self.run.pending)) else None
        (record,) = step_records(timeline, number - 1, number)
        moved = any(event.number == number for event in self.events)
        self.past.places.append(self._recorded(timeline.events_before(number)) if moved else self.place)
        self.past.outcomes.append(plain(record.o))
        self.bench.coverage.add(self.bench.given.machine, [record])
        event(str(self.bench.given.machine.transitions[record.e]))

    def _recorded(self, events: Sequence[Event]) -> Place:
        """Where the run is by its record, up to these of the events here."""
        timeline = self.run.timeline
        context, index = state_at(timeline, self.run.context, self.run.step_count, events)
        return timeline.program.names[index], self.bench.given.state(context)

    # --- comparisons --------------------------------------------------------------------------------------------

    def breach(self, message: str) -> NoReturn:
        """Raise BrokenRule."""
        self.bench.watch.breach(message)

    def compare(self, found: Place, expected: Place, after: str) -> None:
        """See that what was done left a run where it should be."""
        if found[0] != expected[0]:
            self.breach(f"{after} leaves the run at phase {found[0]!r}, not {expected[0]!r}")
        if changed := differences(expected[1], found[1]):
            self.check_outcomes()  # if one of them was changed, that is why
            self.breach(f"{after} changes {', '.join(changed)}")

    def check_pending(self) -> None:
        """See that no signal waits where it can be taken, or where none will be taken any more."""
        run = self.run
        if run.timeline.rewound is not None:  # one whose payload cannot be entered waits there
            return
        if idle := [name for name in run.pending if run.status.over or name in run.possible.signals]:
            self.breach(
                f"signal {idle[0]!r} waits at {run.phase_name!r}, where it can be taken: its guard must be pure"
            )

    def check_outcomes(self) -> None:
        """See that every outcome is what it was when it was recorded."""
        for step, outcome in zip(self.run.steps(future=True), self.past.outcomes, strict=True):
            if not same(plain(step.outcome), outcome):
                self.breach(
                    f"the outcome of step {step.number}, phase {step.phase!r}, was changed after it was recorded "
                    f"({shown(outcome)}, then {shown(step.outcome)}): let apply() enter a copy of it"
                )

    def same_step(self, expected: Step | None, found: Step | None, when: str) -> None:
        """See that a step taken twice from the same place comes to the same."""
        if expected is None or found is None:
            return
        if not same(found.raised, expected.raised):
            self.breach(
                f"phase {expected.phase!r} raises something else for the same context and position "
                f"({expected.raised or 'nothing'}, then {when} {found.raised or 'nothing'}): {KEYED}"
            )
        if not same(found.outcome, expected.outcome):
            self.breach(
                f"phase {expected.phase!r} gives another outcome for the same context and position "
                f"({shown(expected.outcome)}, then {when} {shown(found.outcome)}): {KEYED}"
            )
        if (found.phase, found.target, found.guards) != (expected.phase, expected.target, expected.guards):
            self.breach(
                f"step {expected.number} went {expected.phase} -> {expected.target} with guards {expected.guards}, "
                f"then {when} {found.phase} -> {found.target} with {found.guards}: a guard must be pure"
            )
