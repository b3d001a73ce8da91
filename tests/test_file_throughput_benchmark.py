"""The throughput of files: each contender answers all requests at every batch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
SCRIPT = Path(__file__).parents[1] / "benchmarks" / "file_throughput.py"


@pytest.mark.slow
@pytest.mark.parity
def test_every_contender_is_measured_at_every_batch() -> None:
    options = ["--requests", "3", "--repeats", "1", "--threads", "1", "--engines", "numpy", "--json"]
    done = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = {(row["contender"], row["batch"]): row for row in json.loads(done.stdout)}
    assert found.keys() == {
        (name, batch) for name in ("HF generate, 1 thread", "numpy, 1 thread") for batch in (1, 4, 16)
    }
    for batch in (1, 4, 16):
        theirs, ours = (found[name, batch] for name in ("HF generate, 1 thread", "numpy, 1 thread"))
        assert theirs["times_hf"] == 1
        assert ours["times_hf"] == pytest.approx(ours["tokens_per_s"] / theirs["tokens_per_s"])
