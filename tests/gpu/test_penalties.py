"""Penalties are Hugging Face's processors of the same meaning, in their order, to the bit."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu import Penalties, penalised

torch = pytest.importorskip("torch")
process = pytest.importorskip("transformers.generation.logits_process")

VOCAB = 11
TOKEN = st.integers(0, VOCAB - 1)
LOGITS = st.lists(
    st.one_of(st.floats(-30, 30, width=32), st.just(-math.inf), st.just(0.0)), min_size=VOCAB, max_size=VOCAB
).map(lambda values: np.array(values, np.float32))
PENALTIES = st.builds(
    Penalties,
    repetition=st.sampled_from([1.0, 1.3, 0.6, 2.0]),
    no_repeat_ngram=st.integers(0, 4),
    bias=st.dictionaries(TOKEN, st.floats(-9, 9), max_size=4).map(lambda found: tuple(found.items())),
    forbidden=st.lists(TOKEN, max_size=3).map(tuple),
    allowed=st.none() | st.lists(TOKEN, min_size=1, max_size=9).map(tuple),
    stops=st.lists(TOKEN, min_size=1, max_size=3).map(tuple),
    min_new_tokens=st.integers(0, 9),
    output_from=st.integers(0, 12),
)


def theirs(logits: np.ndarray, tokens: list[int], penalties: Penalties) -> np.ndarray:
    """The processors that `generate` makes of the parameters of the same meaning, in its order."""
    found: list[Any] = []
    if penalties.bias:
        found.append(process.SequenceBiasLogitsProcessor([[[token], bias] for token, bias in penalties.bias]))
    if penalties.repetition != 1:
        found.append(process.RepetitionPenaltyLogitsProcessor(penalties.repetition))
    if penalties.no_repeat_ngram:
        found.append(process.NoRepeatNGramLogitsProcessor(penalties.no_repeat_ngram))
    if penalties.min_new_tokens:
        found.append(
            process.MinNewTokensLengthLogitsProcessor(
                penalties.output_from, penalties.min_new_tokens, torch.tensor(penalties.stops)
            )
        )
    if penalties.allowed is not None:
        allowed = list(penalties.allowed)
        found.append(process.PrefixConstrainedLogitsProcessor(lambda row, ids: allowed, 1))
    if penalties.forbidden:
        found.append(process.SuppressTokensLogitsProcessor(list(penalties.forbidden)))
    scores, ids = torch.tensor(logits)[None], torch.tensor([tokens])
    for processor in found:
        scores = processor(ids, scores)
    return scores[0].numpy()


@given(LOGITS, st.lists(TOKEN, min_size=1, max_size=20), PENALTIES)
@settings(max_examples=500, deadline=None)
def test_they_are_those_of_hugging_face(logits: np.ndarray, tokens: list[int], penalties: Penalties) -> None:
    before = logits.copy()
    found = penalised(logits, np.array(tokens, np.int32), penalties)
    if np.isfinite(found).any():  # theirs would draw some allowed token; here a mask that leaves none is an error
        assert np.array_equal(found, theirs(logits, tokens, penalties))
    assert np.array_equal(logits, before)


@given(LOGITS, st.lists(TOKEN, max_size=20), st.integers(0, 20), st.floats(-2, 2), st.floats(-2, 2))
@settings(deadline=None)
def test_presence_and_frequency_look_at_the_output_alone(
    logits: np.ndarray, tokens: list[int], output_from: int, presence: float, frequency: float
) -> None:
    """Hugging Face has none: by the definition of those who have, one rounding after another."""
    penalties = Penalties(presence=presence, frequency=frequency, output_from=output_from)
    found = penalised(logits, np.array(tokens, np.int32), penalties)
    for token in range(VOCAB):
        expected = logits[token]
        if count := tokens[output_from:].count(token):
            expected = expected - np.float32(presence)
            expected = expected - np.float32(frequency) * np.float32(count)
        assert found[token] == expected


def test_by_default_nothing_changes() -> None:
    logits = np.linspace(-3, 3, VOCAB, dtype=np.float32)
    assert np.array_equal(penalised(logits, np.arange(5, dtype=np.int32), Penalties()), logits)
    assert Penalties().biases(VOCAB) is None
