"""Old records stay valid while a machine grows: names are compared, not numbers, and versions are migrated."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from statemachine_recorded import AddBonus, Draw, Note, Walk, draw, far_enough, machine, odd, record, walk

from statemachine import (
    Divergence,
    Edit,
    End,
    Guard,
    Journal,
    JournalError,
    JournalWriter,
    Machine,
    Migration,
    Phase,
    Run,
    Signal,
    Status,
    Transition,
    guard,
    play,
    restore,
    verify,
)
from statemachine.errors import InvalidMachine
from statemachine.record.snapshot import load

TABLE = list(machine.transitions)


@guard
def lucky(context: Walk) -> bool:
    return len(context.drawn) == 7


def split(transition: Transition[Walk], by: Guard[Walk]) -> list[Transition[Walk]]:
    """The same way twice: the guard is new, and changes nothing."""
    assert transition.when is not None
    return [replace(transition, when=transition.when & by), replace(transition, when=transition.when & ~by)]


GROWN = {
    "reordered": replace(machine, transitions=TABLE[::-1]),
    "an unrelated transition": replace(
        machine, transitions=[Transition(Phase("before"), draw), *TABLE],
        signals=[*machine.signals, Signal("again", to="before")],
    ),
    "a new guard on a passed phase": replace(
        machine, transitions=[way for old in TABLE for way in (split(old, lucky) if old.when is not None else [old])]
    ),
    "a signal and an edit": replace(
        machine, signals=[Signal("new", to="done"), *machine.signals], edits=[AddBonus("other"), AddBonus("bonus")]
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal with steps, an edit, a signal and an end, and snapshots of the run on its way."""
    folder = tmp_path_factory.mktemp("old")
    run = Run(machine, Walk(), journal=JournalWriter(folder / "a.jsonl"))
    run.until(lambda run: run.step_count == 6)
    run.edit("bonus", amount=2)
    run.until(draw)
    run.signal("skip")
    run.until(lambda run: run.step_count > 14)
    run.snapshot(folder / "whole.snap")
    run.snapshot(folder / "bare.snap", history=False)
    run.resume()
    assert run.status is Status.DONE
    return folder


@pytest.mark.parametrize("name", GROWN)
def test_a_table_that_grew_keeps_old_records_valid(recorded: Path, name: str) -> None:
    grown, journal = GROWN[name], Journal.open(recorded / "a.jsonl")
    verdict = verify(journal, Run(grown, Walk()))
    assert verdict.verified, verdict.divergence and verdict.divergence.report()
    assert verdict.differences
    played = Run(grown, Walk())
    assert play(journal, played) is None
    for snapshot in ("whole.snap", "bare.snap"):
        run = Run(grown, Walk())
        assert restore(load(recorded / snapshot), run) is None
        run.resume()
        assert run.context == played.context


def renamed(draw: str = "draw", note: str = "note", **options: Any) -> Machine[Walk]:
    """The machine, with other names."""
    first, second = Draw(draw), Note(note)
    table = [
        Transition(first, second, odd & ~far_enough), Transition(first, first, ~odd & ~far_enough),
        Transition(first, End("done"), far_enough), Transition(second, first),
    ]  # fmt: skip
    signals = {"stop": Signal("stop", to=End("stopped", status=Status.CANCELLED)),
               "skip": Signal("skip", to=second, sources=(first,))}  # fmt: skip
    names = options.pop("signals", {"stop": "stop", "skip": "skip"})
    return Machine("walk", start=first, transitions=table, edits=options.pop("edits", [AddBonus("bonus")]),
                   signals=[replace(signals[old], name=new) for old, new in names.items()], **options)  # fmt: skip


