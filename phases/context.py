"""The context that the six phases share: host fields, and the engine whose buffers were bound once."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from phases.request import FinishReason, GenerationRequest

if TYPE_CHECKING:
    from gpu import Engine
    from phases.tokenizer import Tokenizer


@dataclass(slots=True, eq=False)
class Generation:
    """The state of one generation. A *row* is a sequence of this request, a *slot* its place in the engine's buffers.

    Invariants: `len(output_ids[row]) <= budgets[row]`; `row in live` just while `finish_reasons[row] is None`;
    between CheckStop and Sample the cache of a live row holds its prompt and all but the last of its output.
    """

    __pinned__: ClassVar[tuple[str, ...]] = ("request", "engine", "tokenizer")

    request: GenerationRequest  # every parameter set
    slots: tuple[int, ...]  # [rows]
    capacity: int  # tokens a slot can hold, prompt and output together
    engine: "Engine | None" = field(default=None, repr=False)  # None while a record is played
    tokenizer: "Tokenizer | None" = field(default=None, repr=False)
    prompt_ids: list[tuple[int, ...]] = field(default_factory=list)  # [rows][tokens], by Tokenize
    budgets: list[int] = field(default_factory=list)  # [rows], new tokens that a row may have, by Tokenize
    sampled: tuple[int, ...] | None = None  # [live rows], from Sample to CheckStop, where the engine knows them at once
    output_ids: list[list[int]] = field(default_factory=list)  # [rows][tokens], by CheckStop
    finish_reasons: list[FinishReason | None] = field(default_factory=list)  # [rows], by CheckStop
    live: tuple[int, ...] = ()  # rows that are not finished, by CheckStop
    output_texts: list[str] = field(default_factory=list)  # [rows], by Detokenize

    def __post_init__(self) -> None:
        rows = len(self.request.requests)
        self.live = tuple(range(rows))
        self.output_ids = [[] for _ in range(rows)]
        self.finish_reasons = [None] * rows

    @property
    def bound_engine(self) -> "Engine":
        """The engine; raises RuntimeError where there is none."""
        if self.engine is None:
            raise RuntimeError("this generation has no engine: it can be played from a record, but not run")
        return self.engine

    @property
    def bound_tokenizer(self) -> "Tokenizer":
        """The tokenizer; raises RuntimeError where there is none."""
        if self.tokenizer is None:
            raise RuntimeError("this generation has no tokenizer: it can be played from a record, but not run")
        return self.tokenizer

    def finish_reason(self, row: int, token: int | None) -> FinishReason | None:
        """Why `row` ends if `token` is its next one, or would end whatever its next one is (None)."""
        stops = self.request.requests[row].params.stop_token_ids or ()
        if token is not None and token in stops:
            return FinishReason.STOP
        if len(self.output_ids[row]) + 1 >= self.budgets[row]:
            return FinishReason.LENGTH
        return None

    def unfinished(self) -> list[int]:
        """Live rows that go on after the token just sampled, as far as the host can know before it reads it."""
        tokens = self.sampled or (None,) * len(self.live)
        return [row for row, token in zip(self.live, tokens, strict=True) if self.finish_reason(row, token) is None]
