"""Writes a recorded run as one self-contained HTML page: its machine, its text, its time, and where it diverged."""

import base64
import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from phases.context import Generation
from phases.generation import machine as built_in
from phases.views.recorded_rows import RecordedRows, Token
from phases.views.token_text import TokenText, outcome_words
from statemachine import Divergence, GraphvizMissing, Journal, JournalError, Machine, Verdict, to_mermaid, to_svg
from statemachine.record.divergence import plain_text
from statemachine.record.records import EditRecord, ErrorRecord, PauseRecord, RefusedRecord, SignalRecord, StepRecord
from statemachine.views.chart import Chart
from statemachine.views.tally import Tally, duration
from statemachine.views.trace import came_back

BARS = 600  # columns of the timeline; with more steps, each holds several
UNIT = 1_000  # ns; heights are logarithmic, as one prefill is a thousand times a check
SHOWN_TOKENS = 20_000  # of a row; a browser stays quick with so many
SHOWN_EVENTS = 500
LONGEST = 2_000  # characters of any one value
LEVELS = (0.9, 0.7, 0.5, 0.3)  # probabilities from which on a token is coloured so much: the first not at all


def write_report(journal: Journal, output: Path, **options: Any) -> None:
    """Write the report of a journal to a file; options as for `report_of`."""
    output.write_text(report_of(journal, **options), encoding="utf-8", errors="replace")


def report_of(
    journal: Journal,
    *,
    verdict: Verdict | None = None,
    model: str | None = None,
    machine: Machine[Generation] = built_in,
) -> str:
    """The report of a journal as HTML.

    Parameters
    ----------
    verdict
        What running it again came to, if it was.
    model
        The folder of the checkpoint whose tokenizer turns ids into text; unless given, the one that the journal names.
    machine
        The one that a generation was recorded with: it enters what its phases found.

    Raises
    ------
    JournalError
        When the journal is damaged.
    """
    page = _Page.of(journal, model, machine)
    found = _divergence(verdict.divergence, page) if verdict and verdict.divergence else None
    return str(_template().render(page=page, divergence=found, verdict=verdict))


def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("phases", "."), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"duration": duration, "csp_hash": _csp_hash, "about_json": _about_json}
    return environment.get_template("report.html.j2")


