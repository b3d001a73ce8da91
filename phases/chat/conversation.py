"""A chat with a model: what was said, how it is sampled, and the run that answers."""

import json
import secrets
from collections.abc import Iterator
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any, Self

import msgspec

from phases.chat.machine import PLAIN_NAMES, Turn, machine, start_request
from phases.context import Generation
from phases.errors import RequestError
from phases.generator import Generator
from phases.request import FinishReason, Message, SamplingParams
from phases.streaming import TextPiece
from statemachine import IllegalMove, Run, Status
from statemachine.record.files import write_whole

LARGEST = 16 * 2**20  # bytes of a file that is loaded
SEEDS = 2**64
NEXT = f"\n{PLAIN_NAMES['user'].strip()}"  # a model without a template would go on with what is said next


class Conversation:
    """A chat that keeps its cache from turn to turn, so that a turn costs what is new in it.

    A context manager: its end is the end of the run.

    Parameters
    ----------
    generator
        One that was loaded with `machine=phases.chat.machine.machine`; a row of it is taken until the end.
    params
        How answers are sampled, from now on; what is unset comes from the checkpoint.
    journal
        A new file to record the chat in.

    Attributes
    ----------
    messages
        What was said so far.
    """

    def __init__(
        self, generator: Generator, params: SamplingParams, *, journal: str | PathLike[str] | None = None
    ) -> None:
        if generator.machine is not machine:
            raise ValueError("a chat needs a generator of the machine phases.chat.machine.machine")
        self.generator = generator
        self.params = params
        self.messages: tuple[Message, ...] = ()
        self.journal = journal
        self._file: Path | None = None
        self._again = 0  # how often another answer was asked for
        self.answering = False
        self.run: Run[Generation] = generator.start(start_request(params), journal=journal, keep=True)
        self.run.start()

    # --- what is said -------------------------------------------------------------------------------------------

    def say(self, text: str) -> Iterator[TextPiece]:
        """Say something, and give the answer as it comes.

        Raises
        ------
        RequestError
            When it cannot be answered: the chat is too long, say. Nothing was said then, as with any other error.
        PhaseError
            When a phase fails.
        """
        return self._answer((*self.messages, Message("user", text)))

    def retry(self) -> Iterator[TextPiece]:
        """Give another answer to what was said last."""
        question = self._upto_question()
        self._again += 1
        return self._answer(self.messages[: question + 1])

    def edit(self, text: str) -> Iterator[TextPiece]:
        """Say something else instead of what was said last."""
        return self._answer((*self.messages[: self._upto_question()], Message("user", text)))

    def back(self, turns: int = 1) -> str:
        """Take the last turns back, each with its answer; gives what was said in the first of them."""
        kept, said = self.messages, ""
        for _ in range(turns):
            question = self._upto_question(kept)
            kept, said = kept[:question], kept[question].text
        self.messages = kept
        return said

    def set_system(self, text: str) -> None:
        """Set what the model is told before the chat; "" for nothing."""
        rest = tuple(message for message in self.messages if message.role != "system")
        self.messages = (Message("system", text), *rest) if text else rest

    def set_params(self, **changes: Any) -> None:
        """Change how answers are sampled; raises RequestError for what is no such parameter."""
        self.params = SamplingParams.of(changes).over(self.params)

    def stop(self) -> None:
        """End the answer that is under way, at the next token; of use from signal handlers and other threads."""
        with suppress(IllegalMove):
            self.run.signal("hush", wait=True)

    @property
    def cut(self) -> str:
        """Why the last answer is not whole; "" if it is."""
        match self.run.context.finish_reasons[0]:
            case FinishReason.LENGTH | FinishReason.CAPACITY:
                return f"cut off after {len(self.run.context.output_ids[0])} tokens"
            case None if self.run.context.request.requests[0].messages:
                return "stopped"
        return ""

    @property
    def fed(self) -> tuple[int, int, int]:
        """Tokens of the last turn: fed to the model, found in the cache, and drawn."""
        context = self.run.context
        prompt, reused = len(context.prompt_ids[0]) if context.prompt_ids else 0, context.found[0]
        return prompt - reused, reused, len(context.output_ids[0])

    def _answer(self, messages: tuple[Message, ...]) -> Iterator[TextPiece]:
        run = self.run
        seed = secrets.randbits(64) if self.params.seed is None else (self.params.seed + self._again) % SEEDS
        before = run.step_count
        self.answering = True
        try:
            params = self.params.over(self.generator.defaults)
            if not self.generator.tokenizer.has_chat_template:
                params = params.over(SamplingParams(stop=NEXT))
            run.answer(Turn(messages, SamplingParams(seed=seed).over(params)))
            yield from self.generator.pieces(run)
        finally:
            self.answering = False
            if run.status is not Status.WAITING:  # it failed, or nobody wants to hear the rest
                run.goto(before)
        last = next(iter(run.steps(run.step_count - 1)))
        if last.raised:
            raise RequestError(f"{last.raised.message}; /back takes a turn back")
        self.messages = (*messages, Message("assistant", run.context.output_texts[0]))

    def _upto_question(self, messages: tuple[Message, ...] | None = None) -> int:
        """Where the last question stands."""
        messages = self.messages if messages is None else messages
        for place in reversed(range(len(messages))):
            if messages[place].role == "user":
                return place
        raise RequestError("nothing was said yet")

    # --- files --------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write the messages to a JSON file, whole or not at all, which `phasewalk run --messages` reads, too.

        Raises
        ------
        RequestError
            When another file stands there than one that this chat was saved to or loaded from.
        OSError
            When it cannot be written.
        """
        if path.exists() and (self._file is None or not path.samefile(self._file)):
            raise RequestError(f"{path} exists already; choose another name or remove it")
        value = [{"role": message.role, "content": message.text} for message in self.messages]
        write_whole(path, json.dumps(value, ensure_ascii=False, indent=2).encode() + b"\n")
        self._file = path

    def load(self, path: Path) -> None:
        """Go on with a chat that was saved; raises RequestError and OSError, and nothing has changed then."""
        self.messages = read_messages(path)
        self._file = path

    # --- its end ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the run and its record."""
        if self.run.status is Status.WAITING:
            self.run.answer(Turn((), self.params))
            if not self.run.status.ended:
                self.run.resume()
        self.run.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_messages(path: Path) -> tuple[Message, ...]:
    """The messages of a file; raises RequestError for one that holds no chat, and OSError."""
    if not path.is_file():
        raise RequestError(f"{path} is no file" if path.exists() else f"there is no file {path}")
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise RequestError(f"{path} is larger than {LARGEST} bytes, the most that a chat may have")
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, list):
        raise RequestError(f'{path} holds no chat: expected [{{"role": "user", "content": "..."}}, ...]')
    messages = tuple(Message.from_json(message) for message in value)
    for message in messages:
        message.text  # noqa: B018, raises for an image
    return messages
