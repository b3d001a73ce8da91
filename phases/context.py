"""The context that the six phases share: host fields, and the engine whose memory was bound once."""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from phases.logprobs import TokenLogprob
from phases.penalties import looks_back, penalties_of
from phases.request import FinishReason, GenerationRequest

if TYPE_CHECKING:
    from gpu import Engine
    from phases.tokenizer import Tokenizer


@dataclass(slots=True, eq=False, weakref_slot=True)
class Generation:
    """The state of one generation. A *row* is a sequence of this request, a *slot* its place in the engine.

    Invariants: `len(output_ids[row]) <= budgets[row]`; `row in live` just while `finish_reasons[row] is None`;
    between CheckStop and Sample the cache of a live row holds its prompt and all of its output.
    """

    __pinned__: ClassVar[tuple[str, ...]] = (
        "slots", "engine", "tokenizer", "lease", "filled", "filled_in", "stale", "told", "adjusters",
    )  # fmt: skip

    request: GenerationRequest  # every parameter set
    slots: tuple[int, ...]  # [rows]
    capacity: int  # tokens a slot can hold, prompt and output together
    engine: "Engine | None" = field(default=None, repr=False)  # None while a record is played
    tokenizer: "Tokenizer | None" = field(default=None, repr=False)

    # Pinned, as they say what is in the engine rather than where the generation stands:
    lease: "weakref.finalize[..., Any] | None" = field(default=None, repr=False)  # gives the slots back, once
    filled: list[int] = field(default_factory=list, repr=False)  # [rows], positions of each slot that were written
    stale: bool = field(default=False, repr=False)  # the engine's logits are not those of this place
    filled_in: int = field(default=0, repr=False)  # the turn in which the slots were written
    told: list[int] = field(default_factory=list, repr=False)  # [rows], tokens that the engine has the history of

    # By the name of each phase that adjusts logits: what it does to a row's.
    adjusters: Mapping[str, "Callable[[Generation, int], object]"] = field(default_factory=dict, repr=False)

    turn: int = 0  # of a chat, by Tokenize: each may write over what the one before it left in the cache
    reused: list[int] = field(default_factory=list)  # [rows], tokens of the prompt that the cache held, by Tokenize
    prompt_ids: list[tuple[int, ...]] = field(default_factory=list)  # [rows][tokens], by Tokenize
    budgets: list[int] = field(default_factory=list)  # [rows], new tokens that a row may have, by Tokenize
    adjusted: tuple[str, ...] = ()  # by which of them the next token's logits were, to CheckStop
    sampled: tuple[int, ...] | None = None  # [live rows], from Sample to CheckStop, where the engine knows them at once
    sampled_logprobs: tuple[TokenLogprob | None, ...] | None = None  # [live rows], with them, where one asks for it
    output_ids: list[list[int]] = field(default_factory=list)  # [rows][tokens], by CheckStop
    finish_reasons: list[FinishReason | None] = field(default_factory=list)  # [rows], by CheckStop
    kept_text: list[int | None] = field(default_factory=list)  # [rows], characters; None: all of it; by CheckStop
    live: tuple[int, ...] = ()  # rows that are not finished, by CheckStop
    cached: list[int] = field(default_factory=list)  # [rows], tokens that the cache holds, by Prefill and Decode
    drawn_by: GenerationRequest | None = None  # from Sample to CheckStop: by whose parameters the token was drawn
    forced: list[dict[int, int]] = field(default_factory=list)  # [rows], tokens by their place in the output, by edits
    logprobs: list[dict[int, TokenLogprob]] = field(
        default_factory=list
    )  # [rows], by place in the output, by CheckStop
    prompt_logprobs: list[tuple[TokenLogprob, ...]] = field(default_factory=list)  # [rows], of all but the first token
    output_texts: list[str] = field(default_factory=list)  # [rows], by Detokenize

    def __post_init__(self) -> None:
        rows = len(self.request.requests)
        self.live = tuple(range(rows))
        self.output_ids = [[] for _ in range(rows)]
        self.finish_reasons, self.kept_text = [None] * rows, [None] * rows
        self.cached, self.filled, self.reused, self.told = [0] * rows, [0] * rows, [0] * rows, [0] * rows
        self.forced = [{} for _ in range(rows)]
        self.logprobs = [{} for _ in range(rows)]

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

    def budget(self, row: int) -> int:
        """How many new tokens this row may have: what was asked for, as far as the capacity reaches."""
        return min(self.request.requests[row].params.max_new_tokens or 1, self.capacity - len(self.prompt_ids[row]))

    def tokens(self, row: int) -> list[int]:
        """All tokens of a row so far: prompt, output, and the one just sampled."""
        sampled = [token for live, token in zip(self.live, self.sampled or (), strict=False) if live == row]
        return [*self.prompt_ids[row], *self.output_ids[row], *sampled]

    def bind_prompts(self, prompts: Sequence[tuple[int, ...]]) -> None:
        """Tell the engine each row's prompt and how it is sampled."""
        for slot, ids in zip(self.slots, prompts, strict=True):
            self.bound_engine.write_prompt(slot, ids)
        self.bind_sampling(self.request, prompts)

    def bind_sampling(self, request: GenerationRequest, prompts: Sequence[tuple[int, ...]]) -> None:
        """Tell the engine how this request wants each row, of these prompts, to be sampled."""
        engine = self.bound_engine
        self.told = [0] * len(self.slots)
        for slot, row, ids in zip(self.slots, request.requests, prompts, strict=True):
            params = row.params
            engine.set_sampling(
                slot, temperature=params.temperature or 0.0, top_k=params.top_k or 0, top_p=params.top_p or 1.0,
                min_p=params.min_p or 0.0, seed=params.seed or 0,
            )  # fmt: skip
            engine.set_penalties(slot, penalties_of(params, prompt=len(ids), vocab=engine.model.vocab))

    def bind(self) -> None:
        """Tell the engine what the host fields say: lengths, prompts, sampling, and the tokens just sampled."""
        engine = self.bound_engine
        for slot, length in zip(self.slots, self.cached, strict=True):
            engine.kv_cache.truncate(slot, 0)
            engine.kv_cache.commit(slot, length)
        if self.prompt_ids:
            self.bind_prompts(self.prompt_ids)
        for row, token in zip(self.live, self.sampled or (), strict=False):
            engine.write_token(self.slots[row], token)

    def prefill(self, rows: Iterable[int]) -> None:
        """Feed the prompts of rows, each different one once, and copy what came of it; keep the logits it left.

        The same prompt is another one with another adapter.
        """
        engine, first, copies = self.bound_engine, dict[tuple[tuple[int, ...], str | None], int](), []
        for row in rows:
            slot = self.slots[row]
            adapter = self.request.requests[row].lora_fingerprint
            source = first.setdefault((self.prompt_ids[row], adapter), slot)
            if source != slot:
                copies.append((source, slot))
        engine.prefill(list(first.values()))
        for slot in first.values():
            engine.keep_logits(slot)
        for source, slot in copies:
            engine.copy_row(source, slot)

    def draw(self) -> None:
        """Draw the next token of each live row, or take the one that an edit forces."""
        engine = self.bound_engine
        self._tell_history()
        engine.sample([self.slots[row] for row in self.live])
        for row in self.live:
            if self.forced[row]:
                forced = self.forced[row].get(len(self.output_ids[row]))
                if forced is not None:
                    engine.write_token(self.slots[row], forced)

    def _tell_history(self) -> None:
        """Tell the engine the tokens that it has not been told of, of each live row whose penalties look at them."""
        request = self.drawn_by or self.request
        for row in self.live:
            if looks_back(request.requests[row].params):
                prompt, told = self.prompt_ids[row], self.told[row]
                fresh = self.output_ids[row][max(0, told - len(prompt)) :]
                tokens = [*prompt[told:], *fresh]
                self.bound_engine.write_history(self.slots[row], told, tokens)
                self.told[row] += len(tokens)

    def fresh_logits(self) -> None:
        """Make the engine's logits those of this place again, after the generation went back in time.

        A phase of yours that reads logits calls this first. It costs one decode step for rows that have an output,
        whose last token is computed again; nothing for the others, as the engine keeps the logits of prompts. What a
        `LogitsPhase` had adjusted is adjusted again. A token that was drawn, but that only an asynchronous engine knew,
        is drawn again: its position and seed are the same.
        """
        if not self.stale:
            return
        engine, again = self.bound_engine, []
        try:
            for row in self.live:
                slot, length = self.slots[row], self._known(row)
                if length == len(self.prompt_ids[row]):
                    engine.kv_cache.truncate(slot, length)
                    engine.restore_logits(slot)
                elif length:
                    engine.kv_cache.truncate(slot, length - 1)
                    engine.write_token(slot, self.tokens(row)[length - 1])
                    again.append(slot)
            if again:
                engine.decode(again)
            self._adjust_again()
            self._draw_again()
            self.stale = False
        finally:  # also if it was interrupted: what was computed again is what had been there
            self.bind()

    def recompute(self) -> None:
        """Fill the cache and the logits anew: each prompt by a prefill, as before, and what followed by another."""
        engine = self.bound_engine
        self.filled = [0] * len(self.slots)
        held = [row for row in range(len(self.slots)) if self.cached[row]]
        for row in held:
            engine.kv_cache.truncate(self.slots[row], 0)
            engine.write_prompt(self.slots[row], self.prompt_ids[row])
        self.prefill(held)
        longer = []
        for row in held:
            if rest := self.tokens(row)[len(self.prompt_ids[row]) : self.cached[row]]:
                engine.write_prompt(self.slots[row], rest)
                longer.append(self.slots[row])
        if longer:
            engine.prefill(longer)
        self._adjust_again()
        self._draw_again()
        self.bind()
        self.filled = list(self.cached)
        self.filled_in = self.turn
        self.stale = False

    @property
    def drawn(self) -> bool:
        """From Sample to CheckStop: the next token of each live row is settled."""
        return self.drawn_by is not None

    @property
    def token_unknown(self) -> bool:
        """Whether that token is known to the engine alone."""
        return self.drawn_by is not None and self.sampled is None

    def _known(self, row: int) -> int:
        """How many tokens of a row the cache holds, without one that the host does not know."""
        return min(self.cached[row], len(self.prompt_ids[row]) + len(self.output_ids[row]) + (self.sampled is not None))

    def _adjust_again(self) -> None:
        """Adjust fresh logits as they were, if they are those of the token that comes next, or has just been drawn."""
        if not self.adjusted:
            return
        for row in self.live:
            if self._known(row) == len(self.prompt_ids[row]) + len(self.output_ids[row]):
                for name in self.adjusted:
                    self.adjusters[name](self, row)

    def _draw_again(self) -> None:
        """Over fresh logits, bring back a token that only the engine knew, and the logits of a Decode behind it."""
        if self.drawn_by is None or self.sampled is not None:
            return
        self.bind_sampling(self.drawn_by, self.prompt_ids)
        self.draw()
        if ahead := [self.slots[row] for row in self.live if self.cached[row] > self._known(row)]:
            self.bound_engine.decode(ahead)

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
