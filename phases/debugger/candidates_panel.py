"""The candidates for a token as a panel, one of which can be chosen by keys or by the mouse, and then comes next."""

from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content
from textual.events import Click

from phases.debugger.cells import fitted
from phases.debugger.distribution import Candidate, Distribution
from phases.debugger.generation_view import GenerationView
from phases.debugger.panel import Panel, Wanted
from phases.debugger.styled import DIM, STRONG, Part, as_many, bar_of, lines, percent

ID = 6  # cells of a token's id


class CandidatesPanel(Panel[GenerationView], can_focus=True):
    """What the next token is, or was, drawn from; while it has the focus, one of them is chosen."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "choose(-1)", "the candidate before"),
        Binding("down", "choose(1)", "the candidate after"),
        Binding("enter", "force", "make it come next"),
        Binding("escape", "leave", "choose none"),
    ]
    DEFAULT_CSS = "CandidatesPanel:focus { border-top: solid $accent; }"
    chosen = 0  # index among the candidates

    def show(self, view: GenerationView) -> None:
        if self.view is None or (view.step, view.current) != (self.view.step, self.view.current):
            self.chosen = 0
        super().show(view)

    def title(self, view: GenerationView) -> str:
        shown = view.distribution
        if isinstance(shown, str):
            return "candidates"
        if self.has_focus:
            return "↑ ↓ choose, Enter forces, Esc leaves"
        if shown.drawn is not None:
            return f"token {shown.place + 1} was drawn from"
        return f"candidates for token {shown.place + 1}" + (", forced" if shown.forced is not None else "")

    # --- choosing -----------------------------------------------------------------------------------------------

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        shown = self.view.distribution if self.view else ""
        return () if isinstance(shown, str) else shown.candidates

    def action_choose(self, by: int) -> None:
        self.chosen = max(0, min(len(self.candidates) - 1, self.chosen + by))
        self.refresh()

    def action_force(self) -> None:
        if self.candidates:
            self.post_message(Wanted(f"force {self.candidates[self.chosen].token_id}"))
        self.action_leave()

    def action_leave(self) -> None:
        self.blur()

    def watch_has_focus(self, focused: bool) -> None:
        super().watch_has_focus(focused)
        if self.view:
            super().show(self.view)

    def on_click(self, event: Click) -> None:
        view, place = self.view, self.place_of(event)
        if place is None or view is None or isinstance(view.distribution, str):
            return
        width, height = self.size
        line = place.y - len(self._head(view, view.distribution, width))
        listed = self._listed(view.distribution, height - (place.y - line))
        if 0 <= line < len(listed):
            token = listed[line].token_id
            name = view.names.get(token, "")
            self.post_message(Wanted(f"force {token}", f"Make {name or token} come next? Enter does, Esc does not"))

    # --- drawing ------------------------------------------------------------------------------------------------

    def draw(self, view: GenerationView, width: int, height: int) -> Content:
        shown = view.distribution
        if isinstance(shown, str):
            return lines([(shown, DIM)])
        head = self._head(view, shown, width)
        listed = self._listed(shown, height - len(head))
        return lines(*head, *(self._line(view, shown, candidate, width) for candidate in listed))

    def _listed(self, shown: Distribution, room: int) -> list[Candidate]:
        """The candidates that there is room for: the chosen one among them, or else the marked ones."""
        if self.has_focus:
            first = max(0, min(self.chosen - room // 2, len(shown.candidates) - room))
            return list(shown.candidates[first : first + room])
        listed = list(shown.candidates[:room])
        marked = {shown.drawn, shown.forced} - {None}
        beyond = [candidate for candidate in shown.candidates[room:] if candidate.token_id in marked]
        listed[len(listed) - len(beyond) :] = beyond
        return listed

    def _head(self, view: GenerationView, shown: Distribution, width: int) -> list[list[Part]]:
        if not shown.spread:
            return [[("the largest logits; the record holds no others", DIM)]]
        spread = shown.spread
        figures = [f"top1 {spread.top1:.3f}", f"margin {spread.margin:.3f}", f"entropy {spread.entropy:.2f}", "bits"]
        return [
            [(as_many([*view.sampling, f"kept {shown.kept} of {shown.vocab}"], width), DIM)],
            [(as_many(figures, width), DIM)],
            [("id token".rjust(ID + 8), "$foreground 35%"), ("model  drawn".rjust(width - ID - 8), "$foreground 35%")],
        ]

    def _line(self, view: GenerationView, shown: Distribution, candidate: Candidate, width: int) -> list[Part]:
        marked = candidate.token_id in (shown.drawn, shown.forced)
        chosen = self.has_focus and candidate == shown.candidates[self.chosen]
        name_width = max(9, min(18, width // 3 - 3))
        name = fitted(view.names.get(candidate.token_id, ""), name_width)
        mark = ("▶ " if marked else "  ", "bold $accent")
        number = (f"{candidate.token_id:>{ID}}", "bold auto on $accent" if chosen else DIM)
        if candidate.probability is None:
            return [
                mark, number, (" ", ""), (name, STRONG if marked or chosen else "$foreground"),
                (f" logit {candidate.logit:.3f}", DIM),
            ]  # fmt: skip
        fate = {"temperature": "temp"}.get(candidate.removed, candidate.removed) or percent(candidate.chance)
        room = max(2, width - name_width - 2 - ID - 2 - 6 - 1 - 6)
        bar = bar_of(candidate.probability, room)
        if candidate.removed:
            struck = name.rstrip()
            return [
                mark, number, (" ", ""), (struck, "strike $foreground 45%"), (" " * (len(name) - len(struck) + 1), ""),
                (bar, "$foreground 30%"), (f"{percent(candidate.probability):>6}", "$foreground 45%"),
                (f" {fate:>6}", "$text-error"),
            ]  # fmt: skip
        return [
            mark, number, (" ", ""), (name + " ", STRONG if marked or chosen else "$foreground"),
            (bar, "$accent" if marked else "$primary"), (f"{percent(candidate.probability):>6}", DIM),
            (f" {fate:>6}", "$text-success"),
        ]  # fmt: skip
