"""A snapshot is whole or not there, harms no other file, and brings a run back in any process."""

import copy
import enum
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from statemachine_recorded import Walk, machine

from statemachine import (
    End,
    IllegalMove,
    Journal,
    Machine,
    Phase,
    Resources,
    Run,
    SnapshotError,
    Transition,
    guard,
    play,
    restore,
    verify,
)
from statemachine.execution.resources import Arrays
from statemachine.record.files import write_whole
from statemachine.record.snapshot import load

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[2]
PAGES = "snapshot-pages"


class Table(Resources[Walk]):
    """A large array stands behind the context: as many rows as were drawn, the rest from before."""

    def __init__(self) -> None:
        self.array = np.zeros((64, 64), np.int64)

    def sync(self, context: Walk) -> None:
        for row, number in enumerate(context.drawn):
            self.array[row % 64] = number

    def save(self, context: Walk, *, recompute: bool = False, **unknown: Any) -> Arrays:
        self.sync(context)
        if recompute:
            return {}
        return {f"table.{block}": self.array[block * 16 : (block + 1) * 16] for block in range(4)}

    def load(self, context: Walk, arrays: Arrays, *, recompute: bool = False, **unknown: Any) -> None:
        self.array = (
            np.concatenate([arrays[f"table.{n}"] for n in range(4)]) if arrays else np.zeros((64, 64), np.int64)
        )
        self.sync(context)


def at(steps: int, seed: int = 0) -> Run[Walk]:
    run = Run(machine, Walk(seed, limit=60), resources=Table(), request={"seed": seed}, keep=True)
    run.until(lambda run: run.step_count == steps)
    return run


def same_again(path: Path, expected: Walk, seed: int = 0) -> None:
    run = Run(machine, Walk(seed, limit=60), resources=Table(), request={"seed": seed})
    assert restore(load(path), run) is None
    assert run.context == expected
    assert isinstance(run.resources, Table)
    assert [int(row[0]) for row in run.resources.array[: len(expected.drawn)]] == expected.drawn


# --- a later save never harms an earlier one ------------------------------------------------------------------------


def by_another_run(folder: Path, first: Run[Walk]) -> None:
    at(9, seed=5).snapshot(folder / "later.snap", share=True)


def after_going_back(folder: Path, first: Run[Walk]) -> None:
    first.back(5)
    first.edit("bonus", amount=3)
    first.until(lambda run: run.step_count == 20)
    first.snapshot(folder / "later.snap", share=True)


def by_recompute(folder: Path, first: Run[Walk]) -> None:
    first.snapshot(folder / "later.snap", share=True, recompute=True)


def over_damage(folder: Path, first: Run[Walk]) -> None:
    for page in (folder / PAGES).iterdir():
        page.write_bytes(page.read_bytes()[:-9] + b"damaged!!")
    with pytest.raises(SnapshotError, match=r"needs 'table.* of its shared pages: .* is damaged: its check"):
        load(folder / "0.snap")
    first.snapshot(folder / "later.snap", share=True)


@pytest.mark.parametrize("order", [by_another_run, after_going_back, by_recompute, over_damage])
@pytest.mark.parametrize("name", ["later.snap", "0.snap"])  # beside it, and over the file that shares
def test_a_later_save_never_kills_an_earlier_one(tmp_path: Path, order: Any, name: str) -> None:
    run = at(12)
    for number in range(3):
        run.snapshot(tmp_path / f"{number}.snap", share=True)
    expected = replace(run.context, drawn=list(run.context.drawn))
    if name == "0.snap":
        (tmp_path / "0.snap").rename(tmp_path / "later.snap")  # what is saved next replaces it
        (tmp_path / "0.snap").write_bytes((tmp_path / "later.snap").read_bytes())
    order(tmp_path, run)
    for number in range(3):
        same_again(tmp_path / f"{number}.snap", expected)
    assert load(tmp_path / "later.snap")


def test_pages_are_shared_and_a_lost_one_is_named(tmp_path: Path) -> None:
    run = at(12)
    run.snapshot(tmp_path / "0.snap", share=True)
    pages = {page.name: page.stat().st_mtime_ns for page in (tmp_path / PAGES).iterdir()}
    run.snapshot(tmp_path / "1.snap", share=True)
    assert {page.name: page.stat().st_mtime_ns for page in (tmp_path / PAGES).iterdir()} == pages
    assert (tmp_path / "1.snap").stat().st_size < 20_000
    for page in (tmp_path / PAGES).iterdir():
        page.unlink()
    with pytest.raises(SnapshotError, match=r"1.snap needs 'table.\d' of its shared pages: .*cannot be read: No such"):
        load(tmp_path / "1.snap")


