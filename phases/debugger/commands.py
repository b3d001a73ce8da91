"""The debugger's commands as lines of text: read by the line mode, and by the prompts of the full screen."""

import ast
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpu import CapacityError, LogitsError, NoFreeRows
from phases.debugger.conditions import NUMBERS, TEXTS
from phases.debugger.distribution import Candidate, Distribution, NoDistribution
from phases.debugger.errors import DebuggerError
from phases.debugger.generation import GenerationSession
from phases.debugger.guards import guard_truths
from phases.debugger.timeline import Moment
from phases.debugger.view import View
from statemachine import StateMachineError

Lines = list[str]
MENDABLE = (ValueError, OSError, StateMachineError, NoDistribution, NoFreeRows, CapacityError, LogitsError)
BAR = 24  # characters of a probability of 1
RECENT = 20  # steps that `timeline` lists


class Quit(Exception):
    """The user has had enough."""


def execute(session: GenerationSession, line: str) -> Lines:
    """Do what a line says and give what there is to print, an error included.

    Raises
    ------
    Quit
        When it says quit.
    """
    try:
        return attempt(session, line)
    except MENDABLE as error:
        return [complaint(error)]


def attempt(session: GenerationSession, line: str) -> Lines:
    """As `execute`, but what is wrong is raised, as one of MENDABLE."""
    word, _, rest = line.strip().partition(" ")
    if not word or word.startswith("#"):
        return []
    return _find(word).act(session, rest.strip())


def complaint(error: Exception) -> str:
    """An error as a line."""
    return f"error: {' '.join(str(error).split())}"


@dataclass(frozen=True, slots=True)
class Command:
    """A command, how it is written and what it does."""

    name: str
    usage: str
    help: str
    act: Callable[[GenerationSession, str], Lines]


def _find(word: str) -> Command:
    """A command by its name or the beginning of it; of several, the one that stands first in the table."""
    for command in (*(c for c in COMMANDS if c.name == word), *(c for c in COMMANDS if c.name.startswith(word))):
        return command
    raise DebuggerError(
        f"expected a command, not {word!r}; commands: {', '.join(dict.fromkeys(c.name for c in COMMANDS))}"
    )


# --- arguments ----------------------------------------------------------------------------------------------------


def _number(rest: str, usage: str, default: int | None = None) -> int:
    if not rest and default is not None:
        return default
    try:
        return int(rest)
    except ValueError:
        raise DebuggerError(f"expected {usage}, not {rest!r}" if rest else f"expected {usage}") from None


def _string(rest: str, usage: str) -> str:
    """Text in quotes, with Python's escapes; what has no quotes is taken as it stands."""
    if rest[:1] not in ("'", '"'):
        if not rest:
            raise DebuggerError(f"expected {usage}")
        return rest
    try:
        value = ast.literal_eval(rest)
    except (SyntaxError, ValueError):
        value = None
    if not isinstance(value, str):
        raise DebuggerError(f"expected {usage}, not {rest!r}: its quotes do not match")
    return value


def _path(rest: str, usage: str) -> Path:
    return Path(_string(rest, usage))


# --- moving -------------------------------------------------------------------------------------------------------


def _step(session: GenerationSession, rest: str) -> Lines:
    before = session.run.step_count
    why = session.step(_number(rest, "step [N]", 1))
    return [*(moment_line(m) for m in session.moments(before, session.run.step_count)), *_why(why)]


def _next(session: GenerationSession, rest: str) -> Lines:
    return _moved(session, lambda: session.next_token(_number(rest, "next [N]", 1)))


def _run(session: GenerationSession, rest: str) -> Lines:
    if rest:
        raise DebuggerError(f"expected run alone, not {rest!r} after it")
    return _moved(session, session.run_on)


def _moved(session: GenerationSession, move: Callable[[], str]) -> Lines:
    """Move, and tell the new tokens of the row that is shown."""
    row = session.branch.row
    before = len(session.run.context.output_ids[row])
    why = move()
    output = session.run.context.output_ids[row]
    tokens = [
        f"token {place + 1}: {output[place]}{_quoted(session, output[place])}" for place in range(before, len(output))
    ]
    return [*tokens, *_why(why), where(session)]


def _quoted(session: GenerationSession, token: int) -> str:
    return f" {session.label(token)}" if session.generator else ""


def _why(why: str) -> Lines:
    return [f"stopped: {why}"] if why else []


def _back(session: GenerationSession, rest: str) -> Lines:
    session.back(_number(rest, "back [N]", 1))
    return [where(session)]


def _goto(session: GenerationSession, rest: str) -> Lines:
    session.goto(_number(rest, "goto STEP"))
    return [where(session)]


# --- breakpoints --------------------------------------------------------------------------------------------------


def _break(session: GenerationSession, rest: str) -> Lines:
    kind, _, target = rest.partition(" ")
    if not target.strip():
        raise DebuggerError("expected break phase NAME, break guard NAME or break if CONDITION")
    made = session.break_at(kind, target.strip())
    return [f"breakpoint {made.number}: {made}"]


