"""Text streams whole: characters split over tokens come out in one piece, and nothing is lost."""

from pathlib import Path

import pytest
from chat_checkpoint import write_chat_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, normalizers

from phases.errors import RequestError
from phases.request import Message, RowRequest
from phases.tokenizer import REPLACEMENT, TextStream, Tokenizer
from phases.tokenizer_files import FastBackend


@pytest.fixture(scope="module")
def byte_level(chat_folder: Path) -> Tokenizer:
    return Tokenizer.from_pretrained(chat_folder)


@pytest.fixture(scope="module")
def byte_fallback() -> Tokenizer:
    """A tokenizer of the older Llama kind: pieces with a marked space, every other character as byte tokens."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁a", "b", "▁cat", "s"]
    model = models.BPE(
        {piece: number for number, piece in enumerate(pieces)}, [], byte_fallback=True, unk_token="<unk>"
    )
    fast = Fast(model)
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(FastBackend(fast))


def pieces_of(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [*(stream.push(token) for token in ids), stream.finish()]


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters=REPLACEMENT)) | st.sampled_from(
    ["naïve café", "猫が好き 🦊🦊", "👩‍👩‍👧‍👦 family", "🇯🇵🏴‍☠️", "a\u0301e\u0300", " two  spaces ", "\n\ttabs", "€" * 9]
)


@given(TEXTS)
@settings(max_examples=150, deadline=None)
def test_pieces_join_to_the_text_and_hold_no_half_character(byte_level: Tokenizer, text: str) -> None:
    ids = list(byte_level.encode(RowRequest(prompt=text, raw=True)))
    pieces = pieces_of(byte_level, ids)
    assert "".join(pieces) == text == byte_level.decode(ids)
    assert all(REPLACEMENT not in piece for piece in pieces)
    assert pieces[-1] == ""


@given(st.text(st.characters(codec="utf-8", exclude_characters=REPLACEMENT + "▁")))
@settings(max_examples=150, deadline=None)
def test_byte_fallback_streams_whole_too(byte_fallback: Tokenizer, text: str) -> None:
    ids = list(byte_fallback.encode(RowRequest(prompt=text, raw=True)))
    pieces = pieces_of(byte_fallback, ids)
    assert "".join(pieces) == byte_fallback.decode(ids)
    assert all(REPLACEMENT not in piece for piece in pieces)


@given(st.lists(st.integers(0, 299), max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_tokens_at_all_stream_to_what_they_decode_to(byte_level: Tokenizer, ids: list[int]) -> None:
    ids = [token for token in ids if token < byte_level.vocab_size]
    assert "".join(pieces_of(byte_level, ids)) == byte_level.decode(ids)


def test_a_character_comes_with_the_token_that_completes_it(byte_level: Tokenizer) -> None:
    ids = list(byte_level.encode(RowRequest(prompt="a🦊b", raw=True)))
    assert len(ids) == 6
    assert pieces_of(byte_level, ids) == ["a", "", "", "", "🦊", "b", ""]


def test_a_character_that_never_completes_is_shown_at_the_end(byte_level: Tokenizer) -> None:
    ids = list(byte_level.encode(RowRequest(prompt="a🦊", raw=True)))[:-1]
    assert pieces_of(byte_level, ids) == ["a", "", "", "", REPLACEMENT]


def test_a_template_that_does_not_end_is_a_request_error_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from phases import template_limits

    monkeypatch.setattr(template_limits, "SECONDS", 0.2)
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    tokenizer = Tokenizer.from_pretrained(write_chat_checkpoint(tmp_path, template=loop))
    with pytest.raises(RequestError, match=r"chat template refuses these messages \(roles .*more than 0\.2 seconds"):
        tokenizer.encode(RowRequest(prompt="hi"))


def test_what_a_template_says_is_shown_escaped_and_cut(tmp_path: Path) -> None:
    shout = "{{ raise_exception('\x1b[31m' + 'no\n' * 10000) }}"
    tokenizer = Tokenizer.from_pretrained(write_chat_checkpoint(tmp_path, template=shout))
    with pytest.raises(RequestError, match="refuses these messages") as error:
        tokenizer.encode(RowRequest(messages=(Message("\x1b[2J", "hi"),)))
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500


def test_half_characters_are_refused_where_they_come_in() -> None:
    """Bytes of a command line that are no UTF-8 reach Python as lone surrogates."""
    for make in (
        lambda text: RowRequest(prompt=text),
        lambda text: Message("user", text),
        lambda text: Message(text, "x"),
    ):
        with pytest.raises(RequestError, match="bytes that are not UTF-8") as error:
            make("caf\udce9")
        assert str(error.value).isprintable()
