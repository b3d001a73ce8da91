"""A phase of one's own before Sample: words that the text leans to, or away from.

Usage: python examples/favour.py
       phasewalk run "Tell me a story about a fox." --machine examples/favour.py:machine
"""

import tempfile
from pathlib import Path

import numpy as np

from phases import Generation, Generator, LogitsPhase
from phases import machine as generation
from phases.replay import replay


class Favour(LogitsPhase):
    """Adds to the logits of words: of the token that each begins with, behind a space."""

    def __init__(self, **words: float) -> None:
        super().__init__()
        self.words = words

    def adjust(self, context: Generation, row: int, logits: np.ndarray) -> None:
        for word, more in self.words.items():
            logits[context.bound_tokenizer.encode_continuation(f" {word}")[0]] += more


machine = generation.insert(Favour(forest=9.0), before="sample")


def main() -> None:
    prompt, params = "Tell me a story about a fox.", {"temperature": 0, "max_new_tokens": 26}
    with Generator.from_pretrained() as plain, Generator.from_pretrained(machine=machine) as favouring:
        print("as it is:", plain.generate(prompt, params).text)
        print("favoured:", favouring.generate(prompt, params).text)

        journal = Path(tempfile.mkdtemp(prefix="phasewalk-")) / "run.jsonl"
        favouring.start(prompt, params, journal=journal).start()
        verified = replay(journal, generator=favouring)
        print("recorded:", verified.divergence or f"all {verified.run.step_count} steps are the same")
        verified.run.back(50)  # logits are made anew there, and adjusted anew
        verified.run.resume()
        print("gone back:", favouring.result(verified.run).text)
        verified.run.close()


if __name__ == "__main__":
    main()
