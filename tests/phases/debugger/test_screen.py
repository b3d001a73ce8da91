"""The debugger on a full screen: keys go in, and what is to be seen is read back from a picture of it."""

import asyncio
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from debugger_lines import PARAMS, said
from debugger_screen import Pilot, on_screen, seen, typed
from gate import Gate

from phases import Generator, RowRequest
from phases.debugger import generation_view
from phases.debugger.app import DebuggerApp, picture
from phases.debugger.dialogs import Asked, Pages
from phases.debugger.distribution import Distribution
from phases.debugger.generation import GenerationSession
from phases.debugger.generation_view import GenerationView, glance, view_of
from phases.debugger.guards import GuardTruth
from phases.debugger.panels import GuardsPanel

pytestmark = pytest.mark.slow


def test_keys_move_the_run(session: GenerationSession) -> None:
    async def script(app: DebuggerApp, press: Pilot) -> None:
        run = session.run
        await press("s")
        assert run.step_count == 1
        await press("n", "n")
        assert run.step_count == 8
        assert "2 tokens" in seen(app)
        await press("b")
        assert run.step_count == 7
        await press("left", "left", "right")
        assert (run.step_count, run.recorded_steps) == (6, 8)
        await press("home")
        assert run.step_count == 0
        await press("end", "pageup")
        assert run.step_count == 0
        await press("pagedown", "r")
        assert str(run.status) == "done"
        assert "done at done" in " ".join(seen(app).split())
        await press("b")
        assert run.step_count == 25

    on_screen(session, script)


def test_keys_that_come_fast_are_not_lost(session: GenerationSession) -> None:
    async def play() -> None:
        app = DebuggerApp(session)
        async with app.run_test() as pilot:
            await app.settled()
            await pilot.press("s", "s", "s", "s", "n")
            await app.settled()
            assert session.run.step_count == 5

    asyncio.run(play())


def test_the_screen_shows_the_place(session: GenerationSession) -> None:
    async def script(app: DebuggerApp, press: Pilot) -> None:
        assert "no logits yet" in seen(app)
        await press("n", "s")
        text = seen(app)
        assert "│sample├──2──▶│decode│" in text
        assert "token 2 was drawn from" in text
        assert "kv run 1" in text
        for buffer in session.buffers()[:-1]:  # there is no room for the last one
            assert f"{buffer.address:#x}" in text
        assert "because ~nothing_left" in text
        assert "T P S D C S D" in text
        view = view_of(session)
        assert isinstance(view.distribution, Distribution)
        assert view.text.last in text
        await press("s", "s")
        assert "candidates for token 3" in seen(app)
        assert "nothing_left" in seen(app)

    on_screen(session, script)


def test_guards_and_choices_are_told_apart(session: GenerationSession) -> None:
    told = (GuardTruth("paid", True), GuardTruth("route", "tools"), GuardTruth("late", None))
    view = replace(view_of(session), guards=told)
    shown = [line.rstrip() for line in GuardsPanel().draw(view, 40, 5).plain.splitlines()]
    assert shown[:3] == ["✔ true  paid", "◆       route = tools", "? unset late"]


@pytest.mark.parametrize("size", [(80, 24), (100, 30)])
def test_small_screens_show_one_panel_at_a_time(session: GenerationSession, size: tuple[int, int]) -> None:
    async def script(app: DebuggerApp, press: Pilot) -> None:
        await press("n")
        assert "entropy" in seen(app)
        assert "input_ids" not in seen(app)
        await press("3")
        assert "input_ids" in seen(app)
        assert "kv run 1" in seen(app)
        await press("4")
        assert "no breakpoints: k sets one" in seen(app)
        await press("2")
        assert "nothing_left" in seen(app)
        text = seen(app)
        for word in ("quit", "help", "timeline", "detokenize", "the quick fox"):
            assert word in text

    on_screen(session, script, size)