# --- what stands there already --------------------------------------------------------------------------------------


def test_only_a_regular_file_is_replaced(tmp_path: Path) -> None:
    run = at(3)
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    kinds = {"link": "a link", "dangling": "a link", "pipe": "a pipe", "folder": "a folder"}
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        try:
            os.mknod(tmp_path / "device", 0o600 | 0o020000, os.makedev(1, 3))
            kinds["device"] = "a device"
        except OSError:  # not in this container
            pass
    before = sorted((path.name, path.lstat().st_mode) for path in tmp_path.iterdir())
    for name, kind in kinds.items():
        with pytest.raises(SnapshotError, match=f"cannot be written: it is {kind}.*never replaced; name a plain file"):
            run.snapshot(tmp_path / name)
    assert sorted((path.name, path.lstat().st_mode) for path in tmp_path.iterdir()) == before
    assert (tmp_path / "file").read_text() == "precious"
    run.snapshot(tmp_path / "file")
    assert load(tmp_path / "file")


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SnapshotError, match="it is no regular file"):
        load(tmp_path / "pipe")
    run = at(3)
    run.snapshot(tmp_path / "a.snap", share=True)
    page = next((tmp_path / PAGES).iterdir())
    page.unlink()
    os.mkfifo(page)
    with pytest.raises(SnapshotError, match="it is no regular file"):
        load(tmp_path / "a.snap")


def test_a_save_that_cannot_be_leaves_the_old_one(tmp_path: Path) -> None:
    run = at(3)
    run.snapshot(tmp_path / "a.snap")
    before = (tmp_path / "a.snap").read_bytes()
    run.resources.save = lambda context, **options: {"Odd name": np.zeros(3)}  # type: ignore[method-assign]
    with pytest.raises(SnapshotError, match="an array cannot be called 'Odd name'"):
        run.snapshot(tmp_path / "a.snap")
    run.resources.save = lambda context, **options: {"record": np.zeros(3)}  # type: ignore[method-assign]
    with pytest.raises(SnapshotError, match="an array cannot be called"):
        run.snapshot(tmp_path / "a.snap")
    with pytest.raises(SnapshotError, match="cannot be written: No such file"):
        at(3).snapshot(tmp_path / "no" / "folder.snap")
    assert (tmp_path / "a.snap").read_bytes() == before
    assert os.listdir(tmp_path) == ["a.snap"]


KILLED = """
import os, sys
from pathlib import Path
from statemachine.record import files
def fsync(file):
    print("half", flush=True)
    os.kill(os.getpid(), 9)
files.os.fsync = fsync
files.write_whole(Path(sys.argv[1]), b"x" * 1_000_000)
"""


def test_what_a_killed_save_left_is_taken_away_by_the_next(tmp_path: Path) -> None:
    (tmp_path / PAGES).mkdir()
    for name in ("a.snap", f"{PAGES}/{'0' * 64}.safetensors"):
        done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / name)], capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL
    left = list(tmp_path.rglob("*.part"))
    assert len(left) == 2
    alive = tmp_path / f".b.snap.{os.getppid()}-{'0' * 32}.part"  # of a process that still writes
    alive.write_bytes(b"")
    mine = tmp_path / ".notes.part"  # of somebody else
    mine.write_bytes(b"")
    at(12).snapshot(tmp_path / "a.snap", share=True)
    assert set(tmp_path.rglob("*.part")) == {alive, mine}
    assert load(tmp_path / "a.snap")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only /proc tells that a process has ended")
def test_a_process_that_has_ended_counts_as_such_before_its_parent_looks(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    (tmp_path / f".b.snap.{ended.pid}-{'0' * 32}.part").write_bytes(b"")
    at(12).snapshot(tmp_path / "a.snap")
    assert not list(tmp_path.rglob("*.part"))
    ended.wait()


def test_two_threads_that_save_do_not_sweep_each_others_files(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: write_whole(tmp_path / "a", bytes([n]) * 10_000), range(200)))
    assert len(set((tmp_path / "a").read_bytes())) == 1
    assert os.listdir(tmp_path) == ["a"]


# --- without the past -----------------------------------------------------------------------------------------------


class Count(Phase[list, int]):  # type: ignore[type-arg]
    def run(self, context: list[int]) -> int:
        return context[0] + 1

    def apply(self, context: list[int], outcome: int) -> None:
        context[0] = outcome


