"""The panels for a run of any machine: each draws a part of a view into the room that it has."""

from rich.markup import escape
from textual.content import Content
from textual.widget import Widget

from phases.debugger.drawing import around
from phases.debugger.styled import DIM, LOOKS, STRONG, Part, fitted, lines
from phases.debugger.view import View

PHASE_LOOKS = ("$foreground 80%", "$text-error", "$text-primary", "$text-success", "$text-warning", "$text-accent")
TRUTHS: dict[bool | None, Part] = {
    True: ("✔ true ", "bold $text-success"), False: ("✘ false", "$text-error"), None: ("? unset", DIM),
}  # fmt: skip
CHOSEN: Part = ("◆      ", DIM)  # before what a choice is


class Panel(Widget):
    """A titled region that draws the view it was last shown."""

    DEFAULT_CSS = """
    Panel { border-top: solid $foreground 25%; border-title-color: $foreground 70%; border-title-style: bold; }
    """
    view: View | None = None

    def show(self, view: View) -> None:
        """Draw this view from now on."""
        self.view = view
        self.border_title = escape(self.title(view))
        self.refresh()

    def title(self, view: View) -> str:
        raise NotImplementedError

    def draw(self, view: View, width: int, height: int) -> Content:
        raise NotImplementedError

    def render(self) -> Content:
        width, height = self.size
        return self.draw(self.view, width, height) if self.view and width and height else Content("")


class MachinePanel(Panel):
    """The machine, the phase that runs next lit."""

    def title(self, view: View) -> str:
        return "machine"

    def draw(self, view: View, width: int, height: int) -> Content:
        return lines(*([(text, LOOKS[look]) for text, look in spans] for spans in around(view.drawing, height)))


class GuardsPanel(Panel):
    """The guards of the phase that runs next, and what the last ones decided."""

    def title(self, view: View) -> str:
        return f"guards of {view.phase}, before it runs"

    def draw(self, view: View, width: int, height: int) -> Content:
        made: list[list[Part]] = []
        for guard in view.guards:
            chosen = f" = {guard.truth}" if isinstance(guard.truth, str) else ""
            mark, style = CHOSEN if isinstance(guard.truth, str) else TRUTHS[guard.truth]
            made.append([(f"{mark} ", style), (f"{guard.name}{chosen}", STRONG)])
            if guard.meaning and height >= 8:
                made.append([(fitted(f"        {guard.meaning}", width), DIM)])
        if not made:
            made.append([("none: it has one way to go", DIM)])
        if view.last:
            made.append([("last: ", DIM), (f"{view.last.phase} → {view.last.target}", "$foreground")])
            if view.last.guards:
                made.append([(f"      because {view.last.guards}", DIM)])
        return lines(*made[:height])


class BreakpointsPanel(Panel):
    """The breakpoints, and the runs that stand side by side."""

    def title(self, view: View) -> str:
        return "breakpoints and runs"

    def draw(self, view: View, width: int, height: int) -> Content:
        made: list[list[Part]] = [
            [(f"● {found.number} ", "$text-error"), (fitted(str(found), width - 5).rstrip(), "$foreground")]
            for found in view.breakpoints
        ] or [[("no breakpoints: k sets one", DIM)]]
        for index, branch in enumerate(view.branches):
            here = index == view.current
            made.append([("▶ " if here else "  ", "bold $accent"), (f"run {branch}", STRONG if here else DIM)])
        return lines(*made[:height])


class TimelinePanel(Panel):
    """The steps so far and those ahead, and where among them the run rests."""

    def title(self, view: View) -> str:
        return "timeline"

    def draw(self, view: View, width: int, height: int) -> Content:
        return lines(self._slider(view, width), self._strip(view, width), self._here(view, width))

    def _slider(self, view: View, width: int) -> list[Part]:
        place = round(view.step / view.steps * (width - 1)) if view.steps else 0
        return [("━" * place, "$accent"), ("●", "bold $accent"), ("─" * (width - 1 - place), "$foreground 30%")]

    def _strip(self, view: View, width: int) -> list[Part]:
        """A letter a step, and one for the phase that runs next; the future is dim."""
        names = [moment.phase for moment in view.moments]
        numbers = [moment.number for moment in view.moments]
        if view.step == view.steps:
            names, numbers = [*names, view.phase], [*numbers, view.step]
        letters = self._letters(view)
        looks = {name: PHASE_LOOKS[index % len(PHASE_LOOKS)] for index, name in enumerate(letters)}
        room = max(1, width // 2)
        here = numbers.index(view.step)
        first = max(0, min(here - room // 2, len(names) - room))
        made: list[Part] = []
        for name, number in list(zip(names, numbers, strict=True))[first : first + room]:
            letter = letters.get(name, "■")
            if number == view.step:
                made.append((letter, LOOKS["lit"]))
            else:
                made.append(
                    (letter, looks.get(name, STRONG) if number < view.step else f"{looks.get(name, STRONG)} 45%")
                )
            made.append((" ", ""))
        return made

    @staticmethod
    def _letters(view: View) -> dict[str, str]:
        """A letter of its own for every phase of the drawing, the first of its name that is still free."""
        found: dict[str, str] = {}
        for moment in sorted(view.moments, key=lambda moment: moment.number):
            for name in (moment.phase, moment.target):
                if name not in found:
                    free = [c.upper() for c in name if c.isalpha() and c.upper() not in found.values()]
                    found[name] = free[0] if free else "?"
        return found or {view.phase: view.phase[:1].upper()}

    def _here(self, view: View, width: int) -> list[Part]:
        words = [f"step {view.step} of {view.steps}", f"{view.elapsed_ns / 1e6:.1f} ms of work"]
        if view.last:
            words.append(f"last: {view.last.phase} {view.last.elapsed_ns / 1e6:.3f} ms")
            if view.last.found:
                words.append(view.last.found)
        return [(fitted(" · ".join(words), width), DIM)]


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
            (view.phase, STRONG), (f"  step {view.step}", DIM),
        ]  # fmt: skip
        said = view.notice or self.message
        room = self.size.width - sum(len(text) for text, _ in parts) - 3
        error = bool(view.notice) or said.startswith(("error", "failed"))
        parts.append((f"   {fitted(said, max(0, room)).rstrip()}", "bold $text-error" if error else "$text-accent"))
        return lines(parts)


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
