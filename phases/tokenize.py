"""Tokenize: messages, prompts or ids become the input ids of each row."""

from typing import TYPE_CHECKING

from phases.context import Generation
from phases.errors import PromptTooLong, RequestError
from phases.penalties import check_tokens
from phases.token_ids import TokenId
from statemachine import Phase

if TYPE_CHECKING:
    from gpu import ModelConfig

Prompts = tuple[tuple[TokenId, ...], ...]


class Tokenize(Phase[Generation, Prompts]):
    """Tells the engine each row's ids, and how it is sampled."""

    def run(self, context: Generation) -> Prompts:
        prompts = tuple(context.bound_tokenizer.encode(row) for row in context.request.requests)
        self._bind(context, prompts)
        return prompts

    @staticmethod
    def _bind(context: Generation, prompts: Prompts) -> None:
        for row, ids in enumerate(prompts):
            check_prompt(row, ids, context.capacity, context.bound_engine.model)
            check_tokens(context.request.requests[row].params, row=row, vocab=context.bound_engine.model.vocab)
        context.bind_prompts(prompts)

    def apply(self, context: Generation, outcome: Prompts) -> None:
        context.prompt_ids = list(outcome)
        context.budgets = [context.budget(row) for row in range(len(outcome))]


def check_prompt(row: int, ids: tuple[int, ...], capacity: int, model: "ModelConfig") -> None:
    """Raise RequestError for token ids that are no prompt for this model, or too long; `row` is for the message."""
    if not ids:
        raise RequestError(f"row {row} is empty: a prompt has at least 1 token; give it some text")
    if len(ids) >= capacity:
        raise PromptTooLong(row, tokens=len(ids), capacity=capacity, positions=model.max_positions)
    if max(ids) >= model.vocab:
        raise RequestError(f"row {row} holds token id {max(ids)}, but the model's vocabulary ends at {model.vocab - 1}")
