"""The grammar of the demo model's text is sound, and what it says of numbers is true."""

import itertools
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
from demo_grammar import CHOICE, FUNCTIONS, GRAMMAR, REFERENCE, RULES, WORDS, Drawing
from demo_text import ABILITIES, HELD_OUT, Turn, chats, draw, is_held_out, turn_of

pytestmark = pytest.mark.slow

CHOICES: dict[str, list[dict[str, Any]]] = GRAMMAR["choices"]
SETTLED = ("share", "draw")  # entries of a choice's tables that are no rules
ASKED_FOR = {"ask", "answer", "mentions", "plain_opening", "system"}  # what the reader itself wants of the grammar
DRAWS = 4000


def templates(rule: str | list[str]) -> list[str]:
    return [rule] if isinstance(rule, str) else rule


def productions() -> Iterator[tuple[str, str]]:
    """Every template of the grammar, under the name of its rule."""
    for name, rule in GRAMMAR["rules"].items():
        yield from ((name, template) for template in templates(rule))
    for name, entries in GRAMMAR["maps"].items():
        yield from ((name, template) for template in entries.values())
    for tables in CHOICES.values():
        for table in tables:
            for name in table.keys() - {*SETTLED}:
                yield from ((name, template) for template in templates(table[name]))


def references() -> Iterator[tuple[str, str]]:
    """Each name that some template uses, and how: as a rule, or as a function or map."""
    for _, template in productions():
        for found in REFERENCE.finditer(template):
            _, _, name, other, given = found.groups()
            yield (name if given else name[0].lower() + name[1:]), ("call" if given else "rule")
            for argument in filter(None, [other, *(given or "").split(",")]):
                if not argument.isdigit():
                    yield argument, "rule"


def test_every_template_is_well_formed() -> None:
    for name, template in productions():
        left = REFERENCE.sub("", template)
        while CHOICE.search(left):
            left = CHOICE.sub("", left)
        assert not set("[]{}") & set(left), f"{name}: {template}"


def test_every_name_is_defined_and_every_definition_used() -> None:
    rules = {name for name, kind in references() if kind == "rule"}
    calls = {name for name, kind in references() if kind == "call"}
    own = {name for tables in CHOICES.values() for table in tables for name in table} - {*SETTLED}
    assert rules <= RULES.keys() | own
    assert (RULES.keys() | own) - ASKED_FOR - {"number"} == rules - ASKED_FOR  # numbers are words of `say`
    assert calls == FUNCTIONS.keys() | GRAMMAR["maps"].keys()
    built_on = {name for tables in CHOICES.values() for table in tables for name in table.get("draw", ())}
    assert built_on.isdisjoint(ABILITIES)
    assert CHOICES.keys() == built_on | ABILITIES.keys()
    assert sum(ABILITIES.values()) == pytest.approx(1)


class Watched(Drawing):
    """Notes which templates it expanded."""

    seen: set[str]

    def expand(self, template: str) -> str:
        self.seen.add(template)
        return super().expand(template)


def test_every_production_can_be_expanded() -> None:
    rng = random.Random(1)
    Watched.seen = set()
    for ability in ABILITIES:
        for _ in range(DRAWS):
            drawing = Watched(rng)
            drawing.choose(ability)
            texts = drawing.value("ask"), drawing.value("answer"), *drawing.texts("mentions")
            assert all(texts)
            assert not set("[]{}") & set("".join(texts))
            assert not any("  " in text or text != text.rstrip() for text in texts[1:])
    for name in ("system", "plain_opening"):
        for _ in range(100):
            Watched(rng).fresh(name)
    assert {template for _, template in productions()} <= Watched.seen


def turns(ability: str) -> list[Turn]:
    rng = random.Random(ability)
    return [turn_of(rng, ability) for _ in range(DRAWS)]


def numbers_in(text: str) -> list[int]:
    """The numbers of a text, those in words included."""
    found = re.findall(r"\d+|[a-z]+", text.lower())
    return [int(word) if word.isdigit() else WORDS["number"].index(word) for word in found
            if word.isdigit() or word in WORDS["number"]]  # fmt: skip


def test_sums_are_right_and_what_was_asked_for() -> None:
    signs = set()
    for turn in turns("arithmetic"):
        found = re.fullmatch(r"(\d+) ([+-]) (\d+) = (\d+)\.", turn.assistant)
        assert found, turn
        a, sign, b, result = int(found[1]), found[2], int(found[3]), int(found[4])
        assert result == (a + b if sign == "+" else a - b)
        assert sorted(numbers_in(turn.user)) == sorted((a, b))
        signs.add(sign)
    assert signs == {"+", "-"}


def test_counts_are_right_and_what_was_asked_for() -> None:
    steps = set()
    for turn in turns("counting"):
        asked = numbers_in(re.sub(r" (by|in) [a-z0-9 ]+", " ", turn.user.replace("one's", "")))
        if beside := re.fullmatch(r"(Before|After) (\d+) comes (\d+)\.", turn.assistant):
            assert int(beside[3]) - int(beside[2]) == (1 if beside[1] == "After" else -1)
            assert asked == [int(beside[2])]
            assert beside[1].lower() in turn.user
            continue
        counted = [int(number) for number in turn.assistant.removesuffix(".").split(", ")]
        (step,) = {after - before for before, after in itertools.pairwise(counted)}
        assert asked in ([counted[0], counted[-1]], [counted[-1]])
        assert len(asked) == 2 or (counted[0], step) == (1, 1)
        assert 0 <= min(counted) < max(counted) <= 100
        steps.add(step)
    assert steps == {sign * step for sign in (1, -1) for step in (1, 2, 3, 5, 10)}


def test_stories_tell_of_what_was_asked_for() -> None:
    for turn in turns("story"):
        assert all(part.lower() in turn.assistant.lower() for part in turn.mentions)
        assert 3 <= turn.assistant.count(".") <= 7
        if turn.mentions != (".",):
            assert all(part in turn.user for part in turn.mentions)


def test_large_numbers_are_too_large() -> None:
    for turn in turns("unknown"):
        if turn.assistant.startswith("That is too large"):
            assert max(numbers_in(turn.user)) > 99


def test_the_same_seed_gives_the_same_text() -> None:
    first, again, other = (list(itertools.islice(chats(seed), 200)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("ability", ABILITIES)
def test_either_side_of_the_split_has_turns_of_every_ability(ability: str) -> None:
    rng = random.Random(4)
    for _ in range(20):
        assert is_held_out(draw(rng, ability, held_out=True).user)
        assert not is_held_out(draw(rng, ability).user)
    assert len(HELD_OUT) == 20
