"""The debugger on a full screen, for a run of any machine."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.screen import Screen

from phases.debugger import keys_help
from phases.debugger.command import Lines, Quit, written
from phases.debugger.commands import execute
from phases.debugger.context_panels import ContextPanel, InputsPanel
from phases.debugger.dialogs import Asked, Pages
from phases.debugger.edges import KeysLine, StatusLine
from phases.debugger.guards import words_of
from phases.debugger.panel import Panel, Wanted
from phases.debugger.panels import BreakpointsPanel, GuardsPanel, MachinePanel
from phases.debugger.session import Session
from phases.debugger.timeline_panel import TimelinePanel
from phases.debugger.view import View, glance, view_of

NOTABLE = ("error", "stopped", "breakpoint", "deleted", "forced", "saved", "sent", "edited")  # more than where it rests
QUEUE = 50  # moves that may wait for the one at work
GLANCE = 0.1  # seconds between two looks at a run at work


class Moved(Message):
    """A move has been made, by the thread that makes them."""

    def __init__(self, view: View, said: Lines) -> None:
        super().__init__()
        self.view, self.said = view, said


class DebuggerScreen(Screen[None]):
    """The panels, and the keys that move the run.

    Every move is made in a thread of its own, one after another, so that keys and pictures never wait for a phase.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "line('step')", "step"),
        Binding("r", "line('run')", "run"),
        Binding("p", "pause", "pause"),
        Binding("b", "line('back')", "back"),
        Binding("left", "walk(-1)", "one step back"),
        Binding("right", "walk(1)", "one step ahead"),
        Binding("pageup", "walk(-10)", "ten steps back"),
        Binding("pagedown", "walk(10)", "ten steps ahead"),
        Binding("home", "walk(-1000000000)", "to the start"),
        Binding("end", "walk(1000000000)", "to the end"),
        Binding("k", "breakpoint", "set a breakpoint"),
        Binding("K", "ask('Which breakpoint is to go?', 'delete ')", "take a breakpoint out"),
        Binding("g", "signal", "send a signal"),
        Binding("y", "answer", "answer"),
        Binding("m", "edit", "make an edit"),
        Binding("f", "line('fork')", "fork"),
        Binding("tab", "line('switch')", "switch"),
        Binding("c", "line('close')", "close this run"),
        Binding("equals_sign", "pages('compare')", "compare"),
        Binding("w", "ask('Save a snapshot as', 'save ')", "save"),
        Binding("l", "ask('Load the snapshot', 'load ')", "load"),
        Binding("e", "pages('error')", "the error"),
        Binding("v", "whole", "all of it"),
        Binding("colon", "ask('Any command; help lists them', '')", "command"),
        Binding("d", "theme", "dark or light"),
        Binding("question_mark,f1", "help", "help"),
        Binding("q", "quit", "quit"),
        *(Binding(str(number), f"panel({number - 1})", "panel") for number in range(1, 10)),
    ]
    CSS = """
    DebuggerScreen { layout: vertical; }
    StatusLine { height: 1; background: $foreground 10%; }
    #top { height: 1fr; }
    #left { width: 41; padding-right: 1; }
    MachinePanel { height: 13; }
    #left GuardsPanel { height: 1fr; }
    #left BreakpointsPanel { height: 1fr; }
    #right Panel { height: 1fr; }
    TimelinePanel { height: 4; }
    KeysLine { height: auto; }
    """
    AUTO_FOCUS = ""

    # What a kind of session has otherwise:
    KEYS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("s", "step"), ("r", "run"), ("p", "pause"), ("b", "back"), ("←→", "scrub"), ("k", "break"), ("g", "signal"),
        ("y", "answer"), ("m", "edit"), ("f", "fork"), ("tab", "switch"), ("w", "save"),
        ("l", "load"), ("v", "context"), ("1-4", "view"), (":", "line"), ("?", "help"), ("q", "quit"),
    )  # fmt: skip
    PANELS: ClassVar[tuple[type[Panel[Any]], ...]] = (ContextPanel, GuardsPanel, InputsPanel, BreakpointsPanel)
    BESIDE: ClassVar[type[Panel[Any]]] = InputsPanel  # on the right as well, where there is room
    BELOW: ClassVar[tuple[type[Panel[Any]], ...]] = ()
    TALL = 22  # lines from which on the guards have room below the machine
    HELP_ON_KEYS: ClassVar[str] = keys_help.ANY

    def __init__(self, session: Session[Any]) -> None:
        super().__init__()
        self.session = session
        self.view: View | None = None
        self._queue: deque[Callable[[], Lines]] = deque()
        self.busy = False
        self.settled = asyncio.Event()  # every move that was asked for has been made and shown
        self._panel = 0
        self._said = ""

    def look(self) -> View:
        """What there is to see of the session."""
        return view_of(self.session)

    def glimpse(self, view: View) -> View:
        """What there is to see of it while its run is being moved."""
        return glance(self.session, view)

    def compose(self) -> ComposeResult:
        yield StatusLine()
        with Horizontal(id="top"):
            with Vertical(id="left"):
                yield MachinePanel()
                yield GuardsPanel()
                yield BreakpointsPanel()
            with Vertical(id="right"):
                for panel in self.PANELS:
                    yield panel()
        for panel in self.BELOW:
            yield panel()
        yield TimelinePanel()
        keys = KeysLine()
        keys.keys = self.KEYS
        yield keys

    def on_mount(self) -> None:
        self._make_room()
        self._move(list)
        self.set_interval(GLANCE, self._glance)

    def on_unmount(self) -> None:
        self.settled.set()

    def on_resize(self) -> None:
        self._make_room()

    def _make_room(self) -> None:
        """Show what there is room for: one panel on the right, or two of them and more on the left."""
        width, height = self.app.size
        tall, roomy = height >= self.TALL, width >= 108 and height >= 36
        left = (GuardsPanel, BreakpointsPanel) if roomy else ()
        self.query_one("#left GuardsPanel").display = tall
        self.query_one("#left BreakpointsPanel").display = roomy
        chosen = self.PANELS[self._panel]
        if roomy and chosen in (*left, self.BESIDE):
            chosen = self.PANELS[0]
        for panel in self.PANELS:
            shown = self.query_one(f"#right {panel.__name__}")
            shown.display = panel is chosen or (roomy and panel is self.BESIDE)
            if panel is self.BESIDE:
                shown.styles.height = 13 if roomy else "1fr"
        self.make_room(tall=tall, roomy=roomy)

    def make_room(self, *, tall: bool, roomy: bool) -> None:
        """Fit what a kind of session has otherwise."""
        self.query_one("#left").styles.width = "50%" if roomy else 41

    # --- moves, one after another, in a thread ------------------------------------------------------------------

    def _move(self, work: Callable[[], Lines]) -> None:
        """Do this as soon as what was asked for before is done."""
        if len(self._queue) < QUEUE:
            self._queue.append(work)
            self._start()

    def _start(self) -> None:
        if self.busy or not self._queue:
            return
        self.busy = True
        self.settled.clear()
        self.session.pausing = False
        work = self._queue.popleft()

        def move() -> None:
            said = work()
            self.post_message(Moved(self.look(), said))

        self.run_worker(move, thread=True, exit_on_error=True)

    def on_moved(self, message: Moved) -> None:
        self.busy = False
        self.view = message.view
        said = message.said
        if len(said) > 2 and not said[-1].startswith(("run ", "stopped: ")):
            self.app.push_screen(Pages("answer", "\n".join(said)))
        else:
            notable = [line for line in said if line.startswith(NOTABLE)]
            moved = [line for line in said if not line.startswith("run ")]
            self._said = " ".join(next(iter(notable or moved[-1:]), self._said).split())
        self._show(message.view)
        self._start()
        if not self.busy:
            self.settled.set()

    def _glance(self) -> None:
        if self.busy and self.view and self.session.run.status == "running":
            self._show(self.glimpse(self.view))

    def _show(self, view: View) -> None:
        self.query_one(StatusLine).show(view, self._said)
        for panel in self.query(Panel):
            panel.show(view)

    # --- keys ---------------------------------------------------------------------------------------------------

    def action_line(self, line: str) -> None:
        """Do what a command line says."""

        def work() -> Lines:
            try:
                return execute(self.session, line)
            except Quit:
                self.app.call_from_thread(self.action_quit)
                return []

        self._said = ""
        self._move(work)

    @on(Wanted)
    def do(self, wanted: Wanted) -> None:
        """Do what a panel wants, after a question if it has one."""
        if wanted.question:
            self.action_ask(wanted.question, wanted.line)
        else:
            self.action_line(wanted.line)

    def action_pause(self) -> None:
        self._queue.clear()
        self.session.pause()

    def action_walk(self, steps: int) -> None:
        def work() -> Lines:
            run = self.session.run
            self.session.goto(max(run.timeline.first, min(run.recorded_steps, run.step_count + steps)))
            return []

        self._said = ""
        self._move(work)

    def action_ask(self, hint: str, value: str, cursor: int | None = None) -> None:
        """Let the user finish a command line."""

        def answered(line: str | None) -> None:
            if line and line.strip():
                self.action_line(line)

        self.app.push_screen(Asked(hint, value, cursor), answered)

    def action_pages(self, line: str) -> None:
        """Show what a command says as pages, however short it is; errors in a line."""

        def work() -> Lines:
            said = execute(self.session, line)
            if said and not said[0].startswith("error: "):
                self.app.call_from_thread(self.app.push_screen, Pages(line, "\n".join(said)))
                return []
            return said

        self._said = ""
        self._move(work)

    def action_breakpoint(self) -> None:
        machine = self.session.run.machine
        guards = sorted(word for word in words_of(machine) if not word.startswith("~"))
        self.action_ask(
            f"phase NAME ({', '.join(machine.phases)})\nguard NAME ({', '.join(guards)})\n"
            f"if CONDITION ({', '.join(self.session.vocabulary.examples)})",
            "break ",
        )

    def action_signal(self) -> None:
        signals = dict.fromkeys(written(signal.name) for signal in self.session.run.machine.signals)
        self.action_ask(f"Which signal? {', '.join(signals) or 'this machine has none'}", "signal ")

    def action_answer(self) -> None:
        wanted = [found.words for found in self.view.inputs if found.kind == "answer"] if self.view else []
        self.action_ask(f"The answer in JSON{': it ' + wanted[0] if wanted else ''}", "answer ")

    def action_edit(self) -> None:
        edits = ", ".join(written(edit.name) for edit in self.session.run.machine.edits)
        self.action_ask(f'Which edit, with what arguments in JSON ({{"name": value}})? {edits or "none"}', "edit ")

    def action_panel(self, number: int) -> None:
        if number < len(self.PANELS):
            self._panel = number
            self._make_room()

    def action_whole(self) -> None:
        self.action_pages("context")

    def action_theme(self) -> None:
        self.app.theme = "textual-light" if self.app.theme == "textual-dark" else "textual-dark"

    def action_help(self) -> None:
        commands = execute(self.session, "help")
        self.app.push_screen(Pages("help", self.HELP_ON_KEYS + "\n" + "\n".join(commands)))

    def action_quit(self) -> None:
        self.action_pause()
        self.app.exit()
