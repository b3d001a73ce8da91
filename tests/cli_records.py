"""Records for the command line to read."""

from pathlib import Path

from phases import Generator, SamplingParams

STEERING = "\x1b[2J\x9b0m\rnaïve → 🦊\x07\x7f"  # clears the screen, hides what stands before it, and rings


def record(model: Path | str, path: Path, *, text: str | None = None) -> Path:
    """Record a greedy generation, its tokens drawn, or those of a text."""
    with Generator.from_pretrained(model, max_batch=1, self_check=False) as generator:
        length = len(generator.tokenizer.encode_continuation(text)) if text else 8
        params = SamplingParams(temperature=0, max_new_tokens=length, stop_token_ids=())
        run = generator.start("the fox", params, journal=path)
        if text:
            run.until(lambda run: run.step_count == 2)
            run.edit("append", row=0, text=text)
            run.resume()
        else:
            run.start()
        assert run.status == "done"
    return path