@pytest.mark.parametrize(
    ("other", "field", "recorded_name"),
    [
        (renamed(draw="pull"), "phase", "draw, step 0"),
        (renamed(note="write"), "target", "draw -> note when odd & ~far_enough"),
        (renamed(signals={"stop": "stop"}), "signal", "skip"),
        (renamed(signals={"stop": "stop", "skip": "leap"}), "signal", "skip"),
        (renamed(edits=[]), "edit", "bonus"),
        (renamed(edits=[AddBonus("gift")]), "edit", "bonus"),
    ],
)
def test_what_is_gone_or_renamed_is_a_divergence(
    recorded: Path, other: Machine[Walk], field: str, recorded_name: str
) -> None:
    journal = Journal.open(recorded / "a.jsonl")
    for found in (play(journal, Run(other, Walk())), verify(journal, Run(other, Walk())).divergence):
        assert found is not None
        assert (found.field, str(found.recorded)) == (field, recorded_name)
        assert found.causes
        assert found.report()
    if field == "phase":
        assert isinstance(restore(load(recorded / "bare.snap"), Run(other, Walk())), Divergence)


def test_a_pending_signal_that_is_gone_is_a_divergence(tmp_path: Path) -> None:
    run = Run(machine, Walk(), journal=JournalWriter(tmp_path / "a.jsonl"))
    while run.phase_name != "note":
        run.step()
    run.signal("skip", wait=True)
    run.rest()
    run.snapshot(tmp_path / "bare.snap", history=False)
    run.snapshot(tmp_path / "whole.snap")
    for other in (renamed(signals={"stop": "stop"}),):
        found = play(Journal.open(tmp_path / "a.jsonl"), Run(other, Walk()))
        assert found is not None
        assert (found.field, found.recorded) == ("signal", "skip")
        for name in ("bare.snap", "whole.snap"):
            found = restore(load(tmp_path / name), Run(other, Walk()))
            assert found is not None
            assert (found.field, found.recorded) == ("signal", "skip")


@dataclass(slots=True)
class Walk2:
    """The context of the second version: what was drawn is kept in halves, and the bonus has another name."""

    seed: int = 0
    limit: int = 20
    drawn: list[int] = field(default_factory=list)
    extra: int = 0

    @property
    def bonus(self) -> int:
        return self.extra

    @bonus.setter
    def bonus(self, value: int) -> None:
        self.extra = value


class Pull(Draw):
    """Its outcome is text now."""

    def run(self, context: Walk) -> str:  # type: ignore[override]
        return f"{super().run(context)} drawn"

    def apply(self, context: Walk, outcome: str) -> None:  # type: ignore[override]
        super().apply(context, int(outcome.split()[0]))


class PullOutcome(Pull, Phase[Walk, str]):  # type: ignore[misc]
    pass


class Gift(Edit[Walk, list[int]]):
    """Its outcome is a list now."""

    def apply(self, context: Walk, outcome: list[int]) -> None:
        context.bonus += outcome[0]


@guard
def uneven(context: Walk) -> bool:
    return context.drawn[-1] % 2 == 1


def second_version(migration: Migration, version: int = 2) -> Machine[Walk]:
    pull, write = PullOutcome("pull"), Note("write")
    table = [
        Transition(pull, write, uneven & ~far_enough), Transition(pull, pull, ~uneven & ~far_enough),
        Transition(pull, End("done"), far_enough), Transition(write, pull),
    ]  # fmt: skip
    signals = [Signal("halt", to=End("stopped", status=Status.CANCELLED)), Signal("leap", to=write, sources=(pull,))]
    return Machine("walk", start=pull, transitions=table, signals=signals, edits=[Gift("gift")], version=version,
                   migrations=[migration])  # fmt: skip


def context_of_2(fields: Any) -> dict[str, Any]:
    return {("extra" if name == "bonus" else name): value for name, value in fields.items()}


MIGRATION = Migration(
    1, phases={"draw": "pull", "note": "write"}, guards={"odd": "uneven"}, signals={"stop": "halt", "skip": "leap"},
    edits={"bonus": "gift"}, outcomes={"draw": lambda number: f"{number} drawn", "bonus": lambda number: [number]},
    context=context_of_2,
)  # fmt: skip


