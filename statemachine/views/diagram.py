"""Draws a machine, at rest or as a run was recorded: Mermaid and DOT as text, SVG, PNG and PDF through Graphviz."""

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from statemachine.definition.machine import Machine
from statemachine.definition.phase import Phase
from statemachine.definition.table import name_of
from statemachine.views.chart import Chart, SignalArrow

if TYPE_CHECKING:
    from statemachine.views.tally import Tally

ANY_PHASE = "any phase"
INK, PAPER, LIT, ACCENT, FAINT = "#1f2937", "#f8fafc", "#fde68a", "#2563eb", "#64748b"
FONT = "Helvetica,Arial,sans-serif"
# Light to dark in one hue, so that it reads without colour too (ColorBrewer "YlGnBu", 7 classes), and ink for each.
HEAT = ("#ffffcc", "#c7e9b4", "#7fcdbb", "#41b6c4", "#1d91c0", "#225ea8", "#0c2c84")
HEAT_INK = (INK, INK, INK, INK, "#0b1220", "#ffffff", "#ffffff")

Drawable = Machine[Any] | Chart


class GraphvizMissing(RuntimeError):
    """Pictures need the program `dot`, which is not installed."""


def to_mermaid(
    machine: Drawable, *, highlight: Phase[Any, Any] | str | None = None, tally: "Tally | None" = None
) -> str:
    """The machine as a Mermaid state diagram, with one phase lit up if asked.

    Parameters
    ----------
    tally
        What a recorded run of it did: counts on the arrows, the median time in each phase's label, its share of all
        time as colour.
    """
    chart = _chart(machine, tally)
    ids = {name: f"s{number}" for number, name in enumerate(chart.phases)}
    lit = _known(chart, highlight)
    lines = ["---", f"title: {json.dumps(chart.name)}", "---", "stateDiagram-v2"]
    lines += [
        f'    state "{_entities(" · ".join([name, *_figures(chart, name, tally)]))}" as {ids[name]}'
        for name in chart.phases
    ]
    lines.append(f"    [*] --> {ids[chart.start]}")
    for number, arrow in enumerate(chart.arrows):
        words = " ".join(filter(None, (arrow.label, _times(tally.transitions[number]) if tally else "")))
        label = f" : {_entities(words)}" if words else ""
        lines.append(f"    {ids[arrow.source]} --> {ids[arrow.target]}{label}")
    if any(signal.source is None for signal in chart.signals):
        lines.append(f'    state "{ANY_PHASE}" as any')
    for signal in chart.signals:
        source, target = _signal_ends(signal, ids)
        words = " ".join(filter(None, (str(signal), _times(tally.signals[signal]) if tally else "")))
        lines.append(f"    {source} --> {target} : signal {_entities(words)}")
    lines += [f"    {ids[name]} --> [*]" for name in chart.phases if name in chart.ends]
    if tally:
        heats = {name: heat for name in chart.phases if (heat := _heat(name, tally)) is not None}
        lines += [
            f"    classDef heat{heat} fill:{HEAT[heat]},stroke:{INK},color:{HEAT_INK[heat]}"
            for heat in sorted(set(heats.values()))
        ]
        lines += [f"    class {ids[name]} heat{heat}" for name, heat in heats.items() if name != lit]
    if lit:
        lines += [f"    classDef lit fill:{LIT},stroke:{INK},color:{INK}", f"    class {ids[lit]} lit"]
    return "\n".join(lines) + "\n"


def _entities(text: str) -> str:
    """Text in Mermaid's character codes, so that no character of a name is taken for syntax."""
    return re.sub(r"[^A-Za-z0-9_ ~&|]", lambda match: f"#{ord(match[0])};", " ".join(text.split()))


def to_dot(machine: Drawable, *, highlight: Phase[Any, Any] | str | None = None, tally: "Tally | None" = None) -> str:
    """The machine in Graphviz's language, with one phase lit up if asked, and a tally as in `to_mermaid`."""
    return str(_graph(machine, highlight, tally).source)


def to_svg(machine: Drawable, *, highlight: Phase[Any, Any] | str | None = None, tally: "Tally | None" = None) -> str:
    """The machine as an SVG picture.

    Raises
    ------
    GraphvizMissing
        When Graphviz's program `dot` is not installed.
    """
    return _render(machine, highlight, tally, "svg").decode()


def to_png(machine: Drawable, *, highlight: Phase[Any, Any] | str | None = None, tally: "Tally | None" = None) -> bytes:
    """The machine as a PNG picture.

    Raises
    ------
    GraphvizMissing
        When Graphviz's program `dot` is not installed.
    """
    return _render(machine, highlight, tally, "png")


def to_pdf(machine: Drawable, *, highlight: Phase[Any, Any] | str | None = None, tally: "Tally | None" = None) -> bytes:
    """The machine as a PDF page.

    Raises
    ------
    GraphvizMissing
        When Graphviz's program `dot` is not installed.
    """
    return _render(machine, highlight, tally, "pdf")


def _render(machine: Drawable, highlight: Phase[Any, Any] | str | None, tally: "Tally | None", format: str) -> bytes:
    from graphviz import ExecutableNotFound

    try:
        return bytes(_graph(machine, highlight, tally).pipe(format=format))
    except ExecutableNotFound as error:
        raise GraphvizMissing(
            f"a {format.upper()} diagram needs Graphviz's program 'dot', which is not on the PATH; install it (Debian, "
            f"Ubuntu: apt install graphviz; macOS: brew install graphviz; Windows: winget install graphviz), or draw "
            f"'mermaid' or 'dot', which need nothing"
        ) from error


