"""The report of a recorded run: whole, inert, and read in a real browser."""

import html
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import charging
import desk
import pytest
from chromium_program import dump_dom, needs_chromium
from command_line import Command
from forging import forged, with_step
from graphviz_program import needs_dot
from statemachine_recorded import record

from phases import Generator, SamplingParams
from phases.views.report import write_report
from statemachine import Divergence, End, Journal, JournalWriter, Machine, Phase, Run, Transition, Verdict

pytestmark = pytest.mark.slow

HOSTILE = (
    "<script>alert(1)</script></style></script><img src=x onerror=alert(2)> \"quoted\" 'single' {{ 7*7 }} &amp; -->"
)

CORPUS = Path(__file__).parents[2] / "journals" / "schema1"


def about(page: str) -> list[list[dict[str, Any]]]:
    found = re.search(r'<script type="application/json" id="tokens">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_report_tells_tokens_candidates_and_what_they_were_drawn_from(
    phasewalk: Command, journal: Path, demo: Generator
) -> None:
    assert phasewalk("report", str(journal), "-o", "run.html")[0] == 0
    page = Path("run.html").read_text()
    rows = about(page)
    outcomes = [record.o for record in Journal.open(journal).timeline() if getattr(record, "p", "") == "check_stop"]
    assert [token["id"] for token in rows[0]] == [outcome[0] for outcome in outcomes]
    told = [token for token in rows[1] if token["candidates"]]
    assert len(told) == len(rows[1])
    for token in told:  # greedy: it took the likeliest of the four, always
        assert token["candidates"][0][1] == token["id"]
        chances = [chance for *_, chance in token["candidates"]]
        assert chances == sorted(chances, reverse=True)
        assert 0 < sum(chances) <= 1
    assert [token["forced"] for token in rows[0]] == [place == 4 for place in range(12)]
    text = re.findall(r'<div class="text" data-row="1">(.*?)</div>', page)[0]
    shown = html.unescape(re.sub(r"<[^>]*>", "", text))
    assert shown == demo.tokenizer.decode([token["id"] for token in rows[1]])
    for part in ("Count from 3 to 9.", "the bundled demo model", "edit", "Timeline", "Phases", "max_new_tokens 12"):
        assert part in page


def test_report_verifies_and_shows_a_divergence(phasewalk: Command, journal: Path) -> None:
    assert phasewalk("report", str(journal), "-o", "same.html", "--verify")[0] == 0
    assert "every step was the same" in Path("same.html").read_text()
    step = next(record for record in Journal.open(journal).records() if record.n > 20 and record.p == "sample")
    odd = [step.o[0] + 1, *step.o[1:]]
    forged(journal, Path("other.jsonl"), with_step(step.n, o=odd))
    assert phasewalk("report", "other.jsonl", "-o", "other.html", "--verify")[0] == 3
    page = Path("other.html").read_text()
    assert f"diverged at step {step.n}, phase sample: outcome" in page
    assert json.dumps(odd, separators=(",", ":")) in page


