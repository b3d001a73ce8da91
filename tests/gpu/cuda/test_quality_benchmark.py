"""The benchmark of quantised weights runs whole on the CPU, with a tiny shape and an engine that quantises none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cuda.core")

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "quantised_quality.py"


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--shape", "tiny", "--engine", "numpy", "--window", "32", *options]
    return subprocess.run([*command, "--folder", str(folder)], capture_output=True, text=True, check=False, timeout=120)


def test_a_model_of_random_weights_is_measured_on_what_it_draws(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = run(tmp_path, "--quantize", "none", "--tokens", "300", "--json", str(figures))
    assert done.returncode == 0, done.stderr
    [row] = json.loads(figures.read_text())["rows"]
    assert row["tokens"] == 300
    assert 2 < row["perplexity"] < 64  # of a vocabulary of 512: neither known by heart nor all alike
    assert (row["change"], row["divergence_bits"], row["same_likeliest"]) == (0, 0, 1)
    assert f" {row['perplexity']:.3f} " in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]  # the checkpoint is gone


def test_an_engine_that_quantises_none_says_so(tmp_path: Path) -> None:
    done = run(tmp_path, "--quantize", "none", "int8", "--tokens", "30")
    assert done.returncode == 1
    assert "the engine numpy has no option quantize" in done.stderr
    assert list(tmp_path.iterdir()) == []
