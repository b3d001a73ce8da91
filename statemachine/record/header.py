"""The header of a run's record: the machine in words, the environment, and where the run began."""

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from statemachine.definition.choice import Choice
from statemachine.definition.machine import Machine
from statemachine.definition.phase import Wait
from statemachine.definition.program import Arc
from statemachine.definition.table import name_of
from statemachine.execution import host_state
from statemachine.execution.recorder import Account
from statemachine.execution.timeline import Timeline
from statemachine.record import exact
from statemachine.record.records import (
    SCHEMA,
    Header,
    MachineRecord,
    RaisedRecord,
    SignalRow,
    StepRecord,
    TransitionRecord,
)


def header_of(run: Account) -> Header:
    """The header of a run's journal, as it would be written now."""
    origin = run.timeline.origin
    fields = origin.fields if origin else host_state.save(run.context)
    held, opaque = exact.fields(run.context, fields)
    first = origin.number if origin else 0
    start = run.timeline.program.phases[origin.at].name if origin else run.phase_name
    forgotten, began = run.timeline.forgotten, run.began
    if began is None and forgotten.beginning is not None:
        began, _ = exact.fields(run.context, forgotten.beginning.fields)
    return Header(
        schema=SCHEMA,
        run=run.id,
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        machine=machine_record(run.machine),
        environment=_libraries() | run.resources.environment(),
        request=run.request,
        digest_every=run.digest_every,
        forked_from=run.forked_from,
        resumed=run.resumed,
        first=first,
        phase="" if start == run.machine.start.name else start,
        origin=held,
        opaque=opaque,
        began=began,
        digestible=forgotten.digestible,
    )


def machine_record(machine: Machine[Any]) -> MachineRecord:
    """A machine in words."""
    program = machine.program()
    return MachineRecord(
        name=machine.name,
        fingerprint=machine.fingerprint,
        version=machine.version,
        phases=tuple(machine.phases),
        ends=tuple(phase.name for phase in program.phases if phase.final),
        waits=tuple(phase.name for phase in program.phases if isinstance(phase, Wait)),
        transitions=tuple(
            TransitionRecord(name_of(way.source), name_of(way.target), way.condition, way.errors)
            for way in machine.transitions
        ),
        guards={
            phase.name: tuple(atom.name for atom in atoms)
            for phase, atoms in zip(program.phases, program.atoms, strict=True)
            if atoms
        },
        choices={
            phase.name: choices
            for phase, atoms in zip(program.phases, program.atoms, strict=True)
            if (choices := {atom.name: atom.values for atom in atoms if isinstance(atom, Choice)})
        },
        signals=tuple(
            SignalRow(s.name, name_of(s.to), tuple(map(name_of, s.sources)), s.condition, s.payload)
            for s in machine.signals
        ),
        edits=tuple(edit.name for edit in machine.edits),
        edit_sources={edit.name: tuple(map(name_of, edit.sources)) for edit in machine.edits if edit.sources},
    )


def step_records(timeline: Timeline[Any], first: int, last: int) -> list[StepRecord]:
    """Steps `first` up to `last` as a journal holds them."""
    names, digests = timeline.program.names, timeline.digests
    columns = zip(range(first, last), *timeline.columns(first, last), strict=True)
    if any(timeline.program.ways):
        return [_step_record(names, digests, *column) for column in columns]
    if not digests:
        return [StepRecord(n=n, p=names[a.source], e=a.transition, g=a.guards, o=o, t=t) for n, a, o, t in columns]
    return [
        StepRecord(n=n, p=names[a.source], e=a.transition, g=a.guards, o=o, d=digests.get(n), t=t)
        for n, a, o, t in columns
    ]


def _step_record(
    names: Sequence[str], digests: Mapping[int, Any], n: int, arc: Arc, outcome: Any, elapsed_ns: int
) -> StepRecord:
    """A step of a machine that has error ways."""
    raised = RaisedRecord(outcome.way, outcome.exception, outcome.message) if arc.raised else None
    return StepRecord(
        n=n, p=names[arc.source], e=arc.transition, g=arc.guards, o=None if raised else outcome, x=raised,
        d=digests.get(n), t=elapsed_ns,
    )  # fmt: skip


def _libraries() -> dict[str, Any]:
    versions = {name: _version(name) for name in ("phasewalk", "transitions")}
    return {"python": platform.python_version(), "platform": platform.platform(), **versions}


@cache  # reading it takes a millisecond, which every run's first token would wait for
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
