"""The picture of the docs shows what the engine counts, and the numbers that stand in the kernels."""

import sys
from pathlib import Path

DIAGRAMS = Path(__file__).parents[3] / "diagrams"


def test_the_picture_of_a_tokens_way_is_current(tmp_path: Path) -> None:
    sys.path.insert(0, str(DIAGRAMS))
    from token_on_gpu import export

    export(tmp_path)
    drawn, kept = (folder.joinpath("token_on_gpu.svg").read_text(encoding="utf-8") for folder in (tmp_path, DIAGRAMS))
    assert drawn == kept, "stale: run python diagrams/token_on_gpu.py"
