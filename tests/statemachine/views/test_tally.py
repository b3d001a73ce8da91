"""Counts and times on a drawing: legible, short, and read from any record."""

from pathlib import Path

import pytest
from graphviz_program import needs_dot

from statemachine import End, Journal, JournalWriter, Machine, Phase, Run, Signal, Status, Transition
from statemachine.views.chart import Chart, SignalArrow
from statemachine.views.diagram import to_dot, to_mermaid
from statemachine.views.tally import Tally, duration

CORPUS = Path(__file__).parents[2] / "journals" / "schema1"


def test_a_recorded_machine_is_read_whatever_its_names_hold(tmp_path: Path) -> None:
    a, b, end = Phase("a -> b when c"), Phase("b"), End("the end", status=Status.DONE)
    stopped = End("a stop", status=Status.CANCELLED)
    odd = Machine(
        "odd", start=a, transitions=[Transition(a, b), Transition(b, end)], signals=[Signal("stop", to=stopped)]
    )
    run = Run(odd, None, journal=JournalWriter(tmp_path / "odd.jsonl"))
    run.step()
    run.signal("stop")
    journal = Journal.open(tmp_path / "odd.jsonl")
    chart, tally = Chart.of_record(journal.header.machine), Tally.of(journal)
    assert (chart.phases, chart.start, chart.ends, chart.arrows) == (
        Chart.of(odd).phases, a.name, Chart.of(odd).ends, Chart.of(odd).arrows
    )  # fmt: skip
    assert tally.signals == {SignalArrow("stop", "b", "a stop"): 1}
    assert "s1 --> s3 : signal stop 1#215;" in to_mermaid(chart, tally=tally)
    assert to_dot(odd, tally=tally) == to_dot(chart, tally=tally)


@needs_dot
def test_ink_is_legible_on_every_colour() -> None:
    """The contrast that WCAG asks of text: 4.5 to 1."""
    from statemachine.views.diagram import HEAT, HEAT_INK

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    shades = [luminance(colour) for colour in HEAT]
    assert shades == sorted(shades, reverse=True)  # it reads without colour, too
    for shade, ink in zip(shades, map(luminance, HEAT_INK), strict=True):
        assert (max(shade, ink) + 0.05) / (min(shade, ink) + 0.05) >= 4.5


def test_tally_keeps_three_digits_and_durations_read_well() -> None:
    tally = Tally.of(Journal.open(CORPUS / "greedy.jsonl"))
    times: dict[str, list[int]] = {}
    for record_ in Journal.open(CORPUS / "greedy.jsonl").timeline():
        if hasattr(record_, "t"):
            times.setdefault(record_.p, []).append(record_.t)
    for name, all_of_them in times.items():
        assert tally.phases[name].visits == len(all_of_them)
        assert tally.phases[name].total_ns == sum(all_of_them)
        median = sorted(all_of_them)[(len(all_of_them) + 1) // 2 - 1]
        assert tally.phases[name].quantile_ns(0.5) == pytest.approx(median, rel=5e-3)
    shown = {0: "0 ns", 640: "640 ns", 1250: "1.25 µs", 999_600: "1.00 ms", 12_500_000: "12.5 ms", 3.1e9: "3.10 s"}
    assert {ns: duration(ns) for ns in shown} == shown
