"""Prefill: the prompts go through the model, piece by piece, but for what the KV cache holds of them."""

from dataclasses import dataclass
from typing import Any

from phases import logits_digest
from phases.context import Generation, Piece
from phases.logprobs import Asked, TokenLogprob, score_tokens
from phases.token_ids import Length
from statemachine import Phase

Lengths = tuple[Length, ...]


@dataclass(frozen=True, slots=True)
class Scored:
    """The cache's lengths, and the log-probabilities of the tokens that were fed of rows that ask for them."""

    lengths: Lengths
    logprobs: tuple[tuple[TokenLogprob, ...], ...]  # [rows]; nothing can be said of a first token


class Prefill(Phase[Generation, Lengths | Scored]):
    """Feeds what a turn may take of the prompts; its outcome is the cache's lengths.

    Leaves the logits of the last token of each prompt that is whole, and has them kept. Rows of the same prompt share
    the work: it is computed once, and copied. What is fed in pieces comes to the bits of what is fed at once.

    Where log-probabilities of a prompt are asked for, a piece is fed token by token before, so that what follows is to
    the bit what it would be without.
    """

    def run(self, context: Generation) -> Lengths | Scored:
        context.fresh_logits()  # those of prompts that are whole, if the generation went back
        pieces, engine = next_pieces(context), context.bound_engine
        logprobs = _logprobs(context, pieces)
        context.feed(pieces)
        context.filled_in = context.turn
        context.stale = False
        context.filled = [engine.kv_cache.length(slot) for slot in context.slots]
        return Scored(tuple(context.filled), logprobs) if logprobs else tuple(context.filled)

    def apply(self, context: Generation, outcome: Lengths | Scored) -> None:
        if isinstance(outcome, Scored):
            if len(outcome.logprobs) != len(context.slots):
                raise ValueError(
                    f"{len(outcome.logprobs)} prompts were scored, but there are {len(context.slots)} rows"
                )
            before = context.prompt_logprobs or [()] * len(context.slots)
            context.prompt_logprobs = [(*old, *new) for old, new in zip(before, outcome.logprobs, strict=True)]
        context.cached = list(lengths_of(outcome))

    def digest(self, context: Generation) -> Any:
        return logits_digest.of_rows(context, filter(context.prompt_filled, context.live))

    def explain(self, recorded: Any, replayed: Any) -> dict[str, Any]:
        return logits_digest.explain(recorded, replayed)


def lengths_of(outcome: Lengths | Scored) -> Lengths:
    """How many tokens the cache held of each row after a step."""
    return outcome.lengths if isinstance(outcome, Scored) else outcome


def next_pieces(context: Generation) -> list[Piece]:
    """What is fed next: of one prompt after the other, as much as a turn may take, cut where the engine lets it be.

    At least a chunk of the engine's, so that there is an end to it.
    """
    chunk, left = context.bound_engine.prefill_chunk, context.request.max_prefill_tokens
    pieces: list[Piece] = []
    for (ids, _), rows in _unfilled(context).items():
        first = context.cached[rows[0]]
        rest = len(ids) - first
        count = rest if left is None or rest <= left else left // chunk * chunk
        if not pieces:
            count = max(count, min(chunk, rest))
        if not count:
            break
        pieces.append(Piece(tuple(rows if count == rest else rows[:1]), first, first + count))
        left = None if left is None else max(0, left - count)
    return pieces


def _unfilled(context: Generation) -> dict[tuple[tuple[int, ...], str | None], list[int]]:
    """Live rows whose prompts are not whole, by the prompt and the adapter; first the one of which most is there."""
    alike: dict[tuple[tuple[int, ...], str | None], list[int]] = {}
    for row in context.live:
        if not context.prompt_filled(row):
            alike.setdefault((context.prompt_ids[row], context.adapter(row)), []).append(row)
    return {asked: sorted(rows, key=lambda row: -context.cached[row]) for asked, rows in alike.items()}


def _logprobs(context: Generation, pieces: list[Piece]) -> tuple[tuple[TokenLogprob, ...], ...]:
    """Score the tokens of pieces whose rows ask for it, and leave the cache as it was."""
    engine, unfilled = context.bound_engine, _unfilled(context)
    asked: dict[int, Asked] = {}
    asking: dict[int, list[int]] = {}  # by the slot where it is scored
    before: dict[int, Any] = {}
    tops = {row: context.request.requests[row].params.prompt_logprobs for row in context.live}
    for piece in pieces:
        ids = context.prompt_ids[piece.rows[0]]
        rows = [row for row in unfilled[ids, context.adapter(piece.rows[0])] if tops[row] is not None]
        if rows:
            slot, held = context.slots[piece.rows[0]], max(0, piece.first - 1)
            before[slot] = engine.export_kv(slot, held, piece.first)
            asked[slot] = Asked(ids[: piece.last], held + 1, max(tops[row] or 0 for row in rows), held=held)
            asking[slot] = rows
    if not asked:
        return ()
    found = score_tokens(engine, asked)
    for slot, one in asked.items():
        engine.import_kv(slot, one.held, before[slot])
    scored: dict[int, tuple[TokenLogprob, ...]] = {
        row: tuple(TokenLogprob(one.token_id, one.logprob, one.top[: tops[row]]) for one in found[slot])
        for slot, rows in asking.items()
        for row in rows
    }
    return tuple(scored.get(row, ()) for row in range(len(context.slots)))
