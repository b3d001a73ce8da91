"""The debugger on a full screen."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.screen import Screen

from phases.debugger.command import Lines, Quit
from phases.debugger.commands import execute
from phases.debugger.dialogs import Asked, Pages
from phases.debugger.generation import GenerationSession
from phases.debugger.generation_panels import BuffersPanel, CandidatesPanel, TextPanel
from phases.debugger.guards import words_of
from phases.debugger.panels import (
    BreakpointsPanel,
    GuardsPanel,
    KeysLine,
    MachinePanel,
    Panel,
    StatusLine,
    TimelinePanel,
)
from phases.debugger.view import View, glance

KEYS = (
    ("s", "step"), ("n", "next"), ("r", "run"), ("p", "pause"), ("b", "back"), ("←→", "scrub"), ("k", "break"),
    ("x", "force"), ("t", "temp"), ("a", "append"), ("f", "fork"), ("tab", "switch"), ("w", "save"), ("l", "load"),
    ("1-4", "view"), (":", "line"), ("?", "help"), ("q", "quit"),
)  # fmt: skip
KEYS_HELP = """\
s         step: the next phase runs
n         next: go on until one more token has been checked
r  p      run until a breakpoint or the end; pause at the next boundary
b         back a step
← →       walk the timeline; PgUp PgDn ten steps, Home End all the way
k  K      set a breakpoint (phase, guard or condition); take one out
x  t  a   force the next token; change the temperature; append text
f  Tab  c fork: a second run with the same past; the next run; close it
w  l      save a snapshot; load one as another run
1 2 3 4   candidates, guards, buffers, breakpoints, where not all fit
v  d      the whole text; dark or light
:         any command of the list below
?  q      this help; quit

