"""What a record says about the generation that it is of."""

from os.path import expanduser, isdir
from pathlib import Path
from typing import Any

import msgspec

from phases.constrain import constrained
from phases.lora import Adapters
from phases.request import GenerationRequest
from statemachine import Journal, JournalError, Machine
from statemachine.record.exact import shown

MOST_ROWS, MOST_TOKENS = 4096, 2**31 - 1


def request_of(journal: Journal) -> GenerationRequest:
    """The request of a recorded generation; raises JournalError where there is none."""
    try:
        request = msgspec.convert(journal.header.request, GenerationRequest)
    except (msgspec.ValidationError, TypeError, ValueError, RecursionError, OverflowError) as error:
        raise JournalError(
            f"{journal.path} records no generation: its request is damaged ({shown(str(error))})"
        ) from error
    if len(request.requests) > MOST_ROWS:
        raise JournalError(f"{journal.path} records no generation: it has {len(request.requests)} rows")
    return request


def machine_of(journal: Journal, machine: Machine[Any]) -> Machine[Any]:
    """A machine with the phases that the request of a record adds to it by itself, if it is one of a generation."""
    try:
        return constrained(machine, request_of(journal))
    except (JournalError, ValueError):  # of another kind of machine, which has no way into Sample, say
        return machine


def capacity_of(journal: Journal) -> int:
    """How many tokens a row of a recorded generation could hold; raises JournalError where the record does not say."""
    origin = journal.header.origin or {}
    capacity = origin.get("capacity", journal.header.environment.get("capacity"))
    if isinstance(capacity, bool) or not isinstance(capacity, int) or not 1 <= capacity <= MOST_TOKENS:
        raise JournalError(f"{journal.path} records no generation: its header names no capacity")
    return capacity


def quantize_of(journal: Journal) -> str | None:
    """How the weights were quantised, if they were; raises JournalError where the record says no such thing."""
    quantize = journal.header.environment.get("quantize")
    if quantize is not None and not isinstance(quantize, str):
        raise JournalError(f"{journal.path}: {shown(str(quantize))} is no way to quantise weights")
    return quantize


def lora_of(journal: Journal, given: Adapters) -> dict[str, str | Path | None]:
    """The adapters that a generation is run again with: where the record says that they are, or where they are now.

    A record can name anything: what it names is taken if it is a folder here.

    Raises
    ------
    JournalError
        When an adapter of the generation's rows is neither there nor given.
    """
    try:
        recorded = msgspec.convert(journal.header.environment.get("lora", {}), dict[str, str | None])
    except msgspec.ValidationError:
        recorded = None
    if recorded is None or len(recorded) > MOST_ROWS:
        raise JournalError(f"{journal.path}: {shown(str(journal.header.environment['lora']))} are no adapters")
    found: dict[str, str | Path | None] = {
        name: path for name, path in recorded.items() if path is None or isdir(expanduser(path))
    }
    found |= given
    for row in request_of(journal).requests:
        if row.lora_weights_name and row.lora_weights_name not in found:
            name = shown(row.lora_weights_name)
            raise JournalError(
                f"{journal.path} was made with the adapter {name!r}, which is in no folder here: say where it is, with "
                f"--lora {name}=PATH"
            )
    return found


def other_weights(journal: Journal, environment: dict[str, Any]) -> str | None:
    """Say why weights that are quantised in another way are not those of a record, or give None if they are."""
    its, mine = quantize_of(journal), environment.get("quantize")
    if its == mine:
        return None
    made, here = (f"{shown(how)} weights" if how else "weights that are not quantised" for how in (its, mine))
    return f"{journal.path} was made with {made}, here are {here}: load the model with quantize={its!r}"