def _graph(machine: Drawable, highlight: Phase[Any, Any] | str | None, tally: "Tally | None") -> Any:
    import graphviz  # only here: the pictures need it, machines do not

    chart = _chart(machine, tally)
    lit = _known(chart, highlight)
    ids = {name: f"s{number}" for number, name in enumerate(chart.phases)}
    graph = graphviz.Digraph(graphviz.escape(chart.name))
    text = graphviz.escape  # names are shown as they are, whatever backslashes they hold
    graph.attr(rankdir="TB", bgcolor="white", pad="0.3", nodesep="0.55", ranksep="0.5", fontname=FONT, fontsize="16")
    graph.attr(label=text(chart.name), labelloc="t", fontcolor=INK)
    graph.attr("node", shape="box", style="rounded,filled", fillcolor=PAPER, color=INK, fontcolor=INK,
               fontname=FONT, fontsize="13", penwidth="1.3", margin="0.22,0.1")  # fmt: skip
    graph.attr("edge", color=INK, fontcolor=ACCENT, fontname=FONT, fontsize="11", penwidth="1.2", arrowsize="0.8")
    graph.node("start", label="", shape="circle", width="0.18", fixedsize="true", fillcolor=INK)
    graph.edge("start", ids[chart.start])
    for name in chart.phases:
        look = _look(name, tally)
        if name == lit:
            look = {**look, "fillcolor": LIT, "penwidth": "2.4"} | ({"fontcolor": INK} if look else {})
        if name in chart.ends:
            look |= {"peripheries": "2"}
        if name in chart.waits:
            look |= {"style": "rounded,filled,dashed"}
        figures = " · ".join(_figures(chart, name, tally))
        graph.node(ids[name], label=graphviz.nohtml("\\n".join(map(text, filter(None, (name, figures))))), **look)
    for number, arrow in enumerate(chart.arrows):
        words = " ".join(filter(None, (arrow.label, _times(tally.transitions[number]) if tally else "")))
        faint = {"color": FAINT, "fontcolor": FAINT} if tally and not tally.transitions[number] else {}
        dashed = {"style": "dashed"} if arrow.errors else {}
        label = f"  {text(words)}  " if words else ""
        graph.edge(ids[arrow.source], ids[arrow.target], label=label, **dashed, **faint)
    if any(signal.source is None for signal in chart.signals):
        graph.node("any", label=ANY_PHASE, style="dashed,rounded", color=FAINT, fontcolor=FAINT, fontsize="11")
    for signal in chart.signals:
        source, target = _signal_ends(signal, ids)
        words = " ".join(filter(None, (str(signal), _times(tally.signals[signal]) if tally else "")))
        side = {"tailport": "w", "headport": "w"} if source == target else {}  # the other is for transitions
        graph.edge(source, target, label=f"  signal {text(words)}  ",
                   style="dashed", color=FAINT, fontcolor=FAINT, **side)  # fmt: skip
    return graph


def _chart(machine: Drawable, tally: "Tally | None") -> Chart:
    """What is drawn: with a tally, the signals that were taken instead of those that could be."""
    chart = machine if isinstance(machine, Chart) else Chart.of(machine)
    if tally is None:
        return chart
    signals = tuple(tally.signals)
    return replace(chart, signals=signals)


def _signal_ends(signal: SignalArrow, ids: dict[str, str]) -> tuple[str, str]:
    assert signal.target is not None  # those without are not drawn
    return "any" if signal.source is None else ids[signal.source], ids[signal.target]


def _figures(chart: Chart, name: str, tally: "Tally | None") -> list[str]:
    """What a phase's label says besides its name: that it waits; median time, share of all time, if it failed there."""
    if tally is None or name in chart.waits:
        return ["waits"] if name in chart.waits else []
    from statemachine.views.tally import duration

    phase = tally.phases[name]
    figures = [f"{duration(phase.quantile_ns(0.5))}", _percent(tally.shares()[name])] if phase.visits else []
    return [*figures, "failed here"] if tally.failed == name else figures


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.0995 else f"{share:.1%}"


def _heat(name: str, tally: "Tally") -> int | None:
    """Which colour a phase gets for its share of all time; None if it was never visited.

    By the square root, as one phase often takes nearly all, and the others are to be told apart.
    """
    share = tally.shares()[name]
    return min(int(share**0.5 * len(HEAT)), len(HEAT) - 1) if tally.phases[name].visits else None


def _look(name: str, tally: "Tally | None") -> dict[str, str]:
    if tally is None:
        return {}
    heat = _heat(name, tally)
    look = {} if heat is None else {"fillcolor": HEAT[heat], "fontcolor": HEAT_INK[heat]}
    return look | {"color": "#b91c1c", "penwidth": "2.4"} if tally.failed == name else look


def _times(count: int) -> str:
    return f"{count:,}\u00d7".replace(",", " ")


def _known(chart: Chart, highlight: Phase[Any, Any] | str | None) -> str | None:
    if highlight is None:
        return None
    name = name_of(highlight)
    if name not in chart.phases:
        raise ValueError(f"machine {chart.name!r} has no phase {name!r}; phases: {', '.join(chart.phases)}")
    return name
