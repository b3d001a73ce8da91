"""Machines of any kind on a full screen: keys, what is to be seen, and what must not freeze or break it."""

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import approval
import crossroads
import odd_context
import pytest
from debugger_screen import Pilot, on_screen, seen, typed

from phases.debugger.app import DebuggerApp, picture
from phases.debugger.dialogs import Asked, Pages
from phases.debugger.machine_session import live, recorded
from phases.debugger.session import Session
from statemachine import End, Machine, Phase, Transition

pytestmark = pytest.mark.slow

SIZES = [(80, 24), (140, 45)]


@pytest.fixture
def lights() -> Session[Any]:
    return live(crossroads.machine, crossroads.new_context)


def line_with(app: DebuggerApp, text: str) -> str:
    """The line of the screen in which this stands, its spaces made one."""
    return next((" ".join(line.split()) for line in seen(app).splitlines() if text in line), "")


@pytest.mark.parametrize("size", SIZES)
def test_the_screen_shows_the_place(lights: Session[Any], size: tuple[int, int]) -> None:
    async def script(app: DebuggerApp, press: Pilot) -> None:
        assert "ready at red" in " ".join(seen(app).split())
        await press("s")
        assert "▶ waiting 0 → 3" in line_with(app, "waiting")
        assert "seed 7" in line_with(app, "seed")
        assert "▶ waiting" not in line_with(app, "seed")
        assert "▶ green ┬─▶ green" in line_with(app, "┬─▶ green")
        assert "R G" in seen(app)
        await press("3")
        assert "✔ signal off any phase -> night" in line_with(app, "signal off")
        await press("4")
        assert "no breakpoints: k sets one" in seen(app)
        await press("2")
        assert "jam" in line_with(app, "true")
        await press("1", "9")
        assert "waiting" in seen(app)

    on_screen(lights, script, size)


def test_keys_move_the_run_and_what_comes_to_it(lights: Session[Any], tmp_path: Path) -> None:
    async def script(app: DebuggerApp, press: Pilot) -> None:
        run = lights.run
        await press("s", "s", "b", "left", "end", "home", "right")
        assert (run.step_count, run.recorded_steps) == (1, 2)
        await press("m", *typed('arrive {"cars": 4}'), "enter")
        assert "edited arrive: 4" in seen(app)
        assert "▶ waiting 3 → 7" in line_with(app, "waiting")
        assert "1 edit arrive: 4" in line_with(app, "edit arrive:")
        await press("m", "escape", "k", *typed("if waiting < 3"), "enter", "r")
        assert "stopped: breakpoint 1 (if waiting < 3)" in seen(app)
        assert run.context.waiting == 1
        await press("w", *typed(str(tmp_path / "a.snap")), "enter")
        assert "saved to" in seen(app)
        await press("l", *typed(str(tmp_path / "a.snap")), "enter")
        assert "run 2 of 2" in seen(app)
        await press("g")
        assert "Which signal? off" in seen(app)
        await press(*typed("off"), "enter")
        assert "cancelled at night" in " ".join(seen(app).split())
        await press("equals_sign")
        assert isinstance(app.screen, Pages)
        assert "run 2 and run 1 differ first at step" in seen(app)
        await press("escape", "v")
        assert "* waiting" not in seen(app)
        assert "passed" in seen(app)
        await press("escape", "question_mark")
        assert "send a signal; answer a run that waits; make an edit" in seen(app)
        assert "{" not in seen(app).replace("edit NAME {JSON}", "")
        await press("escape", "f", "c", "d", "e")
        assert "error: nothing has failed in this run" in seen(app)

    on_screen(lights, script)


def test_a_run_that_waits_is_answered() -> None:
    session = live(approval.machine, lambda: approval.Order(100))

    async def script(app: DebuggerApp, press: Pilot) -> None:
        await press("r")
        assert "waiting at approve, until 1970-01-02 00:16:40 UTC" in " ".join(seen(app).split())
        assert "✔ answer approve takes" in line_with(app, "answer approve")
        await press("r")
        assert "the run waits at approve for its answer" in seen(app)
        await press("y")
        assert isinstance(app.screen, Asked)
        assert "The answer in JSON: it takes" in seen(app)
        await press(*typed('{"yes": true}'), "enter")
        assert "paused at ship" in " ".join(seen(app).split())

    on_screen(session, script)


class Fails(Phase[Any, None]):
    broken = True

    def run(self, context: Any) -> None:
        if self.broken:
            raise ConnectionError("the gateway is down\n" + "\n".join(f"line {number}" for number in range(100)))