@guard
def over(context: Any) -> bool:
    return False


def around(first: Phase[Any, Any]) -> Machine[Any]:
    """Round and round, without end."""
    table = [Transition(first, Phase("rest")), Transition("rest", first, ~over), Transition("rest", End("done"), over)]
    return Machine("around", start=first, transitions=table)


def counting() -> Machine[Any]:
    return around(Count("count"))


def test_without_its_past_a_snapshot_does_not_grow(tmp_path: Path) -> None:
    run, sizes = Run(counting(), [1_000_000]), []
    for steps in (10, 100_000):
        run.until(lambda run, steps=steps: run.step_count == steps)  # type: ignore[misc]
        run.snapshot(tmp_path / f"{steps}.snap", history=False)
        sizes.append((tmp_path / f"{steps}.snap").stat().st_size)
    assert abs(sizes[1] - sizes[0]) < 32
    again = Run(counting(), [1_000_000])
    assert restore(load(tmp_path / "100000.snap"), again) is None
    assert (again.step_count, again.context) == (100_000, [1_050_000])
    again.step()
    with pytest.raises(IllegalMove, match="there is no place 99999; what was before step 100000 was not kept"):
        again.goto(99_999)
    again.goto(100_000)
    assert again.context == [1_050_000]


class Kind(enum.Enum):
    SMALL = "small"
    LARGE = "large"


@dataclass(slots=True)
class Part:
    name: str
    place: tuple[int, float] = (1, 2.5)


@dataclass(slots=True)
class Whole:
    __pinned__: ClassVar[tuple[str, ...]] = ("device",)
    device: Any = None
    kind: Kind = Kind.SMALL
    parts: list[Part] = field(default_factory=lambda: [Part("a"), Part("b", (3, 4.0))])
    by_number: dict[int, tuple[str, ...]] = field(default_factory=lambda: {7: ("x",), -1: ()})
    maybe: Part | None = None
    perhaps: "int | None" = 5
    pair: tuple[Part, Kind] = field(default_factory=lambda: (Part("c"), Kind.LARGE))
    plain: dict[str, Any] = field(default_factory=lambda: {"a": [1, {"b": None}], "c": 1.0})
    number: float = 2.0
    text: str = "\x00\u20ac"
    count: int = 0


class Touch(Phase[Whole, int]):
    def run(self, context: Whole) -> int:
        return context.count + 1

    def apply(self, context: Whole, outcome: int) -> None:
        context.count = outcome
        context.kind, context.maybe = Kind.LARGE, Part("d", (outcome, 0.5))
        context.by_number[outcome] = (str(outcome),)


def touching() -> Machine[Whole]:
    return around(Touch("touch"))


RESTORED = """
import sys
sys.path.insert(0, "statemachine/record")
from test_snapshots import *
from statemachine import JournalWriter
run = Run(touching(), Whole(device="mine"), journal=JournalWriter(sys.argv[2]))
assert restore(load(sys.argv[1]), run) is None
print(run.step_count, run.phase_name, repr(run.context))
run.step(); run.step()
"""


