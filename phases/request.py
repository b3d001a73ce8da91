"""What a user asks for and what comes back."""

import math
import operator
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, Literal, Self

from phases.checks import check_text, is_int, logit_bias, prefill_bound, refuse_bytes, stop_strings, token_ids
from phases.constraint import Constraint
from phases.errors import RequestError
from phases.logprobs import TokenLogprob


@dataclass(frozen=True, slots=True)
class Content:
    """A piece of a message: text itself, or where an image is."""

    type: Literal["text", "image"]
    content: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat. `contents` may be given as a plain string."""

    role: str  # "system", "user", "assistant", or whatever else the checkpoint's template knows
    contents: tuple[Content, ...]

    def __init__(self, role: str, contents: str | Iterable[Content]) -> None:
        if not isinstance(role, str) or not role:
            raise RequestError(f"a message's role is a word such as 'user' or 'system', not {role!r:.200}")
        pieces = (Content("text", contents),) if isinstance(contents, str) else tuple(contents)
        for text in (role, *(piece.content for piece in pieces)):
            check_text(text)
        object.__setattr__(self, "role", role)
        object.__setattr__(self, "contents", pieces)

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read a message from the usual JSON: `{"role": ..., "content": text | [{"type": "text", "text": ...}]}`."""
        if not isinstance(value, Mapping) or not {"role"} < set(value):
            raise RequestError(f'a message is {{"role": "user", "content": "..."}}, not {value!r:.200}')
        content = value.get("content", value.get("contents"))
        if isinstance(content, str):
            return cls(value["role"], content)
        if not isinstance(content, Sequence):
            raise RequestError(f"a message's content is a string or a list of parts, not {content!r:.200}")
        return cls(value["role"], [_content_from_json(part) for part in content])

    @property
    def text(self) -> str:
        """All text of the message; raises RequestError if it holds an image, which a text model cannot read."""
        for piece in self.contents:
            if piece.type != "text":
                raise RequestError(
                    f"a {self.role} message holds an {piece.type} ({piece.content[:80]!r}), but this model reads text "
                    f"only; take it out or describe it in words"
                )
        return "".join(piece.content for piece in self.contents)


