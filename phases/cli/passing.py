"""Prints each phase of a run as it passes."""

from typing import TYPE_CHECKING

from phases.check_stop import CheckStop
from phases.logits_phase import LogitsPhase
from phases.prefill import Prefill, lengths_of
from phases.printable import one_line
from phases.token_ids import tokens_of
from phases.tokenize import Tokenize
from statemachine.definition.variable import in_words

if TYPE_CHECKING:
    from rich.console import Console

    from phases.context import Generation
    from phases.generator import Generator
    from statemachine import Run, Step


class PassingPhases:
    """One line a step: number, phase, time, what came of it, and where its guards sent the run."""

    def __init__(self, generator: "Generator", run: "Run[Generation]", console: "Console") -> None:
        self._generator = generator
        self._console = console
        self._phases = run.machine.phases

    def show(self, step: "Step") -> None:
        guards = in_words(step.guards)
        self._console.print(
            f"{step.number:>5}  {step.phase:<11} {step.elapsed_ns / 1e6:>8.3f} ms  {self._found(step):<22} "
            f"-> {step.target}" + (f"  ({guards})" if guards else ""),
            markup=False,
            soft_wrap=True,
        )

    def _found(self, step: "Step") -> str:
        if step.raised:
            return one_line(step.raised)
        phase = self._phases[step.phase]
        if isinstance(phase, Tokenize):
            return f"{sum(len(ids) for ids in step.outcome)} prompt tokens"
        if isinstance(phase, Prefill):
            return f"{sum(lengths_of(step.outcome))} tokens are in"
        if isinstance(phase, CheckStop):
            return " ".join(
                f"{token} {self._generator.tokenizer.decode([token])!r}" for token in tokens_of(step.outcome)
            )
        if isinstance(phase, LogitsPhase):
            return f"of {' '.join(map(str, step.outcome))} tokens"
        return ""
