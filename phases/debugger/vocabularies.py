"""What conditions may speak of: of a generation, tokens and probabilities; of any other run, its context's fields."""

from typing import Any

from phases.debugger.conditions import Vocabulary
from phases.debugger.fields import context_of
from statemachine import Run

EVERY_STEP = {"step": "steps taken", "phase": "the phase that runs next"}
RESERVED = {*EVERY_STEP, "len", "contains"}
NUMBERS = {
    "top1": "the probability of the likeliest token, before temperature",
    "margin": "top1 less the probability of the second likeliest",
    "entropy": "of all tokens, in bits",
    "token_id": "the last token",
    "length": "tokens of output",
    "step": EVERY_STEP["step"],
}
TEXTS = {
    "token": "the text of the last token",
    "text": "the output so far; where it contains something, a run stops once",
    "phase": EVERY_STEP["phase"],
}
GENERATION = Vocabulary(
    NUMBERS | TEXTS,
    dict.fromkeys(NUMBERS, float) | dict.fromkeys(TEXTS, str),
    frozenset(EVERY_STEP),
    ("top1 < 0.3", 'token == "\\n"', "length == 40", 'text contains "fox"'),
)


def of_context(run: Run[Any]) -> Vocabulary:
    """What conditions on a run of any machine may speak of: the fields that its context has now."""
    fields = {name: value for name, value in context_of(run).items() if name.isidentifier() and name not in RESERVED}
    meanings = {name: f"a field of the context, now {type(value).__name__}" for name, value in fields.items()}
    kinds: dict[str, type] = dict.fromkeys(fields, object)
    return Vocabulary(
        EVERY_STEP | meanings,
        {"step": float, "phase": str} | kinds,
        frozenset({*EVERY_STEP, *fields}),
        _examples(fields),
    )


def _examples(fields: dict[str, Any]) -> tuple[str, ...]:
    """Conditions that make sense for these fields."""
    made = []
    for name, value in fields.items():
        if isinstance(value, bool | int | float):
            made.append(f"{name} > 2")
        elif isinstance(value, str):
            made.append(f'{name} contains "x"')
        elif isinstance(value, list | tuple | dict):
            made.append(f"len({name}) == 3")
    return (*sorted(made, key=lambda condition: "len" in condition)[:3], "step == 40")
