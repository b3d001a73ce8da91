"""Has an engine go on from short prompts, greedily."""

from typing import Any


def prompted(engine: Any, row: int, tokens: list[int]) -> None:
    engine.kv_cache.truncate(row, 0)
    engine.write_prompt(row, tokens)
    engine.prefill([row])


def generate(engine: Any, rows: list[int], count: int = 6) -> list[tuple[int, ...]]:
    tokens = []
    for row in rows:
        prompted(engine, row, [5, 1 + row, 7])
    for _ in range(count):
        engine.sample(rows)
        tokens.append(engine.sampled(rows))
        engine.decode(rows)
    return tokens
