"""With the full TensorRT, as far as its bindings go alone: our source loads, and says that a GPU is missing."""

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys
from pathlib import Path
from full_tensorrt import full_tensorrt
found = full_tensorrt(Path({folder!r}))
if isinstance(found, str):
    print("skip", found)
    sys.exit()
sys.modules["tensorrt"] = found
{code}
"""


def with_full_tensorrt(folder: Path, code: str) -> str:
    tests = Path(__file__).parents[2]
    script = f"sys.path.insert(0, {str(tests)!r})\n" + CODE.format(folder=str(folder), code=code)
    done = subprocess.run([sys.executable, "-c", "import sys\n" + script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if done.stdout.startswith("skip "):
        pytest.skip(done.stdout.removeprefix("skip ").strip())
    return done.stdout


def test_it_is_the_flavour_that_is_chosen_and_takes_no_class_by_name(tmp_path: Path) -> None:
    code = (
        "from gpu.tensorrt import library, monitor, timings\n"
        "print(library.FLAVOUR, library.VERSION.split('.')[0], library.device_classes(), library.KEEPS_TIMINGS)\n"
        "told = []\n"
        "watch = monitor.Monitor(lambda *report: told.append(report))\n"
        "watch.phase_start('a', None, 2); watch.step_complete('a', 0); watch.phase_finish('a')\n"
        "print(told)\n"
    )
    assert with_full_tensorrt(tmp_path, code).splitlines() == [
        "tensorrt 11 () True",
        "[('a', 0, 2), ('a', 0, 2), ('a', 2, 2)]",
    ]


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    code = (
        "sys.modules['cuda'] = None\n"
        "from gpu import PlanError\n"
        "from gpu.tensorrt.build import build\n"
        "try:\n"
        "    build(Path('export'), Path('model.plan'))\n"
        "except PlanError as error:\n"
        "    print(error)\n"
    )
    said = with_full_tensorrt(tmp_path, code)
    assert said.startswith("tensorrt builds for the GPU of its machine, and here cuda-python is not installed")
