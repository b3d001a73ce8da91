"""Tokenize: messages, prompts or ids become the input ids of each row."""

from phases.context import Generation
from phases.errors import RequestError
from statemachine import Phase

Prompts = tuple[tuple[int, ...], ...]


class Tokenize(Phase[Generation, Prompts]):
    """Writes each row's ids to `buffers.input_ids`, and how it is sampled beside them."""

    def run(self, context: Generation) -> Prompts:
        engine = context.bound_engine
        prompts = tuple(context.bound_tokenizer.encode(row) for row in context.request.requests)
        for row, ids in enumerate(prompts):
            self._check(row, ids, capacity=context.capacity, vocab=engine.model.vocab)
        for slot, ids, request in zip(context.slots, prompts, context.request.requests, strict=True):
            engine.buffers.input_ids[slot, : len(ids)] = ids
            engine.buffers.input_lengths[slot] = len(ids)
            params = request.params
            engine.buffers.set_sampling(
                slot, temperature=params.temperature or 0.0, top_k=params.top_k or 0, top_p=params.top_p or 1.0,
                min_p=params.min_p or 0.0, seed=params.seed or 0,
            )  # fmt: skip
        return prompts

    def apply(self, context: Generation, outcome: Prompts) -> None:
        context.prompt_ids = list(outcome)
        context.budgets = [
            min(request.params.max_new_tokens or 1, context.capacity - len(ids))
            for request, ids in zip(context.request.requests, outcome, strict=True)
        ]

    @staticmethod
    def _check(row: int, ids: tuple[int, ...], *, capacity: int, vocab: int) -> None:
        if not ids:
            raise RequestError(f"row {row} is empty: a prompt has at least 1 token; give it some text")
        if len(ids) >= capacity:
            raise RequestError(
                f"row {row} has {len(ids)} prompt tokens, but the capacity is {capacity} tokens, prompt and output "
                f"together; shorten the prompt by {len(ids) - capacity + 1} tokens or raise capacity="
            )
        if max(ids) >= vocab:
            raise RequestError(f"row {row} holds token id {max(ids)}, but the model's vocabulary ends at {vocab - 1}")
