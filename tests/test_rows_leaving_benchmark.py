"""The gain of rows that leave: it is measured on each engine, and a batch that is shorter takes less time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
SCRIPT = Path(__file__).parents[1] / "benchmarks" / "rows_leaving.py"


@pytest.mark.slow
@pytest.mark.parity
def test_every_engine_is_measured() -> None:
    options = ["--lengths", "1", "1", "12", "--repeats", "1", "--engines", "numpy", "--json"]
    done = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["lengths"] == [1, 1, 12]
    [(name, of)] = found["engines"].items()
    assert name == "numpy"
    assert 0 < of["first_row_s"] < of["leaving_s"]
    assert of["gain"] == pytest.approx(of["nobody_leaves_s"] / of["leaving_s"])
