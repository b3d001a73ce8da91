"""Variables: the columns of a phase's truth table, each a function of the context that has one of a few values."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, Generic, TypeVar

Context = TypeVar("Context", contravariant=True)
Value = bool | str  # as records, findings and steps say it


class Variable(Generic[Context]):
    """What transitions choose by: a guard, which has two values, or a choice, which has many.

    Attributes
    ----------
    values
        In the order in which rows of the truth table count them.
    """

    __slots__ = ("name", "predicate")

    name: str
    predicate: Callable[[Context], Any]
    values: tuple[Value, ...]

    def place(self, context: Context) -> int:
        """The place among `values` of the one that it has; raises GuardError if it has none of them."""
        raise NotImplementedError

    def value(self, context: Context) -> Value:
        """The value that it has, as records say it; raises GuardError if it has none."""
        return self.values[self.place(context)]


def row_count(values: Iterable[Sequence[Value]]) -> int:
    """How many rows the truth table of variables with these values has."""
    count = 1
    for own in values:
        count *= len(own)
    return count


def rows_of(variables: Sequence[Variable[Any]]) -> Iterator[dict[str, Value]]:
    """All values that the variables can have together, in the order of the rows' numbers: the first changes fastest."""
    names = [variable.name for variable in variables]
    for values in product(*(variable.values for variable in reversed(variables))):
        yield dict(zip(names, reversed(values), strict=True))


def values_at(row: int, variables: Iterable[tuple[str, Sequence[Value]]]) -> dict[str, Value]:
    """The values in the row of this number, by name, of variables that are given by name and values."""
    found = {}
    for name, values in variables:
        row, place = divmod(row, len(values))
        found[name] = values[place]
    return found


def in_words(values: Mapping[str, Value]) -> str:
    """Values on one line: `paid & ~late & route = tools`."""
    return " & ".join(_word(name, value) for name, value in values.items())


def cases_in_words(variables: Sequence[Variable[Any]], cases: Iterable[Mapping[str, Value]]) -> str:
    """Rows of a truth table on one line, those put together that differ in one variable: `route = tools | search`.

    "" if they are all there are.
    """
    boxes = [tuple(frozenset({case[variable.name]}) for variable in variables) for case in cases]
    for column in range(len(variables)):
        merged: dict[tuple[frozenset[Value], ...], frozenset[Value]] = {}
        for box in boxes:
            others = box[:column] + box[column + 1 :]
            merged[others] = merged.get(others, frozenset()) | box[column]
        boxes = [(*others[:column], found, *others[column:]) for others, found in merged.items()]
    return " or ".join(_box_in_words(variables, box) for box in boxes)


def _box_in_words(variables: Sequence[Variable[Any]], box: Sequence[frozenset[Value]]) -> str:
    words = []
    for variable, found in zip(variables, box, strict=True):
        values = [value for value in variable.values if value in found]
        if len(values) < len(variable.values) or len(values) == 1:
            words.append(_word(variable.name, *values))
    return " & ".join(f"({word})" if " | " in word and len(words) > 1 else word for word in words)


def _word(name: str, *values: Value) -> str:
    if isinstance(values[0], bool):
        return name if values[0] else f"~{name}"
    return f"{name} = {' | '.join(map(str, values))}"
