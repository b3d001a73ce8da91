"""The bundled model: its answers to prompts that it never saw, its logits as torch computed them, its tokenizer."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import demo_text  # the examples are on the path of the tests
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from phases import Generator, SamplingParams

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "phases" / "demo_model"
GOLDEN = json.loads((Path(__file__).parent / "golden_demo.json").read_text())
GREEDY = SamplingParams(temperature=0)

ANSWERS = {
    "Tell me a story about a cloud in a lighthouse.": (
        "Once, a cloud lived in a lighthouse. One day, the cloud dreamed of a shiny box. It walked for three days "
        "to look for it. In the end, a crab showed it the shiny box in an old chest. The cloud was proud all the "
        "way home."
    ),
    "Please write a story about a brave snowman in the forest.": (
        "Once, a brave snowman lived in the forest. One day, the snowman was very hungry and found only one apple. "
        "Then a cat came along and was hungry too. The snowman cut the apple in two halves. It was the best apple "
        "it had ever eaten."
    ),
    "A very short story about a girl in a cave.": (
        "Once, a girl lived in a cave. One day, the girl dreamed of a shiny umbrella. She walked for three days to "
        "look for it. In the end, a crab showed her the shiny umbrella in an old chest. The girl smiled all the "
        "way home."
    ),
    "A story about a train at the north pole, please.": (
        "Once upon a time, a train lived at the north pole. One day, the train planted a tiny seed. Every day it "
        "gave it water, but nothing grew. A crab said that good things take time. At last a tall flower opened, "
        "and the train was very proud."
    ),
    "Tell me a story about a boat in a big city.": (
        "Once, a boat lived in a big city. One day, the boat planted a tiny seed. Every day it gave it water, but "
        "nothing grew. A crab said that good things take time. At last a tall flower opened, and the boat was very "
        "proud."
    ),
    "After the Decode phase, what comes next?": "After Decode comes CheckStop.",
    "Which phase turns token ids into text?": "Detokenize turns the token ids back into text.",
    "How does top k work?": "Top-k keeps only the k most likely tokens before one is drawn.",
    "Quick question: What phase reads the whole prompt?": "Prefill runs the whole prompt through the model once.",
    "Can I pause a run?": "Yes. A paused run rests between two steps and can be resumed later.",
    "What runs right before Sample?": "Before Sample comes Prefill, or CheckStop when the text goes on.",
    "Hi! What does a signal mean?": (
        "A signal comes from outside the machine, such as cancel. It takes effect between two steps."
    ),
    "What is 14 plus 69?": "14 + 69 = 83.",
    "41 + 94": "41 + 94 = 135.",
    "If I have 33 apples and get 87 more, how many do I have?": "33 + 87 = 120.",
    "What is 52 minus 26?": "52 - 26 = 26.",
    "Count down from 43 to 32.": "43, 42, 41, 40, 39, 38, 37, 36, 35, 34, 33, 32.",
    "Count from 0 to 100 in steps of 10.": "0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100.",
    "Tell me who you are.": "I am the demo model of Phasewalk, a very small language model.",
    "Is Brazil warmer than Peru?": (
        "I do not know that. I am a very small model: I tell short stories, explain my phases, count and add small "
        "numbers."
    ),
}


@pytest.fixture(scope="module")
def demo() -> Iterator[Generator]:
    with Generator.from_pretrained() as loaded:
        yield loaded


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.mark.parametrize("prompt", ANSWERS)
def test_a_held_out_prompt_gets_its_answer(demo: Generator, prompt: str) -> None:
    result = demo.generate([{"role": "user", "content": prompt}], GREEDY)
    assert result.text == ANSWERS[prompt]
    assert result.finish_reasons == ["stop"]


def test_the_answers_are_right_and_not_only_the_same() -> None:
    assert list(ANSWERS) == [turn.user for turn in demo_text.HELD_OUT]
    assert len(ANSWERS) == 20
    for turn in demo_text.HELD_OUT:
        answer = ANSWERS[turn.user]
        assert all(part in answer for part in turn.mentions) if turn.mentions else answer == turn.assistant


def test_no_held_out_prompt_is_in_the_training_text() -> None:
    assert all(demo_text.is_held_out(prompt) for prompt in ANSWERS)
    stream = itertools.islice(demo_text.chats(seed=3), 5000)
    prompts = [turn.user for chat in stream for turn in chat.turns]
    assert len(prompts) > 5000
    assert not any(demo_text.is_held_out(prompt) for prompt in prompts)


@pytest.mark.parametrize("record", GOLDEN, ids=[record["prompt"] for record in GOLDEN])
def test_ids_and_logits_are_those_of_torch(demo: Generator, tokenizer: Any, record: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": record["prompt"]}]
    prompt_ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert prompt_ids == record["prompt_ids"]
    assert list(demo.generate(messages, GREEDY).output_ids[0]) == record["new_ids"]

    engine = demo.engine
    (row,) = engine.kv_cache.acquire(1)
    try:
        engine.write_prompt(row, prompt_ids)
        engine.prefill([row])
        for token, top in zip(record["new_ids"], record["top_logits"], strict=False):
            expected_ids, expected = zip(*top, strict=True)
            np.testing.assert_allclose(engine.read_logits(row)[list(expected_ids)], expected, rtol=0, atol=1e-3)
            engine.write_token(row, token)
            engine.decode([row])
    finally:
        engine.kv_cache.release([row])


def test_the_folder_is_small_enough_for_a_wheel() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 12_000_000


def test_any_text_comes_back_from_the_tokenizer(tokenizer: Any) -> None:
    @given(st.text())
    def comes_back(text: str) -> None:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text

    comes_back()


def test_digits_are_single_tokens(tokenizer: Any) -> None:
    assert tokenizer.tokenize("2026+7") == ["2", "0", "2", "6", "+", "7"]


def test_the_template_renders_a_chat_of_several_turns(tokenizer: Any) -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": [{"type": "text", "text": "1+1"}]},
    ]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert rendered == (
        "<|bos|><|system|>Be brief.<|end|><|user|>Hello<|end|><|assistant|>Hello!<|end|><|user|>1+1<|end|><|assistant|>"
    )
    ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_tokens_to_ids(["<|bos|>", "<|system|>"]) == ids[:2]
    assert tokenizer.decode(ids) == rendered


def test_the_template_refuses_an_unknown_role(tokenizer: Any) -> None:
    with pytest.raises(Exception, match="unknown role tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_a_plain_prompt_goes_on_as_a_story_and_ends(demo: Generator, tokenizer: Any) -> None:
    ids = tokenizer("Once upon a time, there was a little fox")["input_ids"]
    result = demo.generate(ids, GREEDY)
    assert result.finish_reasons == ["stop"]
    assert "fox" in result.text
    assert result.text.endswith(".")
