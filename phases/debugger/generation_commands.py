"""The commands for generations: tokens are drawn, forced and appended; text, candidates and buffers are shown."""

from collections.abc import Callable

from phases.debugger.command import Lines, number, string
from phases.debugger.distribution import Candidate, Distribution
from phases.debugger.errors import DebuggerError
from phases.debugger.generation import GenerationSession
from phases.debugger.machine_commands import alone, why

BAR = 24  # characters of a probability of 1


def run(session: GenerationSession, rest: str) -> Lines:
    alone("run", rest)
    return _moved(session, session.run_on)


def next_(session: GenerationSession, rest: str) -> Lines:
    return _moved(session, lambda: session.next_token(number(rest, "next [N]", 1)))


def _moved(session: GenerationSession, move: Callable[[], str]) -> Lines:
    """Move, and tell the new tokens of the row that is shown."""
    row = session.branch.row
    before = len(session.run.context.output_ids[row])
    reason = move()
    output = session.run.context.output_ids[row]
    tokens = [
        f"token {place + 1}: {output[place]}{_quoted(session, output[place])}" for place in range(before, len(output))
    ]
    return [*tokens, *why(reason), session.where()]


def _quoted(session: GenerationSession, token: int) -> str:
    return f" {session.label(token)}" if session.has_text else ""


def force(session: GenerationSession, rest: str) -> Lines:
    usage = 'force TOKEN or force "TEXT"'
    token: int | str = int(rest) if rest.lstrip("-").isdecimal() else string(rest, usage)
    return _forced(session, session.force(token))


def append(session: GenerationSession, rest: str) -> Lines:
    return _forced(session, session.append(string(rest, 'append "TEXT"')))


def _forced(session: GenerationSession, tokens: tuple[int, ...]) -> Lines:
    words = " ".join(f"{token}{_quoted(session, token)}" for token in tokens)
    return [f"forced next: {words}"]


def set_(session: GenerationSession, rest: str) -> Lines:
    name, _, value = rest.partition(" ")
    if not value.strip():
        raise DebuggerError("expected set NAME NUMBER, as in set temperature 0.2")
    session.set(name, value.strip())
    return [f"{name} is {value.strip()} from here on"]


def row(session: GenerationSession, rest: str) -> Lines:
    session.show_row(number(rest, "row N"))
    return [session.where()]


def text(session: GenerationSession, rest: str) -> Lines:
    text = session.text()
    lines = [f"prompt: {text.prompt!r}" if session.has_text else f"prompt ids: {text.prompt}"]
    if session.has_text:
        lines.append(f"output: {text.before + text.last!r}")
    else:
        lines.append(f"output ids: {text.before + text.last}")
    if text.last_id is not None:
        state = "drawn" if text.pending else "last"
        lines.append(f"{state}: {text.last_id}{_quoted(session, text.last_id)}")
    if text.recorded:
        lines.append(f"recorded text: {text.recorded!r}")
    return lines


def candidates(session: GenerationSession, rest: str) -> Lines:
    count = number(rest, "candidates [N]", 10)
    shown = session.distribution()
    lines = [_title(session, shown)]
    if shown.spread:
        spread = shown.spread
        lines.append(
            f"top1 {spread.top1:.4f}  margin {spread.margin:.4f}  entropy {spread.entropy:.2f} bits  "
            f"kept {shown.kept} of {shown.vocab}"
        )
    listed = list(shown.candidates[:count])
    listed += [c for c in shown.candidates[count:] if c.token_id in (shown.drawn, shown.forced)]
    lines += [_candidate_line(session, shown, candidate) for candidate in listed]
    return lines


def _title(session: GenerationSession, shown: Distribution) -> str:
    """Which token the candidates are for."""
    if shown.drawn is not None:
        return f"token {shown.place + 1}, drawn: {shown.drawn}{_quoted(session, shown.drawn)}"
    if shown.forced is not None:
        return f"token {shown.place + 1}, forced: {shown.forced}{_quoted(session, shown.forced)}"
    return f"token {shown.place + 1}, to be drawn"


def _candidate_line(session: GenerationSession, shown: Distribution, candidate: Candidate) -> str:
    mark = "*" if candidate.token_id in (shown.drawn, shown.forced) else " "
    name = f"{candidate.token_id:>7}{_quoted(session, candidate.token_id):<20}"
    if candidate.probability is None:
        return f"{mark}{name}  logit {candidate.logit:.4f}"
    bar = "#" * round(candidate.probability * BAR)
    fate = f"removed by {candidate.removed}" if candidate.removed else f"drawn with {candidate.chance:.4f}"
    return f"{mark}{name}  {candidate.probability:.4f}  {bar:<{BAR}}  {fate}"


def buffers(session: GenerationSession, rest: str) -> Lines:
    lines = [
        f"{buffer.name:<13}  {'x'.join(map(str, buffer.shape)):<14}  {buffer.dtype:<7}  {buffer.address:#x}"
        + (f"  {buffer.value}" if buffer.value else "")
        for buffer in session.buffers()
    ]
    for row in session.cache():
        share = row.length / row.capacity
        lines.append(
            f"kv {row.slot}  [{'#' * round(share * BAR):<{BAR}}]  {row.length} of {row.capacity}  {row.owner or 'free'}"
        )
    return lines if session.buffers() else ["buffers: not recorded", *lines]
