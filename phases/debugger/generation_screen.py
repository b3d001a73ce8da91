"""The debugger on a full screen, for generations: their text, candidates and buffers, and keys that change tokens."""

from typing import Any, ClassVar

from textual.binding import Binding, BindingType

from phases.debugger import generation_view, keys_help
from phases.debugger.candidates_panel import CandidatesPanel
from phases.debugger.context_panels import ContextPanel, InputsPanel
from phases.debugger.dialogs import Pages
from phases.debugger.generation import GenerationSession
from phases.debugger.generation_panels import BuffersPanel, TextPanel
from phases.debugger.generation_view import GenerationView
from phases.debugger.panel import Panel
from phases.debugger.panels import BreakpointsPanel, GuardsPanel
from phases.debugger.screen import DebuggerScreen
from phases.debugger.view import View


class GenerationScreen(DebuggerScreen):
    """What any machine's screen has, and what only generations have."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "line('next')", "next token"),
        Binding("x", "force", "force a token"),
        Binding("i", "choose", "choose a candidate"),
        Binding("t", "temperature", "change the temperature"),
        Binding("a", "append", "append text"),
    ]
    CSS = DebuggerScreen.CSS + "TextPanel { height: 4; }"
    KEYS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("s", "step"), ("n", "next"), ("r", "run"), ("p", "pause"), ("b", "back"), ("←→", "scrub"), ("k", "break"),
        ("x i", "force"), ("t", "temp"), ("a", "append"), ("f", "fork"), ("tab", "switch"), ("w", "save"),
        ("l", "load"), ("1-6", "view"), (":", "line"), ("?", "help"), ("q", "quit"),
    )  # fmt: skip
    PANELS: ClassVar[tuple[type[Panel[Any]], ...]] = (
        CandidatesPanel, GuardsPanel, BuffersPanel, BreakpointsPanel, ContextPanel, InputsPanel,
    )  # fmt: skip
    BESIDE: ClassVar[type[Panel[Any]]] = BuffersPanel
    BELOW: ClassVar[tuple[type[Panel[Any]], ...]] = (TextPanel,)
    TALL = 29
    HELP_ON_KEYS: ClassVar[str] = keys_help.GENERATION

    session: GenerationSession

    def look(self) -> View:
        return generation_view.view_of(self.session)

    def glimpse(self, view: View) -> View:
        assert isinstance(view, GenerationView)
        return generation_view.glance(self.session, view)

    def make_room(self, *, tall: bool, roomy: bool) -> None:
        self.query_one(TextPanel).styles.height = 6 if roomy else 5 if tall else 4

    def action_force(self) -> None:
        self.action_ask('Which token comes next? An id, or text in quotes, as in force " dog"', "force ")

    def action_choose(self) -> None:
        self.action_panel(self.PANELS.index(CandidatesPanel))
        self.query_one(CandidatesPanel).focus()

    def action_temperature(self) -> None:
        self.action_ask(
            "From here on; 0 is greedy. Also: set top_k, top_p, min_p, seed, max_new_tokens", "set temperature "
        )

    def action_append(self) -> None:
        self.action_ask("The row goes on with this text", 'append " "', len('append " '))

    def action_whole(self) -> None:
        if isinstance(self.view, GenerationView):
            text = self.view.text
            self.app.push_screen(Pages("text", f"{text.prompt}\n\n{text.before}{text.last}"))
