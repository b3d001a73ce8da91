"""The examples run, as a reader would run them, and say what they promise."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parent.parent / "examples"


def output(name: str, folder: Path, *arguments: str) -> str:
    """What an example prints, run in an empty folder with a home of its own."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments], capture_output=True, text=True, cwd=folder, timeout=120,
        env={**os.environ, "TMPDIR": str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_traffic_lights(tmp_path: Path) -> None:
    shown = output("traffic_lights.py", tmp_path)
    assert shown.startswith("recorded: done [")
    assert "play: the same\nverified: True\n" in shown
    assert "stateDiagram-v2" in shown
    assert "kept the rules:\ntransitions: 4 of 4 seen" in shown


def test_traffic_lights_is_short_and_knows_no_language_model() -> None:
    text = (EXAMPLES / "traffic_lights.py").read_text()
    assert len(text.splitlines()) < 65
    imported = {node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and node.module}
    assert not [name for name in imported if name.split(".")[0] in ("phases", "gpu")]


def test_embedding(tmp_path: Path) -> None:
    shown = output("embedding.py", tmp_path)
    parts = dict(part.partition("\n")[::2] for part in shown.split("# ")[1:])
    said = {title.split(":")[0]: body.strip() for title, body in parts.items()}
    assert list(said) == ["Stream", "Step", "Fork", "Pause, save", "Resume", "Replay", "Play"]
    assert said["Stream"].endswith("length after 24 tokens")
    assert said["Step"].startswith("0: tokenize -> prefill")
    assert " Well," in said["Fork"]
    assert "paused at check_stop" in said["Pause, save"]
    assert said["Resume"] == "the same text as without the pause: True"
    assert said["Replay"].startswith("all ")
    assert said["Replay"].endswith(" steps are the same")
    assert said["Play"].endswith("23 tokens")
