"""What a debugger does and shows, without any screen: moves go in, what is to be seen comes out."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from phases.context import Generation
from phases.debugger.conditions import Condition, Value
from phases.debugger.distribution import (
    Distribution,
    NoDistribution,
    Spread,
    distribution,
    recorded_distribution,
    spread,
)
from phases.debugger.drawing import Spans, draw
from statemachine import PhaseError, Run, Step

if TYPE_CHECKING:
    from phases.debugger.recording import Recording
    from phases.generator import Generator

NEARBY = 200  # steps to either side that a timeline shows
SETTINGS = {"temperature": float, "top_k": int, "top_p": float, "min_p": float, "seed": int, "max_new_tokens": int}


class DebuggerError(ValueError):
    """A command that makes no sense here; the message says what was expected."""


@dataclass(frozen=True, slots=True)
class Breakpoint:
    """A place to stop at: before a phase, after a guard held, or once a condition holds."""

    number: int
    kind: Literal["phase", "guard", "if"]
    target: str  # the phase, the guard (~ before it: when it does not hold), or the condition as it was written
    condition: Condition | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.target}"


@dataclass(slots=True)
class Branch:
    """One of the runs that the debugger holds."""

    number: int
    run: Run[Generation]
    origin: str = ""  # "fork of 1 at step 5", "loaded from FILE"
    row: int = 0  # the one that is shown
    error: str = ""  # why it failed


@dataclass(frozen=True, slots=True)
class Text:
    """A row's text so far; where there is no tokenizer, token ids stand for it."""

    prompt: str
    before: str
    last: str  # what the last token added
    last_id: int | None = None
    pending: bool = False  # the last token was drawn, but CheckStop has not entered it yet
    recorded: str = ""  # the whole output text, where a record tells it


@dataclass(frozen=True, slots=True)
class GuardTruth:
    """A guard of the present phase."""

    name: str
    truth: bool | None  # None: it cannot be evaluated here
    meaning: str = ""


