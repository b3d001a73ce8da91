"""A titled region of the screen that draws a view, and what it asks of the screen when it is clicked."""

from typing import Generic, TypeVar

from rich.markup import escape
from textual.content import Content
from textual.events import Click
from textual.geometry import Offset
from textual.message import Message
from textual.widget import Widget

from phases.debugger.view import View

Seen = TypeVar("Seen", bound=View)


class Wanted(Message):
    """Somebody wants a command to be done; with a question, only after they have seen and finished it."""

    def __init__(self, line: str, question: str = "") -> None:
        super().__init__()
        self.line, self.question = line, question


class Panel(Widget, Generic[Seen]):
    """A titled region that draws the view it was last shown."""

    DEFAULT_CSS = """
    Panel { border-top: solid $foreground 25%; border-title-color: $foreground 70%; border-title-style: bold; }
    """
    view: Seen | None = None

    def show(self, view: Seen) -> None:
        """Draw this view from now on."""
        self.view = view
        self.border_title = escape(self.title(view))
        self.refresh()

    def title(self, view: Seen) -> str:
        raise NotImplementedError

    def draw(self, view: Seen, width: int, height: int) -> Content:
        raise NotImplementedError

    def render(self) -> Content:
        width, height = self.size
        return self.draw(self.view, width, height) if self.view and width and height else Content("")

    def place_of(self, event: Click) -> Offset | None:
        """Column and line of a click in what is drawn; None outside of it."""
        return event.get_content_offset(self)
