"""Detokenize: each row's output ids become text."""

from phases.context import Generation
from statemachine import Phase

Texts = tuple[str, ...]


class Detokenize(Phase[Generation, Texts]):
    """Exact: the text of all ids together, without special tokens."""

    def run(self, context: Generation) -> Texts:
        return tuple(context.bound_tokenizer.decode(ids) for ids in context.output_ids)

    def apply(self, context: Generation, outcome: Texts) -> None:
        context.output_texts = list(outcome)
