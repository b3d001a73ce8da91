"""Choices: what a context is to be done with next, one of several values, as one variable of the truth table."""

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Literal, TypeVar, get_args, get_origin

from statemachine.definition.guard import AND, EITHER, Guard
from statemachine.definition.variable import Variable
from statemachine.errors import GuardError

Context = TypeVar("Context", contravariant=True)


class Choice(Variable[Context]):
    """A variable of several values that transitions choose by, as a guard is one of two.

        route = Choice("route", Route, lambda context: context.route)
        Transition(plan, call_tools, when=route.is_(Route.TOOLS))

    Like a guard it must be pure and total. One column of the truth table, it has exactly one value at a time: ways
    that ask for different values of it never contradict each other.

    Parameters
    ----------
    name
        How the choice is called in diagrams, findings and journals.
    values
        An Enum class, a `Literal` type, or a sequence of text or integers. Records call a member of an Enum by its
        value if that is text, else by its name.
    predicate
        A function of the context that gives something equal to one of the values.

    Raises
    ------
    ValueError
        When there are no values, one is neither text nor a number, or two cannot be told apart.
    GuardError
        On a call, when the predicate gives none of the values, or raises.
    """

    __slots__ = ("_known", "_places", "values")

    def __init__(
        self, name: str, values: type[Enum] | Sequence[Any] | Any, predicate: Callable[[Context], Any]
    ) -> None:
        self.name = name
        self.predicate = predicate
        self._known = tuple(get_args(values)) if get_origin(values) is Literal else _members(name, values)
        self.values: tuple[str, ...] = tuple(_word(name, value) for value in self._known)
        self._places = {value: place for place, value in enumerate(self._known)}
        if not len(self._known) == len(self._places) == len(set(self.values)):
            raise ValueError(f"choice {name!r} has a value twice: {', '.join(self.values)}")

    def is_(self, *values: Any) -> Guard[Context]:
        """A guard: the choice has this value, or one of these; raises ValueError if one is none of its values."""
        for value in values:
            if value not in self._known:
                raise ValueError(f"choice {self.name!r} is never {value!r}: expected {self._expected}")
        if not values:
            raise ValueError(f"choice {self.name!r} is compared with nothing: expected {self._expected}")
        words = [word for word, known in zip(self.values, self._known, strict=True) if known in values]
        return Guard.of_variables(
            f"{self.name} = {' | '.join(words)}", AND if len(words) == 1 else EITHER, (self,),
            combine=lambda value: value(self) in words,
        )  # fmt: skip

    def place(self, context: Context) -> int:
        try:
            value = self.predicate(context)
        except Exception as error:
            raise GuardError(self.name, error, expected=self._expected) from error
        try:
            return self._places[value]
        except Exception:  # it is none of them, or has no hash
            raise GuardError(self.name, value, expected=self._expected) from None

    def __call__(self, context: Context) -> Any:
        """The value that it has, as it was declared."""
        return self._known[self.place(context)]

    @property
    def _expected(self) -> str:
        return f"one of {', '.join(map(repr, self._known))}"

    def __bool__(self) -> bool:
        raise TypeError(f"choice {self.name!r} has no truth of its own: ask whether it is_(...) one of its values")

    def __repr__(self) -> str:
        return f"<choice {self.name}>"


def _members(name: str, values: Any) -> tuple[Any, ...]:
    """The values of an Enum or a sequence."""
    if isinstance(values, type) and issubclass(values, Enum):
        members: tuple[Any, ...] = tuple(values)
    elif isinstance(values, Sequence) and not isinstance(values, str):
        members = tuple(values)
    else:
        raise ValueError(f"choice {name!r} needs an Enum class, a Literal type or a sequence of values, not {values!r}")
    if not members:
        raise ValueError(f"choice {name!r} has no values")
    return members


def _word(name: str, value: Any) -> str:
    """What records call a value."""
    if isinstance(value, Enum):
        return value.value if isinstance(value.value, str) else value.name
    if isinstance(value, str | int) or value is None:
        return str(value)
    raise ValueError(
        f"choice {name!r} cannot have the value {value!r}: expected text, an integer or a member of an Enum"
    )
