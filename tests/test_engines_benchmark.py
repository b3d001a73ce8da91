"""The table of all engines holds figures of each, measured in processes of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import write_checkpoint

from gpu import engines

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "engines.py"


@pytest.mark.slow
def test_every_engine_is_measured_and_compared_with_the_reference(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", max_position_embeddings=256)
    here = engines()[::-1]
    done = subprocess.run(
        [sys.executable, SCRIPT, model, "--engines", *here, "--tokens", "3", "--rounds", "1", "--json", "found.json"],
        capture_output=True, text=True, check=False, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert tuple(found) == here
    for name, [figures] in found.items():
        assert name in done.stdout
        assert len(figures["tokens"]) == 4
        assert all(figures[name] > 0 for name in ("alone", "together", "first_token", "load"))
    [line] = [line for line in done.stdout.splitlines() if "numpy" in line]
    assert "0.0e+00" in line
    assert "4 of 4" in line