def _breaks(session: GenerationSession, rest: str) -> Lines:
    return [f"breakpoint {found.number}: {found}" for found in session.breakpoints] or ["no breakpoints"]


def _delete(session: GenerationSession, rest: str) -> Lines:
    gone = session.breakpoints.delete(_number(rest, "delete N"))
    return [f"deleted breakpoint {gone.number}: {gone}"]


# --- changing -----------------------------------------------------------------------------------------------------


def _force(session: GenerationSession, rest: str) -> Lines:
    usage = 'force TOKEN or force "TEXT"'
    token: int | str = int(rest) if rest.lstrip("-").isdecimal() else _string(rest, usage)
    return _forced(session, session.force(token))


def _append(session: GenerationSession, rest: str) -> Lines:
    return _forced(session, session.append(_string(rest, 'append "TEXT"')))


def _forced(session: GenerationSession, tokens: tuple[int, ...]) -> Lines:
    words = " ".join(f"{token}{_quoted(session, token)}" for token in tokens)
    return [f"forced next: {words}"]


def _set(session: GenerationSession, rest: str) -> Lines:
    name, _, value = rest.partition(" ")
    if not value.strip():
        raise DebuggerError("expected set NAME NUMBER, as in set temperature 0.2")
    session.set(name, value.strip())
    return [f"{name} is {value.strip()} from here on"]


# --- several runs -------------------------------------------------------------------------------------------------


def _fork(session: GenerationSession, rest: str) -> Lines:
    session.fork(_number(rest, "fork [STEP]") if rest else None)
    return [where(session)]


def _switch(session: GenerationSession, rest: str) -> Lines:
    session.branches.switch(_number(rest, "switch [N]") if rest else None)
    return [where(session)]


def _close(session: GenerationSession, rest: str) -> Lines:
    closed = session.branches.close_shown()
    return [f"closed run {closed.number}", where(session)]


def _runs(session: GenerationSession, rest: str) -> Lines:
    return [
        f"{'*' if branch is session.branch else ' '} run {branch.number}  {branch.run.status}  "
        f"step {branch.run.step_count} of {branch.run.recorded_steps}{f'  {branch.origin}' if branch.origin else ''}"
        for branch in session.branches
    ]


def _save(session: GenerationSession, rest: str) -> Lines:
    path = _path(rest, "save FILE")
    session.save(path)
    return [f"saved to {path}"]


def _load(session: GenerationSession, rest: str) -> Lines:
    session.load(_path(rest, "load FILE"))
    return [where(session)]


def _row(session: GenerationSession, rest: str) -> Lines:
    session.show_row(_number(rest, "row N"))
    return [where(session)]


# --- seeing -------------------------------------------------------------------------------------------------------


def where(session: GenerationSession) -> str:
    """One line that says where the run rests."""
    run, branch = session.run, session.branch
    row = f"  row {branch.row}" if len(run.context.slots) > 1 else ""
    return (
        f"run {branch.number}  {session.status}  at {run.phase.name}  step {run.step_count} of {run.recorded_steps}  "
        f"tokens {len(run.context.output_ids[branch.row])}{row}"
    )


def _where(session: GenerationSession, rest: str) -> Lines:
    return [where(session), *([session.notice] if session.notice else [])]


def _machine(session: GenerationSession, rest: str) -> Lines:
    lines = ["".join(text for text, _ in spans).rstrip() for spans in View.of(session).drawing]
    return [*lines, f"at {session.run.phase.name}"]


def _text(session: GenerationSession, rest: str) -> Lines:
    text = session.text()
    lines = [f"prompt: {text.prompt!r}" if session.generator else f"prompt ids: {text.prompt}"]
    if session.generator:
        lines.append(f"output: {text.before + text.last!r}")
    else:
        lines.append(f"output ids: {text.before + text.last}")
    if text.last_id is not None:
        state = "drawn" if text.pending else "last"
        lines.append(f"{state}: {text.last_id}{_quoted(session, text.last_id)}")
    if text.recorded:
        lines.append(f"recorded text: {text.recorded!r}")
    return lines


def _candidates(session: GenerationSession, rest: str) -> Lines:
    count = _number(rest, "candidates [N]", 10)
    shown = session.distribution()
    lines = [title(session, shown)]
    if shown.spread:
        spread = shown.spread
        lines.append(
            f"top1 {spread.top1:.4f}  margin {spread.margin:.4f}  entropy {spread.entropy:.2f} bits  "
            f"kept {shown.kept} of {shown.vocab}"
        )
    listed = list(shown.candidates[:count])
    listed += [c for c in shown.candidates[count:] if c.token_id in (shown.drawn, shown.forced)]
    lines += [candidate_line(session, shown, candidate) for candidate in listed]
    return lines


def title(session: GenerationSession, shown: Distribution) -> str:
    """Which token the candidates are for."""
    if shown.drawn is not None:
        return f"token {shown.place + 1}, drawn: {shown.drawn}{_quoted(session, shown.drawn)}"
    if shown.forced is not None:
        return f"token {shown.place + 1}, forced: {shown.forced}{_quoted(session, shown.forced)}"
    return f"token {shown.place + 1}, to be drawn"


