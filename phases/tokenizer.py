"""Text to token ids through the checkpoint's own template and tokenizer, and back again, whole or as it streams."""

import json
import os
import sys
from pathlib import Path
from typing import Any, Self

from phases.errors import RequestError
from phases.request import Message, RowRequest

REPLACEMENT = "\ufffd"  # what a decoder shows for bytes that are no whole character (yet)


class Tokenizer:
    """The tokenizer of a checkpoint in Hugging Face format.

    Raises
    ------
    RequestError
        From `from_pretrained`, when the folder holds no tokenizer that transformers can load.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.has_chat_template = bool(getattr(tokenizer, "chat_template", None))

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would warn that torch is not installed
        from transformers import AutoTokenizer

        try:
            loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            loaded.model_max_length = sys.maxsize  # it would warn of long prompts, which Tokenize refuses by numbers
            return cls(loaded)
        except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
            reason = " ".join(str(error).split())
            names = ", ".join(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else "no such folder"
            raise RequestError(
                f"no tokenizer can be loaded from {folder}: {reason}; expected tokenizer.json and "
                f"tokenizer_config.json among its files ({names})"
            ) from error

    @property
    def vocab_size(self) -> int:
        return len(self._tokenizer)

    def encode(self, row: RowRequest) -> tuple[int, ...]:
        """The token ids that a row's messages, prompt or ids stand for.

        Raises
        ------
        RequestError
            For an image, a message the template refuses, or messages where there is no template.
        """
        if row.token_ids is not None:
            return row.token_ids
        if row.prompt is not None and (row.raw or not self.has_chat_template):
            return tuple(self._tokenizer(row.prompt)["input_ids"]) if row.prompt else ()
        messages = row.messages if row.messages is not None else (Message("user", row.prompt or ""),)
        if not any(message.text.strip() for message in messages):
            return ()  # a template would make tokens of nothing
        text = self._render(messages)
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode_continuation(self, text: str) -> tuple[int, ...]:
        """The token ids of text in the middle of a row: no template, no special tokens."""
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _render(self, messages: tuple[Message, ...]) -> str:
        if not self.has_chat_template:
            raise RequestError("this checkpoint has no chat template: give a prompt or token ids instead of messages")
        chat = [{"role": message.role, "content": message.text} for message in messages]
        try:
            return str(self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # templates are programs of the checkpoint's; they raise what they like
            roles = [message.role for message in messages]
            raise RequestError(
                f"the checkpoint's chat template refuses these messages (roles {roles}): {error}"
            ) from error

    def decode(self, ids: list[int] | tuple[int, ...]) -> str:
        """The text of token ids, without special tokens and without any clean-up of spaces."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


class TextStream:
    """Gives text as tokens come, never half a character.

    Decoders show bytes that are no whole character as U+FFFD, so what follows the last other character is held back
    until it is whole. A window of recent tokens is decoded each time, so the cost of a token does not grow.
    """

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
            self._window, self._read = self._read, len(self._ids)
            self._given = len(self._tokenizer.decode(self._ids[self._window :]))
        return piece

    def finish(self) -> str:
        """What is still held back: bytes that no character came of."""
        text = self._tokenizer.decode(self._ids[self._window :])
        piece, self._given = text[self._given :], len(text)
        return piece
