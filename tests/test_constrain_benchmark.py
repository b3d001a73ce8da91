"""The benchmark of masks measures every kind of constraint."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "constrain_mask.py"


@pytest.mark.slow
def test_every_kind_is_measured(tmp_path: Path) -> None:
    few = ["--vocab", "2000", "--texts", "1", "--tokens", "5", "--json"]
    done = subprocess.run([sys.executable, SCRIPT, *few], capture_output=True, text=True, check=True, cwd=tmp_path)
    found = json.loads(done.stdout)
    assert found["vocab"] == 2000
    assert len(found["constraints"]) == 5
    for figures in found["constraints"].values():
        assert 1 <= figures["tokens"] <= 5
        assert 0 < figures["median_us"] <= figures["p95_us"] <= figures["most_us"]
        assert figures["apply_us"] > 0
