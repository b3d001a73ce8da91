"""phasewalk diagram: a recorded machine, with counts and colours."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

from command_line import Command
from graphviz_program import needs_dot
from statemachine_recorded import record


def test_diagram_of_a_journal_counts_and_colours(phasewalk: Command, journal: Path) -> None:
    mermaid = phasewalk("diagram", "--journal", str(journal))[1]
    assert "    s2 --> s3 : ~nothing_left 11#215;\n" in mermaid
    assert "    s2 --> s4 : nothing_left 1#215;\n" in mermaid
    assert "    s5 --> s6 : 1#215;\n" in mermaid
    assert re.search(r"class s3 heat\d", mermaid)
    assert "class s6 heat" not in mermaid  # an end takes no time
    dot = phasewalk("diagram", "--journal", str(journal), "--format", "dot")[1]
    assert re.search(r'label="decode\\n[\d.]+ [µm]?s · [\d.]+%', dot)
    assert phasewalk("diagram", "--journal", str(journal), "--highlight", "decode")[1].endswith("class s3 lit\n")
    code, _, err = phasewalk("diagram", "phases.generation:machine2", "--journal", str(journal))
    assert code == 2
    assert "not both" in err


@needs_dot
def test_diagram_of_another_machines_journal_as_pictures(phasewalk: Command, tmp_path: Path) -> None:
    record(tmp_path / "walk.jsonl")
    phasewalk("diagram", "--journal", "walk.jsonl", "-o", "walk.svg")
    phasewalk("diagram", "--journal", "walk.jsonl", "-o", "walk.png")
    texts = ["".join(node.itertext()).strip() for node in ET.parse("walk.svg").iter("{http://www.w3.org/2000/svg}text")]
    assert {"walk", "draw", "note", "done", "stopped"} <= set(texts)
    assert any(text.startswith("odd & ~far_enough ") for text in texts)
    assert Path("walk.png").read_bytes().startswith(b"\x89PNG")
