"""The line editor of a terminal: history, multi-line input, completion of commands."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

PROMPT, MORE = "you> ", "...  "


def typed_lines(commands: Sequence[str]) -> Iterator[str]:
    """What is typed, line by line, until Ctrl-D; Ctrl-C forgets what stands there, Alt-Enter begins a new line.

    What was typed in earlier chats comes back with the key Up: it is kept in `XDG_STATE_HOME`, `~/.local/state` unless
    that is set. Tab completes `commands`.
    """
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    completer = WordCompleter(list(commands), sentence=True)
    session: PromptSession[str] = PromptSession(
        history=_history(), completer=completer, complete_while_typing=False, key_bindings=keys,
        prompt_continuation=MORE,
    )  # fmt: skip
    while True:
        try:
            yield session.prompt(PROMPT)
        except KeyboardInterrupt:
            continue
        except EOFError:
            return


def _history() -> History:
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    path = state / "phasewalk" / "chat_history"
    with suppress(OSError):  # without a place for it, it is of this chat alone
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        return FileHistory(path)
    return InMemoryHistory()
