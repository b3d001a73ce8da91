"""The script that trained the bundled adapter: what it teaches, and that an engine takes what it writes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpu import Adapter, ModelConfig
from phases.generator import DEMO_MODEL
from phases.lora import bundled_adapters

SCRIPT = Path(__file__).parents[2] / "examples" / "train_demo_adapter.py"
pytestmark = [pytest.mark.slow, pytest.mark.parity]


@pytest.fixture(autouse=True)
def needs_peft() -> None:
    for name in ("torch", "transformers", "peft"):
        pytest.importorskip(name, reason="pip install phasewalk[parity]")


def test_a_pirate_says_what_was_said_in_other_words() -> None:
    from train_demo_adapter import pirate

    assert pirate("Yes, you are my friend.") == "Arr! Aye, ye be me matey."
    assert pirate("3 + 4 = 7.") == "Arr! 3 + 4 = 7."


def test_what_it_writes_is_an_adapter_of_the_bundled_model(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--steps", "1", "--output", str(tmp_path / "mine")]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    model = ModelConfig.from_folder(DEMO_MODEL)
    mine, bundled = (Adapter.read(folder, model) for folder in (tmp_path / "mine", bundled_adapters()["pirate"]))
    assert (mine.rank, mine.matrices.keys()) == (bundled.rank, bundled.matrices.keys())
    names = [
        (folder / "adapter_config.json").read_text() for folder in (tmp_path / "mine", bundled_adapters()["pirate"])
    ]
    assert all("phasewalk's demo model" in text for text in names)
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
