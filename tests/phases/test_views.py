"""The views of a recorded run: trace, diagram with counts, report in a real browser, profile."""

import html
import json
import re
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from chromium_program import dump_dom, needs_chromium
from command_line import Command
from graphviz_program import needs_dot
from statemachine_recorded import record

from phases import Generator, SamplingParams
from phases.views.report import write_report
from statemachine import Divergence, End, Journal, JournalWriter, Machine, Phase, Run, Signal, Status, Transition
from statemachine.views.chart import Chart
from statemachine.views.diagram import to_dot, to_mermaid
from statemachine.views.tally import Tally, duration

CORPUS = Path(__file__).parents[1] / "journals"
HOSTILE = (
    "<script>alert(1)</script></style></script><img src=x onerror=alert(2)> \"quoted\" 'single' {{ 7*7 }} &amp; -->"
)


@pytest.fixture(scope="session")
def demo() -> Iterator[Generator]:
    with Generator.from_pretrained(max_batch=3, self_check=False) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def journal(demo: Generator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rows with digests; one is edited on the way."""
    path = tmp_path_factory.mktemp("views") / "run.jsonl"
    params = [SamplingParams(temperature=1.3, seed=3, max_new_tokens=12, stop_token_ids=()),
              SamplingParams(temperature=0, max_new_tokens=5, stop_token_ids=())]  # fmt: skip
    run = demo.start(["Tell me a story about a fox.", "Count from 3 to 9."], params, journal=path, digest_every=1)
    run.until(lambda run: len(run.context.output_ids[0]) == 4)
    run.edit("force", row=0, token=262)
    run.resume()
    return path


def events_of(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["traceEvents"]


# --- trace -------------------------------------------------------------------------------------------------------


def test_trace_has_a_track_for_each_row_and_counters(phasewalk: Command, journal: Path) -> None:
    code, out, err = phasewalk("trace", str(journal), "-o", "trace.json")
    assert (code, out) == (0, "")
    assert "ui.perfetto.dev" in err
    events = events_of(Path("trace.json"))
    names = [event["args"]["name"] for event in events if event["name"] == "thread_name"]
    assert names == ["machine", "row 0", "row 1"]
    lengths = [event["args"] for event in events if event["name"] == "KV length"]
    prompts = lengths[1]
    assert lengths[0] == {"row 0": 0, "row 1": 0}
    assert lengths[-1] == {"row 0": prompts["row 0"] + 11, "row 1": prompts["row 1"] + 4}
    decodes = [event for event in events if event["ph"] == "X" and event["name"] == "decode"]
    assert [sum(event["tid"] == tid for event in decodes) for tid in (0, 1, 2)] == [11, 11, 4]
    tokens = [event["args"] for event in events if event.get("tid") == 1 and event["name"] == "check_stop"]
    assert len(tokens) == 12
    assert [args["step"] for args in tokens if args.get("forced")] == [tokens[4]["step"]]
    assert tokens[4]["token"] == 262
    assert tokens[-1]["finished"] == "length"
    speeds = [event["args"]["tokens/s"] for event in events if event["name"] == "tokens/s"]
    assert len(speeds) == 12
    assert all(speed > 0 for speed in speeds)
    assert "edit force" in [event["name"] for event in events if event["ph"] == "i"]
    assert phasewalk("trace", str(journal))[1] == Path("trace.json").read_text()


@pytest.mark.parametrize("name", ["greedy", "batch", "sampled", "journey"])
def test_trace_reads_the_corpus(phasewalk: Command, name: str) -> None:
    assert phasewalk("trace", str(CORPUS / f"{name}.jsonl"), "-o", "trace.json")[0] == 0
    events = events_of(Path("trace.json"))
    ids = [event["args"]["token"] for event in events if "token" in event.get("args", {}) and event["tid"] == 1]
    steps = [
        record
        for record in Journal.open(CORPUS / f"{name}.jsonl").timeline()
        if getattr(record, "p", "") == "check_stop"
    ]
    assert ids == [step.o[0] for step in steps][: len(ids)]
    assert ids


def test_trace_of_another_machine_has_the_machines_track_only(phasewalk: Command, tmp_path: Path) -> None:
    record(tmp_path / "walk.jsonl")
    assert phasewalk("trace", "walk.jsonl", "-o", "trace.json")[0] == 0
    names = [event["args"]["name"] for event in events_of(Path("trace.json")) if event["name"] == "thread_name"]
    assert names == ["machine"]


def test_a_damaged_journal_is_one_line_and_leaves_no_half_a_trace(phasewalk: Command, journal: Path) -> None:
    lines = journal.read_text().splitlines(keepends=True)
    Path("bad.jsonl").write_text("".join([*lines[:9], "{\n", *lines[10:]]))
    for command in ("trace", "report"):
        code, _, err = phasewalk(command, "bad.jsonl", "-o", "out")
        assert (code, err.count("\n")) == (1, 1)
        assert "line 10" in err
    assert sorted(path.name for path in Path().iterdir()) == ["bad.jsonl"]


# --- diagram -----------------------------------------------------------------------------------------------------


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
    assert tally.signals == {("stop", "b", "a stop"): 1}
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


# --- report ------------------------------------------------------------------------------------------------------


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
    lines = journal.read_text().splitlines(keepends=True)
    place = next(n for n, line in enumerate(lines) if '"p":"sample"' in line and n > 20)
    value = json.loads(lines[place])
    value["o"][0] += 1
    Path("other.jsonl").write_text("".join([*lines[:place], json.dumps(value) + "\n", *lines[place + 1 :]]))
    assert phasewalk("report", "other.jsonl", "-o", "other.html", "--verify")[0] == 3
    page = Path("other.html").read_text()
    assert f"diverged at step {value['n']}, phase sample: outcome" in page
    assert json.dumps(value["o"], separators=(",", ":")) in page


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
    write_report(Journal.open(path), tmp_path / "run.html", divergence=divergence)
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


# --- profile -----------------------------------------------------------------------------------------------------


def test_profile_parts_add_up_and_numbers_make_sense(phasewalk: Command, chat_folder: Path) -> None:
    code, out, _ = phasewalk("profile", "the fox", "--model", str(chat_folder), "--tokens", "20", "--json")
    value = json.loads(out)
    assert code == 0
    parts = {part["name"]: part for part in value["parts"]}
    assert list(parts) == ["context update", "binding", "engine", "sampling", "KV commit", "machine"]
    assert value["steps"] == 19
    assert sum(part["share"] for part in value["parts"]) == pytest.approx(1)
    assert all(part["median_ns"] > 0 for part in value["parts"])
    assert parts["engine"]["share"] == max(part["share"] for part in value["parts"])
    assert value["step_ns"] == pytest.approx(value["plain_step_ns"], rel=0.5)  # two passes on a busy machine
    inner = {part["name"]: part["share"] for part in value["engine_parts"]}
    assert {"linear.Linear", "layers.rms_norm", "layers.Attention.attend_one"} <= set(inner)
    assert sum(inner.values()) == pytest.approx(1, abs=0.05)
    numbers = {number["name"]: number["value"] for number in value["key_numbers"]}
    assert 20 < numbers["a machine step"] < 20_000
    assert 0 < numbers["a clock read"] < 5_000
    assert numbers["memory read"] > 0.1
    assert numbers["a decode step"] == value["plain_step_ns"]


def test_profile_tables_and_help(phasewalk: Command, chat_folder: Path) -> None:
    code, out, _ = phasewalk("profile", "--model", str(chat_folder), "--tokens", "5")
    assert code == 0
    for words in ("context update", "KV commit", "without stopwatches", "memory read", "a journal step", "GB/s"):
        assert words in out
    code, _, err = phasewalk("profile", "--engine", "abacus")
    assert code == 2
    assert "there is no engine 'abacus'" in err


def test_profile_leaves_the_generator_as_it_was(chat_folder: Path) -> None:
    from phases.views.profile import profile

    with Generator.from_pretrained(chat_folder, max_batch=1) as generator:
        before = generator.generate("the fox", SamplingParams(temperature=0, max_new_tokens=5)).output_ids
        cache = generator.engine.kv_cache
        profile(generator, "the fox", tokens=5)
        assert generator.engine.kv_cache is cache
        assert cache.free == cache.rows
        assert generator.generate("the fox", SamplingParams(temperature=0, max_new_tokens=5)).output_ids == before
