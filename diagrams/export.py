"""Draws the built-in machine into this folder: `python diagrams/export.py`."""

from pathlib import Path

from phases import machine
from statemachine import to_mermaid, to_svg

FOLDER = Path(__file__).parent


def export(folder: Path = FOLDER) -> None:
    """Write generation.mmd and generation.svg (the latter needs Graphviz)."""
    folder.joinpath("generation.mmd").write_text(to_mermaid(machine), encoding="utf-8")
    folder.joinpath("generation.svg").write_text(to_svg(machine), encoding="utf-8")


if __name__ == "__main__":
    export()