def _content_from_json(part: Any) -> Content:
    if isinstance(part, Content):
        return part
    if isinstance(part, Mapping):
        match part.get("type"):
            case "text" if isinstance(text := part.get("text", part.get("content")), str):
                return Content("text", text)
            case "image" | "image_url" as kind:
                return Content("image", str(part.get("content", part.get("image", part.get(kind, "")))))
    raise RequestError(f'a part of a message is {{"type": "text", "text": "..."}} or an image, not {part!r:.200}')


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are drawn and when a row ends. What is None comes from the checkpoint, then from `DEFAULTS`.

    Parameters
    ----------
    temperature
        0 is greedy: always the likeliest token.
    top_k
        Draw among the k likeliest tokens; 0 is off.
    top_p
        Draw among the likeliest tokens that together reach this probability; 1 is off.
    min_p
        Draw among tokens at least this fraction as likely as the likeliest; 0 is off.
    seed
        The same seed draws the same tokens, whatever the batch; unless given, a fresh one for every row.
    max_new_tokens
        The row ends after so many tokens, or earlier where the capacity ends.
    stop_token_ids
        The row ends after any of these; an empty tuple means none.
    stop
        The row ends as soon as its text holds any of these strings, wherever tokens begin and end in them.
    keep_stop
        Let the string that ended the row end its text too, instead of cutting it off.
    min_new_tokens
        No stop token is drawn, and no stop string ends the row, before it has so many tokens.
    repetition_penalty
        Above 1 makes tokens of the prompt and the output less likely to come again; 1 is off.
    presence_penalty, frequency_penalty
        Above 0 make tokens of the output less likely: once, and by how often they are there. 0 is off.
    no_repeat_ngram_size
        So many tokens never come twice in the same order, prompt included; 0 is off.
    logit_bias
        What is added to the logits of tokens, by their ids.
    allowed_token_ids
        Only these can be drawn; an empty tuple means all.
    forbidden_token_ids
        These are never drawn.
    logprobs
        Tell the log-probability of each token that is drawn, and of so many of the likeliest in its place (0 to 100);
        None is off. As the model gives them: before penalties, temperature and cuts.
    prompt_logprobs
        The same for the prompt, all of its tokens but the first. It is fed token by token for that, and then again.
    n
        Continue the prompt so many times, each in a row of its own, of seeds that follow one another. The prompt is
        computed once.
    constraint
        What the whole output is to be, see `phases.constrain`; also as a mapping, such as `{"regex": "[0-9]+"}`.

    Raises
    ------
    RequestError
        When a value is out of its range.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    max_new_tokens: int | None = None
    stop_token_ids: tuple[int, ...] | None = None
    stop: tuple[str, ...] | str | None = None  # a tuple, once it is made
    keep_stop: bool | None = None
    min_new_tokens: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] | None = None  # pairs, once it is made
    allowed_token_ids: tuple[int, ...] | None = None
    forbidden_token_ids: tuple[int, ...] | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int | None = None
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        self._check("temperature", lambda t: math.isfinite(t) and t >= 0, "a finite number of at least 0 (0 is greedy)")
        self._check("top_k", lambda k: k >= 0, "a whole number of at least 0 (0 is off)", whole=True)
        self._check("top_p", lambda p: 0 < p <= 1, "a number above 0 and at most 1 (1 is off)")
        self._check("min_p", lambda p: 0 <= p <= 1, "a number from 0 (off) to 1")
        self._check("seed", lambda s: 0 <= s < 2**64, "a whole number from 0 to 2**64 - 1", whole=True)
        self._check("max_new_tokens", lambda n: n >= 1, "a whole number of at least 1", whole=True)
        self._check("min_new_tokens", lambda n: 0 <= n < 2**31, "a whole number of at least 0", whole=True)
        self._check("repetition_penalty", lambda p: 1e-4 <= p <= 1e4, "a number from 0.0001 to 10000 (1 is off)")
        for name in ("presence_penalty", "frequency_penalty"):
            self._check(name, lambda p: -1e4 <= p <= 1e4, "a number from -10000 to 10000 (0 is off)")
        self._check("no_repeat_ngram_size", lambda n: 0 <= n < 2**31, "a whole number (0 is off)", whole=True)
        self._check("n", lambda n: 1 <= n <= 4096, "a whole number from 1 to 4096", whole=True)
        for name in ("logprobs", "prompt_logprobs"):
            self._check(
                name, lambda n: 0 <= n <= 100, "a whole number from 0 to 100, or None, which is off", whole=True
            )
        if self.logit_bias is not None:
            object.__setattr__(self, "logit_bias", logit_bias(self.logit_bias))
        for name in ("stop_token_ids", "allowed_token_ids", "forbidden_token_ids"):
            if (ids := getattr(self, name)) is not None:
                object.__setattr__(self, name, token_ids(ids, name))
        if self.stop is not None:
            object.__setattr__(self, "stop", stop_strings(self.stop))
        if not isinstance(self.keep_stop, bool | None):
            raise RequestError(f"keep_stop is True or False, not {self.keep_stop!r:.200}")
        object.__setattr__(self, "constraint", Constraint.of(self.constraint))

    def _check(self, name: str, allowed: Any, expected: str, *, whole: bool = False) -> None:
        value = getattr(self, name)
        if value is None:
            return
        try:
            number = operator.index(value) if whole else float(value)
            good = not isinstance(value, bool) and allowed(number)
        except (TypeError, ValueError, OverflowError):
            good = False
        if not good:
            raise RequestError(f"{name} is {expected}, not {value!r:.200}")
        object.__setattr__(self, name, number)

    def over(self, defaults: Self) -> Self:
        """These parameters, with what is unset taken from `defaults`."""
        unset = {f.name: getattr(defaults, f.name) for f in fields(self) if getattr(self, f.name) is None}
        return replace(self, **unset)

    @classmethod
    def of(cls, params: "SamplingParams | Mapping[str, Any] | None") -> "SamplingParams":
        """Read what may be given as a mapping; raises RequestError where a field of it is none of these."""
        if params is None or isinstance(params, SamplingParams):
            return params or cls()
        if not isinstance(params, Mapping):
            raise RequestError(f"params are SamplingParams or a mapping of their fields, not {params!r:.200}")
        names = [field.name for field in fields(cls)]
        for name in params:
            if name not in names:
                near = get_close_matches(str(name), names, 1)
                raise RequestError(
                    f"params have no field {name!r:.80}{f', did you mean {near[0]}?' if near else ':'} expected "
                    f"{', '.join(names)}"
                )
        return cls(**params)


