"""Rows that decode together have the bits that each has alone, on any number of threads, in any place and company."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import tiny_config, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu import ModelConfig, load_engine
from gpu.numpy.blas import Blas
from gpu.numpy.linear import Linear

pytestmark = pytest.mark.slow

ROWS = 32
BLAS = Blas()
DYNAMIC = BLAS.environment()["blas"] == "openblas" and os.uname().machine == "x86_64"
# Odd sizes, rests of every kind, sums of several blocks, and more than one stretch and block of a matrix.
SHAPES = ((97, 32), (33, 48), (61, 868), (1031, 321), (5003, 320), (1021, 2050), (760, 3072), (3, 64))


def bits(linear: Linear, weight: np.ndarray, x: np.ndarray, places: Sequence[int]) -> list[bytes]:
    """The bits of each row, which are written to these places."""
    out = np.full((ROWS, len(weight)), np.nan, np.float32)
    with BLAS.at_work(one_thread=linear.goes_together(len(x))):
        linear.scatter(weight, x, out, places)
    assert np.isnan(np.delete(out, places, axis=0)).all()
    return [out[place].tobytes() for place in places]


def made(*, by_blas: bool) -> Linear:
    model = ModelConfig.from_json(tiny_config(hidden_size=3072, intermediate_size=3072, vocab_size=5003))
    return Linear(model, BLAS, rows=ROWS, by_blas=by_blas)


@pytest.mark.parametrize("by_blas", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_has_its_bits_in_any_place_of_any_batch(shape: tuple[int, int], by_blas: bool) -> None:
    random = np.random.default_rng(0)
    weight = random.standard_normal(shape, np.float32)
    rows = random.standard_normal((ROWS, shape[1]), np.float32)
    linear = made(by_blas=by_blas)
    linear.check([weight])
    alone = [bits(linear, weight, row[None], [0])[0] for row in rows]
    assert len(set(alone)) == ROWS

    @settings(max_examples=60, deadline=None)
    @given(st.permutations(range(ROWS)), st.integers(1, ROWS), st.data())
    def check(order: list[int], size: int, data: st.DataObject) -> None:
        chosen = order[:size]
        places = data.draw(st.sampled_from((chosen[::-1], range(size), range(ROWS - size, ROWS))))
        batch = rows[chosen]
        # What stands in another row is nobody's business, whatever it is.
        stranger = data.draw(st.sampled_from((None, np.nan, np.inf, 1e30, 1e-42)))
        place = data.draw(st.integers(0, size - 1))
        if stranger is not None:
            batch[place] = stranger
        with np.errstate(all="ignore"):
            found = bits(linear, weight, batch, places)
        for index, row in enumerate(chosen):
            assert (stranger is not None and index == place) or found[index] == alone[row], (size, index)

    check()


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_multiplied_together_where_each_keeps_its_bits(shape: tuple[int, int]) -> None:
    weight = np.random.default_rng(0).standard_normal(shape, np.float32)
    linear = made(by_blas=True)
    linear.check([weight])
    if BLAS.environment()["blas_architecture"] in ("Haswell", "Zen"):  # kernels for FMA, where it is known to hold
        assert linear.together == (len(weight) >= 4)  # of fewer, the BLAS sums none as it does of four
    assert linear.goes_together(4) == linear.together
    assert not linear.goes_together(3)


CODE = """
import json, sys
import numpy as np
import gpu
with gpu.load_engine(sys.argv[1], "numpy", threads=2, max_batch=int(sys.argv[2]), capacity=16) as engine:
    rows = engine.kv_cache.acquire(int(sys.argv[2]))

    def step(groups):
        for row in rows:
            engine.kv_cache.truncate(row, 0)
            engine.write_prompt(row, [7 * row + 1])
            engine.prefill([row])
            engine.write_token(row, row)
        for group in groups:
            engine.decode(group)
        return [engine.read_logits(row).tobytes() for row in rows]

    same = step([rows]) == step([rows[::-1]]) == step([[row] for row in rows]) == step([rows[1:], rows[:1]])
    print(json.dumps([same, engine.facts(), engine.environment()["batches"], engine.environment()["decode_threads"]]))
"""


def told(folder: Path, rows: int, **variables: str) -> list[Any]:
    """Whether rows of an engine keep their bits in a process with these variables, and what it says of itself."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(folder), str(rows)],
        env=os.environ | variables, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: list[Any] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(not DYNAMIC, reason="needs an OpenBLAS that chooses its kernels by the processor")
def test_an_engine_says_which_way_rows_go_and_keeps_their_bits_either_way(tmp_path: Path) -> None:
    """The kernels for processors with AVX but no FMA sum what is called the matrix otherwise than the vector."""
    folder = write_checkpoint(tmp_path, hidden_size=64, intermediate_size=868)
    told_by = {
        kernels: told(folder, 9, OPENBLAS_CORETYPE=kernels, OPENBLAS_NUM_THREADS="2")
        for kernels in ("Nehalem", "Sandybridge")
    }
    together = {"batches": "4 rows and more together"}
    one_by_one = {"batches": "one row after the other: this BLAS rounds a row otherwise in company"}
    assert told_by["Nehalem"][:3] == [True, together, "together"]
    assert told_by["Sandybridge"][:3] == [True, one_by_one, "row by row"]


@pytest.mark.skipif(not DYNAMIC, reason="needs an OpenBLAS that is told how many threads it has")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_rows_keep_their_bits_on_any_number_of_threads(tmp_path: Path, threads: int) -> None:
    folder = write_checkpoint(tmp_path, hidden_size=64, intermediate_size=868)
    same, _, _, count = told(folder, 9, OPENBLAS_NUM_THREADS=str(threads))
    assert same
    assert 1 <= count <= threads  # no more than there are cores


def test_an_engine_of_few_rows_has_no_choice(tmp_path: Path) -> None:
    same, facts, way, _ = told(write_checkpoint(tmp_path), 3)
    assert same
    assert (facts, way) == ({"batches": "one row after the other: 4 and more would go together"}, "row by row")
    with load_engine(tmp_path, "numpy", max_batch=9, capacity=8) as engine:
        assert (engine.facts(), engine.environment()["batches"]) == ({}, "row by row")


@pytest.mark.skipif(BLAS.threads == 1, reason="needs a BLAS with several threads")
def test_a_closed_engine_leaves_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    folder = write_checkpoint(tmp_path, hidden_size=64, vocab_size=20_000)
    with load_engine(folder, "numpy", threads=2, max_batch=4, capacity=8) as engine:
        rows = engine.kv_cache.acquire(4)
        engine.decode(rows)
        helped = threading.active_count() > before
        assert helped == (engine.environment()["batches"] == "together")
    assert threading.active_count() == before