@dataclass(frozen=True, slots=True)
class Buffer:
    """One of the engine's buffers."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    address: int
    value: str = ""  # what it holds for the row that is shown, if that is one number


@dataclass(frozen=True, slots=True)
class CacheRow:
    """How full one slot of the KV cache is."""

    slot: int
    owner: str  # "run 1 row 0"; "" if it is free
    shown: bool
    length: int
    capacity: int


@dataclass(frozen=True, slots=True)
class Moment:
    """A step on the timeline."""

    number: int
    phase: str
    target: str
    elapsed_ns: int
    found: str
    guards: str


@dataclass(frozen=True, slots=True)
class View:
    """Everything there is to see where a run rests."""

    branches: tuple[str, ...]
    current: int  # index of the branch
    status: str
    phase: str
    step: int
    steps: int  # recorded, those ahead included
    row: int
    rows: int
    drawing: list[Spans]
    text: Text
    tokens: int
    distribution: Distribution | str  # or why there is none
    names: dict[int, str]  # how each candidate is called
    sampling: tuple[str, ...]
    guards: tuple[GuardTruth, ...]
    last: Moment | None
    buffers: tuple[Buffer, ...]
    cache: tuple[CacheRow, ...]
    moments: tuple[Moment, ...]  # near the place where it rests
    elapsed_ns: int
    breakpoints: tuple[Breakpoint, ...]
    notice: str


@dataclass(slots=True)
class Session:
    """Runs that are stepped and looked into, and the breakpoints they share.

    Not for several threads at once, but `pause` and `progress` may be called from any while another moves the run.
    """

    generator: "Generator | None"  # None: what is shown is a record
    recording: "Recording | None" = None
    branches: list[Branch] = field(default_factory=list)
    current: int = 0
    breakpoints: list[Breakpoint] = field(default_factory=list)
    _numbers: int = 0  # breakpoints made so far
    _made: int = 0  # branches made so far
    _saved: set[Path] = field(default_factory=set)
    pausing: bool = False  # somebody wants the move under way to end at the next boundary

    @classmethod
    def live(cls, generator: "Generator", run: Run[Generation]) -> "Session":
        """Debug a run of this generator that was started with `keep=True`."""
        session = cls(generator)
        session._add(run, "")
        return session

    @classmethod
    def recorded(cls, path: Path) -> "Session":
        """Walk a journal, from its start; raises JournalError."""
        from phases.debugger.recording import Recording

        recording = Recording(path)
        session = cls(None, recording)
        session._add(recording.run, f"recorded in {path.name}")
        recording.run.goto(0)
        return session

    def close(self) -> None:
        """Give back what the runs hold."""
        for branch in self.branches:
            branch.run.close()

    @property
    def branch(self) -> Branch:
        return self.branches[self.current]

    @property
    def run(self) -> Run[Generation]:
        return self.branch.run

    def _add(self, run: Run[Generation], origin: str) -> None:
        self._made += 1
        row = self.branch.row if self.branches and self.branch.row < len(run.context.slots) else 0
        self.branches.append(Branch(self._made, run, origin, row))
        self.current = len(self.branches) - 1

    # --- moving -------------------------------------------------------------------------------------------------

    def step(self, count: int = 1) -> str:
        """Take so many steps; says why it stopped, "" if they were all taken."""
        until = self.run.step_count + _positive(count)
        return self._advance(lambda run: run.step_count >= until)

    def next_token(self, count: int = 1) -> str:
        """Go on until so many more tokens have been checked, or the run ends."""
        left = _positive(count)

        def enough(run: Run[Generation]) -> bool:
            nonlocal left
            left -= _last(run).phase == "check_stop"
            return not left

        return self._advance(enough)

    def run_on(self) -> str:
        """Go on until a breakpoint, a pause or the end."""
        return self._advance(lambda run: False)

    def pause(self) -> None:
        """Rest at the next boundary; from any thread."""
        self.pausing = True

    def _advance(self, enough: Callable[[Run[Generation]], bool]) -> str:
        reason = ""

        def stop(run: Run[Generation]) -> bool:
            nonlocal reason
            hit = self._hit(run)
            if enough(run) or hit or self.pausing:
                reason = f"breakpoint {hit.number} ({hit})" if hit else "paused" if self.pausing else ""
                return True
            return False

        try:
            if self.recording is not None:
                self._play(stop)
                return self._end_of_record() if self.run.step_count == self.run.recorded_steps else reason
            if self.run.status.ended:
                raise DebuggerError(f"the run has ended ({self.run.status}): go back to go on from there")
            self.run.until(stop)
        except PhaseError as error:
            self.branch.error = f"{type(error.__cause__).__name__}: {error.__cause__}"
            return f"failed in {error.phase}: {self.branch.error}"
        finally:
            self.pausing = False
        return str(self.run.status) if self.run.status.ended else reason

    def _play(self, stop: Callable[[Run[Generation]], bool]) -> None:
        assert self.recording is not None
        if self.run.step_count == self.run.recorded_steps:
            raise DebuggerError(f"{self._end_of_record()}: go back to see it again")
        for walked in self.recording.walk():
            if walked.step_count > self.run.step_count and stop(walked):
                self.run.goto(walked.step_count)
                return
        self.run.goto(self.run.recorded_steps)

    def _end_of_record(self) -> str:
        status = f" ({self.run.status})" if self.run.status.ended else ""
        return f"the end of the record{status}"

    def back(self, count: int = 1) -> None:
        """Go back so many steps."""
        self.goto(self.run.step_count - _positive(count))

    def goto(self, number: int) -> None:
        """Rest where the run rested after so many steps, back or ahead in what is recorded."""
        if not 0 <= number <= self.run.recorded_steps:
            where = "the start" if number < 0 else "the last recorded step"
            raise DebuggerError(f"expected a step from 0 to {self.run.recorded_steps}, but {number} lies past {where}")
        self.run.goto(number)

    # --- breakpoints --------------------------------------------------------------------------------------------

    def break_at(self, kind: str, target: str) -> Breakpoint:
        """Add a breakpoint: kind "phase", "guard" or "if"; raises DebuggerError or ConditionError."""
        machine = self.run.machine
        if kind == "phase":
            if target not in machine.phases:
                raise DebuggerError(f"expected a phase, not {target!r}; phases: {', '.join(machine.phases)}")
            made = Breakpoint(self._numbers + 1, "phase", target)
        elif kind == "guard":
            guards = {atom.name for way in machine.transitions if way.when for atom in way.when.atoms}
            if target.removeprefix("~") not in guards:
                raise DebuggerError(f"expected a guard, not {target!r}; guards: {', '.join(sorted(guards))}")
            made = Breakpoint(self._numbers + 1, "guard", target)
        elif kind == "if":
            condition = Condition.parse(target)
            made = Breakpoint(self._numbers + 1, "if", condition.text, condition)
        else:
            raise DebuggerError("expected break phase NAME, break guard NAME or break if CONDITION")
        self._numbers += 1
        self.breakpoints.append(made)
        return made

    def delete(self, number: int) -> Breakpoint:
        """Take a breakpoint out."""
        for index, found in enumerate(self.breakpoints):
            if found.number == number:
                return self.breakpoints.pop(index)
        numbers = ", ".join(str(found.number) for found in self.breakpoints) or "none"
        raise DebuggerError(f"there is no breakpoint {number}; breakpoints: {numbers}")

    def _hit(self, run: Run[Generation]) -> Breakpoint | None:
        """The first breakpoint that the step just taken led to."""
        if not self.breakpoints:
            return None
        last = _last(run)
        names = _Names(self, run, self.branch.row)
        for found in self.breakpoints:
            if found.kind == "phase":
                hit = run.phase.name == found.target
            elif found.kind == "guard":
                hit = last.guards.get(found.target.removeprefix("~")) is not found.target.startswith("~")
                hit = hit and found.target.removeprefix("~") in last.guards
            else:
                assert found.condition is not None
                hit = (found.condition.each_step or _token_settled(run, last)) and found.condition.holds(names)
            if hit:
                return found
        return None

    # --- changing -----------------------------------------------------------------------------------------------

    def force(self, token: int | str) -> tuple[int, ...]:
        """Make a token, or the tokens of a text, come next."""
        self._live("force a token")
        if isinstance(token, str):
            tokens = self.run.context.bound_tokenizer.encode_continuation(token)
            if not tokens:
                raise DebuggerError(f"expected some text, but {token!r} comes to no token")
        else:
            tokens = (token,)
        return tuple(self.run.edit("force", row=self.branch.row, tokens=tokens).tokens)

    def append(self, text: str) -> tuple[int, ...]:
        """Make the row go on with this text."""
        self._live("append text")
        return tuple(self.run.edit("append", row=self.branch.row, text=text).tokens)

    def set(self, name: str, value: str) -> None:
        """Change a sampling parameter from here on."""
        self._live("change how tokens are drawn")
        name = name.replace("-", "_")
        if name not in SETTINGS:
            raise DebuggerError(f"expected one of {', '.join(SETTINGS)}, not {name!r}")
        try:
            number = SETTINGS[name](value)
        except ValueError:
            raise DebuggerError(f"expected set {name} NUMBER, not {value!r}") from None
        self.run.edit("sampling", row=self.branch.row, **{name: number})

    # --- several runs -------------------------------------------------------------------------------------------

    def fork(self, at: int | None = None) -> Branch:
        """Open a second run with the same past, and switch to it."""
        self._live("fork")
        number, place = self.branch.number, self.run.step_count if at is None else at
        self._add(self.run.fork(at), f"fork of {number} at step {place}")
        return self.branch

    def switch(self, number: int | None = None) -> Branch:
        """Look at another run; unless its number is given, at the next one."""
        if number is None:
            self.current = (self.current + 1) % len(self.branches)
            return self.branch
        for index, branch in enumerate(self.branches):
            if branch.number == number:
                self.current = index
                return branch
        raise DebuggerError(f"there is no run {number}; runs: {', '.join(str(b.number) for b in self.branches)}")

    def close_branch(self) -> Branch:
        """Close the run that is shown and give its rows back."""
        if len(self.branches) == 1:
            raise DebuggerError("this is the only run: quit to leave")
        closed = self.branches.pop(self.current)
        closed.run.close()
        self.current = min(self.current, len(self.branches) - 1)
        return closed

    def save(self, path: Path) -> None:
        """Write a snapshot; never over a file that this session did not write."""
        self._live("save")
        path = path.expanduser()
        if path.exists() and path.resolve() not in self._saved:
            raise DebuggerError(f"{path} exists already; choose another name")
        if self.run.status.ended:
            raise DebuggerError(f"the run has ended ({self.run.status}): go back a step to save it")
        self.run.snapshot(path, borrow=False)
        self._saved.add(path.resolve())

    def load(self, path: Path) -> Branch:
        """Open a snapshot as another run, and switch to it."""
        self._live("load a snapshot")
        assert self.generator is not None
        self._add(self.generator.resume(path.expanduser(), keep=True), f"loaded from {path.name}")
        return self.branch

    def show_row(self, row: int) -> None:
        """Look at another row of the batch."""
        rows = len(self.run.context.slots)
        if not 0 <= row < rows:
            raise DebuggerError(f"expected a row from 0 to {rows - 1}, not {row}")
        self.branch.row = row

    def _live(self, what: str) -> None:
        if self.generator is None:
            raise DebuggerError(
                f"a record has no model, so one cannot {what}; phasewalk replay --mode fork goes on live"
            )

    # --- seeing -------------------------------------------------------------------------------------------------

    @property
    def status(self) -> str:
        """How the run stands, in a word."""
        if self.recording is not None and not self.run.status.ended:
            return "recorded"
        return str(self.run.status)

    def progress(self) -> tuple[str, int, int]:
        """Phase, steps and tokens at this moment; from any thread, also while the run is moved."""
        run, row = self.run, self.branch.row
        return run.phase.name, run.step_count, len(run.context.output_ids[row])

    def piece(self, token: int) -> str:
        """The text of one token; "" for a special token, and where there is no tokenizer."""
        return self.generator.tokenizer.decode((token,)) if self.generator else ""

    def label(self, token: int) -> str:
        """How a token is called: its text in quotes, or its number if it is no text of its own."""
        if (text := self.piece(token)) and "\ufffd" not in text:
            return repr(text)
        stops = self.run.context.request.requests[self.branch.row].params.stop_token_ids or ()
        return f"<stop {token}>" if token in stops else f"<{token}>"

    def text(self) -> Text:
        """The text of the row that is shown."""
        context, row = self.run.context, self.branch.row
        if not context.prompt_ids:
            return Text("", "", "")
        prompt, tokens = context.prompt_ids[row], context.tokens(row)
        output = tokens[len(prompt) :]
        pending = len(output) > len(context.output_ids[row])
        last = output[-1] if output else None
        if self.generator is None:
            before = " ".join(map(str, output[:-1]))
            return Text(_ids(prompt), before + " " * bool(before), "" if last is None else str(last), last, pending,
                        self._recorded_text())  # fmt: skip
        decode = self.generator.tokenizer.decode
        whole, before = decode(output), decode(output[:-1])
        while not whole.startswith(before):  # bytes that only this token made a character of
            before = before[:-1]
        added = whole[len(before) :]
        shown = added if added or last is None else self.label(last)
        return Text(decode(prompt), before, shown, last, pending)

    def _recorded_text(self) -> str:
        texts = self.run.context.output_texts
        for step in islice(self.run.steps(max(0, self.run.recorded_steps - 3), future=True), None):
            if step.phase == "detokenize" and step.outcome:
                texts = step.outcome
        return texts[self.branch.row] if texts else ""

    def distribution(self) -> Distribution:
        """What the next token is, or was, drawn from; raises NoDistribution."""
        run, row = self.run, self.branch.row
        if self.recording is None:
            return distribution(run.context, row)
        return recorded_distribution(run.context, row, self.recording.digest(run))

    def spread(self, run: Run[Generation]) -> Spread:
        """How sure the model is of it; raises NoDistribution."""
        return spread(run.context, self.branch.row)

    def guards(self) -> tuple[GuardTruth, ...]:
        """The guards of the phase that runs next, as they are before it runs."""
        run, found = self.run, []
        atoms = {atom.name: atom for way in run.machine.transitions if way.when for atom in way.when.atoms}
        names = {
            atom.name: None
            for way in run.machine.transitions
            if way.when and (way.source == run.phase or way.source == run.phase.name)
            for atom in way.when.atoms
        }
        for name in names:
            truth = None
            with suppress(Exception):  # a guard is defined for what its phase leaves behind, which is not here yet
                truth = atoms[name](run.context)
            meaning = " ".join((atoms[name].predicate.__doc__ or "").split())
            found.append(GuardTruth(name, truth, meaning))
        return tuple(found)

    def buffers(self) -> tuple[Buffer, ...]:
        """The engine's buffers; none for a record."""
        context = self.run.context
        if context.engine is None:
            return ()
        values = context.engine.peek(context.slots[self.branch.row])
        shown = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in values.items()}
        return tuple(Buffer(*info, shown.get(info.name, "")) for info in context.engine.memory())

    def cache(self) -> tuple[CacheRow, ...]:
        """How full each slot of the KV cache is; of a record, each row."""
        context, shown = self.run.context, self.branch.row
        if context.engine is None:
            return tuple(
                CacheRow(row, f"row {row}", row == shown, length, context.capacity)
                for row, length in enumerate(context.cached)
            )
        cache = context.engine.kv_cache
        owners = {
            slot: f"run {branch.number}" + f" row {row}" * (len(branch.run.context.slots) > 1)
            for branch in self.branches
            for row, slot in enumerate(branch.run.context.slots)
        }
        mine = context.slots[shown]
        return tuple(
            CacheRow(slot, owners.get(slot, ""), slot == mine, cache.length(slot), cache.capacity)
            for slot in range(cache.rows)
        )

    def moments(self, first: int, last: int) -> Iterator[Moment]:
        """Steps on the timeline, those ahead of the place where it rests included."""
        for step in islice(self.run.steps(max(0, first), future=True), max(0, last - max(0, first))):
            yield self._moment(step)

    def happenings(self) -> list[tuple[int, str]]:
        """The signals and edits so far, each with the number of the step before which it took effect."""
        found = []
        for event in self.run.events:
            words = f"{event.kind} {event.name}"
            if tokens := getattr(event.outcome, "tokens", None):
                words += f": {' '.join(f'{token} {self.label(token)}' for token in tokens)}"
            found.append((event.number, words))
        return found

    def _moment(self, step: Step) -> Moment:
        guards = " ".join(name if truth else f"~{name}" for name, truth in step.guards.items())
        return Moment(step.number, step.phase, step.target, step.elapsed_ns, self._found(step), guards)

    def _found(self, step: Step) -> str:
        """What came of a step, in words."""
        outcome = step.outcome
        if step.phase == "tokenize" and isinstance(outcome, Sequence):
            return f"{sum(len(ids) for ids in outcome)} prompt tokens"
        if step.phase in ("sample", "check_stop") and isinstance(outcome, Sequence) and outcome:
            return " ".join(f"token {token} {self.label(token)}".removesuffix(f" <{token}>") for token in outcome)
        if step.phase in ("prefill", "decode") and isinstance(outcome, Sequence):
            return f"{' '.join(map(str, outcome))} cached" if outcome else ""
        return ""

    def view(self) -> View:
        """All of it at once."""
        run, branch = self.run, self.branch
        counts: Counter[tuple[str, str]] = Counter()
        elapsed, last = 0, None
        for step in run.steps():
            counts[step.phase, step.target] += 1
            elapsed += step.elapsed_ns
            last = step
        shown: Distribution | str
        try:
            shown = self.distribution()
        except NoDistribution as error:
            shown = str(error)
        names = {}
        if isinstance(shown, Distribution):
            names = {candidate.token_id: self.label(candidate.token_id) for candidate in shown.candidates}
        params = run.context.request.requests[branch.row].params
        notice = branch.error if run.status == "failed" else ""
        if self.recording is not None and run.step_count == run.recorded_steps:
            notice = self.recording.notice
        return View(
            branches=tuple(f"{b.number}" + (f" ({b.origin})" if b.origin else "") for b in self.branches),
            current=self.current, status=self.status, phase=run.phase.name, step=run.step_count,
            steps=run.recorded_steps, row=branch.row, rows=len(run.context.slots),
            drawing=draw(run.machine, run.phase.name, counts, (last.phase, last.target) if last else None),
            text=self.text(), tokens=len(run.context.output_ids[branch.row]), distribution=shown, names=names,
            sampling=(f"temp {params.temperature:g}", f"top-k {params.top_k}", f"top-p {params.top_p:g}",
                      f"min-p {params.min_p:g}"),
            guards=self.guards(), last=self._moment(last) if last else None, buffers=self.buffers(), cache=self.cache(),
            moments=tuple(self.moments(run.step_count - NEARBY, run.step_count + NEARBY)), elapsed_ns=elapsed,
            breakpoints=tuple(self.breakpoints), notice=notice,
        )  # fmt: skip


