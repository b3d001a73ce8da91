"""The generation machine: the page to read first."""

from phases.cancel_row import CancelRow
from phases.check_stop import CheckStop
from phases.context import Generation
from phases.decode import Decode
from phases.detokenize import Detokenize
from phases.edits import Append, Force, SetSampling
from phases.prefill import Prefill
from phases.sample import Sample
from phases.tokenize import Tokenize
from statemachine import End, Machine, Signal, Status, Transition, guard


@guard
def prompts_filled(context: Generation) -> bool:
    """Whether all of the prompts of rows that go on is in the cache."""
    return all(map(context.prompt_filled, context.live))


@guard
def nothing_left(context: Generation) -> bool:
    """Whether a decode step now would be thrown away: every row is known to end with the token just sampled."""
    return not context.unfinished()


@guard
def all_finished(context: Generation) -> bool:
    """Whether every row has ended."""
    return not context.live


tokenize = Tokenize()
prefill = Prefill()
sample = Sample()
decode = Decode()
check_stop = CheckStop()
detokenize = Detokenize()
done: End[Generation] = End("done")
cancelled: End[Generation] = End("cancelled", status=Status.CANCELLED)

machine = Machine(
    "generation",
    start=tokenize,
    transitions=[
        Transition(tokenize, prefill),
        Transition(prefill, prefill, when=~prompts_filled),  # a long prompt goes in piece by piece
        Transition(prefill, sample, when=prompts_filled),
        Transition(sample, decode, when=~nothing_left),  # decode is launched at once ...
        Transition(sample, check_stop, when=nothing_left),
        Transition(decode, check_stop),  # ... and the host looks at the token while it runs
        Transition(check_stop, sample, when=~all_finished),
        Transition(check_stop, detokenize, when=all_finished),
        Transition(detokenize, done),
    ],
    signals=[
        Signal("cancel", to=cancelled),
        CancelRow("cancel_row", to=prefill, sources=(prefill,)),
        CancelRow("cancel_row", to=sample, sources=(sample,)),
    ],
    edits=[SetSampling("sampling"), Force("force"), Append("append")],
)
