"""A context that is counted up to its limit, for machines that do nothing else."""

from dataclasses import dataclass

from statemachine import Phase, guard


@dataclass(slots=True)
class Count:
    limit: int = 5
    count: int = 0


class Add(Phase[Count, int]):
    def run(self, context: Count) -> int:
        return context.count + 1

    def apply(self, context: Count, outcome: int) -> None:
        context.count = outcome


@guard
def enough(context: Count) -> bool:
    return context.count >= context.limit
