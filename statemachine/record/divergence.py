"""Where a replay differs from its record, and what may have caused it."""

from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

import msgspec

from statemachine.record.records import Header

Describe = Callable[[str, Any], str]  # phase and outcome to words, e.g. tokens to text

MISSING = "nothing"


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
    before, after = recorded.machine, replayed.machine
    pairs = {"name": (before.name, after.name), "version": (before.version, after.version)}
    found = [f"machine {what}: {old} -> {new}" for what, (old, new) in pairs.items() if old != new]
    if before.fingerprint != after.fingerprint or set(before.transitions) != set(after.transitions):
        old_ways, new_ways = set(before.transitions), set(after.transitions)
        found += [f"transition gone: {way}" for way in before.transitions if way not in new_ways]
        found += [f"transition new: {way}" for way in after.transitions if way not in old_ways]
        found = found or [f"machine: the table of {before.name!r} differs in its phases, signals or edits, or in order"]
    options = {name: value for name, value in (recorded.resumed or {}).items() if name != "file"}
    if options and recorded.resumed != replayed.resumed:
        found.append(f"resumed from a snapshot with {plain_text(options)}")
    for name in sorted({*recorded.environment, *replayed.environment}):
        one, other = (plain_text(header.environment.get(name)) for header in (recorded, replayed))
        if one != other:
            found.append(f"{name}: {one} -> {other}")
    return tuple(found)


def plain_text(value: Any) -> str:
    """A value on one line: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