A step taken in the past forgets what was recorded ahead of it;
walking the timeline does not.
"""
PANELS: tuple[type[Panel], ...] = (CandidatesPanel, GuardsPanel, BuffersPanel, BreakpointsPanel)
NOTABLE = ("error", "stopped", "breakpoint", "forced", "saved")  # answers that matter more than where the run rests
QUEUE = 50  # moves that may wait for the one at work
GLANCE = 0.1  # seconds between two looks at a run at work


class Moved(Message):
    """A move has been made, by the thread that makes them."""

    def __init__(self, view: View, said: Lines) -> None:
        super().__init__()
        self.view, self.said = view, said


class DebuggerScreen(Screen[None]):
    """The panels, and the keys that move the run.

    Every move is made in a thread of its own, one after another, so that keys and pictures never wait for the model.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "line('step')", "step"),
        Binding("n", "line('next')", "next token"),
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
        Binding("x", "force", "force a token"),
        Binding("t", "temperature", "change the temperature"),
        Binding("a", "append", "append text"),
        Binding("f", "line('fork')", "fork"),
        Binding("tab", "line('switch')", "switch"),
        Binding("c", "line('close')", "close this run"),
        Binding("w", "ask('Save a snapshot as', 'save ')", "save"),
        Binding("l", "ask('Load the snapshot', 'load ')", "load"),
        Binding("colon", "ask('Any command; help lists them', '')", "command"),
        Binding("v", "text", "the whole text"),
        Binding("d", "theme", "dark or light"),
        Binding("question_mark,f1", "help", "help"),
        Binding("q", "quit", "quit"),
        *(Binding(str(number + 1), f"panel({number})", "panel") for number in range(len(PANELS))),
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
    TextPanel { height: 4; }
    TimelinePanel { height: 4; }
    KeysLine { height: auto; }
    """

    def __init__(self, session: GenerationSession) -> None:
        super().__init__()
        self.session = session
        self.view: View | None = None
        self._queue: deque[Callable[[], Lines]] = deque()
        self.busy = False
        self.settled = asyncio.Event()  # every move that was asked for has been made and shown
        self._panel = 0
        self._said = ""

    def compose(self) -> ComposeResult:
        yield StatusLine()
        with Horizontal(id="top"):
            with Vertical(id="left"):
                yield MachinePanel()
                yield GuardsPanel()
                yield BreakpointsPanel()
            with Vertical(id="right"):
                for panel in PANELS:
                    yield panel()
        yield TextPanel()
        yield TimelinePanel()
        keys = KeysLine()
        keys.keys = KEYS
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
        """Show what there is room for: one panel on the right, with guards on the left, or all of them."""
        width, height = self.app.size
        tall, roomy = height >= 29, width >= 108 and height >= 36
        self.query_one("#left GuardsPanel").display = tall
        self.query_one("#left BreakpointsPanel").display = roomy
        for number, panel in enumerate(PANELS):
            shown = panel in (CandidatesPanel, BuffersPanel) if roomy else number == self._panel
            self.query_one(f"#right {panel.__name__}").display = shown
        self.query_one("#right BuffersPanel").styles.height = 13 if roomy else "1fr"
        self.query_one(TextPanel).styles.height = 6 if roomy else 5 if tall else 4

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
            self.post_message(Moved(View.of(self.session), said))

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
            self._show(glance(self.session, self.view))

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

    def action_pause(self) -> None:
        self._queue.clear()
        self.session.pause()

    def action_walk(self, steps: int) -> None:
        def work() -> Lines:
            run = self.session.run
            self.session.goto(max(0, min(run.recorded_steps, run.step_count + steps)))
            return []

        self._said = ""
        self._move(work)

    def action_ask(self, hint: str, value: str, cursor: int | None = None) -> None:
        """Let the user finish a command line."""

        def answered(line: str | None) -> None:
            if line and line.strip():
                self.action_line(line)

        self.app.push_screen(Asked(hint, value, cursor), answered)

    def action_breakpoint(self) -> None:
        machine = self.session.run.machine
        guards = sorted(word for word in words_of(machine) if not word.startswith("~"))
        self.action_ask(
            f"phase NAME ({', '.join(machine.phases)})\nguard NAME ({', '.join(guards)})\n"
            f'if CONDITION (top1 < 0.3, token == "\\n", length == 40)',
            "break ",
        )

    def action_force(self) -> None:
        self.action_ask('Which token comes next? An id, or text in quotes, as in force " dog"', "force ")

    def action_temperature(self) -> None:
        self.action_ask(
            "From here on; 0 is greedy. Also: set top_k, top_p, min_p, seed, max_new_tokens", "set temperature "
        )

    def action_append(self) -> None:
        self.action_ask("The row goes on with this text", 'append " "', len('append " '))

    def action_panel(self, number: int) -> None:
        self._panel = number
        self._make_room()

    def action_text(self) -> None:
        if self.view:
            text = self.view.text
            self.app.push_screen(Pages("text", f"{text.prompt}\n\n{text.before}{text.last}"))

    def action_theme(self) -> None:
        self.app.theme = "textual-light" if self.app.theme == "textual-dark" else "textual-dark"

    def action_help(self) -> None:
        commands = execute(self.session, "help")
        self.app.push_screen(Pages("help", KEYS_HELP + "\n" + "\n".join(commands)))

    def action_quit(self) -> None:
        self.action_pause()
        self.app.exit()


class DebuggerApp(App[None]):
    """The application around the one screen."""

    ENABLE_COMMAND_PALETTE = False
    TITLE = "phasewalk step"

    def __init__(self, session: GenerationSession, *, light: bool = False) -> None:
        super().__init__()
        self.debugger = DebuggerScreen(session)
        self._light = light

    def on_mount(self) -> None:
        self.theme = "textual-light" if self._light else "textual-dark"
        self.push_screen(self.debugger)

    async def settled(self) -> None:
        """Wait until every move that was asked for has been made and shown, or the screen is left."""
        await self.debugger.settled.wait()


def picture(
    session: GenerationSession, path: Path, keys: Sequence[str], size: tuple[int, int], *, light: bool = False
) -> None:
    """Press keys on a screen that nobody sees, and write what it shows then as SVG."""

    async def press() -> str:
        app = DebuggerApp(session, light=light)
        async with app.run_test(size=size) as pilot:
            await app.settled()
            for key in keys:
                await pilot.press(key)
                await app.settled()
            await pilot.pause()
            return app.export_screenshot(title="phasewalk step")

    path.write_text(asyncio.run(press()), encoding="utf-8")
