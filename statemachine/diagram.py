"""Draws a machine: Mermaid and DOT as text, SVG and PNG through Graphviz."""

import json
import re
from typing import Any

from statemachine.machine import Machine
from statemachine.phase import Phase
from statemachine.table import name_of

ANY_PHASE = "any phase"
INK, PAPER, LIT, ACCENT, FAINT = "#1f2937", "#f8fafc", "#fde68a", "#2563eb", "#64748b"
FONT = "Helvetica,Arial,sans-serif"


class GraphvizMissing(RuntimeError):
    """SVG and PNG need the program `dot`, which is not installed."""


def to_mermaid(machine: Machine[Any], *, highlight: Phase[Any, Any] | str | None = None) -> str:
    """The machine as a Mermaid state diagram, with one phase lit up if asked."""
    ids = {name: f"s{number}" for number, name in enumerate(machine.phases)}
    lit = _known(machine, highlight)
    lines = ["---", f"title: {json.dumps(machine.name)}", "---", "stateDiagram-v2"]
    lines += [f'    state "{_entities(name)}" as {ids[name]}' for name in machine.phases]
    lines.append(f"    [*] --> {ids[machine.start.name]}")
    for transition in machine.transitions:
        label = f" : {_entities(transition.when.name)}" if transition.when else ""
        lines.append(f"    {ids[name_of(transition.source)]} --> {ids[name_of(transition.target)]}{label}")
    if any(not signal.sources for signal in machine.signals):
        lines.append(f'    state "{ANY_PHASE}" as any')
    for signal in machine.signals:
        for source in [ids[name_of(source)] for source in signal.sources] or ["any"]:
            lines.append(f"    {source} --> {ids[name_of(signal.to)]} : signal {_entities(signal.name)}")
    lines += [f"    {ids[name]} --> [*]" for name, phase in machine.phases.items() if phase.final]
    if lit:
        lines += [f"    classDef lit fill:{LIT},stroke:{INK},color:{INK}", f"    class {ids[lit]} lit"]
    return "\n".join(lines) + "\n"


def _entities(text: str) -> str:
    """Text in Mermaid's character codes, so that no character of a name is taken for syntax."""
    return re.sub(r"[^A-Za-z0-9_ ~&|]", lambda match: f"#{ord(match[0])};", " ".join(text.split()))


def to_dot(machine: Machine[Any], *, highlight: Phase[Any, Any] | str | None = None) -> str:
    """The machine in Graphviz's language, with one phase lit up if asked."""
    return str(_graph(machine, highlight).source)


def to_svg(machine: Machine[Any], *, highlight: Phase[Any, Any] | str | None = None) -> str:
    """The machine as an SVG picture.

    Raises
    ------
    GraphvizMissing
        When Graphviz's program `dot` is not installed.
    """
    return _render(machine, highlight, "svg").decode()


def to_png(machine: Machine[Any], *, highlight: Phase[Any, Any] | str | None = None) -> bytes:
    """The machine as a PNG picture.

    Raises
    ------
    GraphvizMissing
        When Graphviz's program `dot` is not installed.
    """
    return _render(machine, highlight, "png")


def _render(machine: Machine[Any], highlight: Phase[Any, Any] | str | None, format: str) -> bytes:
    from graphviz import ExecutableNotFound

    try:
        return bytes(_graph(machine, highlight).pipe(format=format))
    except ExecutableNotFound as error:
        raise GraphvizMissing(
            f"a {format.upper()} diagram needs Graphviz's program 'dot', which is not on the PATH; install it (Debian, "
            f"Ubuntu: apt install graphviz; macOS: brew install graphviz; Windows: winget install graphviz), or draw "
            f"'mermaid' or 'dot', which need nothing"
        ) from error


def _graph(machine: Machine[Any], highlight: Phase[Any, Any] | str | None) -> Any:
    import graphviz  # only here: the pictures need it, machines do not

    lit = _known(machine, highlight)
    ids = {name: f"s{number}" for number, name in enumerate(machine.phases)}
    graph = graphviz.Digraph(machine.name)
    text = graphviz.escape  # names are shown as they are, whatever backslashes they hold
    graph.attr(rankdir="TB", bgcolor="white", pad="0.3", nodesep="0.55", ranksep="0.5", fontname=FONT, fontsize="16")
    graph.attr(label=text(machine.name), labelloc="t", fontcolor=INK)
    graph.attr("node", shape="box", style="rounded,filled", fillcolor=PAPER, color=INK, fontcolor=INK,
               fontname=FONT, fontsize="13", penwidth="1.3", margin="0.22,0.1")  # fmt: skip
    graph.attr("edge", color=INK, fontcolor=ACCENT, fontname=FONT, fontsize="11", penwidth="1.2", arrowsize="0.8")
    graph.node("start", label="", shape="circle", width="0.18", fixedsize="true", fillcolor=INK)
    graph.edge("start", ids[machine.start.name])
    for name, phase in machine.phases.items():
        look = {"fillcolor": LIT, "penwidth": "2.4"} if name == lit else {}
        if phase.final:
            look |= {"peripheries": "2"}
        graph.node(ids[name], label=text(name), **look)
    for transition in machine.transitions:
        label = f"  {text(transition.when.name)}  " if transition.when else ""
        graph.edge(ids[name_of(transition.source)], ids[name_of(transition.target)], label=label)
    if any(not signal.sources for signal in machine.signals):
        graph.node("any", label=ANY_PHASE, style="dashed,rounded", color=FAINT, fontcolor=FAINT, fontsize="11")
    for signal in machine.signals:
        for source in [ids[name_of(source)] for source in signal.sources] or ["any"]:
            graph.edge(source, ids[name_of(signal.to)], label=f"  signal {text(signal.name)}  ",
                       style="dashed", color=FAINT, fontcolor=FAINT)  # fmt: skip
    return graph


def _known(machine: Machine[Any], highlight: Phase[Any, Any] | str | None) -> str | None:
    if highlight is None:
        return None
    name = name_of(highlight)
    if name not in machine.phases:
        raise ValueError(f"machine {machine.name!r} has no phase {name!r}; phases: {', '.join(machine.phases)}")
    return name