def candidate_line(session: GenerationSession, shown: Distribution, candidate: Candidate) -> str:
    mark = "*" if candidate.token_id in (shown.drawn, shown.forced) else " "
    name = f"{candidate.token_id:>7}{_quoted(session, candidate.token_id):<20}"
    if candidate.probability is None:
        return f"{mark}{name}  logit {candidate.logit:.4f}"
    bar = "#" * round(candidate.probability * BAR)
    fate = f"removed by {candidate.removed}" if candidate.removed else f"drawn with {candidate.chance:.4f}"
    return f"{mark}{name}  {candidate.probability:.4f}  {bar:<{BAR}}  {fate}"


def _guards(session: GenerationSession, rest: str) -> Lines:
    lines = [
        f"{guard.name}: {'not defined here' if guard.truth is None else guard.truth}"
        for guard in guard_truths(session.run)
    ]
    last = View.of(session).last
    decided = [f"last step: {last.phase} -> {last.target}  {last.guards}"] if last and last.guards else []
    return [*(lines or [f"{session.run.phase.name} has no guards"]), *decided]


def _buffers(session: GenerationSession, rest: str) -> Lines:
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


def moment_line(moment: Moment, *, time: bool = False) -> str:
    """A step in one line."""
    words = [f"{moment.number:>5} {moment.phase} -> {moment.target}", moment.guards, moment.found]
    if time:
        words.append(f"{moment.elapsed_ns / 1e6:.3f} ms")
    return "  ".join(word for word in words if word)


def _timeline(session: GenerationSession, rest: str) -> Lines:
    count, here = _number(rest, "timeline [N]", RECENT), session.run.step_count
    first = max(0, here - count)
    lines = []
    events = dict(session.happenings())
    for moment in session.moments(first, here + count):
        if moment.number in events:
            lines.append(f"      {events[moment.number]}")
        lines.append(f"{'>' if moment.number == here else ' '}{moment_line(moment, time=True)}")
    if here == session.run.recorded_steps:
        lines += [f"      {events[here]}"] if here in events else []
        lines.append(f">{here:>5} {session.run.phase.name}")
    return lines


def _help(session: GenerationSession, rest: str) -> Lines:
    width = max(len(command.usage) for command in COMMANDS)
    return [
        *(f"{command.usage:<{width}}  {command.help}" for command in COMMANDS),
        "",
        "The beginning of a command will do. CONDITION compares names with numbers or strings, joined by and, or, not:",
        *(f"  {name:<9} {meaning}" for name, meaning in (NUMBERS | TEXTS).items()),
    ]


def _quit(session: GenerationSession, rest: str) -> Lines:
    raise Quit


COMMANDS = (
    Command("step", "step [N]", "take a step, or N", _step),
    Command("next", "next [N]", "go on until the next token, or N tokens", _next),
    Command("run", "run", "go on until a breakpoint or the end", _run),
    Command("back", "back [N]", "go back a step, or N", _back),
    Command("goto", "goto STEP", "rest where the run rested after so many steps", _goto),
    Command("break", "break phase NAME", "stop before a phase", _break),
    Command("break", "break guard NAME", "stop after a guard held (~NAME: did not hold)", _break),
    Command("break", "break if CONDITION", 'stop once it holds: top1 < 0.3, token == "\\n", length == 40', _break),
    Command("breaks", "breaks", "list the breakpoints", _breaks),
    Command("delete", "delete N", "take out a breakpoint", _delete),
    Command("force", 'force TOKEN|"TEXT"', "make a token, or the tokens of a text, come next", _force),
    Command("set", "set NAME NUMBER", "change temperature, top_k, top_p, min_p, max_new_tokens", _set),
    Command("append", 'append "TEXT"', "make the row go on with this text", _append),
    Command("fork", "fork [STEP]", "a second run with the same past; switches to it", _fork),
    Command("switch", "switch [N]", "look at another run", _switch),
    Command("close", "close", "close the run that is shown", _close),
    Command("runs", "runs", "list the runs", _runs),
    Command("row", "row N", "look at another row of the batch", _row),
    Command("save", "save FILE", "write a snapshot, for load and phasewalk resume", _save),
    Command("load", "load FILE", "open a snapshot as another run", _load),
    Command("where", "where", "where the run rests", _where),
    Command("machine", "machine", "draw the machine, with counts on its arrows", _machine),
    Command("text", "text", "the text so far", _text),
    Command("candidates", "candidates [N]", "what the token is drawn from, and what was removed", _candidates),
    Command("guards", "guards", "the guards of the phase that runs next", _guards),
    Command("buffers", "buffers", "the engine's buffers and how full the KV cache is", _buffers),
    Command("timeline", "timeline [N]", "the steps around here, with their times", _timeline),
    Command("help", "help", "this list", _help),
    Command("quit", "quit", "leave", _quit),
)  # fmt: skip
