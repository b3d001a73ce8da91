"""The lines above and below the panels: how the run stands, and the keys."""

from textual.content import Content
from textual.widget import Widget

from phases.debugger.cells import fitted
from phases.debugger.styled import DIM, STRONG, Part, lines
from phases.debugger.view import View


class StatusLine(Widget):
    """One line: which run, how it stands, and what was said last."""

    view: View | None = None
    message: str = ""

    def show(self, view: View, message: str) -> None:
        """Draw this view and message from now on."""
        self.view, self.message = view, message
        self.refresh()

    def render(self) -> Content:
        view = self.view
        if view is None:
            return Content("")
        looks = {"running": "bold $text-success", "failed": "bold $text-error", "done": "bold $primary"}
        number = view.branches[view.current].split(" ")[0]
        run = f" run {number}" + (f" of {len(view.branches)}" if len(view.branches) > 1 else "")
        parts = [
            (run, STRONG), (f"  {view.status}", looks.get(view.status, "bold $text-warning")), (" at ", DIM),
            (view.phase, STRONG), (view.until, "$text-warning"), (f"  step {view.step}", DIM),
        ]  # fmt: skip
        said, hint = view.notice or self.message, "  e: all of it" if view.failed else ""
        room = self.size.width - sum(len(text) for text, _ in parts) - len(hint) - 3
        error = bool(view.notice) or said.startswith(("error", "failed"))
        parts.append((f"   {fitted(said, max(0, room)).rstrip()}", "bold $text-error" if error else "$text-accent"))
        return lines([*parts, (hint, DIM)])


class KeysLine(Widget):
    """All keys, in as few lines as they need."""

    keys: tuple[tuple[str, str], ...] = ()

    def wrapped(self, width: int) -> list[list[tuple[str, str]]]:
        """The keys that stand on each line."""
        made: list[list[tuple[str, str]]] = [[]]
        used = 0
        for key, word in self.keys:
            length = len(key) + len(word) + 3
            if used + length > width + 1 and made[-1]:
                made.append([])
                used = 0
            made[-1].append((key, word))
            used += length
        return made

    def get_content_height(self, container: object, viewport: object, width: int) -> int:
        return len(self.wrapped(width))

    def render(self) -> Content:
        made = []
        for row in self.wrapped(self.size.width):
            line: list[Part] = []
            for key, word in row:
                line += [(key, "bold $text-accent"), (f" {word}  ", DIM)]
            made.append(line)
        return lines(*made)
