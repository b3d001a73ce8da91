"""Signals: what others send a run, taken between two steps, at the first place where it can be, or refused."""

from collections.abc import Sequence
from typing import Any, TypeVar

from statemachine.definition.program import Door
from statemachine.definition.table import name_of
from statemachine.errors import IllegalMove, described
from statemachine.execution import host_state
from statemachine.execution.driver import Busy
from statemachine.execution.inbox import Possible, Sent
from statemachine.execution.lifecycle import ANY, AT_REST, RECEPTIVE, Lifecycle
from statemachine.execution.timeline import Event
from statemachine.execution.travel import state_at
from statemachine.log import listening

Context = TypeVar("Context")


class Signals(Lifecycle[Context]):
    """What a run does with the signals, and the wish to pause, that any thread may send."""

    @property
    def possible(self) -> Possible:
        """The names of the signals and edits that would be taken now; of use from any thread.

        While some thread moves the run, those that it will take wherever it comes to rest: signals that no phase and no
        guard keeps back. Raises GuardError as the guard of a signal does.
        """
        names = tuple(dict.fromkeys(signal.name for signal in self.machine.signals))

        def read() -> Possible:
            status, phase = self.status, self.phase_name
            if self._released or self._torn or phase != self.phase_name:
                return Possible()
            return Possible(
                tuple(name for name in names if self._door(name) is not None) if status in RECEPTIVE else (),
                tuple(edit.name for edit in self.machine.edits if edit.may_be_made_at(phase))
                if status in AT_REST else (),
            )  # fmt: skip

        found = self._driver.undisturbed(read)
        return Possible(() if self._status.ended else self._program.always) if found is None else found

    def pause(self) -> None:
        """Ask the run to rest at the next boundary; of use from any thread and from signal handlers."""
        if self._status.ended:
            raise IllegalMove(f"cannot pause run {self.id}: it is {self._status}; only a run that has not ended pauses")
        self._inbox.ask_to_pause()

    def signal(self, name: str, payload: Any = None, *, wait: bool = False) -> None:
        """Send a signal: taken at once by a resting run, at a boundary by a running one.

        At each boundary the first signal that can be taken there is taken; the others wait for a phase, and a context,
        where they can be. One that still waits when the run ends, or whose payload cannot be entered when its turn
        comes, is refused: recorded with the reason and logged, and the run goes on as if it had not been sent.

        Parameters
        ----------
        payload
            Of the type that the signal declares, or the plain JSON values that a record would hold of it.
        wait
            Where a resting run cannot take it now, let it wait too.

        Raises
        ------
        ValueError
            When the machine has no such signal.
        OutcomeError
            When the payload is not of that type, or JSON cannot hold it, or the signal carries none.
        IllegalMove
            When the run has ended, or rests and cannot take it now: at another phase, or as its guard does not hold.
        GuardError
            When that guard raises.
        Exception
            Whatever a resting run's signal raises in `apply`; the run is as it was, as it is whatever is raised.
        """
        signal = self.machine.signals_named(name)[0]
        if payload is not None or signal.carries:
            payload = Lifecycle.typed(payload, signal)
        sent = Sent(name, payload)
        try:
            return self._move("signal", RECEPTIVE, self._signal, sent, wait)
        except Busy:
            self._leave(sent)

    def _leave(self, sent: Sent) -> None:
        """Leave a signal to whoever moves the run."""
        ended = f"cannot signal run {self.id}: it is {self._status}"
        if self._status.ended:
            raise IllegalMove(ended)
        self._inbox.send(sent)
        self._settle()
        if self._status.over and self._inbox.take_out(sent):  # it ended meanwhile, and has not seen it
            raise IllegalMove(f"cannot signal run {self.id}: it is {self._status}")

    def _signal(self, sent: Sent, wait: bool = False, live: bool = True) -> None:
        door = self._door(sent.name)
        if door is not None:
            if self.timeline.origin is None:
                self._begin()
            self._torn = True
            if door.apply is not None:
                self._enter_payload(door, sent)
            self._pass(door, sent, live=live)
            self._look_up()
            self._torn = False
            self._rest()
        elif wait:
            self._inbox.send(sent)
            self._tell()  # so that it is in the record, wherever the process ends
        else:
            raise IllegalMove(self._kept_back(sent.name))

    def _enter_payload(self, door: Door[Context], sent: Sent) -> None:
        try:
            self._apply_payload(door, sent.payload)
        except Exception as error:
            self._torn = False
            error.add_note(f"signal {sent.name!r} could not enter its payload, and run {self.id} is as it was")
            raise

    def _kept_back(self, name: str) -> str:
        """Why a resting run does not take a signal, in words."""
        entries = self.machine.signals_named(name)
        here = [entry for entry in entries if not entry.sources or self.phase_name in map(name_of, entry.sources)]
        if here and not self.phase.final:
            return f"run {self.id} takes {name!r} at {self.phase_name!r} only when {here[0].condition}"
        sources = ", ".join(repr(name_of(source)) for entry in entries for source in entry.sources)
        return f"run {self.id} rests at {self.phase_name!r}, but {name!r} is taken only at {sources}"

    # --- as a record says ---------------------------------------------------------------------------------------------

    def signal_as_recorded(self, name: str, payload: Any, *, live: bool) -> None:
        """Take a signal that carries what a record says; unless `live`, the resources need not follow, as in `take`."""
        self._move("signal", RECEPTIVE, self._signal, Sent(name, payload), False, live)

    def refuse_as_recorded(self, name: str, payload: Any, reason: str) -> None:
        """Record a signal that was refused, at the place where the run rests, or at its end.

        Raises
        ------
        IllegalMove
            When the run would take it here, or let it wait.
        """

        def refuse() -> None:
            if fate := self._fate(name, payload):
                raise IllegalMove(f"run {self.id} {fate} {name!r} at {self.phase_name!r}")
            self._begin()
            self._refuse(Sent(name, payload), reason)
            self._tell()

        self._move("refuse a signal to", ANY, refuse)

    def _fate(self, name: str, payload: Any) -> str:
        """What would become of a signal that was sent while the run was running; "": it would be refused."""
        if self.phase.final:
            return ""
        try:
            if (door := self._door(name)) is None:
                return "lets wait"
            if door.apply is not None:
                door.apply(host_state.scratch(self.context, host_state.save(self.context)), payload)
        except Exception:
            return ""
        return "takes"

    def wait_as_recorded(self, sent: Sequence[tuple[str, Any]]) -> None:
        """Let signals wait that a record says were pending, as `signal` does; the recorder is told."""
        for name, payload in sent:
            self._inbox.send(Sent(name, payload))
        self._move("signal", ANY, self._tell)

    # --- between two steps --------------------------------------------------------------------------------------------

    def _heed(self) -> bool:
        """Take pending signals, then say whether a pause was asked for."""
        self._cursor.attention = False
        self._take_signals()
        if self._inbox.waiting:
            self._cursor.attention = True  # one that cannot be taken here waits for a phase where it can
        if self._inbox.pause and not self.phase.final:
            self._inbox.pause = False
            return True
        return False

    def _take_signals(self) -> bool:
        """Take the first signal that can be taken, as long as there is one; whether there was."""
        found = False
        while sent := next(filter(self._became_an_event, self._inbox.sent), None):
            self._inbox.take_out(sent)
            found = True
        return found

    def _became_an_event(self, sent: Sent) -> bool:
        """Take a signal if it can be taken here, or refuse it for what it carries; whether that was so."""
        if sent.entered(self.timeline):
            return True
        try:
            if (door := self._door(sent.name)) is None:
                return False
            self._begin()
            if door.apply is not None:
                self._apply_payload(door, sent.payload)
        except Exception as error:
            if self.timeline.rewound is not None:  # what lies ahead is not forgotten for that
                return False
            self._refuse(sent, described(error))
        else:
            self._pass(door, sent)
        return True

    def _door(self, name: str) -> Door[Context] | None:
        """How the phase that the run rests at takes this signal; None: it does not, now. Raises GuardError."""
        door = self._program.doors[self._cursor.index].get(name)
        return None if door is None or (door.opens is not None and not door.opens(self.context)) else door

    def _apply_payload(self, door: Door[Context], payload: Any) -> None:
        """Enter what a signal carries; what raises leaves the context as it was."""
        assert door.apply is not None
        try:
            door.apply(self.context, payload)
        except Exception:
            before, _ = state_at(self.timeline, self.context, self.step_count, self.timeline.events_here)
            host_state.adopt(self.context, before)
            raise

    def _pass(self, door: Door[Context], sent: Sent, *, live: bool = True) -> None:
        """Record a signal whose payload was entered, and go where it leads."""
        timeline, cursor = self.timeline, self._cursor
        sent.event = Event(timeline.here, "signal", sent.name, sent.payload)
        timeline.enter(sent.event)
        if listening():
            names = self._program.names
            self._log("info", "run.signal", signal=sent.name, phase=names[cursor.index], to=names[door.target])
        cursor.index = door.target
        if live and door.apply is not None:
            self.resources.sync(self.context)

    def _refuse(self, sent: Sent, reason: str) -> None:
        """Record that a signal had no effect."""
        sent.event = Event(self.step_count, "refused", sent.name, sent.payload, reason)
        self.timeline.enter(sent.event)
        self._log("warning", "run.signal_refused", signal=sent.name, phase=self.phase.name, reason=reason)

    def _refuse_rest(self) -> None:
        """The run is over: what was sent and not taken is refused, and recorded, rather than lost."""
        for sent in self._inbox.sent:
            if not sent.entered(self.timeline):
                self._refuse(sent, f"the run was {self._status} before it could be taken")
            self._inbox.take_out(sent)

    def _settle(self) -> None:
        """Take the signals that are pending while nobody drives the run."""

        def look() -> None:
            self._mend()
            self._inbox.fresh = False
            if self._status.ended:
                return
            self._torn = True
            taken = self._take_signals()
            if taken:
                self._look_up()
            self._torn = False
            if taken:
                self._rest()

        moved = True  # so those that waited may be taken now
        while self._inbox.waiting and (moved or self._inbox.fresh) and not (self._status.ended or self._released):
            if self._driver.held:  # who drives it now takes them
                return
            try:
                self._driver.hold("signal", look)
            except Busy:
                return
            moved = False
