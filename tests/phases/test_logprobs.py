"""Log-probabilities of tokens: those of Hugging Face, in the result, the stream and the record."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu import NoFreeRows
from phases import Generator, RequestError, SamplingParams
from phases.logprobs import IMPOSSIBLE, TokenLogprob, logprob_of
from phases.replay import replay

OPEN: dict[str, Any] = {"temperature": 0, "max_new_tokens": 12, "stop_token_ids": ()}
PROMPT = "the quick fox"
TOLERANCE = 1e-4

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def theirs(chat_folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(chat_folder, dtype=torch.float32).eval()


def prompt_ids(generator: Generator, x: str = PROMPT) -> list[int]:
    with generator.start(x, OPEN) as run:
        run.step()
        return list(run.context.prompt_ids[0])


def all_logprobs(theirs: Any, ids: list[int]) -> np.ndarray:
    """What their model gives to every token behind each of these: [len(ids), vocab]."""
    with torch.no_grad():
        return torch.log_softmax(theirs(torch.tensor([ids])).logits[0].double(), -1).numpy()


def check(found: list[TokenLogprob | None], ids: list[int], expected: np.ndarray, top: int) -> None:
    assert len(found) == len(ids) == len(expected)
    for one, token, row in zip(found, ids, expected, strict=True):
        assert one is not None
        assert one.token_id == token
        assert one.logprob == pytest.approx(row[token], abs=TOLERANCE)
        assert [logprob for _, logprob in one.top] == pytest.approx(np.sort(row)[::-1][:top], abs=TOLERANCE)
        assert [row[token] for token, _ in one.top] == pytest.approx([logprob for _, logprob in one.top], abs=TOLERANCE)


@given(st.lists(st.floats(-40, 40, width=32) | st.just(-np.inf), min_size=1, max_size=30), st.data())
@settings(deadline=None)
def test_they_are_those_of_a_softmax(values: list[float], data: st.DataObject) -> None:
    if not np.isfinite(values).any():
        values[0] = 1.5
    logits = np.array(values, np.float32)
    token, top = data.draw(st.integers(0, len(values) - 1)), data.draw(st.integers(0, 35))
    found = logprob_of(logits, token, top=top)
    expected = torch.log_softmax(torch.tensor(logits).double(), -1).numpy()
    expected[np.isneginf(expected)] = IMPOSSIBLE
    assert found.logprob == pytest.approx(expected[token], abs=1e-9)
    order = sorted(range(len(values)), key=lambda place: (-logits[place], place))[:top]
    assert [place for place, _ in found.top] == order
    assert [logprob for _, logprob in found.top] == pytest.approx([expected[place] for place in order], abs=1e-9)


@pytest.mark.parametrize("top", [0, 1, 5])
@pytest.mark.parametrize("how", [{}, {"temperature": 1.3, "seed": 3}, {"repetition_penalty": 1.5}])
def test_those_of_the_output_are_those_of_hugging_face(
    generator: Generator, theirs: Any, top: int, how: dict[str, Any]
) -> None:
    result = generator.generate(PROMPT, OPEN | how | {"logprobs": top})
    assert result.output_ids == generator.generate(PROMPT, OPEN | how).output_ids
    prompt, output, found = prompt_ids(generator), result.output_ids[0], result.logprobs[0]
    assert found is not None
    check(found, output, all_logprobs(theirs, prompt + output)[len(prompt) - 1 : -1], top)
    assert result.prompt_logprobs == [None]


@pytest.mark.parametrize("top", [0, 3])
def test_those_of_prompts_are_those_of_hugging_face_and_change_nothing(
    generator: Generator, theirs: Any, top: int
) -> None:
    asked = [OPEN | {"prompt_logprobs": top}, OPEN, OPEN | {"prompt_logprobs": top}]
    result = generator.generate([PROMPT, "x", "Decode appends"], asked)
    plain = generator.generate([PROMPT, "x", "Decode appends"], OPEN)
    assert result.output_ids == plain.output_ids
    assert (result.prompt_logprobs[1], plain.prompt_logprobs, plain.logprobs) == (None, [None] * 3, [None] * 3)
    for row, text in ((0, PROMPT), (2, "Decode appends")):
        ids, found = prompt_ids(generator, text), result.prompt_logprobs[row]
        assert found is not None
        assert found[0] is None
        check(found[1:], ids[1:], all_logprobs(theirs, ids)[:-1], top)


def test_a_continuation_is_scored(generator: Generator, theirs: Any) -> None:
    prompt, following = prompt_ids(generator), list(generator.tokenizer.encode_continuation(" jumps over it"))
    score = generator.score(PROMPT, " jumps over it", top=2)
    check(list(score.tokens), following, all_logprobs(theirs, prompt + following)[len(prompt) - 1 : -1], 2)
    assert score.logprob == pytest.approx(sum(one.logprob for one in score.tokens))
    assert generator.score(prompt, following, top=2) == score
    result = generator.generate(PROMPT, OPEN | {"logprobs": 0})
    again = generator.score(PROMPT, result.output_ids[0])
    assert [one.logprob for one in again.tokens] == pytest.approx(
        [one.logprob for one in result.logprobs[0] or [] if one], abs=TOLERANCE
    )
    assert generator.free_rows == 4


@pytest.mark.parametrize(
    ("prompt", "continuation", "message"),
    [
        ("", "a", "a prompt of 0 tokens with a continuation of 1 cannot be scored"),
        ("a", "", "a continuation of 0 cannot"),
        ("a", [10**6], "all of ids below"),
        ([1] * 100, [1] * 29, "at most 128 together"),
        (["a", "b"], "c", "one prompt is scored at a time, but 2 came"),
        ("a", b"c", "not bytes"),
    ],
)
def test_what_cannot_be_scored_is_refused(generator: Generator, prompt: Any, continuation: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        generator.score(prompt, continuation)
    assert generator.free_rows == 4


def test_scoring_needs_a_row_and_a_whole_one_may_be_full(generator: Generator) -> None:
    assert len(generator.score([1] * 100, [1] * 28).tokens) == 28
    with generator.start(["a", "b", "c", "d"]), pytest.raises(NoFreeRows):
        generator.score("a", "b")


@given(st.integers(0, 20), st.sampled_from([(), ("e",), ("th", "q")]))
@settings(max_examples=20, deadline=None)
def test_the_stream_gives_each_once_and_in_order(generator: Generator, seed: int, stop: tuple[str, ...]) -> None:
    params = SamplingParams(temperature=1.5, seed=seed, max_new_tokens=20, logprobs=1, stop=stop)
    result = generator.generate([PROMPT, "x"], [params, SamplingParams(temperature=0, max_new_tokens=5)])
    pieces = list(generator.stream([PROMPT, "x"], [params, SamplingParams(temperature=0, max_new_tokens=5)]))
    assert [one for piece in pieces if piece.row == 0 for one in piece.logprobs] == result.logprobs[0]
    assert "".join(piece for piece in pieces if piece.row == 0) == result.output_texts[0]
    assert not any(piece.logprobs for piece in pieces if piece.row == 1)


@pytest.mark.parametrize("options", [{}, {"history": False, "kv": "recompute"}])
def test_they_are_recorded_and_survive_pause_rewind_fork_and_snapshot(
    generator: Generator, tmp_path: Path, options: dict[str, Any]
) -> None:
    params = OPEN | {"logprobs": 2, "prompt_logprobs": 1}
    expected = generator.generate(PROMPT, params)
    run = generator.start(PROMPT, params, journal=tmp_path / "run.jsonl", keep=True)
    run.until(lambda run: len(run.context.output_ids[0]) == 5 and run.phase_name == "check_stop")
    run.snapshot(tmp_path / "run.snap", **options)
    for other in (run.fork(), generator.resume(tmp_path / "run.snap")):
        other.resume()
        found = generator.result(other)
        assert found.output_ids == expected.output_ids
        assert found.prompt_logprobs == expected.prompt_logprobs
        assert [one.logprob for one in found.logprobs[0] or [] if one] == pytest.approx(
            [one.logprob for one in expected.logprobs[0] or [] if one], abs=TOLERANCE
        )
        other.close()
    run.back(7)
    run.resume()
    assert generator.result(run) == expected
    run.close()
    for mode in ("verify", "play"):
        done = replay(tmp_path / "run.jsonl", mode, generator=generator)  # type: ignore[arg-type]
        assert done.divergence is None
        assert done.run.context.logprobs == run.context.logprobs
        assert done.run.context.prompt_logprobs == run.context.prompt_logprobs
        done.run.close()


def test_a_forced_token_is_scored_and_what_a_mask_rules_out_is_impossible(generator: Generator) -> None:
    run = generator.start(PROMPT, OPEN | {"logprobs": 0})
    run.until(lambda run: len(run.context.output_ids[0]) == 2)
    run.edit("force", token=7)
    run.resume()
    [found] = generator.result(run).logprobs
    assert found is not None
    assert found[2] is not None
    assert found[2].token_id == 7
    assert found[2].logprob < 0
    assert logprob_of(np.array([0.0, -np.inf], np.float32), 1, top=2).top == ((0, 0.0), (1, IMPOSSIBLE))


@pytest.mark.parametrize("given", [{"logprobs": -1}, {"logprobs": 101}, {"prompt_logprobs": True}])
def test_what_makes_no_sense_is_refused(given: dict[str, Any]) -> None:
    [name] = given
    with pytest.raises(RequestError, match=rf"^{name} is a whole number from 0 to 100"):
        SamplingParams(**given)
