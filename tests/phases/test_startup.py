"""The first token comes soon: `phasewalk run` on the bundled model imports what it needs and nothing besides."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.slow

HEAVY = (
    "transformers", "torch", "huggingface_hub", "safetensors", "textual", "rich", "structlog", "asyncio", "graphviz",
    "httpx", "requests", "unittest", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx",
    "llguidance",
)  # fmt: skip

RUN = """
import sys
from phases.cli import main
sys.argv = ["phasewalk", "run", "Hello", "--temperature", "0", "--max-new-tokens", "3", *{options!r}]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(sorted(set(sys.modules) & set({heavy!r})))
"""


def test_a_run_of_the_bundled_model_imports_little() -> None:
    code = RUN.format(heavy=HEAVY, options=())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    answer, imported = done.stdout.splitlines()
    assert answer.startswith("Hello")
    assert imported == "[]"


@pytest.mark.skipif(find_spec("cuda") is None, reason="cuda-python is not installed")
def test_who_asks_for_the_engine_of_the_cpu_does_not_start_cuda() -> None:
    """A child of os.fork could not use it any more."""
    code = RUN.format(heavy=("cuda", "cuda.bindings"), options=("--engine", "numpy"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("module", ["transformers", "huggingface_hub", "torch", "onnx", "onnxruntime"])
def test_the_bundled_model_runs_where_it_is_not_installed(module: str) -> None:
    code = f"import sys\nsys.modules[{module!r}] = None\n" + RUN.format(heavy=(), options=())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Hello")


def test_the_files_of_a_model_are_digested_only_for_a_record() -> None:
    code = (
        "import phases.generator as module\n"
        "def digest(folder): raise AssertionError(folder)\n"
        "module.model_fingerprint = module.tokenizer_fingerprint = digest\n"
        "with module.Generator.from_pretrained() as generator:\n"
        "    print(generator.generate('Hello').text)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Hello")
