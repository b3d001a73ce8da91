"""The examples run, as a reader would run them, and print what the page about them shows."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Command, phasewalk

pytestmark = pytest.mark.slow

__all__ = ["phasewalk"]  # a fixture

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples"
PAGE = (ROOT / "docs/examples.md").read_text(encoding="utf-8")
SHOWN = dict(re.findall(r"^```text\n\$ python examples/(\w+)\.py\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
NAMES = ["order", "agent", "saga", "elevator", "tcp", "traffic_lights", "look_ups", "favour", "embedding"]


def output(name: str, folder: Path, *arguments: str) -> str:
    """What an example prints, run in an empty folder with a home of its own."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments], capture_output=True, text=True, cwd=folder, timeout=120,
        env={**os.environ, "TMPDIR": str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_the_page_shows_every_example() -> None:
    assert list(SHOWN) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_prints_what_the_page_shows(name: str, tmp_path: Path) -> None:
    shown = re.escape(SHOWN[name]).replace(r"\.\.\.", ".*")  # dots stand for anything, as on other pages
    assert re.fullmatch(shown, output(f"{name}.py", tmp_path), re.DOTALL)


@pytest.mark.parametrize("name", NAMES)
def test_its_machine_is_checked_and_drawn_by_the_commands_that_the_page_names(name: str, phasewalk: Command) -> None:
    target = f"{EXAMPLES / name}.py:machine"
    checked = phasewalk("check", target)
    assert (checked.code, checked.err) == (0, "")
    assert "is sound: no run of it can get stuck or has two ways to go" in checked.out
    assert "stateDiagram-v2" in phasewalk("diagram", target).out


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("favour", "embedding")])
def test_it_is_short_and_knows_no_language_model(name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 135
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
