"""Forms of requests: what each comes to, and that nothing asked for is ignored."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phases import Message, RowRequest, SamplingParams
from phases.errors import RequestError
from phases.files import source
from phases.files.asked import Asked, Form
from phases.files.forms import requests_of

SAY = [{"role": "user", "content": "Hello"}]
HELLO = (Message("user", "Hello"),)
CHAT = "/v1/chat/completions"


def batch(body: dict[str, Any], url: str = CHAT, **more: Any) -> dict[str, Any]:
    return {"custom_id": "b", "method": "POST", "url": url, "body": body} | more


def row(**fields: Any) -> RowRequest:
    return RowRequest(**({"messages": HELLO} | fields))


GOOD = [
    ({"prompt": "Hello"}, (None, Form.OURS, RowRequest(prompt="Hello"))),
    ({"id": 3, "prompt": "x", "raw": True}, (3, Form.OURS, RowRequest(prompt="x", raw=True))),
    ({"id": "a", "token_ids": [1, 2]}, ("a", Form.OURS, RowRequest(token_ids=(1, 2)))),
    ({"messages": SAY, "params": {"seed": 3}}, (None, Form.OURS, row(params=SamplingParams(seed=3)))),
    (batch({"model": "any", "messages": SAY, "max_tokens": 9, "temperature": 0}),
     ("b", Form.CHAT, row(params=SamplingParams(max_new_tokens=9, temperature=0)))),
    (batch({"messages": SAY, "max_completion_tokens": 9, "n": 1, "stream": False, "logprobs": None, "user": "u"}),
     ("b", Form.CHAT, row(params=SamplingParams(max_new_tokens=9, n=1)))),
    (batch({"messages": SAY, "n": 3, "logprobs": True, "top_logprobs": 2}),
     ("b", Form.CHAT, row(params=SamplingParams(n=3, logprobs=2)))),
    (batch({"messages": SAY, "logprobs": True}), ("b", Form.CHAT, row(params=SamplingParams(logprobs=0)))),
    (batch({"messages": SAY, "logprobs": False, "top_logprobs": 0}), ("b", Form.CHAT, row(params=SamplingParams()))),
    (batch({"prompt": "Hello", "logprobs": 4}, "/v1/completions"),
     ("b", Form.TEXT, RowRequest(prompt="Hello", raw=True, params=SamplingParams(logprobs=4)))),
    (batch({"prompt": "Hello"}, "/v1/completions"), ("b", Form.TEXT, RowRequest(prompt="Hello", raw=True))),
    (batch({"prompt": [5, 6]}, "/v1/completions"), ("b", Form.TEXT, RowRequest(token_ids=(5, 6)))),
]  # fmt: skip


@pytest.mark.parametrize(("value", "found"), GOOD)
def test_what_a_line_comes_to(value: dict[str, Any], found: tuple[Any, ...]) -> None:
    assert list(requests_of(value)) == [found]


def test_the_reference_s_words_are_those_of_its_structs_and_of_its_files() -> None:
    contents = [{"role": "user", "contents": [{"type": "text", "content": "Hello"}]}]
    structs = {"requests": [{"messages": contents}], "topP": 0.8, "topK": 50, "maxGenerateLength": 7, "temperature": 1,
               "loraWeightsName": "", "saveSystemPromptKVCache": False}  # fmt: skip
    files = {"requests": [{"messages": SAY, "lora_name": ""}], "top_p": 0.8, "top_k": 50, "max_generate_length": 7,
             "temperature": 1, "batch_size": 4, "enable_thinking": False, "add_generation_prompt": True}  # fmt: skip
    params = SamplingParams(top_p=0.8, top_k=50, max_new_tokens=7, temperature=1)
    for value in (structs, files):
        assert list(requests_of(value)) == [(None, Form.OURS, row(params=params))]
    several = {"requests": [{"messages": SAY, "top_k": 2}, {"messages": SAY}], "top_k": 9, "apply_chat_template": False}
    assert [found for _, _, found in requests_of(several)] == [
        RowRequest(prompt="Hello", raw=True, params=SamplingParams(top_k=top_k)) for top_k in (2, 9)
    ]


def test_a_system_prompt_to_keep() -> None:
    chat = [{"role": "system", "content": "Be kind."}, *SAY]
    messages = (Message("system", "Be kind."), Message("user", "Hello"))
    kept = RowRequest(messages=messages, save_system_prompt_kv_cache=True)
    assert list(requests_of({"messages": chat, "save_system_prompt_kv_cache": True})) == [(None, Form.OURS, kept)]
    batch = {"requests": [{"messages": chat}, {"messages": SAY}], "saveSystemPromptKVCache": True}  # for all of them
    assert [found for _, _, found in requests_of(batch)] == [kept, RowRequest(messages=messages[1:])]


BAD = [
    ([], "a JSON object"),
    ({}, "exactly one of them"),
    ({"prompt": "x", "messages": SAY}, "exactly one of them"),
    ({"prompt": 5}, "text is expected"),
    ({"prompt": "x", "temperature": 0}, "no field 'temperature'"),
    ({"prompt": "x", "params": {"heat": 1}}, "no field 'heat'"),
    ({"prompt": "x", "params": 7}, "not 7"),
    ({"prompt": "x", "raw": 1}, "raw is true or false"),
    ({"messages": []}, "messages are a list"),
    ({"id": [1], "prompt": "x"}, "an id is"),
    ({"id": True, "prompt": "x"}, "an id is"),
    ({"id": "x" * 201, "prompt": "x"}, "at most 200 characters"),
    ({"token_ids": "12"}, "token_ids is a list"),
    ({"requests": []}, "at least one"),
    ({"requests": [{}]}, "has messages"),
    ({"requests": ["x"]}, "has messages"),
    ({"requests": [{"messages": SAY}], "saveSystemPromptKVCache": 1}, "save_system_prompt_kv_cache is true or false"),
    ({"messages": SAY, "save_system_prompt_kv_cache": "yes"}, "save_system_prompt_kv_cache is true or false"),
    ({"messages": SAY, "save_system_prompt_kv_cache": True}, "begin with one of the role 'system'"),
    ({"requests": [{"messages": SAY}], "saveSystemPromptKVCache": True, "apply_chat_template": False}, "take one of"),
    ({"requests": [{"messages": SAY}], "loraWeightsName": ["french"]}, "lora_weights_name is a string"),
    ({"prompt": "x", "lora_weights_name": 7}, "lora_weights_name is a string"),
    (batch({"messages": SAY, "lora_weights_name": "french"}), "lora_weights_name, which is not"),
    ({"requests": [{"messages": SAY}], "enable_thinking": True}, "enable_thinking, which is not"),
    ({"requests": [{"messages": SAY}], "numLogprob": 3}, "numLogprob, which is not"),
    ({"requests": [{"messages": SAY}], "num_logprobs": True}, "num_logprobs, which is not"),
    ({"requests": [{"messages": SAY}], "batch_size": 0}, "batch_size is"),
    ({"requests": [{"messages": SAY}], "apply_chat_template": "no"}, "apply_chat_template is"),
    (batch({"messages": SAY, "best_of": 2}), "best_of, which is not"),
    (batch({"messages": SAY, "stream": True}), "stream, which is not"),
    (batch({"messages": SAY, "logprobs": 2}), "logprobs is true or false in a chat, not 2"),
    (batch({"messages": SAY, "top_logprobs": 2}), "top_logprobs wants logprobs to be true"),
    (batch({"messages": SAY, "logprobs": True, "top_logprobs": True}), "logprobs is"),
    (batch({"prompt": "x", "logprobs": True}, "/v1/completions"), "logprobs is"),
    (batch({"prompt": "x", "prompt_logprobs": 1}, "/v1/completions"), "does not have: take it out"),
    (batch({"messages": SAY, "response_format": {"type": "json_object"}}), "response_format, which is not"),
    (batch({"messages": SAY, "temperature": -1}), "temperature is"),
    (batch({"messages": SAY}, method="GET"), "method is POST"),
    (batch({"messages": SAY}, url="/v1/embeddings"), "url is one of"),
    (batch({"messages": SAY}, url=["/v1"]), "url is one of"),
    (batch({"messages": SAY}, custom_id=7), "custom_id is a string"),
    (batch({"messages": SAY}, version=7), "but no"),
    (batch({}), "has messages"),
    ({"custom_id": "b", "url": CHAT, "body": "x"}, "body is a JSON object"),
    (batch({"prompt": ["a", "b"]}, "/v1/completions"), "one string or one list"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "problem"), BAD)
def test_what_cannot_be_done_is_refused_by_name(value: Any, problem: str) -> None:
    [(_, _, found)] = requests_of(value)
    assert isinstance(found, RequestError)
    assert problem in str(found)


json_values = st.sampled_from(
    [None, True, False, 0, 1, -1, 10**30, 0.5, "", "x", "user", "POST", [], [1], ["x"], [None], [[]], {}, {"x": 1}]
)
names = st.sampled_from(
    ["id", "prompt", "messages", "token_ids", "raw", "params", "requests", "custom_id", "url", "body", "method", "stop",
     "top_k", "batch_size", "apply_chat_template", "n", "role", "content"]
)  # fmt: skip


@given(
    st.dictionaries(
        names, json_values | st.dictionaries(names, json_values, max_size=4) | st.just(SAY) | st.just(CHAT), max_size=6
    )
)
def test_whatever_a_line_holds_it_comes_to_requests_or_to_reasons(value: dict[str, Any]) -> None:
    for name, form, found in requests_of(value):
        assert isinstance(name, str | int | None)
        assert isinstance(form, Form)
        assert isinstance(found, RowRequest | RequestError)


def read(path: Path, text: str | bytes, salt: str = "") -> list[Asked]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(source.read(path, salt))


def test_lines_are_numbered_and_marked(tmp_path: Path) -> None:
    text = '{"prompt": "a"}\n\n{"prompt": "a"}\r\nnonsense\n{"requests": [{"messages": []}, 5]}\n'
    text += '{"id": "x", "prompt": "a"}\n'
    found = read(tmp_path / "a", text)
    assert [(asked.line, asked.id) for asked in found] == [(1, 1), (3, 3), (4, 4), (5, "5.0"), (5, "5.1"), (6, "x")]
    assert [bool(asked.problem) for asked in found] == [False, False, True, True, True, False]
    assert len({asked.mark for asked in found}) == len(found)
    assert read(tmp_path / "a", text) == found
    salted = read(tmp_path / "a", text, "other")
    assert not {asked.mark for asked in salted} & {asked.mark for asked in found}


def test_an_id_counts_once(tmp_path: Path) -> None:
    text = '{"id": "x", "prompt": "a"}\n{"id": 4, "prompt": "a"}\n{"id": "x", "prompt": "b"}\n{"id": 4, "prompt": "b"}'
    assert [asked.problem for asked in read(tmp_path / "a", text)] == [
        "", "", "its id 'x' was that of line 1 already", "its id 4 was that of line 2 already"
    ]  # fmt: skip


def test_a_document_of_the_reference_may_stand_over_several_lines(tmp_path: Path) -> None:
    text = json.dumps({"requests": [{"messages": SAY}, {"messages": SAY}], "top_k": 3}, indent=2)
    first, second = read(tmp_path / "a", text)
    assert (first.id, second.id) == ("1.0", "1.1")
    assert first.row == second.row == row(params=SamplingParams(top_k=3))
    assert all(asked.problem for asked in read(tmp_path / "a", json.dumps({"prompt": "x"}, indent=2)))


def test_no_line_is_too_odd_or_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "LONGEST", 1000)
    deep = b"[" * 900 + b"]" * 90
    lines = [b'{"prompt": "' + b"x" * 5000 + b'"}', b"\xff\xfe", b"\x00", deep, b'{"prompt": NaN}', b'{"prompt": "y"}']
    found = read(tmp_path / "a", b"\n".join(lines))
    assert "longer than 1000 bytes" in found[0].problem
    assert [bool(asked.problem) for asked in found] == [True] * 5 + [False]
    assert found[-1].line == 6
    assert read(tmp_path / "a", b"") == read(tmp_path / "a", b"\n \n") == []
