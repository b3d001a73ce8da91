"""What an engine holds for a generation: its buffers, and how full the slots of its KV cache are."""

from collections.abc import Mapping
from dataclasses import dataclass

from phases.context import Generation


@dataclass(frozen=True, slots=True)
class Buffer:
    """One of the engine's buffers."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    address: int
    value: str = ""  # what it holds for the row that is shown, if that is one number


@dataclass(frozen=True, slots=True)
class CacheRow:
    """How full one slot of the KV cache is."""

    slot: int
    owner: str  # "run 1 row 0"; "" if it is free
    shown: bool
    length: int
    capacity: int


def buffers(context: Generation, row: int) -> tuple[Buffer, ...]:
    """The engine's buffers; none for a record."""
    if context.engine is None:
        return ()
    values = context.engine.peek(context.slots[row])
    shown = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in values.items()}
    return tuple(Buffer(*info, shown.get(info.name, "")) for info in context.engine.memory())


def cache(context: Generation, row: int, owners: Mapping[int, str]) -> tuple[CacheRow, ...]:
    """How full each slot of the KV cache is, and whose it is; of a record, each row."""
    if context.engine is None:
        return tuple(
            CacheRow(number, f"row {number}", number == row, length, context.capacity)
            for number, length in enumerate(context.cached)
        )
    held, mine = context.engine.kv_cache, context.slots[row]
    return tuple(
        CacheRow(slot, owners.get(slot, ""), slot == mine, held.length(slot), held.capacity)
        for slot in range(held.rows)
    )
