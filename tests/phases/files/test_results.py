"""The file of answers: gone on with, repaired where it is torn, and left alone where it is somebody else's."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phases.errors import RequestError
from phases.files.asked import Asked, Form
from phases.files.results import Results, answered, refused
from phases.generator import DEMO_MODEL
from phases.request import FinishReason, GenerationResult
from phases.tokenizer import Tokenizer

ASKED = [
    Asked(1, 1, "a" * 24, Form.OURS, None),
    Asked(2, "two", "b" * 24, Form.CHAT, None),
    Asked(3, "three", "c" * 24, Form.TEXT, None),
]
TOKENIZER = Tokenizer.from_pretrained(DEMO_MODEL)
MARKS = [asked.mark for asked in ASKED]


def answer(asked: Asked) -> dict:
    result = GenerationResult(
        output_ids=[[1, 2]], output_texts=["Hi\n\x1b"], finish_reasons=[FinishReason.LENGTH], prompt_tokens=[3],
        reused_tokens=[0], output_tokens=[2], errors=[None], logprobs=[None], prompt_logprobs=[None],
        time_to_first_token=0.0, time_per_token=0.0,
    )  # fmt: skip
    return answered(asked, result, [0], [4], TOKENIZER, model="m")


def whole(folder: Path) -> bytes:
    path = folder / "whole"
    path.unlink(missing_ok=True)
    results = Results(path, MARKS)
    for asked in ASKED:
        results.add(asked, answer(asked))
    results.close()
    return path.read_bytes()


def test_answers_have_the_form_of_their_requests(tmp_path: Path) -> None:
    ours, chat, text = map(json.loads, whole(tmp_path).splitlines())
    assert ours == {"request": "a" * 24, "line": 1, "id": 1, "text": "Hi\n\x1b", "output_ids": [1, 2],
                    "finish_reason": "length", "prompt_tokens": 3, "output_tokens": 2, "seed": 4}  # fmt: skip
    body = chat["response"]["body"]
    assert (chat["id"], chat["custom_id"], chat["error"]) == ("batch_req_" + "b" * 24, "two", None)
    assert (chat["response"]["status_code"], body["object"]) == (200, "chat.completion")
    assert body["choices"] == [{"index": 0, "message": {"role": "assistant", "content": "Hi\n\x1b"}, "logprobs": None,
                                "finish_reason": "length"}]  # fmt: skip
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert text["response"]["body"]["choices"][0]["text"] == "Hi\n\x1b"
    wrong = refused(ASKED[1], "no\nway")
    assert wrong["response"]["status_code"] == 400
    assert wrong["response"]["body"]["error"]["message"] == "no\\nway"
    assert refused(ASKED[0], "no") == {"request": "a" * 24, "line": 1, "id": 1, "error": "no"}


def test_wherever_it_was_cut_off_it_is_gone_on_with(tmp_path: Path) -> None:
    data, path = whole(tmp_path), tmp_path / "cut"
    answers = [json.loads(line) for line in data.splitlines()]
    ends = [end for end, byte in enumerate(data) if byte == 10]
    for length in range(len(data) + 1):
        path.write_bytes(data[:length])
        results = Results(path, MARKS)
        done = sum(length >= end for end in ends)  # a line that lacks its end alone is whole
        assert results.done == set(MARKS[:done])
        assert results.cut == (0 if length in ends else length - [0, *(end + 1 for end in ends)][done])
        for asked, made in list(zip(ASKED, answers, strict=True))[done:]:
            results.add(asked, made)
        results.close()
        assert path.read_bytes() == data


OTHERS = [
    b"notes of mine", b"notes of mine\n", b'{"request":"' + b"d" * 24 + b'"}\n',
    b'{"id":"batch_req_' + b"d" * 24 + b'"}\n',
    b'{"request":"' + b"d" * 24 + b'","tex', b"{}\n", b"[]\n", b'{"id": 4}', b"\n", b"\x00\x00", b'{"request": 5}\n',
]  # fmt: skip


@pytest.mark.parametrize("data", OTHERS)
def test_what_is_somebody_else_s_is_left_as_it_is(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    for before in (b"", whole(tmp_path)[: len(whole(tmp_path).splitlines()[0]) + 1]):
        path.write_bytes(before + data)
        with pytest.raises(RequestError, match="name another output, or remove it"):
            Results(path, MARKS)
        assert path.read_bytes() == before + data


@given(st.binary(max_size=40))
def test_no_bytes_are_lost_but_those_of_a_torn_answer(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("odd") / "file"
    path.write_bytes(data)
    try:
        Results(path, MARKS).close()
    except RequestError:
        assert path.read_bytes() == data
    else:
        assert not data or data.startswith((b"{", b'{"re', b'{"id'))


def test_a_torn_line_in_the_middle_is_no_torn_end(tmp_path: Path) -> None:
    lines = whole(tmp_path).splitlines(keepends=True)
    path = tmp_path / "file"
    path.write_bytes(lines[0][:30] + b"\n" + lines[1])
    with pytest.raises(RequestError, match="line 1 holds no answer"):
        Results(path, MARKS)


def test_two_do_not_write_at_once(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    first = Results(tmp_path / "file", MARKS)
    with pytest.raises(RequestError, match="is being written by another process"):
        Results(tmp_path / "file", MARKS)
    first.close()
    Results(tmp_path / "file", MARKS).close()