def test_a_failure_can_be_read_whole_and_is_tried_again() -> None:
    fails = Fails()
    session = live(Machine("fails", fails, [Transition(fails, End("done"))]), dict)

    async def script(app: DebuggerApp, press: Pilot) -> None:
        await press("r")
        assert "failed at fails" in " ".join(seen(app).split())
        assert line_with(app, "ConnectionError: the gateway is down").endswith("e: all of it")
        await press("e")
        assert isinstance(app.screen, Pages)
        assert "raise ConnectionError(" in seen(app)
        assert "line 99" not in seen(app)
        await press("end")
        await asyncio.sleep(0.5)  # it scrolls smoothly
        assert "line 99" in seen(app)
        fails.broken = False
        await press("escape", "s")
        assert "done at done" in " ".join(seen(app).split())

    on_screen(session, script)


@pytest.mark.parametrize("size", SIZES)
def test_an_odd_context_is_shown_and_never_freezes_the_screen(size: tuple[int, int]) -> None:
    session = live(odd_context.machine, odd_context.Odd)

    async def script(app: DebuggerApp, press: Pilot) -> None:
        began = time.monotonic()
        await press("s", "s", "s", "b", "v", "escape", "3", "1", "r")
        assert time.monotonic() - began < 20
        assert "<Secretive, whose" in seen(app)
        assert "hunter2" not in seen(app)
        assert "\x1b" not in seen(app)
        assert "[0, 1, 2, 3, 4" in seen(app)

    on_screen(session, script, size)


def test_what_takes_long_to_compare_is_not_compared_at_every_step() -> None:
    class Slow:
        def __deepcopy__(self, memo: object) -> "Slow":
            time.sleep(0.4)
            return self

    here = Phase[Any, None]("here")
    there = Phase[Any, None]("there")
    table = [Transition(here, there), Transition(there, End("done"))]
    session = live(Machine("slow", here, table), lambda: {"slow": Slow()})

    async def script(app: DebuggerApp, press: Pilot) -> None:
        await press("s")
        assert "too large to compare" not in seen(app)
        await press("s")
        assert "too large to compare" in seen(app)

    on_screen(session, script)


def test_the_screen_answers_while_a_phase_is_at_work() -> None:
    gate = threading.Event()

    class Slow(Phase[Any, None]):
        def run(self, context: Any) -> None:
            assert gate.wait(60)

    slow, after = Slow(), Phase[Any, None]("after")
    session = live(Machine("slow", slow, [Transition(slow, after), Transition(after, End("done"))]), dict)

    async def play() -> None:
        app = DebuggerApp(session)
        async with app.run_test(size=(100, 30)) as pilot:
            await app.settled()
            await pilot.press("r")
            while "running at slow" not in " ".join(seen(app).split()):
                await pilot.pause(0.05)
            await pilot.press("p", "2")
            assert "guards of slow" in seen(app)
            gate.set()
            await app.settled()
            await pilot.pause()
            assert "paused at after" in " ".join(seen(app).split())

    asyncio.run(play())


def test_a_machine_of_many_long_names_is_shown() -> None:
    phases = [Phase[Any, None](f"phase number {number} of many with a long name") for number in range(40)]
    ways = [Transition(one, other) for one, other in zip(phases, [*phases[1:], End("the end")], strict=True)]
    session = live(Machine("long", phases[0], ways), lambda: {f"field {n}": "x" * 500 for n in range(300)})

    async def script(app: DebuggerApp, press: Pilot) -> None:
        await press("s", "s", "s")
        assert "▶ phase number 3" in seen(app)
        assert "more: v shows all" in seen(app)
        await press("r")

    for size in ((20, 10), *SIZES):
        on_screen(session, script if size != (20, 10) else _only_keys, size)


async def _only_keys(app: DebuggerApp, press: Pilot) -> None:
    await press("1", "2", "3", "4", "1")


def test_a_record_on_screen(tmp_path: Path) -> None:
    path = tmp_path / "lights.jsonl"
    made = live(crossroads.machine, crossroads.new_context, path)
    made.run_on()
    made.close()

    async def script(app: DebuggerApp, press: Pilot) -> None:
        await press("s")
        assert "recorded at green" in " ".join(seen(app).split())
        assert "▶ waiting 0 → 3" in line_with(app, "waiting")
        await press("r", "f")
        assert "error: a record is only walked" in seen(app)

    on_screen(recorded(path, crossroads.machine, crossroads.new_context), script)


def test_a_picture(lights: Session[Any], tmp_path: Path) -> None:
    picture(lights, tmp_path / "a.svg", ["s", "s"], (90, 30), light=True)
    assert lights.run.step_count == 2
    assert (tmp_path / "a.svg").read_text().startswith("<svg")