def test_prompts_set_breakpoints_and_change_the_run(session: GenerationSession) -> None:
    async def script(app: DebuggerApp, press: Pilot) -> None:
        await press("k", *typed("phase decode"), "enter")
        assert [str(found) for found in session.breakpoints] == ["phase decode"]
        await press("k", *typed("if length"), "enter")
        assert "error: expected a comparison" in seen(app)
        await press("k", "escape")
        assert not isinstance(app.screen, Asked)
        await press("r")
        assert "stopped: breakpoint 1 (phase decode)" in seen(app)
        await press("K", "1", "enter", "x", *typed("30"), "enter", "t", "0", "enter", "n", "n")
        assert session.run.context.output_ids[0][1] == 30
        assert session.run.context.request.requests[0].params.temperature == 0
        await press("a", *typed("the fox"), "enter")
        assert session.run.context.forced[0]
        await press("f")
        assert "run 2 of 2" in seen(app)
        await press("tab")
        assert "run 1 of 2" in seen(app)
        await press("tab", "c")
        assert len(session.branches) == 1
        await press("colon", *typed("timeline"), "enter")
        assert isinstance(app.screen, Pages)
        assert "tokenize -> prefill" in seen(app)
        await press("escape", "question_mark")
        assert "walk the timeline" in seen(app)
        await press("q", "d", "v")
        assert app.theme == "textual-light"
        assert "the quick fox" in seen(app)
        await press("escape", "q")

    on_screen(session, script)


def test_save_and_load_by_keys(session: GenerationSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    async def script(app: DebuggerApp, press: Pilot) -> None:
        await press("n", "w", *typed("a.snap"), "enter")
        assert Path("a.snap").exists()
        await press("l", *typed("a.snap"), "enter")
        assert "run 2 of 2" in seen(app)
        assert session.run.step_count == 5

    on_screen(session, script)


def test_running_does_not_block_and_p_pauses(
    session: GenerationSession, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, glanced = Gate(generator, monkeypatch), asyncio.Event()

    def noted(*arguments: Any) -> GenerationView:
        glanced.set()
        return glance(*arguments)

    monkeypatch.setattr(generation_view, "glance", noted)

    async def play() -> None:
        app = DebuggerApp(session)
        async with app.run_test(size=(100, 30)) as pilot:
            await app.settled()
            await pilot.press("r")
            await asyncio.to_thread(gate.wait)
            glanced.clear()
            await glanced.wait()
            await pilot.pause()
            assert "running at decode" in " ".join(seen(app).split())
            await pilot.press("p")
            gate.open(100)
            await app.settled()
            await pilot.pause()
            assert session.run.status == "paused"
            assert session.run.step_count == 4
            assert "stopped: paused" in seen(app)
            await pilot.press("r")
            await app.settled()
            assert session.run.status == "done"

    asyncio.run(play())


def test_quitting_while_it_runs(
    session: GenerationSession, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(generator, monkeypatch)

    async def play() -> None:
        app = DebuggerApp(session)
        async with app.run_test() as pilot:
            await app.settled()
            await pilot.press("r")
            await asyncio.to_thread(gate.wait)
            await pilot.press("q")
            gate.open(100)

    asyncio.run(play())
    session.close()
    assert generator.engine.kv_cache.free == 4


def test_a_failure_is_shown(session: GenerationSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.run.context.bound_engine, "decode", lambda rows: 1 / 0)

    async def script(app: DebuggerApp, press: Pilot) -> None:
        await press("r")
        assert "failed at decode" in " ".join(seen(app).split())
        assert "ZeroDivisionError" in seen(app)
        monkeypatch.undo()
        await press("b", "r")
        assert "done at done" in " ".join(seen(app).split())

    on_screen(session, script)


def test_a_record_on_screen(journal: Path) -> None:
    async def script(app: DebuggerApp, press: Pilot) -> None:
        await press("n", "n")
        assert "buffers are not recorded" in seen(app)
        assert "logit" in seen(app)
        assert "recorded" in seen(app)
        await press("end", "f")
        assert "error: a record is only walked" in seen(app)

    on_screen(GenerationSession.recorded(journal), script)


def test_a_picture(session: GenerationSession, tmp_path: Path) -> None:
    path = tmp_path / "a.svg"
    picture(session, path, ["n", "n", "s"], (100, 30))
    ET.parse(path)
    assert session.run.step_count == 9


def test_text_of_the_model_cannot_reach_the_terminal_as_control_codes(generator: Generator) -> None:
    prompt = "a\x1b[31m\x07\tb\u202ec\r\x9b"
    session = GenerationSession.live(generator, generator.start(RowRequest(prompt=prompt, raw=True), PARAMS, keep=True))
    session.append("\x1b]0;title\x07")

    async def script(app: DebuggerApp, press: Pilot) -> None:
        await press("n", "n", "n", "v")
        assert "a␛[31m␇␉b" in seen(app)
        assert not set(seen(app)) & set("\x1b\x07\x9b\u202e")

    on_screen(session, script)
    assert not set("".join(said(session, "text", "candidates", "timeline"))) & set("\x1b\x07\x9b\u202e")
    session.close()
