"""Guards: named, pure, total predicates on a context that compose with `&`, `|` and `~`."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from statemachine.definition.variable import Value, Variable
from statemachine.errors import GuardError

Context = TypeVar("Context", contravariant=True)
Values = Callable[[Variable[Any]], Value]  # gives each atom of an expression its value

EITHER, OR, AND, NOT = range(4)  # how tightly an expression binds, to write no needless parentheses


class Guard(Variable[Context]):
    """A condition under which a transition may be taken.

    A guard must be *pure* (asking twice changes nothing), *total* (defined for every context its phase can leave
    behind, since all guards of a phase are evaluated at each of its steps) and return a real `bool`.

    Parameters
    ----------
    name
        How the guard is called in diagrams, findings and journals.
    predicate
        A function of the context.

    Raises
    ------
    GuardError
        On a call, when the predicate returns anything but True or False, or raises.
    """

    __slots__ = ("_binding", "_combine", "atoms")

    values = (False, True)

    def __init__(self, name: str, predicate: Callable[[Context], bool]) -> None:
        self.name = name
        self.predicate = predicate
        self.atoms: tuple[Variable[Context], ...] = (self,)
        self._binding = NOT
        self._combine: Callable[[Values], bool] = lambda value: value(self) is True

    @classmethod
    def of_variables(
        cls, name: str, binding: int, atoms: tuple[Variable[Context], ...], *, combine: Callable[[Values], bool]
    ) -> "Guard[Context]":
        """A guard that is made of what these variables come to."""
        made = cls(name, lambda context: combine(lambda atom: atom.value(context)))
        made.atoms, made._binding, made._combine = atoms, binding, combine
        return made

    @classmethod
    def _compose(
        cls, name: str, binding: int, *parts: "Guard[Context]", combine: Callable[[Values], bool]
    ) -> "Guard[Context]":
        atoms = tuple(dict.fromkeys(atom for part in parts for atom in part.atoms))
        return cls.of_variables(name, binding, atoms, combine=combine)

    def __call__(self, context: Context) -> bool:
        try:
            value = self.predicate(context)
        except GuardError:  # of one that this one is made of
            raise
        except Exception as error:
            raise GuardError(self.name, error) from error
        if value is True or value is False:
            return value
        raise GuardError(self.name, value)

    def place(self, context: Context) -> int:
        return int(self(context))

    def value(self, context: Context) -> bool:
        return self(context)

    def holds(self, values: Mapping[str, Value]) -> bool:
        """The truth of this guard when its atoms, by name, have these values."""
        return self._combine(lambda atom: values[atom.name])

    def _text(self, binding: int) -> str:
        return self.name if self._binding >= binding else f"({self.name})"

    def __and__(self, other: "Guard[Context]") -> "Guard[Context]":
        return self._compose(
            f"{self._text(AND)} & {other._text(AND)}", AND, self, other,
            combine=lambda value: self._combine(value) and other._combine(value),
        )  # fmt: skip

    def __or__(self, other: "Guard[Context]") -> "Guard[Context]":
        return self._compose(
            f"{self._text(OR)} | {other._text(OR)}", OR, self, other,
            combine=lambda value: self._combine(value) or other._combine(value),
        )  # fmt: skip

    def __invert__(self) -> "Guard[Context]":
        return self._compose(
            f"~{self._text(NOT)}", NOT, self,
            combine=lambda value: not self._combine(value),
        )  # fmt: skip

    def __bool__(self) -> bool:
        raise TypeError(
            f"guard {self.name!r} has no truth of its own: join guards with &, | and ~ instead of and, or and not, and "
            f"call one with a context to have its value"
        )

    def __repr__(self) -> str:
        return f"<guard {self.name}>"


def guard(predicate: Callable[[Context], bool]) -> Guard[Context]:
    """Make a guard of a function; its name is the function's."""
    return Guard(predicate.__name__, predicate)
