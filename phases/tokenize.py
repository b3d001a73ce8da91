"""Tokenize: messages, prompts or ids become the input ids of each row."""

from phases.context import Generation
from phases.errors import RequestError
from statemachine import Phase

Prompts = tuple[tuple[int, ...], ...]


class Tokenize(Phase[Generation, Prompts]):
    """Tells the engine each row's ids, and how it is sampled."""

    def run(self, context: Generation) -> Prompts:
        engine = context.bound_engine
        prompts = tuple(context.bound_tokenizer.encode(row) for row in context.request.requests)
        for row, ids in enumerate(prompts):
            self._check(row, ids, capacity=context.capacity, vocab=engine.model.vocab)
        context.bind_prompts(prompts)
        return prompts

    def apply(self, context: Generation, outcome: Prompts) -> None:
        context.prompt_ids = list(outcome)
        context.budgets = [context.budget(row) for row in range(len(outcome))]

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