def test_report_without_graphviz_tokenizer_or_a_generation(
    journal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(tmp_path / "walk.jsonl")
    monkeypatch.setenv("PATH", str(tmp_path))
    write_report(Journal.open(tmp_path / "walk.jsonl"), tmp_path / "walk.html")
    page = (tmp_path / "walk.html").read_text()
    assert "Graphviz is not installed" in page
    assert "stateDiagram-v2" in page
    assert 'id="text"' not in page
    write_report(Journal.open(journal), tmp_path / "run.html", model=str(tmp_path / "nowhere"))
    page = (tmp_path / "run.html").read_text()
    assert "is not a folder on this machine" in page
    assert 'id="text"' in page
    write_report(Journal.open(journal), tmp_path / "run.html", model=str(tmp_path))
    assert "is another than the one recorded" in (tmp_path / "run.html").read_text()


def test_thousands_of_steps_stay_a_small_page(tmp_path: Path) -> None:
    record(tmp_path / "long.jsonl", limit=20_000)
    write_report(Journal.open(tmp_path / "long.jsonl"), tmp_path / "long.html")
    page = (tmp_path / "long.html").read_text()
    assert 300 <= page.count('class="hit"') <= 600
    assert len(page) < 400_000


@pytest.fixture
def counting_server() -> Iterator[tuple[str, list[str]]]:
    """A proxy that every request of a browser would go through, and the list of those that came."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_CONNECT = do_POST = do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


@needs_chromium
def test_report_in_a_real_browser_is_whole_inert_and_asks_for_nothing(
    demo: Generator, tmp_path: Path, counting_server: tuple[str, list[str]]
) -> None:
    proxy, asked = counting_server
    path = tmp_path / "hostile.jsonl"
    demo.start(HOSTILE, SamplingParams(temperature=0, max_new_tokens=8), journal=path, digest_every=1).start()
    divergence = Divergence(3, "sample", "outcome", HOSTILE, [HOSTILE], causes=(HOSTILE,), common=(HOSTILE,),
                            detail={"note": HOSTILE})  # fmt: skip
    write_report(Journal.open(path), tmp_path / "run.html", verdict=Verdict(divergence, 3, None))
    # A script that the test adds moves a pointer over a token, as a reader would; the policy must let it in.
    page = (tmp_path / "run.html").read_text()
    (tokens,) = about(page)
    place = next(place for place, token in enumerate(tokens) if token["candidates"])
    probe = (
        f'const token = document.querySelectorAll(".text .t")[{place}];'
        'token.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));'
        "const margin = getComputedStyle(document.body).margin;"
        'document.title = [document.scripts.length, document.images.length, margin].join("|");'
    )
    assert page.count("<script") == 2
    (tmp_path / "probed.html").write_text(
        page.replace("script-src ", "script-src 'nonce-test' ").replace(
            "</body>", f'<script nonce="test">{probe}</script></body>'
        )
    )
    options = (f"--proxy-server={proxy}", "--proxy-bypass-list=<-loopback>")
    dom = dump_dom((tmp_path / "run.html").as_uri(), tmp_path / "profile", *options)
    for part in ('id="facts"', 'id="text"', 'id="timeline"', 'id="phases"', 'id="header"', 'id="divergence"'):
        assert part in dom
    assert html.escape("<script>alert(1)</script>", quote=False) in dom
    assert dom.count("<script") == 2
    assert "<img" not in dom
    assert "{{ 7*7 }}" in dom
    probed = dump_dom((tmp_path / "probed.html").as_uri(), tmp_path / "profile2", *options)
    assert "<title>3|0|0px</title>" in probed  # our style is in force, ours are the only scripts
    assert re.search(r'<div id="about"[^>]*>\s*<div>token \d+, step \d+</div><table>', probed)
    assert 'class="taken"' in probed
    ours = [url for url in asked if "google" not in url and "gstatic" not in url]  # the browser's own errands
    assert ours == []


@needs_chromium
@needs_dot
def test_the_policy_refuses_what_might_slip_in(tmp_path: Path, counting_server: tuple[str, list[str]]) -> None:
    """Were something not escaped, it would still not run, load or be styled: here it is put in by force."""
    server, asked = counting_server
    write_report(Journal.open(CORPUS / "greedy.jsonl"), tmp_path / "run.html")
    smuggled = (
        f'<script>document.title = "ran"</script><img src="{server}/image" onerror="document.title = 1">'
        f'<link rel="stylesheet" href="{server}/style"><script src="{server}/script"></script>'
        f'<iframe src="{server}/frame"></iframe><p style="color: red">'
    )
    page = (tmp_path / "run.html").read_text().replace("<main>", f"<main>{smuggled}")
    (tmp_path / "bad.html").write_text(page)
    dom = dump_dom((tmp_path / "bad.html").as_uri(), tmp_path / "profile")
    assert "<title>generation, run " in dom
    assert asked == []
    assert "<svg" in dom
    # The same page with no policy: what was smuggled in does run and load, so the test would have seen it.
    (tmp_path / "open.html").write_text(re.sub(r"<meta http-equiv=[^>]*>", "", page))
    dom = dump_dom((tmp_path / "open.html").as_uri(), tmp_path / "profile2")
    assert "<title>generation, run " not in dom
    assert {"/image", "/style", "/script", "/frame"} <= set(asked)


def test_svg_in_the_page_holds_no_script_and_no_reference(tmp_path: Path) -> None:
    a, end = Phase('<script>alert("a")</script>'), End("]]></svg>")
    run = Run(
        Machine(HOSTILE, start=a, transitions=[Transition(a, end)]), None, journal=JournalWriter(tmp_path / "a.jsonl")
    )
    run.start()
    write_report(Journal.open(tmp_path / "a.jsonl"), tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert page.count("<script") == 2
    assert "<img" not in page
    assert page.count("</svg>") == page.count("<svg")


def test_report_tells_what_was_raised_and_caught(phasewalk: Command, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    charging.record(path, "GatewayDown", "GatewayTimeout", "")
    assert phasewalk("report", str(path), "-o", "run.html")[0] == 0
    page = html.unescape(Path("run.html").read_text())
    assert "GatewayDown in charge (1), last: attempt 0; GatewayTimeout in charge (1), last: attempt 1" in page
    assert "in charge: GatewayTimeout: attempt 1" in page


def test_signals_stand_in_it_with_what_they_carried_and_why_they_were_refused(tmp_path: Path) -> None:
    run = Run(desk.machine, desk.Text(), journal=JournalWriter(tmp_path / "a.jsonl"))
    run.signal("approve", desk.Approval("the thief"), wait=True)
    run.signal("approve", desk.Approval("Ada"), wait=True)
    run.start()
    write_report(Journal.open(tmp_path / "a.jsonl"), tmp_path / "a.html")
    page = html.unescape((tmp_path / "a.html").read_text())
    assert "signal approve: PermissionError: the thief approves nothing" in page
    assert 'approve {"by":"Ada","stars":3}' in page