Params = SamplingParams | Mapping[str, Any] | Sequence[SamplingParams | Mapping[str, Any]] | None
DEFAULTS = SamplingParams(
    temperature=1.0, top_k=50, top_p=1.0, min_p=0.0, max_new_tokens=128, stop=(), keep_stop=False, min_new_tokens=0,
    repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0, no_repeat_ngram_size=0, logit_bias=(),
    allowed_token_ids=(), forbidden_token_ids=(), n=1,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRequest:
    """What one row continues: exactly one of chat messages, a prompt or token ids.

    A prompt is put to a chat model as a user's message, through the checkpoint's chat template; with `raw` (and for
    checkpoints that have no template) it is continued as it stands.

    With `save_system_prompt_kv_cache` what comes of the system prompt, the messages that a chat begins with, is in the
    prompt cache as soon as it has been computed, and stays there when others go.

    Parameters
    ----------
    lora_weights_name
        The LoRA adapter that the row has, by the name under which it was loaded; "" for none. None, the default, is the
        generator's choice: `use_lora`.
    lora_fingerprint
        Which adapter that is: the generator fills it in, for records, and refuses a row that has another one here. It
        is None just where the row has no adapter, so what was computed for equal tokens and an equal fingerprint is
        the same.
    """

    messages: tuple[Message, ...] | None = None
    prompt: str | None = None
    token_ids: tuple[int, ...] | None = None
    params: SamplingParams = SamplingParams()
    raw: bool = False
    save_system_prompt_kv_cache: bool = False
    lora_weights_name: str | None = None
    lora_fingerprint: str | None = None

    def __post_init__(self) -> None:
        for name in ("lora_weights_name", "lora_fingerprint"):
            if not isinstance(value := getattr(self, name), str | None):
                raise RequestError(f"{name} is a string, not {value!r:.200}")
        given = [name for name in ("messages", "prompt", "token_ids") if getattr(self, name) is not None]
        if len(given) != 1:
            raise RequestError(
                f"a row is messages, a prompt or token_ids, exactly one of them; given: {given or 'none'}"
            )
        if self.prompt is not None:
            check_text(self.prompt)
        if self.messages is not None:
            messages = tuple(m if isinstance(m, Message) else Message.from_json(m) for m in self.messages)
            object.__setattr__(self, "messages", messages)
        if self.token_ids is not None:
            object.__setattr__(self, "token_ids", token_ids(self.token_ids, "token_ids"))
        object.__setattr__(self, "params", SamplingParams.of(self.params))
        if self.save_system_prompt_kv_cache and not (self.messages and self.messages[0].role == "system"):
            raise RequestError("save_system_prompt_kv_cache is for messages that begin with one of the role 'system'")


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A batch: one RowRequest a row.

    Parameters
    ----------
    max_prefill_tokens
        Tokens of its prompts, all rows together, that a step of Prefill feeds at most, or a chunk of the engine's
        (`Engine.prefill_chunk`) if that is more. Unless given, what the generator has.
    """

    requests: tuple[RowRequest, ...]
    max_prefill_tokens: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "requests", tuple(self.requests))
        if not self.requests:
            raise RequestError("a request has at least one row, but an empty batch came")
        bound = self.max_prefill_tokens
        if bound is not None:
            object.__setattr__(self, "max_prefill_tokens", prefill_bound(bound))

    @classmethod
    def of(cls, x: Any, params: "Params" = None, *, raw: bool = False) -> Self:
        """Make a request of a prompt, messages, token ids, or a list of any of these (a batch).

        Raises
        ------
        RequestError
            When `x` is none of these, or there are not as many `params` as rows.
        """
        if isinstance(x, cls):
            if params is not None:
                raise RequestError("a GenerationRequest carries the params of its rows; give none beside it")
            return x
        if isinstance(x, Message | Mapping):
            raise RequestError(f"a chat is a list of messages: put this one message in a list ({x!r:.200})")
        refuse_bytes(x)
        rows = [x] if _is_row(x) else list(x) if isinstance(x, Iterable) else []
        if not rows:
            raise RequestError(
                f"expected a prompt, a list of messages, a list of token ids, or a batch (a list of these), "
                f"not {x!r:.200}"
            )
        given: Sequence[Any] = [params] * len(rows)
        if isinstance(params, Sequence) and not isinstance(params, str | bytes):
            given = params
        many = [SamplingParams.of(one) for one in given]
        if len(many) != len(rows):
            raise RequestError(f"{len(rows)} rows need one params for all or {len(rows)} of them, but {len(many)} came")
        return cls(tuple(_row(row, p, raw=raw) for row, p in zip(rows, many, strict=True)))

    def resolved(self, defaults: SamplingParams, *, max_prefill_tokens: int | None = None) -> Self:
        """This request with every parameter set: what is unset from `defaults`, then DEFAULTS, and a fresh seed.

        A row that is to be continued `n` times has become so many rows, one after the other.
        """
        rows = []
        for row in self.requests:
            params = row.params.over(defaults).over(DEFAULTS)
            fresh = SamplingParams(seed=secrets.randbits(64), stop_token_ids=())
            params = params.over(fresh)
            for number in range(params.n or 1):
                seed = ((params.seed or 0) + number) % 2**64
                rows.append(replace(row, params=replace(params, seed=seed, n=1)))
        return type(self)(tuple(rows), self.max_prefill_tokens or max_prefill_tokens)


def _is_row(x: Any) -> bool:
    """Whether `x` is one row, rather than a batch of rows."""
    if isinstance(x, str | RowRequest):
        return True
    first = next(iter(x), None) if isinstance(x, Sequence) or hasattr(x, "__array__") else None
    return isinstance(first, Message | Mapping) or is_int(first)


def _row(x: Any, params: SamplingParams, *, raw: bool) -> RowRequest:
    if isinstance(x, RowRequest):
        return replace(x, params=x.params.over(params))
    if isinstance(x, str):
        return RowRequest(prompt=x, params=params, raw=raw)
    if isinstance(x, Message | Mapping):
        raise RequestError("a batch mixes messages with rows; put the messages of each row in a list of their own")
    refuse_bytes(x)
    items = list(x) if isinstance(x, Iterable) else []
    if items and all(isinstance(item, Message | Mapping) for item in items):
        return RowRequest(messages=tuple(items), params=params)
    if items and all(is_int(item) for item in items):
        return RowRequest(token_ids=tuple(items), params=params)
    raise RequestError(f"a row is a prompt, a list of messages or a list of token ids, not {x!r:.200}")


class FinishReason(StrEnum):
    """Why a row ended."""

    STOP = "stop"  # it drew one of its stop tokens
    STOP_STRING = "stop string"  # its text came to hold one of its stop strings
    LENGTH = "length"  # it reached max_new_tokens
    CAPACITY = "capacity"  # it reached the tokens that a row can hold
    CANCELLED = "cancelled"  # somebody ended it, or its run
    FAILED = "failed"  # its logits held no distribution to draw from


@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    """What came of one row."""

    output_ids: list[int]  # what was drawn, the stop token included
    text: str  # without special tokens, and without the stop string unless it is kept
    finish_reason: FinishReason | None  # None: the row has not ended yet
    error: str | None  # why it failed, if it did
    prompt_tokens: int
    output_tokens: int
    reused_tokens: int = field(default=0, compare=False)  # of the prompt: found in a cache, and not computed again
    logprobs: list[TokenLogprob | None] | None  # of the output, if the row asks for it
    prompt_logprobs: list[TokenLogprob | None] | None  # of the prompt; None for its first token


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResult:
    """What came back, one entry a row in every list; `n` rows one after the other for a prompt continued n times."""

    output_ids: list[list[int]]  # what was drawn, the stop token included
    output_texts: list[str]  # without special tokens, and without the stop string unless it is kept
    finish_reasons: list[FinishReason | None]  # None: the row has not ended yet
    errors: list[str | None]  # why a row failed, if it did
    prompt_tokens: list[int]  # counts
    output_tokens: list[int]  # counts
    reused_tokens: list[int] = field(compare=False)  # counts, of the prompt: found in a cache, and not computed again
    logprobs: list[list[TokenLogprob | None] | None]  # of the output, for rows that ask for it
    prompt_logprobs: list[list[TokenLogprob | None] | None]  # of the prompt; None for its first token
    time_to_first_token: float = field(compare=False)  # seconds of work, all rows together
    time_per_token: float = field(compare=False)  # seconds of work a decode step, after the first token; 0 if none

    @property
    def computed_tokens(self) -> list[int]:
        """How many tokens of each prompt went through the model."""
        return [tokens - reused for tokens, reused in zip(self.prompt_tokens, self.reused_tokens, strict=True)]

    @property
    def text(self) -> str:
        """The text of the only row; raises ValueError for a batch."""
        if len(self.output_texts) != 1:
            raise ValueError(f"a batch of {len(self.output_texts)} rows has no single text: use output_texts")
        return self.output_texts[0]
