"""phasewalk report: what its page says of a divergence and of the phases."""

import html
import re
from pathlib import Path

from command_line import Command

from phases.views.report import report_of
from statemachine import Divergence, Journal, Verdict


def test_a_divergence_shows_tokens_as_text(journal: Path) -> None:
    divergence = Divergence(5, "sample", "outcome", [66], [67])
    page = html.unescape(report_of(Journal.open(journal), verdict=Verdict(divergence, 5, None)))
    recorded, replayed = (
        re.search(rf"<th>{side}</th>.*?<pre>(.*?)</pre>", page)[1] for side in ("recorded", "replayed")
    )
    assert re.fullmatch(r"\[66\]  '.+'", recorded)
    assert re.fullmatch(r"\[67\]  '.+'", replayed)
    assert recorded != replayed.replace("67", "66")
    odd = report_of(Journal.open(journal), verdict=Verdict(Divergence(5, "sample", "outcome", [-1], [10**30]), 5, None))
    assert str(10**30) in odd


def test_ends_are_no_phases_that_were_never_visited(journal: Path) -> None:
    page = report_of(Journal.open(journal))
    table = page[page.index('<section id="phases">') : page.index('<section id="machine">')]
    assert re.findall(r"</span>(\w+)</td>", table) == [
        "tokenize", "prefill", "sample", "decode", "check_stop", "detokenize",
    ]  # fmt: skip


def test_a_page_of_a_steering_record_is_written(phasewalk: Command, steering: Path) -> None:
    assert phasewalk("report", str(steering), "-o", "a.html").code == 0
    assert Path("a.html").read_text().rstrip().endswith("</html>")
