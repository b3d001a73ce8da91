"""The machine in characters."""

from debugger_lines import PARAMS, PROMPT, said

from phases import Generation, Generator, machine
from phases.debugger.drawing import draw
from phases.debugger.generation import GenerationSession
from statemachine import Phase


class Loud(Phase[Generation, None]):
    """Does nothing, between two phases."""


def test_a_machine_with_an_inserted_phase(generator: Generator) -> None:
    longer = machine.insert(Loud(), between=("decode", "check_stop"))
    other = Generator(generator.engine, generator.tokenizer, machine=longer, folder=generator.folder)
    session = GenerationSession.live(other, other.start(PROMPT, PARAMS, keep=True))
    answer = said(session, "break phase loud", "run", "machine", "delete 1", "run")
    drawing = answer[2:]
    assert any(line.startswith("▶ loud") for line in drawing)
    assert any("1▶ loud" in line for line in drawing)
    assert answer[-1].startswith("run 1  done")
    session.close()


def test_the_machine_is_drawn_with_its_counts() -> None:
    counts = {("sample", "decode"): 1234, ("check_stop", "sample"): 12}
    lines = draw(machine, "check_stop", counts, ("check_stop", "sample"))
    text = ["".join(part for part, _ in line) for line in lines]
    assert {len(line) for line in text} == {40}
    assert "│check_stop├──12─▶│sample├─1234▶│decode│" in text
    assert [part for line in lines for part, look in line if look == "lit"] == ["check_stop"]
    assert "12" in "".join(part for line in lines for part, look in line if look == "taken")
