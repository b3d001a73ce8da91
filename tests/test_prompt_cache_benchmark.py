"""The benchmark of the prompt cache: each engine is measured with it and without."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "prompt_cache.py"


@pytest.mark.slow
def test_every_engine_is_measured_with_the_cache_and_without() -> None:
    model = Path(__file__).parents[1] / "phases" / "demo_model"
    options = [model, "--engines", "numpy", "onnx", "--cached", "200", "--new", "5", "--repeats", "1", "--json"]
    done = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == {"numpy", "onnx"}
    for one in found.values():
        assert one["reused_tokens"] == 192
        assert one["ratio"] == pytest.approx(one["with_s"] / one["without_s"])
