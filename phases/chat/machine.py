"""The chat machine: generation as before, between two waits for what is said next.

A whole chat is one run, and one record. Nothing in it goes back: whoever takes a turn back, or asks for another answer,
answers the next wait with other messages, and the cache keeps what they have in common with those before.
"""

from dataclasses import dataclass, replace

from phases.context import Generation
from phases.errors import RequestError
from phases.generation import (
    all_finished,
    cancelled,
    check_stop,
    decode,
    detokenize,
    done,
    nothing_left,
    prefill,
    prompts_filled,
    sample,
)
from phases.request import GenerationRequest, Message, RowRequest, SamplingParams
from phases.token_ids import common
from phases.tokenize import Prompts, Tokenize
from phases.tokenizer import Tokenizer
from statemachine import Machine, Signal, Transition, Wait, guard

PLAIN_NAMES = {"system": "", "user": "User: ", "assistant": "Assistant: "}


@dataclass(frozen=True, slots=True)
class Turn:
    """What the model is to answer now: the whole chat as it stands, and how to sample. No messages end the run."""

    messages: tuple[Message, ...]
    params: SamplingParams


class Listen(Wait[Generation, Turn]):
    """Waits for the next turn; the cache stays as it is."""

    def apply(self, context: Generation, outcome: Turn) -> None:
        context.prompt_ids = [tuple(context.tokens(0)[: context.cached[0]])] if context.prompt_ids else []
        # The adapter stays, as what the cache holds is of it.
        row = replace(context.request.requests[0], messages=outcome.messages, params=outcome.params)
        bound = context.request.max_prefill_tokens
        context.request = GenerationRequest((row,), bound).resolved(SamplingParams(seed=0))
        context.output_ids, context.output_texts, context.forced = [[]], [], [{}]
        context.finish_reasons, context.errors, context.kept_text, context.live = [None], [None], [None], (0,)
        context.logprobs, context.prompt_logprobs, context.adjusted = [{}], [], ()


class TokenizeTurn(Tokenize):
    """Tells the engine the ids of the whole chat; what the cache holds of them need not be fed again."""

    def run(self, context: Generation) -> Prompts:
        [row] = context.request.requests
        held = context.prompt_ids[0] if context.prompt_ids else ()
        ids = continued(context.bound_tokenizer, held, chat_ids(context.bound_tokenizer, row.messages or ()))
        self._bind(context, (ids,))
        return (ids,)

    def apply(self, context: Generation, outcome: Prompts) -> None:
        [ids], held = outcome, context.prompt_ids[0] if context.prompt_ids else ()
        scored = context.request.requests[0].params.prompt_logprobs is not None  # all of it is fed for that
        context.cached = [0 if scored else min(common(held, ids), len(ids) - 1)]  # the last one's logits are needed
        context.reused = list(context.cached)
        context.turn += 1
        super().apply(context, outcome)


@guard
def silent(context: Generation) -> bool:
    """Whether nothing is to be answered any more."""
    return not context.request.requests[0].messages


listen = Listen()
tokenize = TokenizeTurn("tokenize")

machine = Machine(
    "chat",
    start=listen,
    transitions=[
        Transition(listen, tokenize, when=~silent),
        Transition(listen, done, when=silent),
        Transition(tokenize, prefill),
        Transition(tokenize, listen, raises=RequestError),  # too long, say: nothing was fed, and the chat goes on
        Transition(prefill, prefill, when=~prompts_filled),
        Transition(prefill, sample, when=prompts_filled),
        Transition(sample, decode, when=~nothing_left),
        Transition(sample, check_stop, when=nothing_left),
        Transition(decode, check_stop),
        Transition(check_stop, sample, when=~all_finished),
        Transition(check_stop, detokenize, when=all_finished),
        Transition(detokenize, listen),
    ],
    signals=[
        Signal("hush", to=detokenize, sources=(prefill, sample)),  # the answer ends here
        Signal("hush", to=listen, sources=(listen,)),  # it had ended
        Signal("cancel", to=cancelled),
    ],
)


def start_request(params: SamplingParams) -> GenerationRequest:
    """The request of a chat in which nothing was said yet."""
    return GenerationRequest((RowRequest(messages=(), params=params),))


def chat_ids(tokenizer: Tokenizer, messages: tuple[Message, ...]) -> tuple[int, ...]:
    """The token ids of a chat, up to where the answer begins."""
    if tokenizer.has_chat_template:
        return tokenizer.encode(RowRequest(messages=messages))
    return tokenizer.encode(RowRequest(prompt=plain_text(messages), raw=True))


def plain_text(messages: tuple[Message, ...]) -> str:
    """A chat for a model that has no template for one."""
    said = [f"{PLAIN_NAMES.get(message.role, f'{message.role}: ')}{message.text}\n" for message in messages]
    return "".join(said) + "Assistant:"


def continued(tokenizer: Tokenizer, held: tuple[int, ...], ids: tuple[int, ...]) -> tuple[int, ...]:
    """These ids; where they spell what is held with other tokens, as the model drew it, then with those."""
    same = common(held, ids)
    if same < len(held):
        rest, mine = tokenizer.decode_all(ids[same:]), tokenizer.decode_all(held[same:])
        if mine and rest.startswith(mine):
            tail = rest.removeprefix(mine)
            spelled = (*held, *tokenizer.encode_continuation(tail))
            if tokenizer.decode_all(spelled[same:]) == rest:
                return spelled
    return ids
