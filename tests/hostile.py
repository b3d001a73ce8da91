"""Makes records that somebody wrote to do harm, always the same ones, and judges what is said of them."""

import copy
import json
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from statemachine_recorded import forge

from statemachine import Divergence, JournalError, SnapshotError

LONGEST = 6_000  # characters of a message: 20 lines of what differs, say


def _nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 99, 2**31, 2**53 + 1, 2**63, 2**64, 10**30, -(10**30), 1.5, -0.0, 1e308, "", "x",
    "\x1b[2J\x9b0m\r\n", "\x00", "\u202eltr", "é" * 5_000, [], [[]], {}, {"a": 1}, {"\x1b[31m": {}},
    _nested(300), [None], [-1], [10**30], [[1, 2], [3]], [0] * 3_000, "draw", "note", "done", "stop", "bonus",
    "failed", "goto", "s", "../../etc",
)  # fmt: skip


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to everything inside a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from _places(inner, (*path, key))


def mutated(records: list[dict[str, Any]], choose: random.Random) -> list[dict[str, Any]]:
    """The records with a few things in them replaced, taken away, doubled, renamed or moved."""
    records = copy.deepcopy(records)
    for _ in range(choose.choice((1, 1, 1, 2, 4))):
        number = 0 if choose.random() < 0.4 else choose.randrange(len(records))
        kind = choose.random()
        if kind < 0.1 and len(records) > 2:
            records.insert(choose.randrange(1, len(records)), copy.deepcopy(records[number]))
        elif kind < 0.15 and len(records) > 2:
            del records[choose.randrange(1, len(records))]
        else:
            _mutate(records, number, choose)
    return records


def _mutate(records: list[dict[str, Any]], number: int, choose: random.Random) -> None:
    places = list(_places(records[number]))
    if not places:
        return
    *way, last = choose.choice(places)
    owner: Any = records[number]
    for key in way:
        owner = owner[key]
    kind = choose.random()
    if kind < 0.8:
        owner[last] = copy.deepcopy(choose.choice(ODD))
    elif kind < 0.9 and isinstance(owner, dict):
        owner[str(choose.choice(("x", "\x1b[0m", "o", "n", "pending")))] = owner.pop(last)
    else:
        del owner[last]


def files(records: list[dict[str, Any]], folder: Path, count: int, seed: int) -> Iterator[Path]:
    """So many mutated journals, whose checksums fit, one after the other in the same place; some have odd bytes too."""
    choose, path = random.Random(seed), folder / "odd.jsonl"
    for _ in range(count):
        try:
            forge(path, mutated(records, choose))
        except (TypeError, ValueError, OverflowError, RecursionError):  # what no JSON can say is no journal either
            path.write_text("\n".join(json.dumps(record) for record in records[:1]) + "\n")
        if choose.random() < 0.1:
            content = bytearray(path.read_bytes())
            for _ in range(3):
                content[choose.randrange(len(content))] = choose.randrange(256)
            path.write_bytes(content)
        yield path


def refusals(read: Callable[[Path], object], paths: Iterable[Path], *, seconds: float = math.inf) -> int:
    """Have each file read or refused in less than so many seconds of the processor, and count what is refused."""
    refused = 0
    for path in paths:
        began = time.process_time()
        try:
            read(path)
        except Exception as error:
            check_refusal(error, path.name)
            refused += 1
        assert time.process_time() - began < seconds
    return refused


def check_refusal(error: BaseException, name: str) -> None:
    """An error that a reader may raise names the file, is not long, and moves no cursor."""
    assert isinstance(error, JournalError | SnapshotError), repr(error)[:1000]
    check_words(str(error))
    assert name in str(error)


def check_divergence(found: Divergence | None) -> None:
    if found is not None:
        check_words(found.report().replace("\n", ""))
        json.dumps(found.to_json())


def check_words(text: str) -> None:
    assert len(text) <= LONGEST * 4, text[:300]
    assert text.isprintable(), text[:300]
