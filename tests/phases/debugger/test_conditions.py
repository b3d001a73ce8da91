"""The conditions that breakpoints wait for."""

from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from phases.debugger.conditions import Condition, ConditionError
from phases.debugger.vocabularies import GENERATION

VALUES = {
    "top1": 0.2,
    "margin": 0.1,
    "entropy": 2.0,
    "token": "\n",
    "text": "a fox contains a fox",
    "token_id": 7,
    "length": 40,
    "step": 9,
    "phase": "x",
}
TRUE = [
    "top1 < 0.3", 'token == "\\n"', "length == 40", "0.1 < top1 < 0.3", "not top1 > 0.3", "-1 < margin",
    'phase == "x" and (step >= 9 or entropy > 5)', "token_id != 8", "'a' > token", "length==40",
    'text contains "fox"', "text contains 'fox contains' and length == 40",
    "not text contains 'cat'", "'a b' > token or text contains 'cat'",
]  # fmt: skip
WRONG = [
    ("top1", "expected a comparison"), ("top1 <", "expected a condition"), ("", "expected a condition"),
    ("top2 < 1", "there is no 'top2'; names: top1"), ("token < 3", "token is text and 3 is a number"),
    ("length == '4'", "cannot be compared"), ("length is 4", "expected one of"), ("length in (1,)", "expected one of"),
    ("f(1) < 2", "expected a name, a number"), ("length.real < 2", "expected a name"), ("length + 1 < 2", "a name"),
    ("length < True", "expected a name"), ("-'a' < token", "expected a name"), ("(lambda: 1)() == 1", "a name"),
    ("length == 1; 2", "expected a condition"), ("(" * 300 + "1" + ")" * 300, "at most 500"),
    ("text contains 3", "expected text that contains text"), ("top1 contains 'x'", "expected text that contains text"),
    ("text @ 'fox'", "not @"), ("text contains", "expected a condition"), ("text contains 'a' < 3", "expected a name"),
    ("contains", "expected a condition"), ("length ==\n40", "on one line"), ("text.x == 'a'", "expected a name"),
    ("len(text) == 3", "expected a name"), ("text[0] == 'a'", "expected a name"),
    ("(" * 240 + "1" + ")" * 240, "expected"), ("length == 1j", "expected a name"), ("x" * 501, "at most 500"),
]  # fmt: skip


@pytest.mark.parametrize("text", TRUE)
def test_conditions_that_hold(text: str) -> None:
    condition = Condition.parse(text, GENERATION)
    assert condition.holds(VALUES.get)
    assert not Condition.parse(f"not ({text})", GENERATION).holds(VALUES.get)


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_what_is_no_condition(text: str, message: str) -> None:
    with pytest.raises(ConditionError, match="(?s)" + message.replace("(", r"\(")):
        Condition.parse(text, GENERATION)


def test_a_name_without_a_value_is_neither_true_nor_false() -> None:
    def value(name: str) -> float | None:
        return {"length": 3.0}.get(name)

    for text in ("top1 < 0.3", "not top1 < 0.3", "top1 < 0.3 and length == 3", "top1 == top1"):
        assert not Condition.parse(text, GENERATION).holds(value)
    assert Condition.parse("top1 < 0.3 or length == 3", GENERATION).holds(value)
    assert not Condition.parse("not (top1 < 0.3 and length == 3)", GENERATION).holds(value)
    assert Condition.parse("not (top1 < 0.3 and length == 4)", GENERATION).holds(value)


@given(st.text(max_size=60) | st.text("top1<length=0.3\"'()andor not-!,:[]{}", max_size=40))
@example("\0")
@example("length == \ud800")
@example("9" * 400 + "**9 < 1")
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_condition_or_a_clear_error(text: str) -> None:
    with suppress(ConditionError):
        Condition.parse(text, GENERATION).holds(VALUES.get)
