"""Where a replay differs from its record, and what may have caused it."""

from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

import msgspec

from statemachine.record.exact import shown
from statemachine.record.records import Header, MachineRecord

Describe = Callable[[str, Any], str]  # phase and outcome to words, e.g. tokens to text

MISSING = "nothing"
LONGEST = 2000  # characters of a value that a report shows


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first place where a replay differs from its record."""

    step: int
    phase: str
    field: str  # "context", "phase", "guards", "target", "outcome", "digest", "signal", "edit", "error" or "end"
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


def differences(recorded: Header, replayed: Header) -> tuple[str, ...]:
    """What differs between two headers that can change a bit, each in words: `numpy: 2.4.5 -> 2.4.6`."""
    found = _table_differences(recorded.machine, replayed.machine)
    if hidden := sorted({*recorded.opaque} - {*replayed.opaque}):
        found.append(f"not recorded: what {', '.join(hidden)} of the context began with")
    options = {name: value for name, value in (recorded.resumed or {}).items() if name != "file"}
    if options and recorded.resumed != replayed.resumed:
        found.append(f"resumed from a snapshot with {plain_text(options)}")
    for name in sorted({*recorded.environment, *replayed.environment}):
        one, other = (plain_text(header.environment.get(name)) for header in (recorded, replayed))
        if one != other:
            found.append(f"{shown(name)}: {one} -> {other}")
    return tuple(found)


def _table_differences(recorded: MachineRecord, replayed: MachineRecord) -> list[str]:
    """What differs between two machines in words."""
    if recorded == replayed:
        return []
    pairs = {name: (getattr(recorded, name), getattr(replayed, name)) for name in ("name", "version")}
    found = [f"machine {name}: {shown(str(old))} -> {new}" for name, (old, new) in pairs.items() if old != new]
    before, after = _rows(recorded), _rows(replayed)
    found += [shown(f"{kind} gone: {row}") for kind, row in before if (kind, row) not in after]
    found += [shown(f"{kind} new: {row}") for kind, row in after if (kind, row) not in before]
    return found or [f"machine: the table of {shown(recorded.name)!r} differs in its order or its fingerprint"]


def _rows(machine: MachineRecord) -> dict[tuple[str, str], None]:
    """Everything in a table, each in words, with what kind of thing it is."""
    rows = [("phase", f"{name} (an end)" if name in machine.ends else name) for name in machine.phases]
    rows += [("transition", str(way)) for way in machine.transitions]
    for phase in machine.guards:
        for name, values in machine.variables(phase):
            choice = name in machine.choices.get(phase, {})
            rows.append(("choice", f"{name} of {phase} ({', '.join(map(str, values))})") if choice
                        else ("guard", f"{name} of {phase}"))  # fmt: skip
    rows += [("signal", str(row)) for row in machine.signals]
    for name in machine.edits:
        sources = machine.edit_sources.get(name, ())
        rows.append(("edit", name + (f" at {', '.join(sources)}" if sources else "")))
    return dict.fromkeys(rows)


def plain_text(value: Any) -> str:
    """A value on one line, not too long: text as it is, but for control characters, anything else as JSON."""
    return shown(value if isinstance(value, str) else msgspec.json.encode(value).decode(), LONGEST)
