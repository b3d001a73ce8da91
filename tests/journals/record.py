"""Records the newest part of this folder again: `python tests/journals/record.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import statemachine_recorded

from phases import Generator, SamplingParams
from statemachine import JournalWriter, Run
from statemachine.record.records import SCHEMA

FOLDER = Path(__file__).parent / f"schema{SCHEMA}"
RUNS = {
    "greedy": ("What comes after Sample?", SamplingParams(temperature=0)),
    "batch": (["Count from 3 to 9.", "What is 7 plus 5?", "Hello!"], SamplingParams(temperature=0)),
    "sampled": (
        "Tell me a story about a fox.",
        SamplingParams(temperature=0.7, top_k=20, top_p=0.95, min_p=0.02, seed=7),
    ),
}


def record_generations(folder: Path) -> None:
    """Record every run, one that is edited, goes back and is cancelled, and two snapshots of one on its way."""
    with Generator.from_pretrained() as generator:
        for name, (x, params) in RUNS.items():
            generator.start(x, params, journal=folder / f"{name}.jsonl").start()
        with generator.start(
            "Tell me a story.", SamplingParams(seed=1), journal=folder / "journey.jsonl", keep=True
        ) as run:
            run.until(lambda run: len(run.context.output_ids[0]) == 20)
            run.back(15)
            run.edit("append", text=" a very old robot")
            run.edit("sampling", temperature=0)
            run.until(lambda run: len(run.context.output_ids[0]) == 30)
            run.signal("cancel")
        with generator.start(*RUNS["greedy"]) as run:
            run.until(lambda run: len(run.context.output_ids[0]) == 8)
            run.snapshot(folder / "whole.snap")
            run.snapshot(folder / "bare.snap", history=False, kv="recompute")


def record_walk(folder: Path) -> None:
    """Record a run of a small machine, with every kind of record but a failure."""
    run = Run(
        statemachine_recorded.machine, statemachine_recorded.Walk(seed=3), journal=JournalWriter(folder / "walk.jsonl"),
        request={"seed": 3, "limit": 20}, digest_every=3, keep=True,
    )  # fmt: skip
    run.until(lambda run: run.step_count == 8)
    run.edit("bonus", amount=2)
    run.back(3)
    run.edit("bonus", amount=4)
    while run.phase_name != "note":
        run.step()
    run.signal("skip", wait=True)
    run.until(lambda run: run.step_count == 20)
    run.snapshot(folder / "walk.snap")
    run.snapshot(folder / "walk-bare.snap", history=False)
    run.resume()
    run.close()


def record(folder: Path = FOLDER) -> None:
    """Record everything anew."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    record_generations(folder)
    record_walk(folder)


if __name__ == "__main__":
    record()
