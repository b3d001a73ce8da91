"""Embed the generator in an application: stream, step, pause and save, resume elsewhere, record, replay.

Usage: python examples/embedding.py [MODEL]     (a checkpoint's folder; without one, the bundled demo model)
"""

import sys
import tempfile
from pathlib import Path

from phases import Generator, SamplingParams, machine
from phases.replay import replay

prompt = "What does Prefill do?"
params = SamplingParams(temperature=0.8, seed=1, max_new_tokens=24)  # a seed: every part below comes to the same


def main(model: str | None = None) -> None:
    folder = Path(tempfile.mkdtemp(prefix="phasewalk-"))
    with Generator.from_pretrained(model, max_batch=4) as generator:
        print("# Stream: text as it comes.")
        for piece in generator.stream(prompt, params):
            print(piece, end="", flush=True)
        whole = generator.generate(prompt, params)
        print(f"\n{whole.finish_reasons[0]} after {whole.output_tokens[0]} tokens")

        print("\n# Step: the machine itself. A run rests between two phases; until then nothing is hidden.")
        with generator.start(prompt, params) as run:
            for step in run:
                print(f"{step.number}: {step.phase} -> {step.target}", step.guards or "", step.outcome)
                if step.number == 4:
                    run.pause()

            print("\n# Fork: the same past, rows of its own, and another future. The first run is not disturbed.")
            fork = run.fork()
            fork.edit("append", text=" Well,")
            fork.resume()
            print(repr(generator.result(fork).text))

            print("\n# Pause, save: the run in one file, its part of the KV cache included.")
            run.until(machine.phases["check_stop"])
            run.snapshot(folder / "half.snapshot")
            print(run, f"saved in {(folder / 'half.snapshot').stat().st_size} bytes")

        print("\n# Resume: in another process or on another machine just as well. Here it is recorded, too.")
        resumed = generator.resume(folder / "half.snapshot", journal=folder / "run.jsonl")
        resumed.resume()
        print("the same text as without the pause:", generator.result(resumed).text == whole.text)

        print(
            "\n# Replay: run it again and compare every step. Without `generator=` the model is loaded that it names."
        )
        verified = replay(folder / "run.jsonl", generator=generator)
        print(verified.divergence or f"all {verified.run.step_count} steps are the same")
        verified.run.close()  # a replay keeps its rows, so that one can go back in it

    print("\n# Play: the record alone, with no model at all.")
    played = replay(folder / "run.jsonl", "play").run
    played.back(3)  # back at the place before the last token was drawn
    print(played, len(played.context.output_ids[0]), "tokens")


if __name__ == "__main__":
    main(*sys.argv[1:])