def test_records_of_an_earlier_version_are_read_by_migrations(recorded: Path) -> None:
    journal, second = Journal.open(recorded / "a.jsonl"), second_version(MIGRATION)
    verdict = verify(journal, Run(second, Walk2()))  # type: ignore[arg-type]
    assert verdict.verified, verdict.divergence and verdict.divergence.report()
    assert "machine version: 1 -> 2" in verdict.differences
    played = Run(second, Walk2())  # type: ignore[arg-type]
    assert play(journal, played) is None
    for name in ("whole.snap", "bare.snap"):
        run = Run(second, Walk2())  # type: ignore[arg-type]
        assert restore(load(recorded / name), run) is None
        run.resume()
        assert run.context == played.context


def test_pending_signals_are_migrated(tmp_path: Path) -> None:
    run = Run(machine, Walk(), journal=JournalWriter(tmp_path / "a.jsonl"))
    while run.phase_name != "note":
        run.step()
    run.signal("skip", wait=True)
    run.rest()
    again = Run(second_version(MIGRATION), Walk2())  # type: ignore[arg-type]
    assert play(Journal.open(tmp_path / "a.jsonl"), again) is None
    assert again.pending == ("leap",)


def test_migrations_follow_each_other(recorded: Path) -> None:
    first = Migration(1, phases={"draw": "take"}, outcomes={"draw": lambda number: [number]})
    second = Migration(2, phases={"take": "draw"}, outcomes={"take": lambda numbers: numbers[0]})
    third = replace(machine, version=3, migrations=[second, first])
    assert verify(Journal.open(recorded / "a.jsonl"), Run(third, Walk())).verified


def broken(value: Any) -> Any:
    raise LookupError("no such \x1b[31m thing")


@pytest.mark.parametrize(
    "change", [lambda: {"outcomes": {"draw": broken}}, lambda: {"outcomes": {"bonus": broken}},
               lambda: {"context": broken}, lambda: {"outcomes": {"draw": lambda number: object()}},
               lambda: {"context": lambda fields: [1]}],
)  # fmt: skip
def test_a_migration_that_fails_names_file_line_and_itself(
    recorded: Path, change: Callable[[], dict[str, Any]]
) -> None:
    changes = change()
    changes["outcomes"] = {**MIGRATION.outcomes, **changes.get("outcomes", {})}
    odd_one = second_version(replace(MIGRATION, **changes))
    for walk_again in (play, verify):
        with pytest.raises(JournalError, match=r"a.jsonl, line \d+: the migration of version 1 cannot read") as failure:
            walk_again(Journal.open(recorded / "a.jsonl"), Run(odd_one, Walk2()))  # type: ignore[arg-type, operator]
        assert "\x1b" not in str(failure.value)


def test_a_record_of_a_later_version_is_refused_by_name(tmp_path: Path) -> None:
    later = replace(machine, version=3)
    Run(later, Walk(), journal=JournalWriter(tmp_path / "a.jsonl")).start()
    with pytest.raises(JournalError, match=r"a.jsonl, line 1: version 3 of machine 'walk' recorded this, and here is "
                                           r"version 1"):  # fmt: skip
        play(Journal.open(tmp_path / "a.jsonl"), Run(machine, Walk()))


def test_migrations_must_fit_the_version() -> None:
    with pytest.raises(InvalidMachine, match="reads records of version 2, the machine's is 2"):
        replace(machine, version=2, migrations=[Migration(2)])
    with pytest.raises(InvalidMachine, match="2 migrations read records of this version"):
        walk(Draw(), version=2, migrations=[Migration(1), Migration(1)])


def test_a_migration_changes_no_record_of_its_own_version(tmp_path: Path) -> None:
    second = replace(machine, version=2, migrations=[Migration(1, phases={"draw": "gone"})])
    Run(second, Walk(), journal=JournalWriter(tmp_path / "a.jsonl")).start()
    verdict = verify(Journal.open(tmp_path / "a.jsonl"), Run(second, Walk()))
    assert verdict.verified
    assert verdict.differences == ()
    record(tmp_path / "b.jsonl")
    assert play(Journal.open(tmp_path / "b.jsonl"), Run(second, Walk())) is not None
