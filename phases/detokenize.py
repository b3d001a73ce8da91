"""Detokenize: each row's output ids become text."""

from phases.context import Generation
from statemachine import Phase

Texts = tuple[str, ...]


class Detokenize(Phase[Generation, Texts]):
    """Exact: the text of all ids together, without special tokens, as far as no stop string cuts it off."""

    def run(self, context: Generation) -> Texts:
        decode = context.bound_tokenizer.decode
        return tuple(decode(ids)[:kept] for ids, kept in zip(context.output_ids, context.kept_text, strict=True))

    def apply(self, context: Generation, outcome: Texts) -> None:
        context.output_texts = list(outcome)
