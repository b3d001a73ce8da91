"""The timeline as a panel: the steps so far and those ahead, and where among them the run rests."""

from textual.content import Content
from textual.events import Click

from phases.debugger.cells import fitted
from phases.debugger.panel import Panel, Wanted
from phases.debugger.styled import DIM, LOOKS, STRONG, Part, lines
from phases.debugger.view import View

PHASE_LOOKS = ("$foreground 80%", "$text-error", "$text-primary", "$text-success", "$text-warning", "$text-accent")
SLIDER, STRIP = 0, 1  # the lines that can be clicked


class TimelinePanel(Panel[View]):
    """A slider over all steps, a letter for each of those nearby, and the last step in words; a click goes there."""

    def title(self, view: View) -> str:
        return "timeline"

    def draw(self, view: View, width: int, height: int) -> Content:
        return lines(self._slider(view, width), self._strip(view, width), self._here(view, width))

    def on_click(self, event: Click) -> None:
        if (place := self.place_of(event)) is None or self.view is None:
            return
        view, width, steps = self.view, self.size.width, None
        if place.y == SLIDER:
            steps = view.first + round(place.x / max(1, width - 1) * (view.steps - view.first))
        elif place.y == STRIP and place.x // 2 < len(shown := self._places(view, width)):
            steps = shown[place.x // 2][0]
        if steps is not None:
            self.post_message(Wanted(f"goto {steps}"))

    def _slider(self, view: View, width: int) -> list[Part]:
        recorded = view.steps - view.first
        place = round((view.step - view.first) / recorded * (width - 1)) if recorded else 0
        return [("━" * place, "$accent"), ("●", "bold $accent"), ("─" * (width - 1 - place), "$foreground 30%")]

    @staticmethod
    def _places(view: View, width: int) -> list[tuple[int, str]]:
        """The steps that there is room for, each by its number and phase; the place where the run rests is one too."""
        places = [(moment.number, moment.phase) for moment in view.moments]
        if view.step == view.steps:
            places.append((view.step, view.phase))
        elif view.moments[-1].number == view.steps - 1:
            places.append((view.steps, view.moments[-1].target))
        room = max(1, width // 2)
        here = next((index for index, (number, _) in enumerate(places) if number == view.step), 0)
        first = max(0, min(here - room // 2, len(places) - room))
        return places[first : first + room]

    def _strip(self, view: View, width: int) -> list[Part]:
        """A letter a step, and one for the phase that runs next; the future is dim."""
        letters = self._letters(view)
        looks = {name: PHASE_LOOKS[index % len(PHASE_LOOKS)] for index, name in enumerate(letters)}
        made: list[Part] = []
        for number, name in self._places(view, width):
            look = looks.get(name, STRONG)
            style = LOOKS["lit"] if number == view.step else look if number < view.step else f"{look} 45%"
            made += [(letters.get(name, "■"), style), (" ", "")]
        return made

    @staticmethod
    def _letters(view: View) -> dict[str, str]:
        """A letter of its own for every phase that is shown, the first of its name that is still free."""
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
