"""The debugger on a screen that nobody sees: keys and clicks go in, what is to be seen is read back from a picture."""

import asyncio
import xml.etree.ElementTree as ET
from collections.abc import Awaitable, Callable
from typing import Any

from phases.debugger.app import DebuggerApp
from phases.debugger.session import Session

Pilot = Callable[..., Awaitable[None]]


def on_screen(
    session: Session[Any],
    script: Callable[[DebuggerApp, Pilot], Awaitable[None]],
    size: tuple[int, int] = (120, 40),
) -> None:
    """Run a script of key presses on the application."""

    async def play() -> None:
        app = DebuggerApp(session)
        async with app.run_test(size=size) as pilot:
            await app.settled()

            async def press(*keys: str) -> None:
                for key in keys:
                    await pilot.press(key)
                    await app.settled()
                await pilot.pause()

            await script(app, press)

    asyncio.run(play())


def seen(app: DebuggerApp) -> str:
    """The screen as text."""
    rows: dict[float, str] = {}
    found = ET.fromstring(app.export_screenshot()).iter("{http://www.w3.org/2000/svg}text")
    for node in sorted(found, key=lambda node: float(node.get("x", 0))):
        row, column = float(node.get("y", 0)), round(float(node.get("x", 0)) / 12.2)
        rows[row] = rows.get(row, "").ljust(column) + "".join(node.itertext())
    return "\n".join(rows[row] for row in sorted(rows)).replace("\xa0", " ")


def typed(text: str) -> list[str]:
    names = {" ": "space", ".": "full_stop"}
    return [names.get(character, character) for character in text]
