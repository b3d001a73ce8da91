"""Reads a line of a file of requests: one of our own, of the reference runtime, or of OpenAI's batches."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from phases.errors import RequestError
from phases.files.asked import Form
from phases.request import Message, RowRequest, SamplingParams

Found = tuple[str | int | None, Form, RowRequest | RequestError]
"""The id that a request gives itself, the form of its answer, and what it asks for, or why that is nothing."""

SAVE = "save_system_prompt_kv_cache"
OWN = ("id", "prompt", "messages", "token_ids", "raw", "params", "lora_weights_name", SAVE)
ENDPOINTS = {"/v1/chat/completions": Form.CHAT, "/v1/completions": Form.TEXT}
LONGEST_ID = 200

# The words of others for what we call otherwise.
REFERENCE = {
    "topP": "top_p", "topK": "top_k", "maxGenerateLength": "max_new_tokens", "max_generate_length": "max_new_tokens",
    "loraWeightsName": "lora_weights_name", "lora_name": "lora_weights_name",
    "saveSystemPromptKVCache": SAVE, "batchSize": "batch_size",
}  # fmt: skip
OPENAI = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens"}

# What may stand there, as it asks for nothing besides what is done anyway. None stands for nothing with any name.
REFERENCE_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "disable_spec_decode": (False, True),
    "enable_thinking": (False,), "add_generation_prompt": (True,), "available_lora_weights": ({},),
    "num_logprobs": (0,), "logit_bias": ({},), "stop": ([], ""),
}  # fmt: skip
OPENAI_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,), "stream": (False,), "echo": (False,), "top_logprobs": (0,),
    "logit_bias": ({},), "stop": ([], ""), "suffix": ("",),
    "tools": ([],), "tool_choice": ("none", "auto"), "parallel_tool_calls": (False, True),
    "response_format": ({"type": "text"},),
}  # fmt: skip
OPENAI_LABELS = ("model", "user", "metadata", "store", "service_tier", "prompt_cache_key", "safety_identifier")


def requests_of(value: Any) -> Iterator[Found]:
    """The requests of a line; one of the reference's may hold several."""
    if not isinstance(value, dict):
        yield None, Form.OURS, RequestError(f"a request is a JSON object, not {value!r:.200}")
    elif "requests" in value:
        yield from _of_the_reference(value)
    elif {"custom_id", "url", "body"} & set(value):
        yield _of_openai(value)
    else:
        yield _identified(value.get("id"), Form.OURS, lambda: _own(value))


def _identified(given: Any, form: Form, make: Any) -> Found:
    if given is not None and (isinstance(given, bool) or not isinstance(given, str | int)):
        return None, form, RequestError(f"an id is a string or a whole number, not {given!r:.200}")
    if isinstance(given, str) and len(given) > LONGEST_ID:
        return None, form, RequestError(f"an id has at most {LONGEST_ID} characters, but one of {len(given)} came")
    try:
        return given, form, make()
    except RequestError as error:
        return given, form, error


def _own(value: dict[str, Any]) -> RowRequest:
    if unknown := set(value) - set(OWN):
        raise RequestError(f"a request has no field {', '.join(sorted(unknown))!r:.200}; it has {', '.join(OWN)}")
    raw = value.get("raw", False)
    if not isinstance(raw, bool):
        raise RequestError(f"raw is true or false, not {raw!r:.200}")
    return RowRequest(
        prompt=value.get("prompt"), messages=_messages(value.get("messages")), token_ids=value.get("token_ids"),
        params=SamplingParams.of(value.get("params")), raw=raw, lora_weights_name=value.get("lora_weights_name"),
        save_system_prompt_kv_cache=_saved(value.get(SAVE)),
    )  # fmt: skip


