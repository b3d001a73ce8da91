"""What a debugger does with generations beyond what any machine can: tokens are forced, text appended, rows shown."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from phases.context import Generation
from phases.debugger import memory, vocabularies
from phases.debugger.branches import Branch
from phases.debugger.breakpoints import Judge
from phases.debugger.conditions import Condition, Vocabulary
from phases.debugger.distribution import Distribution, distribution, recorded_distribution
from phases.debugger.errors import DebuggerError
from phases.debugger.names import Names, token_settled
from phases.debugger.session import Session, positive
from phases.debugger.text import Text, label, text_of, words_of
from phases.generation import machine as built_in
from statemachine import Machine, Run, Step

if TYPE_CHECKING:
    from phases.debugger.generation_recording import GenerationRecording
    from phases.generator import Generator

SETTINGS = {"temperature": float, "top_k": int, "top_p": float, "min_p": float, "seed": int, "max_new_tokens": int}


class GenerationSession(Session[Generation]):
    """Generations, live or recorded, of which one row is shown.

    `progress` may be called from any thread while another moves the run.
    """

    record: "GenerationRecording | None"

    def __init__(
        self,
        run: Run[Generation],
        generator: "Generator | None" = None,
        record: "GenerationRecording | None" = None,
        origin: str = "",
    ) -> None:
        saved = None if generator is None else partial(generator.resume, keep=True)
        super().__init__(run, record, origin, saved)
        self.generator = generator  # None: what is shown is a record

    @classmethod
    def live(cls, generator: "Generator", run: Run[Generation]) -> "GenerationSession":
        """Debug a run of this generator that was started with `keep=True`."""
        return cls(run, generator)

    @classmethod
    def recorded(
        cls, path: Path, machine: Machine[Generation] = built_in, model: str | None = None
    ) -> "GenerationSession":
        """Walk a journal that this machine recorded, from its start, as text if a tokenizer is at hand.

        Raises
        ------
        JournalError
            When it is damaged, or holds no generation.
        """
        from phases.debugger.generation_recording import GenerationRecording

        recording = GenerationRecording(path, machine, model)
        recording.run.goto(recording.run.timeline.first)
        return cls(recording.run, None, recording, f"recorded in {path.name}")

    @property
    def vocabulary(self) -> Vocabulary:
        return vocabularies.GENERATION

    def judge(self, run: Run[Generation]) -> Judge:
        names = Names(run, self.branch.row)

        def holds(condition: Condition) -> bool:
            if not (condition.each_step or token_settled(run)) or not condition.holds(names):
                return False
            return not (condition.lasting and condition.holds(names.before))

        return holds

    def words(self, step: Step) -> str:
        return words_of(self.run.context, self.branch.row, step)

    # --- moving and changing ------------------------------------------------------------------------------------

    def next_token(self, count: int = 1) -> str:
        """Go on until so many more tokens have been checked, or the run ends."""
        left = positive(count)

        def enough(run: Run[Generation]) -> bool:
            nonlocal left
            left -= next(run.steps(run.step_count - 1)).phase == "check_stop"
            return not left

        return self.advance(enough)

    def force(self, token: int | str) -> tuple[int, ...]:
        """Make a token, or the tokens of a text, come next."""
        self.refuse_record("force a token")
        if isinstance(token, str):
            tokens = self.run.context.bound_tokenizer.encode_continuation(token)
            if not tokens:
                raise DebuggerError(f"expected some text, but {token!r} comes to no token")
        else:
            tokens = (token,)
        return tuple(self.run.edit("force", row=self.branch.row, tokens=tokens).tokens)

    def append(self, text: str) -> tuple[int, ...]:
        """Make the row go on with this text."""
        self.refuse_record("append text")
        return tuple(self.run.edit("append", row=self.branch.row, text=text).tokens)

    def set(self, name: str, value: str) -> None:
        """Change a sampling parameter from here on."""
        self.refuse_record("change how tokens are drawn")
        name = name.replace("-", "_")
        if name not in SETTINGS:
            raise DebuggerError(f"expected one of {', '.join(SETTINGS)}, not {name!r}")
        try:
            number = SETTINGS[name](value)
        except ValueError:
            raise DebuggerError(f"expected set {name} NUMBER, not {value!r}") from None
        self.run.edit("sampling", row=self.branch.row, **{name: number})

    # --- runs and rows ------------------------------------------------------------------------------------------

    def open(self, run: Run[Generation], origin: str) -> Branch[Generation]:
        row = self.branch.row
        return self.branches.open(run, origin, row if row < len(run.context.slots) else 0)

    def show_row(self, row: int) -> None:
        """Look at another row of the batch."""
        rows = len(self.run.context.slots)
        if not 0 <= row < rows:
            raise DebuggerError(f"expected a row from 0 to {rows - 1}, not {row}")
        self.branch.row = row

    # --- seeing -------------------------------------------------------------------------------------------------

    def where(self) -> str:
        context, row = self.run.context, self.branch.row
        shown = f"  row {row}" if len(context.slots) > 1 else ""
        return f"{super().where()}  tokens {len(context.output_ids[row])}{shown}"

    @property
    def tokens(self) -> int:
        """How long the output of the row is at this moment; from any thread."""
        return len(self.run.context.output_ids[self.branch.row])

    @property
    def has_text(self) -> bool:
        """Whether there is a tokenizer that makes text of tokens."""
        return self.run.context.tokenizer is not None

    def label(self, token: int) -> str:
        """How a token is called: its text in quotes, or its number if it is no text of its own."""
        return label(self.run.context, self.branch.row, token)

    def text(self) -> Text:
        """The text of the row that is shown."""
        row = self.branch.row
        return text_of(self.run.context, row, "" if self.has_text or not self.record else self.record.output_text(row))

    def distribution(self) -> Distribution:
        """What the next token is, or was, drawn from; raises NoDistribution."""
        run, row = self.run, self.branch.row
        if self.record is None:
            return distribution(run.context, row)
        return recorded_distribution(run.context, row, self.record.digest(run))

    def buffers(self) -> tuple[memory.Buffer, ...]:
        """The engine's buffers; none for a record."""
        return memory.buffers(self.run.context, self.branch.row)

    def cache(self) -> tuple[memory.CacheRow, ...]:
        """How full each slot of the KV cache is; of a record, each row."""
        owners = {
            slot: f"run {branch.number}" + f" row {row}" * (len(branch.run.context.slots) > 1)
            for branch in self.branches
            for row, slot in enumerate(branch.run.context.slots)
        }
        return memory.cache(self.run.context, self.branch.row, owners)

    def happenings_of(self, branch: Branch[Generation]) -> list[tuple[int, str]]:
        found = []
        for (number, words), event in zip(super().happenings_of(branch), branch.run.events, strict=True):
            if tokens := getattr(event.outcome, "tokens", None):
                words = f"{event.kind} {event.name}: {' '.join(f'{token} {self.label(token)}' for token in tokens)}"
            found.append((number, words))
        return found
