"""The mouse on the full screen, and candidates that are chosen by keys."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import crossroads
import pytest
from debugger_screen import seen
from textual.pilot import Pilot

from phases.debugger.app import DebuggerApp
from phases.debugger.candidates_panel import CandidatesPanel
from phases.debugger.dialogs import Asked
from phases.debugger.distribution import Distribution
from phases.debugger.generation import GenerationSession
from phases.debugger.machine_session import live
from phases.debugger.panels import MachinePanel
from phases.debugger.session import Session
from phases.debugger.timeline_panel import TimelinePanel

pytestmark = pytest.mark.slow


def with_mouse(
    session: Session[Any], script: Callable[[DebuggerApp, Pilot[None]], Awaitable[None]], size: tuple[int, int]
) -> None:
    async def play() -> None:
        app = DebuggerApp(session)
        async with app.run_test(size=size) as pilot:
            await app.settled()
            await script(app, pilot)

    asyncio.run(play())


async def click(app: DebuggerApp, pilot: Pilot[None], on: type, text: str, *, line: int | None = None) -> None:
    """Click on a text in a panel, and wait for what comes of it."""
    panel = app.screen.query_one(on.__name__)
    rows = [line] if line is not None else range(panel.size.height)
    for row in rows:
        drawn = panel.render().plain.split("\n")[row]
        if (column := drawn.find(text)) >= 0:
            await pilot.click(panel, offset=(column, row + 1))  # below its border
            await app.settled()
            await pilot.pause()
            return
    raise AssertionError(f"{text!r} is not in {on.__name__}")


SIZES = [(80, 24), (120, 40)]


@pytest.mark.parametrize("size", SIZES)
def test_a_click_on_the_timeline_goes_there(size: tuple[int, int]) -> None:
    session = live(crossroads.machine, crossroads.new_context)

    async def script(app: DebuggerApp, pilot: Pilot[None]) -> None:
        await pilot.press("r")
        await app.settled()
        timeline = app.screen.query_one(TimelinePanel)
        for x, y, step in (
            (0, 2, 0),
            (8, 2, 4),
            (9, 2, 4),
            (20, 2, 10),
            (60, 2, 10),
            (0, 1, 0),
            (timeline.size.width - 1, 1, 10),
        ):
            await pilot.click(timeline, offset=(x, y))
            await app.settled()
            assert session.run.step_count == step, (x, y)
        await pilot.click(timeline, offset=(timeline.size.width // 2, 1))
        await app.settled()
        assert session.run.step_count == 5
        await pilot.click(timeline, offset=(4, 3))  # the words below: nothing to go to
        await pilot.click(timeline, offset=(4, 0))
        await app.settled()
        assert session.run.step_count == 5

    with_mouse(session, script, size)


@pytest.mark.parametrize("size", SIZES)
def test_a_click_on_a_phase_sets_a_breakpoint_and_takes_it_out(size: tuple[int, int]) -> None:
    session = live(crossroads.machine, crossroads.new_context)

    async def script(app: DebuggerApp, pilot: Pilot[None]) -> None:
        await click(app, pilot, MachinePanel, "green", line=1)
        assert [str(found) for found in session.breakpoints] == ["phase green"]
        assert "●green" in seen(app)
        await click(app, pilot, MachinePanel, "red", line=2)  # the target of an arrow
        assert [found.target for found in session.breakpoints] == ["green", "red"]
        await click(app, pilot, MachinePanel, "green", line=1)
        await click(app, pilot, MachinePanel, "┬", line=1)
        assert [found.target for found in session.breakpoints] == ["red"]

    with_mouse(session, script, size)


@pytest.mark.parametrize("size", SIZES)
def test_a_click_on_a_box_sets_a_breakpoint(session: GenerationSession, size: tuple[int, int]) -> None:
    async def script(app: DebuggerApp, pilot: Pilot[None]) -> None:
        await click(app, pilot, MachinePanel, "decode")
        assert [str(found) for found in session.breakpoints] == ["phase decode"]
        assert "●decode" in seen(app)
        await pilot.press("r")
        await app.settled()
        assert session.run.phase.name == "decode"
        await click(app, pilot, MachinePanel, "decode")
        assert not [*session.breakpoints]

    with_mouse(session, script, size)


def candidates(session: GenerationSession) -> list[int]:
    shown = session.distribution()
    assert isinstance(shown, Distribution)
    return [candidate.token_id for candidate in shown.candidates]


@pytest.mark.parametrize("size", SIZES)
def test_a_click_on_a_candidate_asks_and_then_forces_it(session: GenerationSession, size: tuple[int, int]) -> None:
    async def script(app: DebuggerApp, pilot: Pilot[None]) -> None:
        await pilot.press("n")
        await app.settled()
        await pilot.pause()
        third = candidates(session)[2]
        await click(app, pilot, CandidatesPanel, f"{third:>6} ")
        assert isinstance(app.screen, Asked)
        await pilot.press("escape")
        await app.settled()
        assert not session.run.context.forced[0]
        await click(app, pilot, CandidatesPanel, f"{third:>6} ")
        await pilot.press("enter")
        await app.settled()
        await pilot.press("n")
        await app.settled()
        assert session.run.context.output_ids[0][1] == third

    with_mouse(session, script, size)


@pytest.mark.parametrize("size", SIZES)
def test_arrow_keys_choose_a_candidate_and_enter_forces_it(session: GenerationSession, size: tuple[int, int]) -> None:
    async def script(app: DebuggerApp, pilot: Pilot[None]) -> None:
        await pilot.press("n", "3")
        await app.settled()
        listed = candidates(session)
        await pilot.press("i")
        await pilot.pause()
        assert "↑ ↓ choose, Enter forces, Esc leaves" in seen(app)
        assert all(f" {token} " in seen(app) for token in listed[:5])  # their ids
        await pilot.press("up", *["down"] * 14, "up", "enter")
        await app.settled()
        await pilot.pause()
        assert f"forced next: {listed[13]}" in seen(app)
        assert "candidates for token 2, forced" in seen(app)
        await pilot.press("n", "i", "down", "escape", "n")
        await app.settled()
        assert session.run.context.output_ids[0][1] == listed[13]
        assert len(session.run.context.output_ids[0]) == 3
        assert not [place for place in session.run.context.forced[0] if place > 1]

    with_mouse(session, script, size)


def test_choosing_where_there_is_nothing_to_choose(session: GenerationSession) -> None:
    async def script(app: DebuggerApp, pilot: Pilot[None]) -> None:
        await pilot.press("i", "down", "up", "enter", "s")
        await app.settled()
        assert session.run.step_count == 1

    with_mouse(session, script, (100, 30))
