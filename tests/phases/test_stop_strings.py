"""Stop strings end a row where its text comes to hold one, wherever tokens begin and end, and are never streamed."""

from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from phases import FinishReason, Generator, RequestError, SamplingParams
from phases.replay import replay
from phases.stop_strings import beginning, stopped_at
from phases.tokenizer import REPLACEMENT

OPEN = SamplingParams(temperature=0, max_new_tokens=24, stop_token_ids=())
PROMPT = "the quick fox"
STOPS = st.lists(st.text("abé the\n", min_size=1, max_size=5), min_size=1, max_size=3)


def first_stop(text: str, stops: list[str]) -> tuple[int, int] | None:
    """Where the first stop string to be whole begins and ends, looked for character by character."""
    for end in range(1, len(text) + 1):
        if ends := [stop for stop in stops if text[:end].endswith(stop)]:
            return end - max(map(len, ends)), end
    return None


@given(st.lists(st.integers(0, 290), min_size=1, max_size=60), STOPS, st.booleans())
@settings(max_examples=300, deadline=None)
def test_it_is_found_as_in_the_whole_text(generator: Generator, ids: list[int], stops: list[str], keep: bool) -> None:
    tokenizer = generator.tokenizer
    for count in range(1, len(ids) + 1):
        found = stopped_at(tokenizer, ids[:count], stops, keep=keep)
        expected = first_stop(tokenizer.decode(ids[:count]).rstrip(REPLACEMENT), stops)
        assert found == (expected and expected[keep])
        if found is not None:
            return


@given(st.text("abcé", max_size=30), st.integers(1, 8), st.data())
@settings(max_examples=300, deadline=None)
def test_it_does_not_matter_where_tokens_end(generator: Generator, text: str, most: int, data: st.DataObject) -> None:
    """However a text is cut into tokens, it ends at the same character."""
    stops = data.draw(st.lists(st.text("abcé", min_size=1, max_size=4), min_size=1, max_size=3))
    ids: list[int] = []
    while text_left := text[len(generator.tokenizer.decode(ids)) :]:
        ids += generator.tokenizer.encode_continuation(text_left[: data.draw(st.integers(1, most))])
    cuts = (stopped_at(generator.tokenizer, ids[: count + 1], stops, keep=False) for count in range(len(ids)))
    first = first_stop(text, stops)
    assert next((cut for cut in cuts if cut is not None), None) == (first and first[0])


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3))
def test_what_waits_is_the_longest_beginning(text: str, stops: list[str]) -> None:
    proper = [stop[:count] for stop in stops for count in range(1, len(stop))]
    assert beginning(text, stops) == max([len(part) for part in proper if text.endswith(part)], default=0)


@given(st.integers(0, 10), st.integers(1, 6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_row_ends_at_its_string_and_streams_none_of_it(
    generator: Generator, first: int, length: int, keep: bool
) -> None:
    whole = generator.generate(PROMPT, OPEN)
    stop = whole.text[first : first + length]
    assume(REPLACEMENT not in stop)  # bytes that are no character yet may come to be one
    params = SamplingParams(stop=[stop], keep_stop=keep).over(OPEN)
    result = generator.generate(PROMPT, params)
    before, _, _ = whole.text.partition(stop)
    assert result.text == (before + stop if keep else before)
    assert result.finish_reasons == ["stop string"]
    assert stop in generator.tokenizer.decode(result.output_ids[0])
    assert result.output_ids[0] == whole.output_ids[0][: len(result.output_ids[0])]
    assert stop not in generator.tokenizer.decode(result.output_ids[0][:-1])
    assert "".join(generator.stream(PROMPT, params)) == result.text


def test_what_waited_comes_when_it_was_no_stop_string(generator: Generator) -> None:
    whole = generator.generate(PROMPT, OPEN).text
    params = SamplingParams(stop=[whole[5:9] + "no such"]).over(OPEN)
    pieces = list(generator.stream(PROMPT, params))
    assert "".join(pieces) == whole
    assert not any("".join(pieces[:count]) == whole[:count] for count in range(6, 9))
    # also when the row ends in the middle of it
    waiting = SamplingParams(stop=[whole[-3:] + "no such"]).over(OPEN)
    assert "".join(generator.stream(PROMPT, waiting)) == whole


def test_each_row_has_its_own_and_the_others_go_on(generator: Generator) -> None:
    alone = generator.generate(PROMPT, OPEN)
    stopped = SamplingParams(stop=alone.text[4:7]).over(OPEN)
    both = generator.generate([PROMPT, PROMPT], [OPEN, stopped])
    assert both.output_texts == [alone.text, alone.text.partition(alone.text[4:7])[0]]
    assert both.finish_reasons == [FinishReason.LENGTH, FinishReason.STOP_STRING]


@pytest.mark.parametrize("keep", [False, True])
def test_it_is_recorded_and_survives_pause_rewind_fork_and_snapshot(
    generator: Generator, tmp_path: Path, keep: bool
) -> None:
    text = generator.generate(PROMPT, OPEN).text
    params = SamplingParams(stop=text[6:11], keep_stop=keep).over(OPEN)
    expected = generator.generate(PROMPT, params)
    run = generator.start(PROMPT, params, journal=tmp_path / "run.jsonl", keep=True)
    run.until(lambda run: len(run.context.output_ids[0]) == 2)
    run.snapshot(tmp_path / "run.snap")
    fork = run.fork()
    for other in (fork, generator.resume(tmp_path / "run.snap")):
        other.resume()
        assert generator.result(other) == expected
        other.close()
    run.resume()
    run.back(4)
    assert generator.result(run).finish_reasons == [None]
    run.resume()
    assert generator.result(run) == expected
    run.close()
    for mode in ("verify", "play"):
        done = replay(tmp_path / "run.jsonl", mode, generator=generator)  # type: ignore[arg-type]
        assert done.divergence is None
        assert done.run.context.output_texts == expected.output_texts
        assert done.run.context.finish_reasons == expected.finish_reasons
        done.run.close()


def test_the_string_may_be_changed_on_the_way(generator: Generator) -> None:
    text = generator.generate(PROMPT, OPEN).text
    run = generator.start(PROMPT, OPEN)
    run.until(lambda run: len(run.context.output_ids[0]) == 2)
    run.edit("sampling", stop=[text[6:9]])
    run.resume()
    assert generator.result(run).text == text.partition(text[6:9])[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stop": ""}, "stop holds an empty string"),
        ({"stop": ["a", ""]}, "stop holds an empty string"),
        ({"stop": [3]}, "text is expected, not 3"),
        ({"stop": 3}, "text is expected, not 3"),
        ({"stop": ["\ud800"]}, "half a character"),
        ({"keep_stop": 1}, "keep_stop is True or False, not 1"),
    ],
)
def test_what_is_no_stop_string_is_refused(given: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        SamplingParams(**given)