def _csp_hash(source: str) -> str:
    """How a Content-Security-Policy names the one script, and the one style, that may take effect."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def _about_json(rows: Iterable[list[dict[str, Any]]]) -> Any:
    """What is known about each token, as JSON that no text in it can lead out of its script element."""
    from markupsafe import Markup

    text = msgspec.json.encode([[token["about"] for token in row] for row in rows]).decode()
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))  # noqa: S704


@dataclass(slots=True)
class _Row:
    """A row of a generation, as the page shows it."""

    number: int
    prompt: str
    params: list[tuple[str, str]]
    tokens: list[dict[str, Any]] = field(default_factory=list)  # see `_shown`
    count: int = 0
    finish_reason: str = ""


@dataclass(slots=True)
class _Page:
    """Everything that the template shows; it computes nothing."""

    title: str
    facts: list[tuple[str, str]]
    environment: list[tuple[str, str]]
    request: str
    svg: str  # "": there is no Graphviz here
    mermaid: str
    tally: Tally
    shares: dict[str, float]
    phases: list[dict[str, Any]]
    bars: list[dict[str, Any]]
    steps_per_bar: int
    events: list[dict[str, Any]]
    more_events: int
    rows: list[_Row]
    digests: bool
    text: TokenText
    torn: int

    @classmethod
    def of(cls, journal: Journal, model: str | None, machine: Machine[Generation]) -> "_Page":
        header = journal.header
        chart, tally = Chart.of_record(header.machine), Tally.of(journal)
        walk = _Walk(journal, tally, machine)
        text = TokenText.of(journal, model) if walk.rows else TokenText(None, "")
        return cls(
            title=f"{header.machine.name}, run {header.run}",
            facts=_facts(journal, tally),
            environment=[(name, _short(value)) for name, value in header.environment.items()],
            request=_short(msgspec.json.format(msgspec.json.encode(header.request)).decode()),
            svg=_svg(chart, tally),
            mermaid=to_mermaid(chart, tally=tally),
            tally=tally,
            shares=tally.shares(),
            phases=_phases(tally, chart.ends),
            bars=walk.bars,
            steps_per_bar=walk.per_bar,
            events=walk.events[:SHOWN_EVENTS],
            more_events=max(0, len(walk.events) - SHOWN_EVENTS),
            rows=_rows(walk, text),
            digests=any(token.candidates for tokens in walk.tokens for token in tokens),
            text=text,
            torn=journal.torn,
        )


def _caught(tally: Tally) -> str | None:
    """What phases raised that the table has ways for, and what the last of each said."""
    found = [f"{name} in {phase} ({each.count}), last: {each.message}" for (phase, name), each in tally.caught.items()]
    return "; ".join(found) or None


def _facts(journal: Journal, tally: Tally) -> list[tuple[str, str]]:
    header, environment = journal.header, journal.header.environment
    facts = [
        ("run", header.run),
        ("forked from", header.forked_from),
        ("recorded", header.created[:19].replace("T", " ") + header.created[23:].replace("+00:00", " UTC")),
        ("machine", f"{header.machine.name} ({header.machine.fingerprint[:12]})"),
        ("ended", "failed" if tally.failed else tally.status or "the record does not say: it was paused, or killed"),
        ("steps", f"{tally.steps:,}".replace(",", " ")),
        ("work", duration(tally.total_ns)),
        ("caught", _caught(tally)),
        ("model", environment.get("source")),
        ("engine", environment.get("engine")),
        ("dtype", environment.get("dtype")),
        ("quantize", environment.get("quantize")),
        ("threads", environment.get("threads")),
        ("phasewalk", environment.get("phasewalk")),
    ]
    return [(name, _short(value)) for name, value in facts if value is not None]


def _svg(chart: Chart, tally: Tally) -> str:
    """The diagram as an SVG element; Graphviz has escaped every name in it."""
    try:
        picture = to_svg(chart, tally=tally)
    except GraphvizMissing:
        return ""
    return picture[picture.index("<svg") :]


def _phases(tally: Tally, ends: frozenset[str]) -> list[dict[str, Any]]:
    shares = tally.shares()
    return [
        {
            "number": number, "name": name, "visits": phase.visits, "median": phase.quantile_ns(0.5),
            "p95": phase.quantile_ns(0.95), "total": phase.total_ns, "share": shares[name],
        }
        for number, (name, phase) in enumerate(tally.phases.items())
        if name not in ends  # a run rests there; it never runs them
    ]  # fmt: skip


class _Walk:
    """One pass over the timeline: bars, events, and the tokens of each row if it is a generation."""

    def __init__(self, journal: Journal, tally: Tally, machine: Machine[Generation]) -> None:
        self.per_bar = max(1, math.ceil(tally.steps / BARS))
        self.bars: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.tokens: list[list[Token]] = []
        try:
            self.rows: RecordedRows | None = RecordedRows(journal, machine)
            self.tokens = [[] for _ in self.rows.context.slots]
        except JournalError:  # another machine: there is no text to show
            self.rows = None
        self._numbers = {name: number for number, name in enumerate(tally.phases)}
        self._returns = came_back(journal)
        self._now = 0
        for record in journal.timeline():
            self._take(record)
        longest = max((bar["longest"] for bar in self.bars), default=0)
        for bar in self.bars:
            bar["height"] = round(100 * math.log1p(bar["longest"] / UNIT) / math.log1p(max(longest, 1) / UNIT), 2)

    def _take(self, record: Any) -> None:
        while self._returns and self._returns[0].n <= record.n:
            back = self._returns.popleft()
            self._event(back.n, "back", f"from step {back.left}")
        if isinstance(record, StepRecord):
            if record.x:
                self._event(record.n, "caught", f"in {record.p}: {record.x.exception}: {record.x.message}")
            self._bar(record)
            self._now += record.t
            if self.rows:
                for token in self.rows.step(record).tokens:
                    self.tokens[token.row].append(token)
        elif isinstance(record, SignalRecord):
            self._event(
                record.n, "signal", record.name if record.o is None else f"{record.name} {plain_text(record.o)}"
            )
            if self.rows:
                self.rows.event(record)
        elif isinstance(record, RefusedRecord):
            self._event(record.n, "refused", f"signal {record.name}: {record.why}")
        elif isinstance(record, EditRecord):
            self._event(record.n, "edit", f"{record.name} {plain_text(record.o)}")
            if self.rows:
                self.rows.event(record)
        elif isinstance(record, PauseRecord):
            self._event(record.n, "pause", "")
        elif isinstance(record, ErrorRecord):
            self._event(record.n, "error", f"in {record.p}: {record.exception}: {record.message}")

    def _event(self, step: int, kind: str, words: str) -> None:
        self.events.append({"step": step, "kind": kind, "words": _short(words), "after": self._now})

    def _bar(self, record: StepRecord) -> None:
        """A bar stands for one step, or, where there are too many, for the longest of a few."""
        if record.n % self.per_bar == 0 or not self.bars:
            self.bars.append({"first": record.n, "longest": -1, "phase": "", "number": 0, "total": 0})
        bar = self.bars[-1]
        bar["last"] = record.n
        bar["total"] += record.t
        if record.t > bar["longest"]:
            bar |= {"longest": record.t, "phase": record.p, "number": self._numbers[record.p]}


def _rows(walk: _Walk, text: TokenText) -> list[_Row]:
    if walk.rows is None:
        return []
    context, rows = walk.rows.context, []
    for number, (request, tokens) in enumerate(zip(context.request.requests, walk.tokens, strict=True)):
        if request.messages is not None:
            prompt = "\n".join(
                f"{message.role}: " + "".join(piece.content for piece in message.contents)
                for message in request.messages
            )
        else:
            ids = request.token_ids or ()
            prompt = request.prompt if request.prompt is not None else text.of_ids(ids[:SHOWN_TOKENS])
        params = [
            (name, plain_text(value))
            for name, value in msgspec.to_builtins(request.params).items()
            if value is not None
        ]
        reason = ": ".join(filter(None, (context.finish_reasons[number], context.errors[number])))
        row = _Row(number, prompt, params, count=len(tokens), finish_reason=reason)
        shown = tokens[:SHOWN_TOKENS]
        words: dict[int, str] = {}  # a candidate comes up again and again
        for token, piece in zip(shown, text.pieces(token.id for token in shown), strict=True):
            row.tokens.append(_shown(token, piece, text, words))
        rows.append(row)
    return rows


def _shown(token: Token, piece: str, text: TokenText, words: dict[int, str]) -> dict[str, Any]:
    """A token as the page shows it: its text, its id and step, its candidates, and a level of surprise.

    Probabilities are those at temperature 1, before anything was cut off. Without a digest there are none.
    """
    chance = dict(token.candidates).get(token.id)
    level = "" if not token.candidates else 5 if chance is None else sum(chance < limit for limit in LEVELS)
    for candidate, _ in token.candidates:
        if candidate not in words:
            words[candidate] = text.of_one(candidate)
    return {
        "text": piece or "\u25e6",
        "level": level,
        "forced": token.forced,
        "about": {
            "id": token.id, "step": token.step, "forced": token.forced,
            "candidates": [
                [words[candidate], candidate, round(probability, 4)] for candidate, probability in token.candidates
            ],
        },
    }  # fmt: skip


def _divergence(divergence: Divergence, page: _Page) -> dict[str, Any]:
    def told(value: Any) -> str:
        words = ""
        if divergence.field == "outcome":
            words = outcome_words(page.text.tokenizer, divergence.phase, value)
        return _short(f"{plain_text(value)}  {words}".rstrip())

    return {
        "where": f"step {divergence.step}, phase {divergence.phase}: {divergence.field}",
        "recorded": told(divergence.recorded),
        "replayed": told(divergence.replayed),
        "detail": [(name.replace("_", " "), _short(value)) for name, value in divergence.detail.items()],
        "causes": [_short(cause) for cause in divergence.causes],
        "common": [_short(step) for step in divergence.common],
    }


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else plain_text(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text)} characters)"