def test_every_field_comes_back_in_its_type_in_another_process(tmp_path: Path) -> None:
    run = Run(touching(), Whole(device="other"))
    run.until(lambda run: run.step_count == 5)
    run.snapshot(tmp_path / "a.snap", history=False)
    command = [sys.executable, "-c", RESTORED, str(tmp_path / "a.snap"), str(tmp_path / "a.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=TESTS)
    expected = repr(replace(run.context, device="mine")).replace("tests.statemachine.record.", "")
    assert done.stdout.strip() == f"5 rest {expected}"
    journal = Journal.open(tmp_path / "a.jsonl")  # which begins there, and can be walked from there
    assert (journal.header.first, journal.header.phase) == (5, "rest")
    verdict = verify(journal, Run(touching(), Whole()))
    assert (verdict.divergence, verdict.steps, verdict.ends_at) == (None, 2, 7)
    played = Run(touching(), Whole())
    assert play(journal, played) is None
    assert (played.step_count, played.context.count) == (7, 4)


@pytest.mark.parametrize("context", [{"a": 1, "b": [1, {"c": 2.5}]}, [1, "b", None]])
def test_a_dict_or_a_list_comes_back(tmp_path: Path, context: Any) -> None:
    fresh = copy.deepcopy(context)
    run = Run(machine_of_nothing(), context)
    run.step()
    context[next(iter(context)) if isinstance(context, dict) else 0] = 77  # as a phase would have
    run.snapshot(tmp_path / "a.snap", history=False)
    again = Run(machine_of_nothing(), fresh)
    assert restore(load(tmp_path / "a.snap"), again) is None
    assert repr(again.context) == repr(context)


def machine_of_nothing() -> Machine[Any]:
    first: Phase[Any, None] = Phase("first")
    return Machine("nothing", start=first, transitions=[Transition(first, Phase("second")),
                                                        Transition("second", End("done"))])  # fmt: skip


@dataclass
class Untyped:
    where: Any = None


@pytest.mark.parametrize("value", [{1}, b"x", object(), Part("a"), (1, 2), float("nan"), Kind.SMALL, {1: 2}, 2**70])
def test_a_field_that_json_cannot_hold_is_named_when_it_is_saved(tmp_path: Path, value: Any) -> None:
    run = Run(machine_of_nothing(), Untyped(value))
    run.step()
    with pytest.raises(SnapshotError, match="cannot be saved without its history: JSON cannot hold where of its conte"):
        run.snapshot(tmp_path / "a.snap", history=False)
    assert os.listdir(tmp_path) == []
    run.snapshot(tmp_path / "a.snap")  # with it, it can


def test_fields_that_came_or_went_are_refused(tmp_path: Path) -> None:
    run = Run(machine_of_nothing(), {"a": 1})
    run.step()
    run.snapshot(tmp_path / "a.snap", history=False)
    for other in ({"a": 1, "b": 2}, {"b": 1}):
        found = restore(load(tmp_path / "a.snap"), Run(machine_of_nothing(), other))
        assert found is not None
        assert found.field == "context"


# --- what it belongs to ---------------------------------------------------------------------------------------------


@dataclass
class Order:
    amount: int
    paid: bool = False


def test_another_order_is_refused(tmp_path: Path) -> None:
    run = Run(machine_of_nothing(), Order(100), request={"order": 7})
    run.step()
    run.snapshot(tmp_path / "whole.snap")
    run.snapshot(tmp_path / "bare.snap", history=False)
    again = Run(machine_of_nothing(), Order(100), request={"order": 7})
    assert restore(load(tmp_path / "bare.snap"), again) is None
    again.snapshot(tmp_path / "bare again.snap", history=False)
    for name in ("whole", "bare", "bare again"):
        other = Run(machine_of_nothing(), Order(999), request={"order": 7})
        found = restore(load(tmp_path / f"{name}.snap"), other)
        assert found is not None
        assert found.causes[0] == "context: amount 100 -> 999"
        assert other.context == Order(999)
        assert other.step_count == 0
    found = restore(load(tmp_path / "bare.snap"), Run(machine_of_nothing(), Order(100), request={"order": 8}))
    assert found is not None
    assert (found.field, found.recorded, found.replayed) == ("request", {"order": 7}, {"order": 8})


@pytest.mark.parametrize("history", [True, False])
def test_what_was_pending_still_is(tmp_path: Path, history: bool) -> None:
    run = Run(machine, Walk())
    while run.phase_name != "note":
        run.step()
    run.signal("skip", wait=True)
    run.snapshot(tmp_path / "a.snap", history=history)
    again = Run(machine, Walk())
    assert restore(load(tmp_path / "a.snap"), again) is None
    assert (again.pending, again.phase_name) == (("skip",), "note")
    again.step()
    assert [event.name for event in again.events] == ["skip"]


def test_a_snapshot_of_a_restored_run_goes_on(tmp_path: Path) -> None:
    expected = Run(machine, Walk(limit=40))
    expected.start()
    run = Run(machine, Walk(limit=40))
    run.step()
    for number in range(8):
        run.until(lambda run, number=number: run.step_count == 4 * number + 4)  # type: ignore[misc]
        run.snapshot(tmp_path / f"{number}.snap", history=number % 3 == 1)
        run = Run(machine, Walk(limit=40))
        assert restore(load(tmp_path / f"{number}.snap"), run) is None
    run.resume()
    assert run.context == expected.context


def test_arrays_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    run = at(5)
    run.snapshot(tmp_path / "a.snap")

    class Picky(Table):
        def load(self, context: Walk, arrays: Arrays, **options: Any) -> None:
            raise KeyError("table.9")

    with pytest.raises(SnapshotError, match=r"a.snap does not fit this run: 'table.9'"):
        restore(load(tmp_path / "a.snap"), Run(machine, Walk(limit=60), resources=Picky(), request={"seed": 0}))
