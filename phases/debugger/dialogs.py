"""What lies over the screen for a while: a line to be typed, and text to be read."""

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, Label, Static

from phases.debugger.styled import visible


class Asked(ModalScreen[str | None]):
    """A line to be typed; gives None if the user thinks better of it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "leave")]
    DEFAULT_CSS = """
    Asked { align: center bottom; background: $background 40%; }
    Asked > Vertical { width: 100%; height: auto; border: round $accent; padding: 0 1; }
    Asked Label { width: 100%; color: $foreground 70%; }
    Asked Input, Asked Input:focus { border: none; padding: 0; height: 1; background: $foreground 10%; }
    """

    def __init__(self, hint: str, value: str, cursor: int | None = None) -> None:
        super().__init__()
        self._hint, self._value, self._cursor = hint, value, len(value) if cursor is None else cursor

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Label(self._hint, markup=False)
            yield Input(self._value, select_on_focus=False)

    def on_mount(self) -> None:
        field = self.query_one(Input)
        field.focus()
        field.cursor_position = self._cursor

    @on(Input.Submitted)
    def submit(self, event: Input.Submitted) -> None:
        self.dismiss(event.value)

    def action_leave(self) -> None:
        self.dismiss(None)


class Pages(ModalScreen[None]):
    """Text to be read and scrolled."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(key, "leave", "leave") for key in ("escape", "q", "enter", "question_mark", "equals_sign", "e", "v")
    ]
    DEFAULT_CSS = """
    Pages { align: center middle; background: $background 40%; }
    Pages > VerticalScroll { width: 100%; max-width: 110; height: auto; max-height: 100%; border: round $accent;
        padding: 0 1; background: $background; }
    Pages VerticalScroll { scrollbar-size-vertical: 1; }
    Pages Static { width: 100%; }
    """

    def __init__(self, title: str, text: str) -> None:
        super().__init__()
        self._title, self._text = title, text

    def compose(self) -> ComposeResult:
        box = VerticalScroll(Static(visible(self._text), markup=False))
        box.border_title = self._title
        box.border_subtitle = "Esc closes"
        yield box

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()

    def action_leave(self) -> None:
        self.dismiss(None)
