"""phasewalk build: a plan from an export, and one clear line where there is none to be had."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import MAIN, Command, finish, spawn

from gpu import model_fingerprint
from gpu.tensorrt.available import missing
from gpu.tensorrt.plan import read_identity
from phases.generator import DEMO_MODEL

pytestmark = pytest.mark.slow


@pytest.fixture
def library() -> None:
    if (reason := missing()) is not None:
        pytest.skip(reason)
    from gpu.tensorrt.library import device_classes

    if not device_classes():
        pytest.skip("the full TensorRT builds for no class of devices by name")


@pytest.fixture
def exported(library: None, phasewalk: Command) -> str:
    """The bundled model's export, in the folder that the command runs in."""
    answer = phasewalk("export", str(DEMO_MODEL), "-o", "export", "--dtype", "bfloat16", "--capacity", "64")
    assert answer.code == 0, answer.err
    return "export"


def here() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("devices", ["sm89", "sm86,sm89, SM120"])
def test_the_bundled_model_builds(library: None, phasewalk: Command, dtype: str, devices: str) -> None:
    assert phasewalk("export", str(DEMO_MODEL), "-o", "export", "--dtype", dtype, "--max-batch", "2").code == 0
    answer = phasewalk("build", "export", "-o", "model.plan", "--device", devices, "--workspace", "2")
    assert (answer.code, answer.err) == (0, "")
    plan = read_identity(Path("model.plan"))
    assert plan.devices == tuple(name.strip().lower() for name in devices.split(","))
    assert (plan.dtype, plan.max_batch, plan.fingerprint) == (dtype, 2, model_fingerprint(DEMO_MODEL))
    said = " ".join(answer.out.split())
    assert said.startswith("model.plan: ")
    assert said.endswith(f"for {', '.join(plan.devices)}; {dtype}, 2 rows of {plan.capacity} tokens")
    assert here() == ["export", "model.plan"]


def test_the_rank_of_adapters_is_that_of_the_export(library: None, phasewalk: Command) -> None:
    arguments = ("-o", "export", "--dtype", "bfloat16", "--capacity", "64", "--lora-rank", "4")
    assert phasewalk("export", str(DEMO_MODEL), *arguments).code == 0
    answer = phasewalk("build", "export", "-o", "model.plan", "--device", "sm89")
    assert (answer.code, answer.err) == (0, "")
    assert read_identity(Path("model.plan")).lora_rank == 4
    assert " ".join(answer.out.split()).endswith("8 rows of 64 tokens; takes adapters of rank 1 to 4")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere", "-o", "model.plan"], 1, "nowhere cannot be used: it holds no model.onnx"),
        (["export", "-o", "export"], 2, "exists already; choose another name or remove it"),
        (["export", "-o", "no/such/place"], 2, "cannot be made: No such file or directory"),
        (
            ["export", "-o", "model.plan", "--device", "sm90"],
            1,
            "builds for no device class sm90: expected some of sm75",
        ),
        (["export", "-o", "model.plan", "--device", ""], 1, "builds for no device class"),
        (["export", "-o", "model.plan", "--device", "sm75,sm89"], 1, "build one for it alone"),
        (["export", "-o", "model.plan", "--workspace", "0"], 2, "greater than or equal to 0.001"),
        (["export", "-o", "model.plan", "--workspace", "nan"], 2, "less than or equal to"),
        (
            ["export", "-o", "model.plan", "--workspace", "0.001"],
            1,
            "no tactics to implement the operation within workspace",
        ),
        (["export"], 2, "--output"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    phasewalk: Command, exported: str, arguments: list[str], code: int, said: str
) -> None:
    answer = phasewalk("build", *arguments)
    assert answer.code == code
    assert said in " ".join(answer.err.split())
    assert "Traceback" not in answer.err
    assert here() == ["export"]


def test_an_export_of_another_version_and_an_edited_one_are_refused(phasewalk: Command, exported: str) -> None:
    import onnx

    from gpu.onnx.identity import FORMAT

    graph = Path(exported, "model.onnx")
    model = onnx.load(graph, load_external_data=False)
    model.graph.node[0].name = "mine"
    graph.write_bytes(model.SerializeToString())
    answer = phasewalk("build", exported, "-o", "model.plan")
    assert answer.code == 1
    assert "model.onnx is not the graph that was exported: it was changed; export the checkpoint again" in answer.err
    next(entry for entry in model.metadata_props if entry.key == "phasewalk.format").value = "999"
    graph.write_bytes(model.SerializeToString())
    answer = phasewalk("build", exported, "-o", "model.plan")
    assert answer.code == 1
    assert f"it has format 999, this version reads and writes {FORMAT}" in answer.err
    assert here() == ["export"]


def test_ctrl_c_ends_it_at_any_moment_and_leaves_nothing(phasewalk: Command, exported: str) -> None:
    for delay in (0.3, 1, 1.6, 2.2):
        with spawn("build", exported, "-o", "model.plan", cwd=os.getcwd()) as process:
            time.sleep(delay)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
        if process.returncode == 0:  # it was there before
            Path("model.plan").unlink()
        else:
            assert process.returncode == 130, err
        assert "Traceback" not in err
        assert here() == ["export"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no pseudo-terminals")
def test_a_terminal_is_shown_how_far_it_is(phasewalk: Command, exported: str) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", MAIN, "build", exported, "-o", "model.plan"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:  # how Linux says that nobody writes any more
            pass
        os.close(ours)
    assert process.returncode == 0
    assert b"building model.plan: Building engine" in shown


def test_without_tensorrt_it_says_what_to_install(tmp_path: Path) -> None:
    code = "import sys; sys.modules['tensorrt'] = sys.modules['tensorrt_rtx'] = None; " + MAIN
    done = subprocess.run(
        [sys.executable, "-c", code, "build", "export", "-o", str(tmp_path / "model.plan")],
        capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 2
    assert "TensorRT is not installed: pip install 'phasewalk[tensorrt-rtx]'" in done.stderr


def test_help_teaches_and_imports_no_tensorrt() -> None:
    answer = finish("build", "--help", env=os.environ | {"COLUMNS": "200"})
    assert answer.code == 0
    for words in ("pip install 'phasewalk[tensorrt-rtx]'", "--device sm89,sm120", "sm75 is Turing"):
        assert words in answer.out
    code = (
        "import sys\nfrom phases.cli import main\nsys.argv = ['phasewalk', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n"
        "    print(sorted(set(sys.modules) & {'tensorrt', 'tensorrt_rtx', 'onnx'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
