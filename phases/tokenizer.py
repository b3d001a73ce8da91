"""Text to token ids through the checkpoint's own template and tokenizer, and back again, whole or as it streams."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from phases.errors import RequestError
from phases.printable import one_line
from phases.request import Message, RowRequest

if TYPE_CHECKING:
    from phases.chat_template import ChatTemplate
    from phases.tokenizer_files import Backend

REPLACEMENT = "\ufffd"  # what a decoder shows for bytes that are no whole character (yet)


class Tokenizer:
    """The tokenizer of a checkpoint in Hugging Face format."""

    def __init__(self, backend: "Backend") -> None:
        self._backend = backend
        self.has_chat_template = bool(backend.templates)

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        """Load it from a folder; raises CheckpointError when it has none that can be used."""
        from phases.tokenizer_files import load_backend

        return cls(load_backend(folder))

    @property
    def vocab_size(self) -> int:
        return self._backend.vocab_size

    def encode(self, row: RowRequest) -> tuple[int, ...]:
        """The token ids that a row's messages, prompt or ids stand for.

        Raises
        ------
        RequestError
            For an image, a message the template refuses, or messages where there is no template.
        CheckpointError
            When the tokenizer itself fails.
        """
        if row.token_ids is not None:
            return row.token_ids
        if row.prompt is not None and (row.raw or not self.has_chat_template):
            return tuple(self._backend.encode(row.prompt, special_tokens=True)) if row.prompt else ()
        messages = row.messages if row.messages is not None else (Message("user", row.prompt or ""),)
        if not any(message.text.strip() for message in messages):
            return ()  # a template would make tokens of nothing
        return self.encode_continuation(self._render(messages))

    def encode_continuation(self, text: str) -> tuple[int, ...]:
        """The token ids of text in the middle of a row: no template, no special tokens."""
        return tuple(self._backend.encode(text, special_tokens=False))

    def _render(self, messages: tuple[Message, ...]) -> str:
        if not self.has_chat_template:
            raise RequestError("this checkpoint has no chat template: give a prompt or token ids instead of messages")
        chat = [{"role": message.role, "content": message.text} for message in messages]
        try:
            return self._template.render(chat, self._backend.special_tokens)
        except Exception as error:  # templates are programs of the checkpoint's; they raise what they like
            roles = one_line([message.role for message in messages])
            reason = one_line(error) or type(error).__name__
            raise RequestError(
                f"the checkpoint's chat template refuses these messages (roles {roles}): {reason}"
            ) from error

    @functools.cached_property
    def _template(self) -> "ChatTemplate":
        from phases.chat_template import ChatTemplate

        templates = self._backend.templates
        if isinstance(templates, dict):
            if "default" not in templates:
                raise RequestError(f"it has several ({one_line(', '.join(templates))}) and none named default")
            templates = templates["default"]
        return ChatTemplate(templates or "")

    def as_json(self) -> str:
        """The tokenizer as a tokenizer.json describes it; raises CheckpointError where it is none of those."""
        return self._backend.as_json()

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens and without any clean-up of spaces."""
        return self._backend.decode(ids)

    def decode_all(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        return self._backend.decode(ids, special_tokens=True)

    def decode_token(self, token: int) -> str:
        """The text of one token alone, special or not."""
        return self._backend.decode_token(token)


class TextStream:
    """Gives text as tokens come, never half a character.

    Decoders show bytes that are no whole character as U+FFFD, so what follows the last other character is held back
    until it is whole. A window of recent tokens is decoded each time, so the cost of a token does not grow; it moves on
    now and then only, as that takes a second look at what is in it.
    """

    _WINDOW = 8  # whole tokens after which it moves on

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._window = 0  # where the decoded window begins: a few tokens back, as decoders look at what stands before
        self._read = 0  # tokens before this one have been given, whole
        self._given = 0  # characters of the window that have been given

    @property
    def count(self) -> int:
        """How many tokens have come."""
        return len(self._ids)

    def push(self, token: int) -> str:
        """The text that this token completes; often a word, sometimes nothing."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids[self._window :])
        whole = text.rstrip(REPLACEMENT)
        piece = whole[self._given :]
        self._given = max(self._given, len(whole))
        if whole == text and piece:
            before, self._read = self._read, len(self._ids)
            if self._read - self._window > self._WINDOW:
                self._window = before
                self._given = len(self._tokenizer.decode(self._ids[before:]))
        return piece

    def finish(self) -> str:
        """What is still held back: bytes that no character came of."""
        text = self._tokenizer.decode(self._ids[self._window :])
        piece, self._given = text[self._given :], len(text)
        return piece
