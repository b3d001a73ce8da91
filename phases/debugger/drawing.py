"""Draws a machine in characters: the generation machine as it is known, any other as a list of its arrows."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from statemachine import Machine
from statemachine.views.chart import Chart

Spans = list[tuple[str, str]]  # pieces of a line, each with how it is to look: "", "lit", "stop", ...
Ways = Mapping[tuple[str, str], int]  # how often the run went from one phase to another

WIDTH, HEIGHT = 40, 12  # of the drawing
KNOWN = {
    ("tokenize", "prefill"), ("prefill", "prefill"), ("prefill", "sample"), ("sample", "decode"),
    ("sample", "check_stop"), ("decode", "check_stop"), ("check_stop", "sample"), ("check_stop", "detokenize"),
    ("detokenize", "done"),
}  # fmt: skip


def draw(
    machine: Machine[Any],
    current: str,
    counts: Ways,
    taken: tuple[str, str] | None,
    stops: frozenset[str] = frozenset(),
) -> list[Spans]:
    """The machine with the phase that runs next lit, a count on each arrow, the arrow taken last and stops marked."""
    chart = Chart.of(machine)
    if {(arrow.source, arrow.target) for arrow in chart.arrows} == KNOWN:
        return _known(current, counts, taken, stops)
    return _listed(chart, current, counts, taken, stops)


def _known(current: str, counts: Ways, taken: tuple[str, str] | None, stops: frozenset[str]) -> list[Spans]:
    canvas = _Canvas(current, counts, taken)
    for name, x, y in (
        ("tokenize", 0, 0), ("prefill", 17, 0), ("check_stop", 0, 4), ("sample", 18, 4), ("decode", 32, 4),
        ("detokenize", 0, 9), ("done", 18, 9), ("cancelled", 29, 9),
    ):  # fmt: skip
        canvas.box(name, x, y, stop=name in stops)
    canvas.across("tokenize", "prefill", 9, 16, 1)
    canvas.across("check_stop", "sample", 11, 17, 5)
    canvas.across("sample", "decode", 25, 31, 5)
    canvas.across("detokenize", "done", 11, 17, 10)
    canvas.down("prefill", "sample", 21, 2, 4)
    canvas.down("check_stop", "detokenize", 2, 6, 9)
    canvas.loop("prefill", 25, 1)
    canvas.under("sample", "check_stop", 21, 10, 7)
    canvas.under("decode", "check_stop", 35, 8, 8)
    return canvas.spans()


@dataclass(slots=True)
class _Cell:
    character: str = " "
    look: str = ""


class _Canvas:
    """Cells that boxes and arrows are drawn on."""

    def __init__(self, current: str, counts: Ways, taken: tuple[str, str] | None) -> None:
        self._current, self._counts, self._taken = current, counts, taken
        self._cells = [[_Cell() for _ in range(WIDTH)] for _ in range(HEIGHT)]

    def box(self, name: str, x: int, y: int, *, stop: bool) -> None:
        lit = name == self._current
        visited = lit or any(name in way for way in self._counts)
        look = "lit" if lit else "" if visited else "dim"
        wall = "box" if lit else "dim"
        self._put(x, y, f"╭{'─' * len(name)}╮", wall)
        self._put(x, y + 1, f"│{' ' * len(name)}│", wall)
        self._put(x + 1, y + 1, name, look)
        if stop:
            self._put(x, y + 1, "●", "stop")
        self._put(x, y + 2, f"╰{'─' * len(name)}╯", wall)

    def across(self, source: str, target: str, wall: int, head: int, y: int) -> None:
        """An arrow to the right, from a box's wall to the cell before the next box."""
        count, look = self._arrow(source, target)
        self._put(wall, y, "├", look)
        self._put(wall + 1, y, "─" * (head - wall - 1) + "▶", look)
        self._put(wall + 1 + (head - wall - len(count)) // 2, y, count, "count" if look != "taken" else look)

    def down(self, source: str, target: str, x: int, wall: int, head: int) -> None:
        """An arrow down, from the lower wall of one box to the upper wall of another."""
        count, look = self._arrow(source, target)
        self._put(x, wall, "┬", look)
        for y in range(wall + 1, head):
            self._put(x, y, "│", look)
        self._put(x, head, "▼", look)
        self._put(x + 1, wall + 1, count, "count" if look != "taken" else look)

    def loop(self, name: str, wall: int, y: int) -> None:
        """An arrow from the right wall of a box around its lower corner, and up into it again."""
        count, look = self._arrow(name, name)
        self._put(wall, y, "├──╮", look)
        self._put(wall + 3, y + 1, "│", look)
        self._put(wall - 1, y + 1, "▲", look)
        self._put(wall - 1, y + 2, "╰───╯", look)
        self._put(wall + 5, y, count, "count" if look != "taken" else look)

    def under(self, source: str, target: str, right: int, left: int, y: int) -> None:
        """An arrow from a box down to line `y`, to the left and up again into another."""
        count, look = self._arrow(source, target)
        self._put(right, 6, "┬", look)
        self._put(left, 6, "▲", look)
        for between in range(7, y):
            self._put(right, between, "│", look)
            self._put(left, between, "│", look)
        self._put(left, y, "╰" + "─" * (right - left - 1) + "╯", look)
        self._put(right - 5 - len(count), y, count, "count" if look != "taken" else look)

    def _arrow(self, source: str, target: str) -> tuple[str, str]:
        count = self._counts.get((source, target), 0)
        look = "taken" if (source, target) == self._taken else "" if count else "dim"
        return (str(count) if count else ""), look

    def _put(self, x: int, y: int, text: str, look: str) -> None:
        for offset, character in enumerate(text):
            cell = self._cells[y][x + offset]
            cell.character, cell.look = character, look

    def spans(self) -> list[Spans]:
        lines = []
        for row in self._cells:
            spans: Spans = []
            for cell in row:
                if spans and spans[-1][1] == cell.look:
                    spans[-1] = (spans[-1][0] + cell.character, cell.look)
                else:
                    spans.append((cell.character, cell.look))
            lines.append(spans)
        return lines


def _listed(
    chart: Chart, current: str, counts: Ways, taken: tuple[str, str] | None, stops: frozenset[str]
) -> list[Spans]:
    """One line an arrow, under the name of the phase that it leaves."""
    lines: list[Spans] = []
    named = max(len(name) for name in chart.phases)
    digits = max((len(str(count)) for count in counts.values()), default=1)
    for name in chart.phases:
        arrows = [arrow for arrow in chart.arrows if arrow.source == name]
        lit = name == current
        mark: Spans = [
            ("▶" if lit else " ", "box"), ("●" if name in stops else " ", "stop"), (name, "lit" if lit else ""),
            (" " * (named - len(name)), ""),
        ]  # fmt: skip
        if not arrows:
            lines.append(mark)
        for number, arrow in enumerate(arrows):
            way = (arrow.source, arrow.target)
            look = "taken" if way == taken else "" if counts.get(way) else "dim"
            branch = "─" if len(arrows) == 1 else "┬" if number == 0 else "╰" if arrow is arrows[-1] else "├"
            count = str(counts.get(way) or "").rjust(digits, "─")
            start = mark if number == 0 else [(" " * (named + 2), "")]
            guard: Spans = [(f"  {arrow.label}", "dim")] if arrow.label else []
            lines.append([*start, (f" {branch}{count}▶ {arrow.target}", look), *guard])
    return lines


def phase_at(line: Spans, column: int, phases: Iterable[str]) -> str | None:
    """The phase whose name stands in this column of a line, or right beside it."""
    text = "".join(part for part, _ in line)
    for name in sorted(phases, key=len, reverse=True):
        start = text.find(name)
        while start >= 0:
            end = start + len(name)
            whole = not (text[start - 1 : start].isalnum() or text[end : end + 1].isalnum())
            if whole and start - 1 <= column <= end:
                return name
            start = text.find(name, start + 1)
    return None


def around(lines: list[Spans], height: int) -> list[Spans]:
    """As many lines as there is room for, the lit phase among them."""
    lit = next((number for number, line in enumerate(lines) if any(look == "lit" for _, look in line)), 0)
    first = max(0, min(lit - height // 2, len(lines) - height))
    return lines[first : first + height]