def glance(session: Session, view: View) -> View:
    """A view with what can be seen of a run while it is being moved: phase, steps, tokens and text."""
    run = session.run
    phase, step, tokens = session.progress()
    with suppress(Exception):  # the text may be growing at this moment
        view = replace(view, text=session.text())
    drawing = draw(run.machine, phase, {}, None)
    return replace(
        view, status="running", phase=phase, step=step, steps=step, tokens=tokens, drawing=drawing, notice=""
    )


class _Names:
    """The values of the names of conditions, found out when they are asked for."""

    def __init__(self, session: Session, run: Run[Generation], row: int) -> None:
        self._session, self._run, self._row = session, run, row
        self._spread: Spread | None = None

    def __call__(self, name: str) -> Value | None:
        run = self._run
        output = run.context.output_ids[self._row]
        match name:
            case "step":
                return run.step_count
            case "phase":
                return run.phase.name
            case "length":
                return len(output)
            case "token_id":
                return output[-1] if output else None
            case "token":
                return self._session.piece(output[-1]) if output and self._session.generator else None
        if self._spread is None:
            try:
                self._spread = self._session.spread(run)
            except NoDistribution:
                return None
        value: float = getattr(self._spread, name)
        return value


def _last(run: Run[Any]) -> Step:
    """The step just taken."""
    return next(run.steps(run.step_count - 1))


def _token_settled(run: Run[Generation], last: Step) -> bool:
    """Whether a token is about to be drawn, or the last one has just been checked: once a token, that is."""
    if "sample" not in run.machine.phases:
        return True
    return run.phase.name == "sample" or (last.phase == "check_stop" and not run.context.live)


def _positive(count: int) -> int:
    if count < 1:
        raise DebuggerError(f"expected a count of at least 1, not {count}")
    return count


def _ids(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids))
