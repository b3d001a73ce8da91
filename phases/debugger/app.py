"""The debugger's application: the screen for the kind of session that it is given, or a picture of it."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from textual.app import App

from phases.debugger.generation import GenerationSession
from phases.debugger.generation_screen import GenerationScreen
from phases.debugger.screen import DebuggerScreen
from phases.debugger.session import Session


class DebuggerApp(App[None]):
    """The application around the one screen."""

    ENABLE_COMMAND_PALETTE = False
    TITLE = "phasewalk step"

    def __init__(self, session: Session[Any], *, light: bool = False) -> None:
        super().__init__()
        kind = GenerationScreen if isinstance(session, GenerationSession) else DebuggerScreen
        self.debugger: DebuggerScreen = kind(session)
        self._light = light

    def on_mount(self) -> None:
        self.theme = "textual-light" if self._light else "textual-dark"
        self.push_screen(self.debugger)

    async def settled(self) -> None:
        """Wait until every move that was asked for has been made and shown, or the screen is left."""
        await self.debugger.settled.wait()


def picture(
    session: Session[Any], path: Path, keys: Sequence[str], size: tuple[int, int], *, light: bool = False
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