def _messages(value: Any) -> tuple[Message, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not value:
        raise RequestError(f'messages are a list [{{"role": "user", "content": "..."}}, ...], not {value!r:.200}')
    return tuple(Message.from_json(message) for message in value)


def _of_the_reference(value: dict[str, Any]) -> Iterator[Found]:
    requests = value["requests"]
    if not isinstance(requests, list) or not requests:
        yield None, Form.OURS, RequestError(f"requests are a list of at least one, not {requests!r:.200}")
        return
    shared: dict[str, Any] = {name: one for name, one in value.items() if name != "requests"}
    for request in requests:
        yield _identified(None, Form.OURS, lambda request=request: _reference_row(shared, request))


def _reference_row(shared: dict[str, Any], request: Any) -> RowRequest:
    if not isinstance(request, dict) or request.get("messages") is None:
        raise RequestError(f"a request of the reference has messages, but {request!r:.200} came")
    messages = _messages(request["messages"]) or ()
    asked = {REFERENCE.get(name, name): one for name, one in (shared | request).items() if name != "messages"}
    size = asked.pop("batch_size", 1)  # how many the reference runs together, which changes no token
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise RequestError(f"batch_size is a whole number of at least 1, not {size!r:.200}")
    templated = asked.pop("apply_chat_template", True)
    if not isinstance(templated, bool):
        raise RequestError(f"apply_chat_template is true or false, not {templated!r:.200}")
    adapter = asked.pop("lora_weights_name", None) or None  # "" is what it has where nothing is said
    saved = _saved(asked.pop(SAVE, None))
    params = _params(asked, REFERENCE_NEUTRAL)
    if templated:
        saved = saved and messages[0].role == "system"  # it is asked for of a whole batch there
        return RowRequest(
            messages=messages, params=params, lora_weights_name=adapter, save_system_prompt_kv_cache=saved
        )
    if saved:
        raise RequestError(f"{SAVE} is for messages that go through the chat template: take one of them out")
    text = "".join(message.text for message in messages)
    return RowRequest(prompt=text, raw=True, params=params, lora_weights_name=adapter)


def _of_openai(value: dict[str, Any]) -> Found:
    url = value.get("url")
    form = ENDPOINTS.get(url, Form.CHAT) if isinstance(url, str) else Form.CHAT
    return _identified(value.get("custom_id"), form, lambda: _openai_row(value))


def _openai_row(value: dict[str, Any]) -> RowRequest:
    if unknown := set(value) - {"custom_id", "method", "url", "body"}:
        raise RequestError(f"a line of a batch has custom_id, method, url and body, but no {sorted(unknown)!r:.200}")
    if not isinstance(value.get("custom_id"), str):
        raise RequestError(f"custom_id is a string, not {value.get('custom_id')!r:.200}")
    if value.get("method", "POST") != "POST":
        raise RequestError(f"method is POST, not {value['method']!r:.200}")
    if not isinstance(url := value.get("url"), str) or url not in ENDPOINTS:
        raise RequestError(f"url is one of {', '.join(ENDPOINTS)}, not {url!r:.200}")
    if not isinstance(body := value.get("body"), dict):
        raise RequestError(f"body is a JSON object, not {body!r:.200}")
    what = "messages" if ENDPOINTS[url] is Form.CHAT else "prompt"
    if body.get(what) is None:
        raise RequestError(f"the body of {url} has {what}")
    others = {name: one for name, one in body.items() if name not in (what, *OPENAI_LABELS)}
    asked = {OPENAI.get(name, name): one for name, one in others.items()}
    if ENDPOINTS[url] is Form.CHAT:
        asked["logprobs"] = _logprobs_of_chat(asked.pop("logprobs", None), asked.pop("top_logprobs", None))
    if asked.get("prompt_logprobs") is not None:
        raise RequestError("it asks for prompt_logprobs, which an answer in OpenAI's form does not have: take it out")
    params = _params(asked, OPENAI_NEUTRAL)
    given = body[what]
    if what == "messages":
        return RowRequest(messages=_messages(given), params=params)
    if isinstance(given, str):
        return RowRequest(prompt=given, raw=True, params=params)
    if isinstance(given, list) and given and all(isinstance(token, int) for token in given):
        return RowRequest(token_ids=tuple(given), params=params)
    raise RequestError(f"prompt is one string or one list of token ids a line, not {given!r:.200}")


def _saved(value: Any) -> bool:
    if not isinstance(value, bool | None):
        raise RequestError(f"{SAVE} is true or false, not {value!r:.200}")
    return bool(value)


def _logprobs_of_chat(wanted: Any, top: Any) -> Any:
    """How many likeliest tokens are to be told beside each token; None if not even its own log-probability is."""
    if not isinstance(wanted, bool | None):
        raise RequestError(f"logprobs is true or false in a chat, not {wanted!r:.200}")
    if wanted:
        return 0 if top is None else top
    if top not in (None, 0):
        raise RequestError("top_logprobs wants logprobs to be true")
    return None


def _params(asked: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]]) -> SamplingParams:
    """Sampling parameters of what others call so; what asks for something that there is not is refused by name."""
    known = {field.name for field in fields(SamplingParams)}
    wanted = {
        name: value
        for name, value in asked.items()
        if value is not None and not any(_same(value, one) for one in neutral.get(name, ()))
    }
    if lacking := sorted(set(wanted) - known):
        raise RequestError(f"it asks for {', '.join(lacking)!s:.200}, which is not offered here: take it out")
    return SamplingParams.of(wanted)


def _same(value: Any, neutral: Any) -> bool:
    """Whether they are equal, where true is not 1."""
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)
