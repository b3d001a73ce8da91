"""phasewalk diagram: every format, and the exported pictures."""

import os
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

from command_line import Command
from graphviz_program import needs_dot
from statemachine_recorded import record

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


@needs_dot
def test_diagram_draws_pdf(phasewalk: Command) -> None:
    assert phasewalk("diagram", "-o", "machine.PDF").code == 0
    assert Path("machine.PDF").read_bytes().startswith(b"%PDF-")


def test_an_unknown_ending_is_refused_unless_the_format_is_said(phasewalk: Command) -> None:
    answer = phasewalk("diagram", "-o", "machine.doc")
    assert answer.code == 2
    assert ".mmd, .md, .dot, .gv, .svg, .png, .pdf" in answer.err
    assert not Path("machine.doc").exists()
    assert phasewalk("diagram", "-o", "machine").code == 2
    assert phasewalk("diagram", "-o", "machine.doc", "--format", "dot").code == 0
    assert Path("machine.doc").read_text().startswith("digraph")


def test_markdown_holds_the_diagram_as_a_block(phasewalk: Command) -> None:
    from phases import machine

    assert phasewalk("diagram", "-o", "machine.md").code == 0
    assert Path("machine.md").read_text() == f"```mermaid\n{to_mermaid(machine)}```\n"


def test_a_dash_is_stdout(phasewalk: Command, journal: Path) -> None:
    assert phasewalk("diagram", "-o", "-").out == phasewalk("diagram").out
    assert phasewalk("trace", str(journal), "-o", "-").out == phasewalk("trace", str(journal)).out
    page = phasewalk("report", str(journal), "-o", "-")
    assert page.out.startswith("<!DOCTYPE html>")
    assert page.err == ""
    assert list(Path().iterdir()) == []


def test_the_output_is_whole_or_as_before_and_never_what_is_read(phasewalk: Command, journal: Path) -> None:
    Path("a.jsonl").write_bytes(journal.read_bytes())
    Path("link.html").symlink_to("page.html")
    os.mkfifo("fifo")
    for command in ("trace", "report"):
        answer = phasewalk(command, "a.jsonl", "-o", "a.jsonl")
        assert answer.code == 2
        assert "is what is read" in answer.err
        assert Path("a.jsonl").read_bytes() == journal.read_bytes()
        reader = os.open("fifo", os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(reader, False)
        assert phasewalk(command, "a.jsonl", "-o", "fifo").code in (0, 1)  # 1: the page is more than a pipe holds
        os.close(reader)
        assert Path("fifo").is_fifo()
        unread = phasewalk(command, "a.jsonl", "-o", "fifo")
        assert (unread.code, unread.err) == (1, "phasewalk: fifo: No such device or address\n")
        assert phasewalk(command, "a.jsonl", "-o", "link.html").code == 0
        assert Path("link.html").is_symlink()
    missing = phasewalk("diagram", "-o", "no/such/folder.svg", "--format", "dot")
    assert (missing.code, missing.err) == (1, "phasewalk: no/such/folder.svg: No such file or directory\n")


def test_diagram_of_a_journal_counts_and_colours(phasewalk: Command, batch_journal: Path) -> None:
    mermaid = phasewalk("diagram", "--journal", str(batch_journal))[1]
    assert "    s2 --> s3 : ~nothing_left 11#215;\n" in mermaid
    assert "    s2 --> s4 : nothing_left 1#215;\n" in mermaid
    assert "    s5 --> s6 : 1#215;\n" in mermaid
    assert re.search(r"class s3 heat\d", mermaid)
    assert "class s6 heat" not in mermaid  # an end takes no time
    dot = phasewalk("diagram", "--journal", str(batch_journal), "--format", "dot")[1]
    assert re.search(r'label="decode\\n[\d.]+ [µm]?s · [\d.]+%', dot)
    assert phasewalk("diagram", "--journal", str(batch_journal), "--highlight", "decode")[1].endswith("class s3 lit\n")
    code, _, err = phasewalk("diagram", "phases.generation:machine2", "--journal", str(batch_journal))
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
