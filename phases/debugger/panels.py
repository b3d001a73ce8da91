"""The panels for a run of any machine: each draws a part of a view into the room that it has."""

from textual.content import Content
from textual.events import Click

from phases.debugger.cells import fitted
from phases.debugger.drawing import Spans, around, phase_at
from phases.debugger.panel import Panel, Wanted
from phases.debugger.styled import DIM, LOOKS, STRONG, Part, cut, lines
from phases.debugger.view import View

PHASE_LOOKS = ("$foreground 80%", "$text-error", "$text-primary", "$text-success", "$text-warning", "$text-accent")
TRUTHS: dict[bool | None, Part] = {
    True: ("✔ true ", "bold $text-success"), False: ("✘ false", "$text-error"), None: ("? unset", DIM),
}  # fmt: skip
CHOSEN: Part = ("◆      ", DIM)  # before what a choice is


class MachinePanel(Panel[View]):
    """The machine, the phase that runs next lit; a click on a phase sets a breakpoint before it, or takes it out."""

    def title(self, view: View) -> str:
        return "machine"

    def draw(self, view: View, width: int, height: int) -> Content:
        return lines(
            *(cut([(text, LOOKS[look]) for text, look in spans], width) for spans in self._shown(view, height))
        )

    @staticmethod
    def _shown(view: View, height: int) -> list[Spans]:
        return around(view.drawing, height)

    def on_click(self, event: Click) -> None:
        if (place := self.place_of(event)) is None or self.view is None:
            return
        shown = self._shown(self.view, self.size.height)
        if place.y < len(shown) and (phase := phase_at(shown[place.y], place.x, self.view.phases)):
            stops = {found.target: found.number for found in self.view.breakpoints if found.kind == "phase"}
            self.post_message(Wanted(f"delete {stops[phase]}" if phase in stops else f"break phase {phase}"))


class GuardsPanel(Panel[View]):
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


class BreakpointsPanel(Panel[View]):
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
