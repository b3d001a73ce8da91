"""Look-ups in a database, many runs to a query: each walks up a family tree, and all of them ask together."""

import sqlite3
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from statemachine import End, Ensemble, Failed, Journal, JournalWriter, Machine, Phase, Run, Transition, guard, verify

PARENTS = {"Ada": "Byron", "Byron": "Jack", "Jack": "Sophia", "Max": "Rosa", "Rosa": None, "Sophia": None}


@dataclass
class Search:
    name: str
    ancestors: list[str] = field(default_factory=list)
    over: bool = False


def new_context() -> Search:
    return Search("Ada")


class LookUp(Phase[Search, str | None]):
    def __init__(self) -> None:
        super().__init__()
        self.queries = 0
        self._base = sqlite3.connect(":memory:", check_same_thread=False)
        self._base.execute("create table person (name primary key, parent)")
        self._base.executemany("insert into person values (?, ?)", PARENTS.items())

    def run(self, context: Search) -> str | None:
        (found,) = self.run_many([context])
        if isinstance(found, Failed):
            raise found.error
        return found

    def run_many(
        self, contexts: Sequence[Search]
    ) -> Sequence[str | Failed | None]:  # one query for all that stand here
        self.queries += 1
        names = [context.ancestors[-1] if context.ancestors else context.name for context in contexts]
        marks = ", ".join("?" * len(names))
        known = dict(self._base.execute(f"select name, parent from person where name in ({marks})", names).fetchall())
        return [known[name] if name in known else Failed(LookupError(f"nobody knows {name}")) for name in names]

    def apply(self, context: Search, outcome: str | None) -> None:
        context.over = outcome is None
        if outcome is not None:
            context.ancestors.append(outcome)


@guard
def over(context: Search) -> bool:
    return context.over


look_up = LookUp()
machine = Machine(
    "ancestors",
    start=look_up,
    transitions=[Transition(look_up, look_up, ~over), Transition(look_up, End("done"), over)],
)


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="look-ups-"))
    ensemble, names = Ensemble(), ("Ada", "Max", "Nobody", "Jack")
    runs = [Run(machine, Search(name), journal=JournalWriter(folder / f"{name}.jsonl")) for name in names]
    for run in runs:
        ensemble.submit(run)
    ensemble.drive()
    for run in runs:
        print(f"{run.context.name}: {run.status}, {' < '.join(run.context.ancestors)}".rstrip(", "))
    print(look_up.queries, "queries for", sum(run.step_count for run in runs), "steps")
    records = [verify(Journal.open(folder / f"{name}.jsonl"), Run(machine, Search(name))) for name in ("Ada", "Max")]
    print("verified alone:", all(verdict.verified for verdict in records))


if __name__ == "__main__":
    main()
