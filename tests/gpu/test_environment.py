"""An environment tells what changes bits as it is, not as somebody asked for it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpu import load_engine
from gpu.numpy.blas import Blas

pytestmark = pytest.mark.slow

CODE = """
import json, os, sys
if sys.argv[3]:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import gpu
engine = gpu.load_engine(sys.argv[1], threads=int(sys.argv[2]), max_batch=1, capacity=8)
print(json.dumps(engine.environment()))
"""
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
DYNAMIC = Blas().environment()["blas"] == "openblas" and os.uname().machine == "x86_64"


def environment(folder: Path, *, threads: int = 1, pinned: bool = False, **variables: str) -> dict[str, Any]:
    """The environment of an engine in a process with these variables, on one core if it is pinned."""
    clean = {name: value for name, value in os.environ.items() if not name.endswith(("_NUM_THREADS", "_CORETYPE"))}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(folder), str(threads), "pinned" * pinned],
        env=clean | variables, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_it_says_which_blas_there_is(checkpoint: Path) -> None:
    found = environment(checkpoint)
    assert found["blas"]
    assert found["openblas_coretype"] is None
    assert type(found["blas_threads"]) is int
    if found["blas"] == "openblas":
        assert found["blas_version"][0].isdigit()
        assert found["blas_architecture"]
        assert found["blas_threading"] in ("pthreads", "openmp", "disabled")


@pytest.mark.skipif(not DYNAMIC, reason="needs an OpenBLAS that chooses its kernels by the processor")
def test_the_kernels_of_the_blas_show(checkpoint: Path) -> None:
    found = environment(checkpoint, OPENBLAS_CORETYPE="Nehalem")
    assert (found["openblas_coretype"], found["blas_architecture"]) == ("Nehalem", "Nehalem")


@pytest.mark.parametrize("variable", ["OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"])
def test_the_threads_of_the_blas_are_counted_as_they_are(checkpoint: Path, variable: str) -> None:
    free, one = environment(checkpoint, threads=2), environment(checkpoint, threads=2, **{variable: "1"})
    assert (one["threads"], one["decode_threads"], one["blas_threads"]) == (2, 1, 1)
    assert 1 <= free["blas_threads"] == free["decode_threads"] <= CORES
    # The same number is the same value, however it came about.
    assert environment(checkpoint, threads=2, **{variable: str(free["blas_threads"])}) == free


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_the_threads_of_a_pinned_process_are_counted_as_they_are(checkpoint: Path) -> None:
    found = environment(checkpoint, threads=2, pinned=True)
    assert (found["threads"], found["decode_threads"], found["blas_threads"]) == (2, 1, 1)


def test_one_thread_decodes_on_one(checkpoint: Path) -> None:
    assert environment(checkpoint)["decode_threads"] == 1


def test_a_prefill_under_way_changes_no_count(checkpoint: Path) -> None:
    blas = Blas()
    with blas.at_work(one_thread=True):
        held = load_count()
    assert held == 1 or blas.threads == 1
    assert load_count() == blas.threads
    with load_engine(checkpoint, max_batch=1, capacity=8) as engine:
        assert engine.environment()["blas_threads"] == blas.threads


def load_count() -> int:
    from threadpoolctl import threadpool_info

    return max(library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas")
