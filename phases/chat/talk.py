"""Talks: takes what is typed, line by line, as something to say or a command, and writes what comes of it."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from gpu import CapacityError, LogitsError
from phases.chat.conversation import Conversation
from phases.errors import RequestError
from phases.interrupts import interrupts_heeded
from phases.printable import one_line, printable
from phases.request import SamplingParams
from statemachine import JournalError, PhaseError

QUOTES = '"""'  # around several lines
MENDABLE = (RequestError, OSError, PhaseError, JournalError, CapacityError, LogitsError, MemoryError)

Pieces = Iterator[str]


class Over(Exception):
    """The user has had enough."""


@dataclass(frozen=True, slots=True)
class Command:
    """What a line with a slash in front does with a chat and the rest of the line: it gives pieces of text."""

    name: str
    usage: str
    help: str
    act: Callable[[Conversation, str], Pieces]


def converse(
    chat: Conversation, lines: Iterator[str], write: Callable[[str], None], note: Callable[[str], None], *,
    terminal: bool = False, stats: bool = False,
) -> int:  # fmt: skip
    """Take lines until they end or /quit, and give how many could not be heeded.

    Parameters
    ----------
    write
        Takes answers, piece by piece.
    note
        Takes what there is to say beside them, a line each.
    terminal
        Whether somebody's terminal shows it, which must not obey what a model says.
    stats
        Also tell what each answer cost.
    """
    failed = 0
    shown = printable if terminal else str
    with interrupts_heeded(lambda: chat.answering, chat.stop):
        for text in whole(lines):
            if not text.strip():
                continue
            turn, last = chat.run.context.turn, ""
            try:
                for piece in _said(chat, text):
                    write(shown(piece))
                    last = piece or last
            except Over:
                break
            except MENDABLE as error:
                write("" if last.endswith("\n") or not last else "\n")
                note(f"error: {one_line(_reason(error), 600)}")
                failed += 1
                continue
            if chat.run.context.turn != turn:  # it was an answer
                write("\n")
                if chat.cut:
                    note(f"({chat.cut})")
                if stats:
                    fed, reused, drawn = chat.fed
                    note(f"({fed} tokens fed, {reused} from the cache, {drawn} new)")
    return failed


def whole(lines: Iterator[str]) -> Iterator[str]:
    """Join lines that belong together: after a backslash at the end of one, and between lines of three quotes."""
    kept: list[str] = []
    quoted = False
    for line in lines:
        if quoted or (not kept and line.strip() == QUOTES):
            if line.strip() == QUOTES:
                if quoted:
                    yield "\n".join(kept)
                    kept = []
                quoted = not quoted
            else:
                kept.append(line)
        elif line.endswith("\\"):
            kept.append(line[:-1])
        else:
            yield "\n".join([*kept, line])
            kept = []
    if kept:
        yield "\n".join(kept)


def _said(chat: Conversation, text: str) -> Pieces:
    if not text.startswith("/") or text.startswith("//"):
        return chat.say(text.removeprefix("/") if text.startswith("//") else text)
    word, _, rest = text[1:].partition(" ")
    for command in COMMANDS:
        if command.name == word:
            return command.act(chat, rest.strip())
    names = ", ".join(f"/{command.name}" for command in COMMANDS)
    raise RequestError(
        f"there is no command /{word:.40}: expected one of {names}; // says something that begins with /"
    )


def _reason(error: BaseException) -> object:
    if isinstance(error, PhaseError):
        error = error.__cause__ or error
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


# --- commands -----------------------------------------------------------------------------------------------------


def _retry(chat: Conversation, rest: str) -> Pieces:
    return chat.retry()


def _back(chat: Conversation, rest: str) -> Pieces:
    if rest and not (rest.isdecimal() and int(rest)):
        raise RequestError(f"expected /back [N], not {rest!r:.80}")
    yield f"back before: {chat.back(int(rest or 1))}\n"


def _edit(chat: Conversation, rest: str) -> Pieces:
    if not rest:
        raise RequestError("expected /edit TEXT: what to say instead of what was said last")
    return chat.edit(rest)


def _system(chat: Conversation, rest: str) -> Pieces:
    chat.set_system(rest)
    yield f"system: {rest}\n" if rest else "no system message\n"


def _set(chat: Conversation, rest: str) -> Pieces:
    name, _, value = rest.partition(" ")
    if value:
        try:
            read = json.loads(value)
        except (ValueError, RecursionError):
            raise RequestError(f"expected /set NAME VALUE, the value in JSON, not {value!r:.80}") from None
        chat.set_params(**{name: read})
    elif name:
        raise RequestError("expected /set NAME VALUE, as in /set temperature 0.3")
    params = chat.params.over(chat.generator.defaults)
    told = [f"{field.name} {getattr(params, field.name)}" for field in fields(SamplingParams)
            if getattr(params, field.name) is not None]  # fmt: skip
    yield ", ".join(told) + "\n"


def _save(chat: Conversation, rest: str) -> Pieces:
    chat.save(_path(rest, "/save FILE"))
    yield f"saved, {len(chat.messages)} messages\n"


def _load(chat: Conversation, rest: str) -> Pieces:
    chat.load(_path(rest, "/load FILE"))
    yield f"loaded, {len(chat.messages)} messages\n"


def _path(rest: str, usage: str) -> Path:
    if not rest:
        raise RequestError(f"expected {usage}")
    return Path(rest).expanduser()


def _history(chat: Conversation, rest: str) -> Pieces:
    for message in chat.messages:
        yield f"{message.role}: {message.text}\n"


def _journal(chat: Conversation, rest: str) -> Pieces:
    fed, reused, drawn = chat.fed
    yield f"{chat.run.step_count} steps; the last turn: {fed} tokens fed, {reused} from the cache, {drawn} new\n"
    if chat.journal is None:
        yield "not recorded: start with phasewalk chat --journal FILE\n"
    else:
        yield f"recorded in {chat.journal}; phasewalk replay {chat.journal} --machine phases.chat.machine:machine\n"


def _help(chat: Conversation, rest: str) -> Pieces:
    width = max(len(command.usage) for command in COMMANDS)
    for command in COMMANDS:
        yield f"{command.usage:<{width}}  {command.help}\n"
    yield f"A line that ends in \\ goes on in the next; {QUOTES} alone in a line begins and ends several.\n"
    yield "Ctrl-C stops an answer, Ctrl-D ends the chat.\n"


def _quit(chat: Conversation, rest: str) -> Pieces:
    raise Over


COMMANDS = (
    Command("retry", "/retry", "another answer to what was said last", _retry),
    Command("edit", "/edit TEXT", "say something else instead of what was said last", _edit),
    Command("back", "/back [N]", "take the last turn back, or N", _back),
    Command("system", "/system [TEXT]", "what the model is told before the chat; nothing", _system),
    Command("set", "/set [NAME VALUE]", "how answers are sampled, as in /set temperature 0.3", _set),
    Command("history", "/history", "what was said", _history),
    Command("save", "/save FILE", "write it to a file, which run --messages reads, too", _save),
    Command("load", "/load FILE", "go on with a chat that was saved", _load),
    Command("journal", "/journal", "where the chat is recorded, and what the last turn cost", _journal),
    Command("help", "/help", "this list", _help),
    Command("quit", "/quit", "end the chat", _quit),
)
