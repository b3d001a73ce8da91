"""Replay: walk a journal again by its outcomes alone, or run it again and say where it first differs."""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any, TypeVar

import msgspec

from statemachine.definition.phase import Status
from statemachine.errors import PhaseError
from statemachine.execution.run import Run
from statemachine.record.journal import Journal
from statemachine.record.records import (
    BodyRecord,
    EditRecord,
    EndRecord,
    ErrorRecord,
    Header,
    PauseRecord,
    SignalRecord,
    StepRecord,
    header_of,
    plain,
    typed,
)

Context = TypeVar("Context")
Watch = Callable[[int], None]
Describe = Callable[[str, Any], str]  # phase and outcome to words, e.g. tokens to text

COMMON = 5  # how many of the last steps in common a report shows
MISSING = "nothing"


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first place where a replay differs from its record."""

    step: int
    phase: str
    field: str  # "phase", "guards", "transition", "outcome", "digest", "error" or "end"
    recorded: Any
    replayed: Any
    causes: tuple[str, ...] = ()  # what differs in the two headers
    common: tuple[str, ...] = ()  # the last steps before it, in words
    detail: dict[str, Any] = dataclass_field(default_factory=dict)  # for digests, what the phase says of the two

    def report(self, describe: Describe = lambda phase, value: "") -> str:
        """The divergence as a person reads it."""

        def shown(value: Any) -> str:
            words = describe(self.phase, value) if self.field == "outcome" else ""
            return f"{plain_text(value)}  {words}".rstrip()

        lines = [
            f"replay diverged at step {self.step} in phase {self.phase!r}: {self.field}",
            f"  recorded: {shown(self.recorded)}",
            f"  replayed: {shown(self.replayed)}",
            *(f"  {name.replace('_', ' ')}: {value}" for name, value in self.detail.items()),
        ]
        lines.append(
            "  likely causes:" + ("" if self.causes else " none in the headers; the code or the model differs")
        )
        lines += [f"    {cause}" for cause in self.causes]
        lines.append(f"  last steps in common:{'' if self.common else ' none'}")
        lines += [f"    {step}" for step in self.common]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The divergence as plain JSON values."""
        value: dict[str, Any] = msgspec.to_builtins(self)
        return value


def plain_text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def play(journal: Journal, run: Run[Any], *, until: int | None = None, watch: Watch | None = None) -> Divergence | None:
    """Move a ready run by the recorded outcomes alone: no phase runs, so no engine, model or file is needed.

    Parameters
    ----------
    until
        Stop before the step of this number, with the run resting there.
    watch
        Called with the number of steps done, after each.

    Returns
    -------
    Divergence or None
        Where the machine behaves otherwise than the record says; the run rests there.
    """
    divergence = _walk(journal, run, _Player(run), until=until, watch=watch)
    if run.status is Status.READY:
        run.pause()  # not a step was played: it rests, begun, all the same
        run.start()
    elif run.journal:
        run.journal.write(run)
    return divergence


def verify(journal: Journal, run: Run[Any], *, watch: Watch | None = None) -> Divergence | None:
    """Run it again with a ready run and compare every compared field of every step.

    A journal that was cut short (by a kill, say) is compared as far as it goes.
    """
    return _walk(journal, run, _Verifier(run), until=None, watch=watch)


def causes_of(recorded: Header, replayed: Header) -> tuple[str, ...]:
    """What differs between two headers that can change a bit."""
    causes = []
    if recorded.machine.fingerprint != replayed.machine.fingerprint:
        old, new = set(recorded.machine.transitions), set(replayed.machine.transitions)
        causes += [f"transition gone: {way}" for way in recorded.machine.transitions if way not in new]
        causes += [f"transition new: {way}" for way in replayed.machine.transitions if way not in old]
        causes = causes or [f"machine: {recorded.machine.name} -> {replayed.machine.name}, its table differs"]
    before, after = recorded.environment, replayed.environment
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            causes.append(f"{name}: {plain_text(before.get(name))} -> {plain_text(after.get(name))}")
    return tuple(causes)


