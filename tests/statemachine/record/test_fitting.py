"""What fits its type at once is what a look at its JSON would have said, for any type and any value."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, IntFlag, StrEnum
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statemachine import Signal, Wait
from statemachine.record import exact
from statemachine.record.fitting import fits_of


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Size(Enum):
    SMALL = 1
    LARGE = 2


class Odd(Enum):
    HALF = 0.5


class Bits(IntFlag):
    ONE = 1
    TWO = 2


@dataclass(frozen=True, slots=True)
class Answer:
    yes: bool
    by: str
    colour: Colour | None = None


@dataclass(frozen=True)
class Pair:
    first: int
    second: "float"


@dataclass(frozen=True)
class Nested:
    answer: Answer
    pairs: tuple[Pair, Pair]


@dataclass
class Open:
    count: int


@dataclass(frozen=True)
class Made:
    count: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", self.count + 1)


@dataclass(frozen=True)
class Secret:
    _count: int


@dataclass(frozen=True)
class Tree:
    left: "Tree | None" = None


@dataclass(frozen=True)
class Late:
    count: int = field(default=0, init=False)


TYPES: list[Any] = [
    bool, int, float, str, None, Any, Colour, Size, Odd, Bits, Answer, Pair, Nested, Open, Made, Secret, Tree, Late,
    int | None, int | float, bool | str | None, Answer | None, Colour | int, str | Colour, Answer | Pair, Answer | Open,
    Literal["yes", "no"], Literal[1, 2, None], Literal[True], tuple[int, str], tuple[()], tuple[Answer, int | None],
    tuple[int, ...], list[int], dict[str, int], bytes, set[int], Annotated[int, msgspec.Meta(ge=0)],
    Annotated[str, msgspec.Meta(max_length=2)],
]  # fmt: skip
ATOMS = [
    st.booleans(), st.none(), st.integers(), st.sampled_from([2**63, -(2**63), 2**64, -(2**63) - 1, 2**64 - 1]),
    st.floats(), st.text(max_size=5), st.sampled_from(["red", "yes", "no", "\x00\"\\", "\ud800", "x" * 1001]),
    st.sampled_from([*Colour, *Size, *Odd, *Bits, Bits.ONE | Bits.TWO]), st.binary(max_size=3),
]  # fmt: skip
LEAVES = st.one_of(ATOMS)
PAIRS = st.builds(Pair, LEAVES, LEAVES)
ANSWERS = st.builds(Answer, LEAVES, LEAVES, st.none() | LEAVES)
VALUES = st.one_of(
    LEAVES, PAIRS, ANSWERS, st.builds(Nested, ANSWERS | LEAVES, st.tuples(PAIRS, PAIRS) | LEAVES),
    st.builds(Open, LEAVES), st.builds(Made, st.integers()), st.builds(Secret, LEAVES), st.builds(Late),
    st.builds(Tree, st.none() | st.builds(Tree)), st.tuples(LEAVES, LEAVES), st.tuples(ANSWERS, LEAVES), st.just(()),
    st.lists(LEAVES, max_size=2), st.dictionaries(LEAVES, LEAVES, max_size=2),
)  # fmt: skip


def looked_at(value: Any, declared: Any) -> Any:
    """What becomes of a value by a look at its JSON; raises if it is not of the type."""
    return msgspec.convert(exact.plain(value), declared, str_keys=True)


@pytest.mark.parametrize("declared", TYPES, ids=str)
@settings(max_examples=100)
@given(value=VALUES)
def test_what_fits_comes_back_from_json_as_it_is(declared: Any, value: Any) -> None:
    if not fits_of(declared)(value):
        return
    exact.check(value)
    assert exact.alike(looked_at(value, declared), value)


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        (bool, True), (int, 2**64 - 1), (float, -0.5), (str, 'a "quoted" line\n'), (None, None), (Any, 3),
        (Colour, Colour.RED), (Size, Size.LARGE), (int | None, None), (Literal["yes", "no"], "no"),
        (Answer, Answer(yes=True, by="me", colour=Colour.BLUE)), (tuple[int, str], (1, "a")),
        (Nested, Nested(Answer(yes=False, by=""), (Pair(1, 2.5), Pair(3, 4.5)))),
    ],
)  # fmt: skip
def test_what_most_people_answer_fits(declared: Any, value: Any) -> None:
    assert fits_of(declared)(value)


def a_field_more() -> Pair:
    pair = Pair(1, 2.0)
    object.__setattr__(pair, "third", 3)
    return pair


def a_field_less() -> Answer:
    answer = Answer(yes=True, by="me")
    object.__delattr__(answer, "by")
    return answer


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        (bool, lambda: 1), (int, lambda: True), (int, lambda: 2**64), (float, lambda: 1), (float, lambda: float("nan")),
        (str, lambda: Colour.RED), (str, lambda: "é"), (str, lambda: "x" * 1001), (Colour, lambda: "red"),
        (Literal[1], lambda: True), (Literal["yes"], lambda: ["yes"]), (tuple[int, int], lambda: [1, 2]),
        (tuple[int, int], lambda: (1, 2, 3)), (Pair, lambda: {"first": 1, "second": 2.0}), (Pair, a_field_more),
        (Answer, a_field_less), (Open, lambda: Open(1)), (Made, lambda: Made(1)), (Secret, lambda: Secret(1)),
        (Bits, lambda: Bits.ONE), (Odd, lambda: Odd.HALF), (list[int], lambda: [1]), (Late, Late),
        (Annotated[int, msgspec.Meta(ge=0)], lambda: -1), (Tree, lambda: Tree(Tree())),
        (str | Colour, lambda: "red"), (Answer | Pair, lambda: Pair(1, 2.0)),
    ],
)  # fmt: skip
def test_what_is_not_so_to_the_letter_or_may_change_is_looked_at_closely(
    declared: Any, value: Callable[[], Any]
) -> None:
    assert not fits_of(declared)(value())


def test_one_class_of_phases_reads_its_answers_as_its_record_does() -> None:
    class Ask(Wait[Any, dict[int, Open]]):
        pass

    class Told(Signal[Any, dict[int, Open]]):
        def apply(self, context: Any, payload: dict[int, Open]) -> None:
            pass

    for owner in (Ask(), Told("told", to="ask")):
        answer = exact.given({1: Open(2)}, owner)
        assert answer == {1: Open(2)} == exact.typed(exact.plain(answer), owner)
        assert exact.given({"1": {"count": 2}}, owner) == answer
