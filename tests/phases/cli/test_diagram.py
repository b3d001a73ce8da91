"""phasewalk diagram: every format, and the exported pictures."""

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

from command_line import Command
from graphviz_program import needs_dot

from statemachine import to_mermaid

REPOSITORY = Path(__file__).parents[3]


def test_diagram_draws_every_format(phasewalk: Command) -> None:
    from phases import machine

    assert phasewalk("diagram").out == to_mermaid(machine)
    assert phasewalk("diagram", "--format", "mermaid", "--highlight", "decode").out.endswith("class s3 lit\n")
    assert phasewalk("diagram", "-o", "machine.dot").code == 0
    assert Path("machine.dot").read_text().startswith("digraph generation")


@needs_dot
def test_diagram_draws_pictures(phasewalk: Command) -> None:
    phasewalk("diagram", "-o", "machine.svg")
    phasewalk("diagram", "-o", "machine.png")
    ET.parse("machine.svg")
    assert Path("machine.png").read_bytes().startswith(b"\x89PNG")


@needs_dot
def test_the_exported_diagrams_are_current(tmp_path: Path) -> None:
    """Coordinates differ between versions of Graphviz; what is drawn must not."""
    sys.path.insert(0, str(REPOSITORY / "diagrams"))
    from export import export

    export(tmp_path)

    def drawn(path: Path) -> list[str]:
        return sorted(
            "".join(node.itertext()).strip() for node in ET.parse(path).iter() if node.text and node.text.strip()
        )

    hint = "stale: run python diagrams/export.py"
    assert drawn(tmp_path / "generation.svg") == drawn(REPOSITORY / "diagrams" / "generation.svg"), hint
    mermaid = (REPOSITORY / "diagrams" / "generation.mmd").read_text(encoding="utf-8")
    assert (tmp_path / "generation.mmd").read_text(encoding="utf-8") == mermaid, hint
