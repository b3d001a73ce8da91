"""What a row's text may be restricted to: a JSON schema, a regular expression, a choice of strings or a grammar."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from phases.errors import RequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """What the whole output of a row is to be: exactly one of these. The row ends when it is.

    Parameters
    ----------
    json_schema
        A JSON text that this schema validates, written as Python's `json.dumps` writes it. Given as the schema itself
        or as JSON text. Keywords that cannot be enforced are refused.
    regex
        A text that all of this regular expression matches, in the syntax of Rust's `regex`: no lookaround and no
        references back.
    choice
        One of these strings.
    grammar
        A text of this context-free grammar: Lark's, as llguidance has it, or GBNF.

    Raises
    ------
    RequestError
        When there is none of these or several, or one of a wrong kind. What is wrong in it is found where the tokenizer
        is known: when a run is made.
    """

    json_schema: str | Mapping[str, Any] | None = None  # text, once it is made
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        given = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        if len(given) != 1:
            raise RequestError(
                f"a constraint is a json_schema, a regex, a choice or a grammar, exactly one of them; given: "
                f"{', '.join(given) or 'none'}"
            )
        if self.json_schema is not None:
            object.__setattr__(self, "json_schema", _json_text(self.json_schema))
        elif self.choice is not None:
            object.__setattr__(self, "choice", _strings(self.choice))
        elif not isinstance(text := self.regex if self.grammar is None else self.grammar, str):
            raise RequestError(f"a constraint's {given[0]} is text, not {text!r:.200}")
        _check_encodable(self.kind, self.text)

    @classmethod
    def of(cls, constraint: "Constraint | Mapping[str, Any] | None") -> "Constraint | None":
        """Read what may be given as a mapping, such as `{"regex": "[0-9]+"}`; raises RequestError."""
        if constraint is None or isinstance(constraint, Constraint):
            return constraint
        names = [field.name for field in fields(cls)]
        if not isinstance(constraint, Mapping) or not set(constraint) <= set(names):
            raise RequestError(
                f"a constraint is a Constraint or a mapping with one of {', '.join(names)}, not {constraint!r:.200}"
            )
        return cls(**constraint)

    @property
    def kind(self) -> str:
        """Which of the fields is given."""
        return next(field.name for field in fields(self) if getattr(self, field.name) is not None)

    @property
    def text(self) -> str:
        """What is given, as text; a choice as a JSON list."""
        value = getattr(self, self.kind)
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    def __str__(self) -> str:
        return f"{self.kind} {self.text!r:.100}"


def _json_text(schema: Any) -> str:
    try:
        value = json.loads(schema) if isinstance(schema, str) else schema
        if not isinstance(value, Mapping):
            raise RequestError(f"a JSON schema is an object, such as {{'type': 'integer'}}, not {schema!r:.200}")
        return json.dumps(dict(value), ensure_ascii=False, allow_nan=False)
    except RequestError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"the JSON schema {schema!r:.80} is no JSON: {error}") from error


def _strings(choice: Any) -> tuple[str, ...]:
    strings = () if isinstance(choice, str | Mapping) or not hasattr(choice, "__iter__") else tuple(choice)
    if not strings or not all(isinstance(text, str) for text in strings):
        raise RequestError(f"a choice is a list of strings, at least one, not {choice!r:.200}")
    return strings


def _check_encodable(kind: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"the {kind} holds {text[error.start]!r}, half a character") from None
