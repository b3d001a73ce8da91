"""Pictures of a machine show every phase, guard and signal, whatever their names hold."""

import itertools
import json
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from desk import machine as desk
from graphviz_program import needs_dot
from hypothesis import given, settings
from hypothesis import strategies as st

from statemachine import (
    End,
    GraphvizMissing,
    Guard,
    Machine,
    Phase,
    Signal,
    Status,
    Transition,
    to_dot,
    to_mermaid,
    to_png,
    to_svg,
)
from statemachine.record.header import machine_record
from statemachine.views.chart import Chart

AWKWARD = [
    "two words",
    "a-b",
    'the "quoted" one',
    "back\\nslash",
    "a --> b : c; d",
    "<b>bold</b> & co",
    "naïve 猫 🦊",
    "end",
]


def awkward(names: list[str]) -> Machine[object]:
    phases = [Phase(name) for name in names]
    end, cancelled = End("the end"), End("given up", status=Status.CANCELLED)
    is_it = Guard('is "it" <= 3; ok?', lambda context: True)
    table = [Transition(a, b) for a, b in itertools.pairwise(phases)]
    table += [Transition(phases[-1], end, is_it), Transition(phases[-1], phases[0], ~is_it)]
    return Machine("a: machine", start=phases[0], transitions=table, signals=[Signal("give up!", to=cancelled)])


def texts(svg: str) -> list[str]:
    return ["".join(node.itertext()).strip() for node in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


@needs_dot
def test_svg_shows_awkward_names_as_they_are() -> None:
    shown = texts(to_svg(awkward(AWKWARD)))
    for name in [*AWKWARD, "the end", 'is "it" <= 3; ok?', '~is "it" <= 3; ok?', "signal give up!", "a: machine"]:
        assert name in shown


@needs_dot
@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1), min_size=1, unique=True)
)
@settings(max_examples=20, deadline=None)
def test_graphviz_reads_any_names(names: list[str]) -> None:
    machine = awkward([name for name in names if name not in ("the end", "given up", "=", "*")] or ["a"])
    answer = subprocess.run(["dot", "-Tjson"], input=to_dot(machine).encode(), capture_output=True, check=True)
    graph = json.loads(answer.stdout)
    labels = [node["label"] for node in graph["objects"] if node["name"] not in ("start", "any")]
    assert len(labels) == len(machine.phases)
    assert len(graph["edges"]) == 1 + len(machine.transitions) + len(machine.signals)


@given(st.lists(st.text(min_size=1), min_size=1, unique=True))
@settings(max_examples=50, deadline=None)
def test_mermaid_keeps_names_out_of_its_syntax(names: list[str]) -> None:
    machine = awkward([name for name in names if name not in ("the end", "given up", "=", "*")] or ["a"])
    lines = to_mermaid(machine).splitlines()
    assert json.loads(lines[1].removeprefix("title: ")) == "a: machine"
    body = lines[4:]
    assert len(body) == len(machine.phases) + 1 + len(machine.transitions) + 1 + len(machine.signals) + 2
    for line in body:
        label = line.partition(" : ")[2] if "-->" in line else line.partition('"')[2].rpartition('"')[0]
        assert set(label) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_ ~&|#;")


def test_start_ends_guards_signals_and_one_lit_phase() -> None:
    machine = awkward(["a", "b"])
    mermaid = to_mermaid(machine, highlight="b").splitlines()
    assert "    [*] --> s0" in mermaid
    assert [line for line in mermaid if line.endswith("--> [*]")] == ["    s2 --> [*]", "    s3 --> [*]"]
    assert "    class s1 lit" in mermaid
    assert to_dot(machine, highlight="b").count("penwidth=2.4") == 1
    assert to_dot(machine).count("peripheries=2") == 2
    with pytest.raises(ValueError, match="no phase 'c'; phases: a, b"):
        to_mermaid(machine, highlight="c")


def test_a_signal_is_drawn_with_what_it_carries_and_its_guard() -> None:
    mermaid = to_mermaid(desk).splitlines()
    assert [line for line in mermaid if "signal" in line] == [
        "    s0 --> s1 : signal hurry when begun",
        "    s1 --> s2 : signal hurry",
        "    s1 --> s2 : signal approve#40;Approval#41; when written",
        "    any --> s4 : signal drop",
    ]
    dot = to_dot(desk)
    for label in ("signal hurry when begun", "signal approve(Approval) when written", "signal drop"):
        assert f"  {label}  " in dot
    recorded = Chart.of_record(machine_record(desk))
    assert to_mermaid(recorded) == to_mermaid(desk)


@needs_dot
def test_png_is_a_png() -> None:
    assert to_png(awkward(["a"])).startswith(b"\x89PNG\r\n")


def test_without_graphviz_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GraphvizMissing, match="apt install graphviz"):
        to_svg(awkward(["a"]))