class _Player:
    """Takes each recorded step by its outcome."""

    live = False

    def __init__(self, run: Run[Any]) -> None:
        self._run = run

    def step(self, record: StepRecord) -> StepRecord:
        run = self._run
        run.take(typed(record.o, run.phase), elapsed_ns=record.t)
        (taken,) = run.step_records(run.step_count - 1, run.step_count)
        return msgspec.structs.replace(taken, o=record.o, d=record.d)

    def error(self, record: ErrorRecord) -> str | None:
        return record.exception

    def end(self) -> str:
        return str(self._run.status)


class _Verifier(_Player):
    """Runs each phase again."""

    live = True

    def step(self, record: StepRecord) -> StepRecord:
        run = self._run
        run.digest_every = int(record.d is not None)  # of just the steps that have one in the record
        run.step()
        (taken,) = run.step_records(run.step_count - 1, run.step_count)
        return msgspec.structs.replace(taken, o=plain(taken.o), d=plain(taken.d) if record.d is not None else None)

    def error(self, record: ErrorRecord) -> str | None:
        try:
            self._run.step()
        except PhaseError as error:
            return type(error.__cause__).__name__
        return None


def _walk(
    journal: Journal, run: Run[Any], player: _Player, *, until: int | None, watch: Watch | None
) -> Divergence | None:
    common: deque[StepRecord] = deque(maxlen=COMMON)
    machine = run.machine
    failed = False

    def divergence(n: int, phase: str, field: str, recorded: Any, replayed: Any, **detail: Any) -> Divergence:
        causes = causes_of(journal.header, header_of(run))
        words = tuple(
            f"{step.n}: {step.p} {plain_text(step.o) if step.o is not None else ''}".rstrip() for step in common
        )
        return Divergence(n, phase, field, recorded, replayed, causes, words, detail)

    for record in _body(journal.timeline()):
        if until is not None and record.n >= until and not isinstance(record, EditRecord):
            return None
        if isinstance(record, SignalRecord):
            run.signal(record.name)
        elif isinstance(record, EditRecord):
            run.edit_as_recorded(record.name, typed(record.o, machine.edit(record.name)), live=player.live)
        elif isinstance(record, StepRecord):
            if run.status.ended or run.phase.name != record.p:
                replayed = str(run.status) if run.status.ended else run.phase.name
                return divergence(record.n, record.p, "phase", record.p, replayed)
            try:
                taken = player.step(record)
            except PhaseError as error:
                return divergence(
                    record.n, record.p, "error", MISSING, f"{type(error.__cause__).__name__}: {error.__cause__}"
                )
            for name, short in (("outcome", "o"), ("digest", "d"), ("guards", "g"), ("transition", "e")):
                old, new = getattr(record, short), getattr(taken, short)
                if old == new:
                    continue
                detail = (
                    machine.phases[record.p].explain(old, new) if name == "digest" and None not in (old, new) else {}
                )
                if name == "guards":
                    old, new = (_guards(machine.program().atoms, run, record.p, bits) for bits in (old, new))
                elif name == "transition":
                    old, new = str(journal.header.machine.transitions[old]), str(machine.transitions[new])
                return divergence(record.n, record.p, name, old, new, **detail)
            common.append(record)
            if watch:
                watch(record.n + 1)
        elif isinstance(record, ErrorRecord):
            failed = True
            found = player.error(record)
            if found != record.exception:
                return divergence(
                    record.n, record.p, "error", f"{record.exception}: {record.message}", found or MISSING
                )
        elif isinstance(record, EndRecord) and not failed and player.end() != record.status:
            return divergence(record.n, run.phase.name, "end", record.status, player.end())
    return None


def _body(records: Iterable[BodyRecord]) -> Iterable[BodyRecord]:
    return (record for record in records if not isinstance(record, PauseRecord))


def _guards(atoms: Any, run: Run[Any], phase: str, bits: int) -> dict[str, bool]:
    names = [atom.name for atom in atoms[list(run.machine.phases).index(phase)]]
    return {name: bool(bits >> bit & 1) for bit, name in enumerate(names)}
