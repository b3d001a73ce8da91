"""The table of decode speeds on a CPU: who takes part, whose tokens are the same, what is said of who is missing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gpu import engines

pytest.importorskip("torch")
SCRIPT = Path(__file__).parents[1] / "benchmarks" / "cpu_decode.py"


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.skipif("onnx" not in engines(), reason="onnx or onnxruntime is not installed")
def test_every_contender_has_a_row_at_every_batch(tmp_path: Path) -> None:
    options = ["--threads", "1", "--shapes", "32M", "--steps", "2", "--repeats", "1", "--json", "found.json"]
    done = subprocess.run(
        [sys.executable, SCRIPT, *options], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    names = {"numpy", "numpy, together", "onnx float32", "onnx int8", "onnx int4", "HF generate, 1 thread"}
    missing = {"llama.cpp F32", "llama.cpp Q8_0", "llama.cpp Q4_0"}
    for batch in (1, 8, 32):
        rows = {row["contender"]: row for row in found if row["batch"] == batch}
        assert rows.keys() == names | missing
        assert all(rows[name]["tokens_per_s"] > 0 and rows[name]["share"] > 0 for name in names)
        assert [name for name in names if rows[name]["same_tokens"] is None] in (
            ["onnx int8", "onnx int4"], ["onnx int4", "onnx int8"],
        )  # fmt: skip
        assert all(rows[name]["same_tokens"] for name in names if "int" not in name)
        assert [rows[f"onnx {kind}"]["target"] for kind in ("float32", "int8", "int4")] == [1.1, 2.2, 2.8]
        assert all("llama_cpp_decode.py tells how to make one" in rows[name]["lacking"] for name in missing)
    assert "not measured: llama.cpp F32, llama.cpp Q8_0, llama.cpp Q4_0: no --llama-python was named" in done.stdout
