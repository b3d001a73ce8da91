"""The context that the six phases share: host fields, and the engine whose memory was bound once."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from phases.logprobs import TokenLogprob
from phases.penalties import looks_back, penalties_of
from phases.request import FinishReason, GenerationRequest
from phases.system_prompt import system_tokens
from phases.token_ids import Row, Tokens

if TYPE_CHECKING:
    from gpu import Engine
    from phases.prompt_cache import PromptCache
    from phases.resting_rows import RestingRows
    from phases.tokenizer import Tokenizer


Failed = tuple[tuple[Row, str], ...]
"""Rows that have nothing to draw from, and what is wrong with the logits of each."""


class Piece(NamedTuple):
    """Tokens `first` to `last` - 1 of a prompt, and the rows that are to hold what comes of them; one is fed."""

    rows: tuple[int, ...]
    first: int
    last: int


@dataclass(slots=True, eq=False, weakref_slot=True)
class Generation:
    """The state of one generation. A *row* is a sequence of this request, a *slot* its place in the engine.

    Invariants: `len(output_ids[row]) <= budgets[row]`; `row in live` just while `finish_reasons[row] is None`;
    between CheckStop and Sample the cache of a live row holds its prompt and all of its output.
    """

    __pinned__: ClassVar[tuple[str, ...]] = (
        "slots", "engine", "tokenizer", "prompt_cache", "lease", "filled", "filled_in", "exact", "found", "stale",
        "told", "adjusters",
    )  # fmt: skip

    request: GenerationRequest  # every parameter set
    slots: tuple[int, ...]  # [rows]
    capacity: int  # tokens a slot can hold, prompt and output together
    engine: "Engine | None" = field(default=None, repr=False)  # None while a record is played
    tokenizer: "Tokenizer | None" = field(default=None, repr=False)
    prompt_cache: "PromptCache | RestingRows | None" = field(default=None, repr=False)

    # Pinned, as they say what is in the engine rather than where the generation stands:
    lease: "weakref.finalize[..., Any] | None" = field(default=None, repr=False)  # gives the slots back, once
    filled: list[int] = field(default_factory=list, repr=False)  # [rows], positions of each slot that were written
    exact: list[int] = field(
        default_factory=list, repr=False
    )  # [rows], first tokens of each slot as a prefill has them
    found: list[int] = field(default_factory=list, repr=False)  # [rows], tokens of each prompt that were not computed
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
    errors: list[str | None] = field(default_factory=list)  # [rows], why a row failed, by Sample or CheckStop
    kept_text: list[int | None] = field(default_factory=list)  # [rows], characters; None: all of it; by CheckStop
    live: tuple[int, ...] = ()  # rows that have not ended
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
        self.finish_reasons, self.errors, self.kept_text = [None] * rows, [None] * rows, [None] * rows
        self.cached, self.filled, self.reused, self.told = [0] * rows, [0] * rows, [0] * rows, [0] * rows
        self.exact, self.found = [0] * rows, [0] * rows
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

    def prompt_filled(self, row: int) -> bool:
        """Whether the cache holds all of a row's prompt."""
        return bool(self.prompt_ids) and self.cached[row] >= len(self.prompt_ids[row])

    def adapter(self, row: int) -> str | None:
        """What a row's keys and values depend on besides its tokens: its adapter's fingerprint."""
        return self.request.requests[row].lora_fingerprint

    def fetch(self, row: int, first: int, last: int) -> int:
        """Before tokens `first` to `last` - 1 of a prompt are fed: how far the prompt cache has filled the row."""
        chunk, exact = self.bound_engine.prefill_chunk, self.exact[row]
        as_prefilled = first % chunk == 0 and (first <= exact or (chunk == 1 and exact > 0))
        held = first
        if as_prefilled and self.prompt_cache is not None:
            held = self.prompt_cache.fill(self.slots[row], self.prompt_ids[row], first, last, adapter=self.adapter(row))
        self.exact[row] = last if as_prefilled else min(exact, first)
        self.found[row] = held if first <= self.reused[row] else self.found[row] + held - first
        return held

    def keep_system_prompt(self, row: int) -> None:
        """Keep what a row holds of its system prompt, if it asks for that."""
        asked = self.request.requests[row]
        if self.prompt_cache is not None and asked.save_system_prompt_kv_cache:
            ids = self.prompt_ids[row]
            count = min(system_tokens(self.bound_tokenizer, asked, ids), self.exact[row])
            self.prompt_cache.keep(self.slots[row], ids[:count], adapter=self.adapter(row), pin=True)

    def keep_prompts(self) -> None:
        """Give the prompt cache what the rows hold, as far as it is what a prefill of those tokens leaves."""
        engine, cache = self.engine, self.prompt_cache
        if engine is None or cache is None or self.filled_in != self.turn:
            return
        for row, (slot, cached, exact) in enumerate(zip(self.slots, self.cached, self.exact, strict=True)):
            whole = engine.prefill_chunk == 1 and exact > 0  # then a decode step leaves the bits of a prefill, too
            if (count := cached if whole else min(exact, cached)) >= cache.block:
                cache.keep(slot, self.tokens(row)[:count], adapter=self.adapter(row))

    def feed(self, pieces: Sequence[Piece]) -> None:
        """Feed pieces of prompts, each to the first of its rows, and copy what came of it; keep the logits it left.

        What the prompt cache holds of them is not fed.
        """
        engine, fed = self.bound_engine, list[int]()
        for piece in pieces:
            row = piece.rows[0]
            engine.kv_cache.truncate(self.slots[row], piece.first)
            held = self.fetch(row, piece.first, piece.last)
            if held < piece.last:
                engine.write_prompt(self.slots[row], self.prompt_ids[row][held : piece.last])
                fed.append(self.slots[row])
        if fed:
            engine.prefill(fed)
        for slot in fed:
            engine.keep_logits(slot)
        for piece in pieces:
            source = piece.rows[0]
            for row in piece.rows[1:]:
                engine.copy_row(self.slots[source], self.slots[row])
                self.exact[row], self.found[row] = self.exact[source], piece.last
            self.keep_system_prompt(source)

    def draw(self) -> Failed:
        """Draw the next token of each live row, or take the one that an edit forces; gives the rows that cannot."""
        engine = self.bound_engine
        failed: Failed = ()
        self._tell_history()
        try:
            engine.sample([self.slots[row] for row in self.live])
        except ValueError as error:
            failed = self._failed(error)
        for row in self.live:
            if self.forced[row]:
                forced = self.forced[row].get(len(self.output_ids[row]))
                if forced is not None:
                    engine.write_token(self.slots[row], forced)
        return failed

    def drawn_tokens(self, failed: Failed = ()) -> tuple[Tokens, Failed]:
        """Wait for the tokens of all live rows but those that failed; gives all that have then."""
        engine = self.bound_engine
        try:
            return engine.sampled([self.slots[row] for row in self.rows_but(failed)]), failed
        except ValueError as error:
            failed = (*failed, *self._failed(error))
        return engine.sampled([self.slots[row] for row in self.rows_but(failed)]), failed

    def rows_but(self, failed: Failed) -> list[int]:
        """Live rows but those that failed."""
        gone = dict(failed)
        return [row for row in self.live if row not in gone]

    def _failed(self, error: ValueError) -> Failed:
        """The rows that an engine's LogitsError is about; raises it if no row of the request comes to anything."""
        from gpu import LogitsError  # a record is played without

        words = error.rows if isinstance(error, LogitsError) else {}
        failed = {row: words[slot] for row, slot in enumerate(self.slots) if slot in words}
        ends = [FinishReason.FAILED if row in failed else reason for row, reason in enumerate(self.finish_reasons)]
        if not failed or ends.count(FinishReason.FAILED) == len(ends):
            raise error
        return tuple(failed.items())

    def end(self, row: int, reason: FinishReason, error: str | None = None) -> None:
        """Let a live row end with the tokens that it has: pure host bookkeeping; raises ValueError for any other."""
        if row not in self.live:
            raise ValueError(f"row {row} is {reason}, but only rows {self.live} have not ended")
        self.finish_reasons[row], self.errors[row] = reason, error
        self.live = tuple(other for other in self.live if other != row)
        if self.prompt_ids:
            self.cached[row] = min(self.cached[row], len(self.prompt_ids[row]) + len(self.output_ids[row]))

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
                if not self.prompt_filled(row):
                    continue
                if length == len(self.prompt_ids[row]):
                    engine.kv_cache.truncate(slot, length)
                    engine.restore_logits(slot)
                else:
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
        alike: dict[tuple[tuple[int, ...], str | None], list[int]] = {}
        for row in held:
            alike.setdefault((self.prompt_ids[row][: self.cached[row]], self.adapter(row)), []).append(row)
        self.feed([Piece(tuple(rows), 0, len(ids)) for (ids, _), rows in alike.items()])
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
        params = self.request.requests[row].params
        if token is not None and token in (params.stop_token_ids or ()):
            return FinishReason.STOP
        count = len(self.output_ids[row]) + 1
        if count >= self.budgets[row]:
            full = count < (params.max_new_tokens or 1) and len(self.prompt_ids[row]) + count >= self.capacity
            return FinishReason.CAPACITY if full else FinishReason.LENGTH
        return None

    def unfinished(self) -> list[int]:
        """Live rows that go on after the token just sampled, as far as the host can know before it reads it."""
        tokens = self.sampled or (None,) * len(self.live)
        return [row for row, token in zip(self.live, tokens, strict=True) if self.finish_reason(row, token) is None]
