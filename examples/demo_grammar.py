"""Draws texts from a grammar file: `demo_text.toml`, whose head explains the notation."""

import random
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

GRAMMAR = tomllib.loads(Path(__file__).with_name("demo_text.toml").read_text(encoding="utf-8"))
WORDS = {name: [word.replace("_", " ") for word in line.split()] for name, line in GRAMMAR["words"].items()}
RULES: dict[str, Any] = WORDS | GRAMMAR["rules"]

CHOICE = re.compile(r"\[([^\[\]]*)\]")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
REFERENCE = re.compile(r"\{([Aa] )?(\*?)(\w+)(?:!(\w+)|:([\w,]+))?\}")


def say(rng: random.Random, number: str) -> str:
    """A number, now and then as a word."""
    return WORDS["number"][int(number)] if int(number) <= 20 and rng.random() < 0.12 else number


def numbers(first: int, last: int, step: int) -> str:
    """All numbers from the first to the last, up or down."""
    return ", ".join(map(str, range(first, last + 1, step) if first <= last else range(first, last - 1, -step)))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "say": say,
    "lower": lambda rng, text: text.lower(),
    "upto": lambda rng, last: rng.randint(0, int(last)),
    "sum": lambda rng, a, b: int(a) + int(b),
    "difference": lambda rng, a, b: int(a) - int(b),
    "product": lambda rng, a, b: int(a) * int(b),
    "larger": lambda rng, a, b: max(int(a), int(b)),
    "smaller": lambda rng, a, b: min(int(a), int(b)),
    "numbers": lambda rng, first, last, step: numbers(int(first), int(last), int(step)),
}


class Drawing:
    """One turn as it is drawn: what a rule came to stays as long as the turn lasts."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._rules = dict(RULES)
        self._values: dict[str, str] = {}

    def choose(self, choice: str) -> None:
        """Draw one table of a choice, after those that it builds on; its rules hold from here on."""
        tables = GRAMMAR["choices"][choice]
        (table,) = self._rng.choices(tables, [table.get("share", 1) for table in tables])
        for before in table.get("draw", ()):
            self.choose(before)
        self._rules |= table

    def value(self, name: str) -> str:
        """What a rule comes to in this turn; a number stands for itself."""
        if name not in self._values:
            self._values[name] = name if name.isdigit() else self.fresh(name)
        return self._values[name]

    def fresh(self, name: str) -> str:
        """What a rule comes to now."""
        rule = self._rules[name]
        return self.expand(rule if isinstance(rule, str) else self._rng.choice(rule))

    def texts(self, name: str) -> tuple[str, ...]:
        """What each template of a list comes to, the empty ones left out."""
        return tuple(filter(None, map(self.expand, self._rules.get(name, ()))))

    def expand(self, template: str) -> str:
        """Choose one branch of every `[a|b]`, innermost first, then replace what stands in braces."""
        while "[" in template:
            template = CHOICE.sub(lambda found: self._branch(found[1]), template)
        return REFERENCE.sub(lambda found: self._reference(*found.groups()), template)

    def _branch(self, branches: str) -> str:
        chosen = self._rng.choice(branches.split("|"))
        number = RANGE.fullmatch(chosen)
        return str(self._rng.randint(int(number[1]), int(number[2]))) if number else chosen

    def _reference(self, article: str | None, star: str, name: str, other: str | None, given: str | None) -> str:
        rule, map_ = name[0].lower() + name[1:], GRAMMAR["maps"].get(name)
        if given:
            values = [self.value(argument) for argument in given.split(",")]
            text = self.expand(map_[values[0]]) if map_ else str(FUNCTIONS[name](self._rng, *values))
        elif other:
            while (text := self.fresh(rule)) == self.value(other):
                pass
        else:
            text = self.fresh(rule) if star else self.value(rule)
        text = capital(text) if name[0].isupper() else text
        return f"{article[0]}{'n' * (text[0] in 'aeiou')} {text}" if article else text


def capital(text: str) -> str:
    """Begin with a capital letter and leave the rest alone."""
    return text[:1].upper() + text[1:]
