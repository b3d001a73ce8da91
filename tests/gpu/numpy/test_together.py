"""Rows that decode together: the same bits in any company, at any place, on any number of threads, or a refusal."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu import NumpyEngine, OptionError, load_engine
from gpu.numpy import together
from gpu.numpy.blas import Blas
from phases import Generator, SamplingParams
from phases.replay import replay
from statemachine import Journal

pytestmark = pytest.mark.slow

ROWS = 32
LENGTHS = [1 + 7 * row % 129 for row in range(ROWS)]  # on both sides of the blocks of attention
# More than one piece of some matrices, pieces of unequal length, and sizes that no tile divides.
SIZES = {"hidden_size": 328, "intermediate_size": 1740, "head_dim": 64, "num_attention_heads": 6, "vocab_size": 4099}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    return write_checkpoint(folder, "qwen2", num_hidden_layers=2, max_position_embeddings=512, **SIZES)


def started(folder: Path, *, threads: int | None = None, rows: int = ROWS) -> NumpyEngine:
    """An engine whose rows hold prompts of all lengths."""
    engine = load_engine(folder, "numpy", max_batch=rows, capacity=160, threads=threads, decode="together")
    assert isinstance(engine, NumpyEngine)
    random = np.random.default_rng(3)
    for row, length in zip(engine.kv_cache.acquire(rows), LENGTHS, strict=False):
        engine.write_prompt(row, random.integers(0, SIZES["vocab_size"], length).tolist())
        engine.prefill([row])
        engine.write_token(row, 7 * row)
    return engine


def step(engine: NumpyEngine, rows: Sequence[int]) -> dict[int, bytes]:
    """What a decode step leaves of each of these rows; they go back to where they were."""
    lengths = engine.kv_cache.lengths
    engine.decode(rows)
    found = {}
    for row in rows:
        cache = engine.export_kv(row, lengths[row], lengths[row] + 1)
        found[row] = engine.read_logits(row).tobytes() + cache.tobytes()
        engine.import_kv(row, lengths[row], np.full_like(cache, np.nan))
        engine.kv_cache.truncate(row, lengths[row])
    return found


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[NumpyEngine]:
    with started(folder, threads=2) as engine:
        yield engine


@pytest.fixture(scope="module")
def alone(engine: NumpyEngine) -> dict[int, bytes]:
    return {row: step(engine, [row])[row] for row in range(ROWS)}


@given(st.permutations(range(ROWS)), st.integers(1, ROWS))
@settings(max_examples=60, deadline=None)
def test_a_row_has_its_bits_in_any_company_and_place(
    engine: NumpyEngine, alone: dict[int, bytes], order: list[int], count: int
) -> None:
    for row, bits in step(engine, order[:count]).items():
        assert bits == alone[row], (order[:count], row)


def test_a_batch_of_every_size_has_them_too(engine: NumpyEngine, alone: dict[int, bytes]) -> None:
    for count in range(1, ROWS + 1):
        assert step(engine, range(count)) == {row: alone[row] for row in range(count)}, count


@pytest.mark.parametrize("threads", [1, 3])
def test_bits_do_not_depend_on_the_number_of_threads(folder: Path, alone: dict[int, bytes], threads: int) -> None:
    with started(folder, threads=threads, rows=9) as other:
        assert step(other, range(9)) == {row: alone[row] for row in range(9)}


def test_the_numbers_are_those_of_rows_alone_but_for_rounding(folder: Path, engine: NumpyEngine) -> None:
    lengths, rows = engine.kv_cache.lengths, range(ROWS)
    engine.decode(rows)
    with load_engine(folder, "numpy", max_batch=ROWS, capacity=160) as other:
        other.kv_cache.acquire(ROWS)
        for row in rows:
            other.import_kv(row, 0, engine.export_kv(row, 0, lengths[row]))
            other.kv_cache.commit(row, lengths[row])
            other.write_token(row, 7 * row)
        other.decode(rows)
        for row in rows:
            np.testing.assert_allclose(engine.read_logits(row), other.read_logits(row), atol=1e-4)
            engine.kv_cache.truncate(row, lengths[row])
        assert any((engine.read_logits(row) != other.read_logits(row)).any() for row in rows)
        assert (other.environment()["decode"], other.facts()) == ("alone", {})


@pytest.mark.skipif(Blas().environment()["blas"] != "openblas", reason="needs an OpenBLAS")
@pytest.mark.parametrize("kernels", ["Nehalem", "Prescott", "Sandybridge", "Haswell"])
def test_bits_are_the_same_with_other_kernels_of_the_blas(folder: Path, kernels: str) -> None:
    code = (
        "import sys; from pathlib import Path; sys.path[:0] = sys.argv[2:]\n"
        "from test_together import started, step\n"
        "with started(Path(sys.argv[1]), threads=2, rows=20) as engine:\n"
        "    for rows in ([3, 17, 0], range(20)):\n"
        "        assert all(bits == step(engine, [row])[row] for row, bits in step(engine, rows).items())\n"
        "    print(engine.environment()['blas_architecture'])"
    )
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(here), str(here.parents[1])],
        env=os.environ | {"OPENBLAS_CORETYPE": kernels}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == -signal.SIGILL:
        pytest.skip("this processor has not the instructions")
    assert done.returncode == 0, done.stderr


def test_where_places_matter_it_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Blas().at_work(one_thread=True):
        odd = [block for block in range(2, 40) if not together._any_place_will_do(block, 96, 328)]
    if not odd:
        pytest.skip("this BLAS gives a row the same bits at each place of any block")
    monkeypatch.setattr(together, "_BLOCKS", odd)
    with pytest.raises(OptionError, match="cannot decode together here: with this BLAS a row's bits depend on its pl"):
        load_engine(folder, "numpy", decode="together")


def test_another_way_to_decode_is_refused(folder: Path) -> None:
    with pytest.raises(OptionError, match="the engine numpy has no decode fast: expected alone or together"):
        load_engine(folder, "numpy", decode="fast")


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer")
def test_a_step_that_was_interrupted_leaves_nothing_behind(engine: NumpyEngine, alone: dict[int, bytes]) -> None:
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    lengths, interrupted = engine.kv_cache.lengths, 0
    try:
        for number in range(60):
            with suppress(KeyboardInterrupt):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 1e-4 * (1 + number))
                    engine.decode(range(ROWS))
                finally:
                    interrupted += engine.kv_cache.lengths == lengths
                    signal.setitimer(signal.ITIMER_REAL, 0)
            for row in range(ROWS):
                engine.kv_cache.truncate(row, lengths[row])
            assert step(engine, [5, 31]) == {5: alone[5], 31: alone[31]}
    finally:
        signal.signal(signal.SIGALRM, before)
    assert interrupted


def test_its_threads_end_with_it(folder: Path) -> None:
    def running() -> int:
        return sum(thread.name.startswith("phasewalk-decode") for thread in threading.enumerate())

    before = running()
    with started(folder, threads=3, rows=1) as other:
        other.decode([0])
        assert running() > before
    assert running() == before


def test_it_is_recorded_and_replayed(tmp_path: Path) -> None:
    params = SamplingParams(temperature=1.0, seed=4, max_new_tokens=8)
    path = tmp_path / "run.jsonl"
    with Generator.from_pretrained(engine="numpy", max_batch=9, capacity=128, threads=2, decode="together") as made:
        made.start(["What is 7 plus 5?"] * 9, params, journal=path, digest_every=1).start()
        block = made.environment()["decode_block"]
        assert made.engine.facts() == {"decode": f"together, in blocks of {block} rows, on 2 threads"}
    environment = Journal.open(path).header.environment
    assert (environment["decode"], environment["decode_block"], environment["threads"]) == ("together", block, 2)
    again = replay(path)
    assert again.divergence is None
    assert again.run.context.bound_engine.environment()["decode"] == "together"
    again.run.close()
