"""Records the corpus of this folder again: `python tests/journals/record.py`."""

from pathlib import Path

from phases import Generator, SamplingParams

FOLDER = Path(__file__).parent
RUNS = {
    "greedy": ("What comes after Sample?", SamplingParams(temperature=0)),
    "batch": (["Count from 3 to 9.", "What is 7 plus 5?", "Hello!"], SamplingParams(temperature=0)),
    "sampled": (
        "Tell me a story about a fox.",
        SamplingParams(temperature=0.7, top_k=20, top_p=0.95, min_p=0.02, seed=7),
    ),
}


def record(folder: Path = FOLDER) -> None:
    """Record every run, and one that is edited, goes back and is cancelled."""
    for path in folder.glob("*.jsonl"):
        path.unlink()
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


if __name__ == "__main__":
    record()
