"""The file of answers: one line each, appended in one write, and gone on with after a kill."""

import os
import weakref
from collections.abc import Collection, Sequence
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Any

import msgspec

from phases.errors import RequestError
from phases.files.asked import Asked, Form
from phases.printable import one_line
from phases.views.logprobs import as_json

if TYPE_CHECKING:
    from phases.request import GenerationResult
    from phases.tokenizer import Tokenizer

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

OURS, THEIRS = '{"request":"', '{"id":"batch_req_'  # how a line begins, up to the mark of its request
LONGEST = 256 * 2**20  # bytes of a line


class Results:
    """Appends answers to a file that nobody else writes to meanwhile, and knows what it holds.

    Parameters
    ----------
    path
        A file of answers to some of these requests, or none yet.
    marks
        Of all requests.

    Raises
    ------
    RequestError
        When the file holds anything else, or is being written by another process; it is as it was then.
    OSError
        When it cannot be made, read or written.

    Attributes
    ----------
    done
        Marks of the requests that are answered.
    cut
        Bytes of a torn last line that were taken away.
    """

    def __init__(self, path: Path, marks: Collection[str]) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        self.close = weakref.finalize(self, os.close, self._file)
        try:
            self._lock()
            self.done, whole, end = self._read(frozenset(marks))
            self.cut = os.fstat(self._file).st_size - whole
            if self.cut:
                os.ftruncate(self._file, whole)
            if end:
                self._append(end)
        except BaseException:
            self.close()
            raise

    def add(self, asked: Asked, answer: dict[str, Any]) -> None:
        """Append the answer to a request; see `answered` and `refused`."""
        self._append(msgspec.json.encode(answer) + b"\n")
        self.done.add(asked.mark)

    def _append(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._file, rest) :]

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RequestError(f"{self._path} is being written by another process: end it first") from None
        except OSError:  # a file system that knows no locks
            return

    def _read(self, marks: frozenset[str]) -> tuple[set[str], int, bytes]:
        """What is answered, how many bytes of the file are whole lines, and the end that the last of them lacks."""
        done: set[str] = set()
        whole = number = 0
        with open(self._path, "rb") as file:
            while line := file.readline(LONGEST):
                number += 1
                mark = _mark_of(line)
                if mark in marks:
                    done.add(mark)
                    whole += len(line)
                    if not line.endswith(b"\n"):
                        return done, whole, b"\n"
                elif mark is None and not line.endswith(b"\n") and _torn(line, marks):
                    break
                else:
                    what = "answers another request" if mark else "holds no answer"
                    raise RequestError(
                        f"{self._path}, line {number} {what}: it was made of another input, by another model or with "
                        f"other options; name another output, or remove it"
                    )
        return done, whole, b""


def _mark_of(line: bytes) -> str | None:
    """The mark of the request that a line answers; None if it is no answer."""
    try:
        value = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    mark, name = value.get("request"), value.get("id")
    if mark is None and isinstance(name, str) and name.startswith("batch_req_"):
        mark = name.removeprefix("batch_req_")
    return mark if isinstance(mark, str) else None


def _torn(line: bytes, marks: frozenset[str]) -> bool:
    """Whether this is the beginning of an answer to one of these requests."""
    return any((start + mark).encode().startswith(line[: len(start) + len(mark)]) for mark in marks
               for start in (OURS, THEIRS))  # fmt: skip


def answered(
    asked: Asked,
    result: "GenerationResult",
    rows: Sequence[int],
    seeds: Sequence[int],
    tokenizer: "Tokenizer",
    *,
    model: str,
) -> dict[str, Any]:
    """An answer in the form in which it was asked for.

    Parameters
    ----------
    result
        Of a batch, in which these rows have ended.
    rows, seeds
        The rows that continue this request, and the seed of each.
    """
    prompt_tokens, output_tokens = result.prompt_tokens[rows[0]], sum(result.output_tokens[row] for row in rows)
    if asked.form is Form.OURS:
        counts = {"prompt_tokens": prompt_tokens, "output_tokens": output_tokens}
        samples = [
            {
                "text": result.output_texts[row], "output_ids": result.output_ids[row],
                "finish_reason": str(result.finish_reasons[row]), "seed": seed, **as_json(tokenizer, result, row),
            }
            for row, seed in zip(rows, seeds, strict=True)
        ]  # fmt: skip
        return {**_head(asked), **(samples[0] if len(samples) == 1 else {"samples": samples}), **counts}
    chat = asked.form is Form.CHAT
    choices = [
        {
            "index": index,
            **({"message": {"role": "assistant", "content": text}} if chat else {"text": text}),
            "logprobs": (_of_chat if chat else _of_text)(tokenizer, result, row),
            "finish_reason": "length" if result.finish_reasons[row] in ("length", "capacity") else "stop",
        }
        for index, (row, text) in enumerate((row, result.output_texts[row]) for row in rows)
    ]
    return _response(asked, 200, {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{asked.mark}", "object": asked.form.value, "created": int(time()),
        "model": model, "choices": choices,
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": output_tokens,
                  "total_tokens": prompt_tokens + output_tokens},
    })  # fmt: skip


def _of_chat(tokenizer: "Tokenizer", result: "GenerationResult", row: int) -> dict[str, Any] | None:
    """The log-probabilities of a row as an answer of a chat has them."""

    def told(token: int, logprob: float) -> dict[str, Any]:
        text = tokenizer.decode_token(token)
        return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}

    if (found := result.logprobs[row]) is None:
        return None
    tokens = [one for one in found if one is not None]
    content = [
        told(one.token_id, one.logprob) | {"top_logprobs": [told(*other) for other in one.top]} for one in tokens
    ]
    return {"content": content, "refusal": None}


def _of_text(tokenizer: "Tokenizer", result: "GenerationResult", row: int) -> dict[str, Any] | None:
    """The log-probabilities of a row as a completion has them."""
    if (found := result.logprobs[row]) is None:
        return None
    ids, tokens = result.output_ids[row], [one for one in found if one is not None]
    return {
        "tokens": [tokenizer.decode_token(one.token_id) for one in tokens],
        "token_logprobs": [one.logprob for one in tokens],
        "top_logprobs": [{tokenizer.decode_token(token): logprob for token, logprob in one.top} for one in tokens],
        "text_offset": [len(tokenizer.decode(ids[:place])) for place in range(len(tokens))],
    }


def refused(asked: Asked, problem: str) -> dict[str, Any]:
    """What is said of a request that got no answer."""
    if asked.form is Form.OURS:
        return {**_head(asked), "error": one_line(problem, 1000)}
    error = {"message": one_line(problem, 1000), "type": "invalid_request_error", "param": None, "code": None}
    return _response(asked, 400, {"error": error})


def _head(asked: Asked) -> dict[str, Any]:
    return {"request": asked.mark, "line": asked.line, "id": asked.id}


def _response(asked: Asked, status: int, body: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"batch_req_{asked.mark}",
        "custom_id": asked.id if isinstance(asked.id, str) else None,
        "response": {"status_code": status, "request_id": asked.mark, "body": body},
        "error": None,
    }
