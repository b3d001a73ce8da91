"""The names of the keys that can be pressed for a picture of the screen."""

from collections.abc import Iterable

from textual.binding import Binding
from textual.keys import Keys

from phases.debugger.candidates_panel import CandidatesPanel
from phases.debugger.generation_screen import GenerationScreen
from phases.debugger.screen import DebuggerScreen

TYPING = ("enter", "escape", "backspace", "delete", "space", "up", "down")  # used where the screen asks for a line
BOUND = tuple(
    key
    for kind in (DebuggerScreen, GenerationScreen, CandidatesPanel)
    for binding in kind.BINDINGS
    if isinstance(binding, Binding)
    for key in binding.key.split(",")
)  # fmt: skip
NAMED = tuple(dict.fromkeys(key for key in (*BOUND, *TYPING) if len(key) > 1))
_ALL = {*NAMED, *(key.value for key in Keys if not key.value.startswith("<"))}


def unknown_key(keys: Iterable[str]) -> str | None:
    """The first of these that is no key: neither a character nor the name of one."""
    return next((key for key in keys if key not in _ALL and not (len(key) == 1 and key.isprintable())), None)
