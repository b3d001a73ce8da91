"""Checkpoints whose files hold anything at all: they load, or one documented error says what is wrong in one line."""

import json
import os
import random
import struct
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_checkpoint import write_chat_checkpoint
from checkpoints import write_checkpoint

from phases import CapacityError, CheckpointError, Generator, RequestError, RowRequest
from phases.errors import IgnoredSettings

pytestmark = pytest.mark.slow

DOCUMENTED = (CheckpointError, RequestError, CapacityError)
LONGEST = 1500  # characters of an error
CASES = 300  # of each file

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 1.5, -0.0, 10**30, -(10**30), 1e308, float("inf"), float("nan"), "", "a",
    "\x1b[31mred\r\n",
    "\ud800", "x" * 100_000, "{{ 1 }}", [], {}, [None], [[]], [1, "a"], {"a": 1}, list(range(5000)), {"type": "BPE"},
    {"__type": "AddedToken"}, {"__type": "AddedToken", "content": 3}, "../../etc/passwd", 2**31, 2**32, 2**64,
]  # fmt: skip
TEXTS = [
    b"", b"null", b"[]", b"3", b'"text"', b"{}", b"{", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe\x00", b"\0" * 100,
    b"NaN",
    b"[" * 900 + b"]" * 900, b'{"a":' * 900 + b"1" + b"}" * 900, b"9" * 5000, b"\xef\xbb\xbf{}", b"\x1b]0;title\x07",
    b"{% for",
    b'{"' + b"k" * 50_000 + b'": 1}', b"{{ [1] * 10 ** 9 }}",
]  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON value where another could stand: a container and a key of it."""
    found: list[tuple[Any, Any]] = []
    pending = [value]
    while pending:
        inner = pending.pop()
        keys = list(inner) if isinstance(inner, dict) else range(min(len(inner), 20)) if isinstance(inner, list) else ()
        for key in keys[:60] if isinstance(keys, list) else keys:
            found.append((inner, key))
            pending.append(inner[key])
    return found


def mutated_json(text: bytes, draw: random.Random) -> bytes:
    value = json.loads(text)
    for _ in range(draw.choice((1, 1, 2, 3))):
        if not (all_places := places(value)):
            break
        container, key = draw.choice(all_places)
        match draw.randrange(6):
            case 0 if isinstance(container, dict):
                del container[key]
            case 1 if isinstance(container, dict):
                container[draw.choice(["", "\x1b[2J", "k" * 9000, "auto_map", "tokenizer_class"])] = container.pop(key)
            case 2:
                deep: Any = draw.choice(VALUES)
                for _ in range(draw.choice((5, 90, 400))):
                    deep = [deep] if draw.random() < 0.5 else {"a": deep}
                container[key] = deep
            case _:
                container[key] = draw.choice(VALUES)
    return json.dumps(value).encode()


def mutated_text(text: bytes, draw: random.Random) -> bytes:
    match draw.randrange(4):
        case 0:
            return draw.choice(TEXTS)
        case 1:
            return text[: draw.randrange(len(text) + 1)]
        case 2:
            at = draw.randrange(len(text))
            return text[:at] + bytes(draw.randrange(256) for _ in range(draw.choice((1, 1, 4)))) + text[at + 1 :]
        case _:
            at, to = sorted(draw.randrange(len(text)) for _ in range(2))
            return text[:at] + text[at:to] * draw.choice((0, 2)) + text[to:]


def mutated(text: bytes, draw: random.Random) -> bytes:
    return mutated_json(text, draw) if draw.random() < 0.7 else mutated_text(text, draw)


def mutated_safetensors(data: bytes, draw: random.Random) -> bytes:
    size = int.from_bytes(data[:8], "little")
    header = mutated(data[8 : 8 + size], draw)
    claimed = len(header) if draw.random() < 0.8 else draw.choice([0, 1, size, 2**31, 2**63, len(header) + 7])
    return struct.pack("<Q", claimed) + header + data[8 + size :]


FILES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "config.json": mutated,
    "generation_config.json": mutated,
    "tokenizer.json": mutated,
    "tokenizer_config.json": mutated,
    "chat_template.jinja": mutated_text,
    "model.safetensors.index.json": mutated,
    "model-00001-of-00002.safetensors": mutated_safetensors,
}


def use(folder: Path) -> None:
    """Load the checkpoint, and make ids of a prompt and text of ids."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IgnoredSettings)
        loaded = Generator.from_pretrained(folder, max_batch=1, self_check=False)
    with loaded as generator:
        generator.start("hi").close()
        ids = generator.tokenizer.encode(RowRequest(prompt="Hello, the quick fox!"))
        generator.tokenizer.decode(ids)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat checkpoint that has every file there is."""
    path = write_chat_checkpoint(tmp_path_factory.mktemp("hostile"))
    config = json.loads((path / "config.json").read_text())
    (path / "model.safetensors").unlink()
    write_checkpoint(path, shards=2, vocab_size=config["vocab_size"], bos_token_id=0, eos_token_id=3)
    settings = json.loads((path / "tokenizer_config.json").read_text())
    (path / "chat_template.jinja").write_text(settings.pop("chat_template"))
    settings |= {"additional_special_tokens": ["<|user|>"], "added_tokens_decoder": {}, "pad_token": "<|end|>"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    generation = {
        "temperature": 0.5,
        "top_k": 40,
        "top_p": 0.9,
        "max_new_tokens": 20,
        "eos_token_id": [3],
        "do_sample": True,
    }
    (path / "generation_config.json").write_text(json.dumps(generation))
    use(path)
    return path


@pytest.mark.parametrize("name", FILES)
def test_a_mutated_file_is_used_or_refused_in_one_line(folder: Path, name: str) -> None:
    path, draw = folder / name, random.Random(name)
    original = path.read_bytes()
    seen: Counter[str] = Counter()
    try:
        for number in range(CASES):
            data = FILES[name](original, draw)
            path.write_bytes(data)
            try:
                use(folder)
                seen["used"] += 1
            except DOCUMENTED as error:
                message = str(error)
                seen["refused"] += 1
                assert message.isprintable(), (number, message[:LONGEST])
                assert len(message) < LONGEST, (number, message[:LONGEST])
            except BaseException as error:
                raise AssertionError(f"case {number}: {type(error).__name__}, of {data[:300]!r}") from error
    finally:
        path.write_bytes(original)
    assert seen["used"]
    assert seen["refused"] > CASES / 10


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_regular_file_is_refused_at_once(folder: Path, name: str) -> None:
    """A pipe would be read for ever, a file of holes would fill the memory."""
    path = folder / name
    original = path.read_bytes()
    try:
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(CheckpointError):
            use(folder)
        path.unlink()
        path.mkdir()
        with pytest.raises(CheckpointError):
            use(folder)
        path.rmdir()
        with path.open("wb") as sparse:
            sparse.truncate(1 << 40)
        with pytest.raises(CheckpointError):
            use(folder)
    finally:
        path.unlink()
        path.write_bytes(original)
