"""Every kernel compiles for every generation of devices and many shapes, and keeps all it needs in registers."""

import importlib.metadata
import os
import re
import runpy
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from checkpoints import tiny_config
from codes import KINDS

from gpu import ModelConfig
from gpu.cuda import persistent
from gpu.cuda.device import Module
from gpu.cuda.shape import Shape, measuring_source, persistent_source

nvrtc = pytest.importorskip("cuda.bindings.nvrtc")
try:
    nvrtc.nvrtcVersion()
except Exception as error:
    pytest.skip(f"no NVRTC here: {error}", allow_module_level=True)

from gpu.cuda import compiler  # noqa: E402

pytestmark = pytest.mark.slow
NOTHING = Module('extern "C" __global__ void nothing() {}', ())
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {},
    "100M": {
        "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_key_value_heads": 12,
        "head_dim": 64, "vocab_size": 32000,
    },
    "Llama-3.2-1B": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 64, "vocab_size": 128256,
    },
    "Llama-3.1-8B": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "vocab_size": 128256,
    },
    "heads of 80, seven to a key": {"head_dim": 80, "num_attention_heads": 14, "num_key_value_heads": 2},
    "heads of 256, odd sizes": {
        "head_dim": 256, "num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 83,
        "intermediate_size": 41, "vocab_size": 1031,
    },
}  # fmt: skip


def shape(name: str, family: str = "llama", quantize: str | None = None, **more: int) -> Shape:
    return Shape(ModelConfig.from_json(tiny_config(family, **SHAPES[name])), 8, 128, quantize, **more)


COMPILED = [  # sm_90a has kernels of its own
    *(("sm_90a", name, None) for name in ("tiny", "Llama-3.1-8B", "heads of 80, seven to a key")),
    ("sm_80", "100M", None),
    ("sm_89", "Llama-3.2-1B", None),
    ("sm_90a", "Llama-3.1-8B", "fp8"),
    ("sm_90a", "heads of 256, odd sizes", "int8"),
    ("sm_89", "Llama-3.2-1B", "fp8"),
    ("sm_80", "100M", "int8"),
]


@pytest.mark.parametrize(("architecture", "name", "quantize"), COMPILED)
def test_all_kernels_compile_without_spills(name: str, architecture: str, quantize: str | None) -> None:
    family = "qwen3" if name == "tiny" else "llama"
    modules = shape(name, family, quantize).modules((9, 0) if architecture == "sm_90a" else (8, 0))
    made = [compiler.compile_module(module, architecture, "--ptxas-options=-v") for module in modules]
    assert all(code.startswith(b"\x7fELF") for code, _ in made)
    words = "".join(of_module for _, of_module in made)
    kernels = re.findall(r"Compiling entry function '(\w+)'", words)
    expected = {
        "embed",
        "qkv_8",
        "qkv_64",
        "attention_step",
        "attention_prompt",
        "down_32",
        "head_8",
        "sample",
        "penalise",
    }
    assert {*expected, *(("load_codes", "unpack_codes") if quantize else ("load_matrix",))} <= set(kernels)
    assert ("gate_up_64x64" in kernels) == (architecture == "sm_90a")
    assert ("rope" in kernels) == (family == "qwen3")
    assert "warning" not in words
    used = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", words)
    assert dict(zip(kernels, used, strict=True)) == dict.fromkeys(kernels, ("0", "0", "0"))
    assert len(set(kernels)) == len(kernels)


@pytest.mark.parametrize(
    ("architecture", "name", "quantize"),
    [
        ("sm_90a", "Llama-3.1-8B", None),
        ("sm_89", "Llama-3.2-1B", "fp8"),
    ],
)
def test_kernels_that_add_adapters_compile_and_need_hardly_more_registers(
    name: str, architecture: str, quantize: str | None
) -> None:
    family = "qwen3" if name == "tiny" else "llama"
    of_shape = shape(name, family, quantize, adapters=2, lora_rank=16)
    modules = of_shape.modules((9, 0) if architecture == "sm_90a" else (8, 0))
    made = [compiler.compile_module(module, architecture, "--ptxas-options=-v") for module in modules]
    words = "".join(of_module for _, of_module in made)
    kernels = re.findall(r"Compiling entry function '(\w+)'", words)
    assert {"adapter_between", "adapter_added", "qkv_8", "output_64", "gate_up_16", "down_32"} <= set(kernels)
    assert ("down_128x192" in kernels) == (architecture == "sm_90a")
    assert "warning" not in words
    used = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", words)
    assert all(int(size) <= 8 for sizes in used for size in sizes)  # of one kernel, for prompts on devices before 9.0


@pytest.mark.parametrize("architecture", ["sm_80", "sm_89", "sm_90"])
def test_what_a_device_is_measured_with_compiles(architecture: str) -> None:
    module = Module(measuring_source(), shape("tiny").defines())
    _, words = compiler.compile_module(module, architecture, "--ptxas-options=-v")
    assert set(re.findall(r"Compiling entry function '(\w+)'", words)) == {"nothing", "read_all"}
    assert set(re.findall(r"(\d+) bytes spill", words)) == {"0"}


@pytest.mark.parametrize("architecture", ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_120"])
def test_what_is_around_a_model_that_others_compute_compiles_without_spills(architecture: str) -> None:
    modules = shape("Llama-3.2-1B").modules_of_rows()
    words = "".join(compiler.compile_module(module, architecture, "--ptxas-options=-v")[1] for module in modules)
    assert set(re.findall(r"Compiling entry function '(\w+)'", words)) == {
        "count_seen", "penalise", "mask_tokens", "sample", "mask", "into_batch", "out_of_batch",
    }  # fmt: skip
    assert set(re.findall(r"(\d+) bytes spill", words)) == {"0"}
    assert "warning" not in words


@pytest.mark.parametrize(
    ("tokens", "clocked", "quantize"),
    [
        *((tokens, clocked, None) for tokens in (1, 8) for clocked in (False, True)),
        *((8, False, kind) for kind in KINDS),
    ],
)
def test_the_kernel_of_a_whole_step_compiles_without_spills_also_with_clocks(
    tokens: int, clocked: bool, quantize: str | None
) -> None:
    of = shape("Llama-3.2-1B", quantize=quantize)
    module = Module(persistent_source(), persistent.defines(of, tokens, clocked=clocked))
    _, words = compiler.compile_module(module, "sm_90a", "--ptxas-options=-v")
    assert re.findall(r"Compiling entry function '(\w+)'", words) == [f"{'clocked' if clocked else 'decode'}_{tokens}"]
    assert set(re.findall(r"(\d+) bytes spill", words)) == {"0"}


@pytest.mark.parametrize(
    ("name", "tokens", "quantize"), [("100M", 1, None), ("Llama-3.1-8B", 8, None), ("100M", 8, "int8")]
)
def test_a_place_of_the_ring_is_given_away_when_all_reads_of_it_have_come(
    name: str, tokens: int, quantize: str | None, tmp_path: Path
) -> None:
    of = shape(name, quantize=quantize)
    assert reads_on_their_way(persistent_source(), of, tokens, tmp_path) == []
    careless = persistent_source().replace("own.lane == (int)(read & nothing)", "own.lane == 0")
    assert careless != persistent_source()
    if not quantize:
        assert reads_on_their_way(careless, of, tokens, tmp_path) != []


def reads_on_their_way(source: str, of: Shape, tokens: int, folder: Path) -> list[str]:
    """Give the reads of shared memory that the machine code has waited for by nothing when it gives a signal."""
    code, _ = compiler.compile_module(Module(source, persistent.defines(of, tokens)), "sm_90a")
    (folder / "kernel.cubin").write_bytes(code)
    listing = subprocess.run(
        [disassembler(), "-c", folder / "kernel.cubin"], check=True, capture_output=True, text=True
    ).stdout
    found: list[str] = []
    reads: dict[int, str] = {}  # by the register that they begin at
    signals = 0
    for line in listing.splitlines():
        words = line.partition(";")[0]
        if line.startswith(".L_"):  # the way here may be another: what it has read is not known
            continue
        if read := re.search(r"\bLDS\.64 R(\d+), ", words):
            reads[int(read[1])] = words.strip()
        else:
            used = {int(register) for register in re.findall(r"\bR(\d+)", words)}
            reads = {first: read for first, read in reads.items() if not used & {first, first + 1}}
        if re.search(r"@!?P\d SYNCS\.ARRIVE\.TRANS64\.A1T0", words):
            signals += 1
            found += reads.values()
        if re.search(r"\b(EXIT|RET|BRA|USETMAXREG)\b", words) and not words.strip().startswith("@"):
            reads = {}
    assert signals > 10
    return found


def disassembler() -> Path:
    try:
        files = importlib.metadata.files("nvidia-cuda-nvdisasm") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("nvidia-cuda-nvdisasm is not installed")
    return next(Path(str(file.locate())) for file in files if file.name == "nvdisasm")


def test_what_was_compiled_is_found_again_unless_it_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    told: list[str] = []
    [first] = compiler.compiled([NOTHING], "sm_80", compiling=lambda: told.append("compiling"))
    [path] = (tmp_path / "phasewalk" / "kernels").iterdir()
    written = path.stat().st_mtime_ns
    assert compiler.compiled([NOTHING], "sm_80", compiling=lambda: told.append("again")) == [first]
    assert told == ["compiling"]
    assert path.stat().st_mtime_ns == written
    for damaged in (b"", path.read_bytes()[:-1]):
        path.write_bytes(damaged)
        assert compiler.compiled([NOTHING], "sm_80") == [first]
        assert path.read_bytes().endswith(first)
    compiler.compiled([NOTHING], "sm_90")
    assert len(list(path.parent.iterdir())) == 2


def test_what_the_cache_lacks_is_compiled_at_the_same_time_and_announced_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    [small] = compiler.compiled([NOTHING], "sm_80")
    *large, last = shape("100M").modules((8, 0))
    modules = [*large, NOTHING, last, NOTHING._replace(defines=("OTHER",))]
    told: list[int] = []
    codes = compiler.compiled(modules, "sm_80", compiling=lambda: told.append(threading.get_ident()))
    assert told == [threading.get_ident()]  # in the thread that asked
    assert [b"qkv_8" in code for code in codes] == ["(qkv, QKV)" in module.source for module in modules]
    assert codes[len(large)] == small
    written = sorted((tmp_path / "phasewalk" / "kernels").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert len(written) == len(modules)
    if (os.cpu_count() or 1) > 1:
        assert not written[-1].read_bytes().endswith(codes[-1])  # the last one is small: it did not wait for all others
    assert compiler.compiled(modules, "sm_80", compiling=lambda: told.append(0)) == codes
    assert len(told) == 1


def test_one_module_of_several_that_does_not_compile_is_told_and_the_others_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(compiler.DeviceError, match=r"(?s)could not compile the kernels.*nonsense"):
        compiler.compiled([NOTHING, Module("nonsense;", ()), NOTHING._replace(defines=("OTHER",))], "sm_80")
    told: list[str] = []
    compiler.compiled([NOTHING], "sm_80", compiling=lambda: told.append("again"))
    assert told == []


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "phasewalk").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiler.compiled([NOTHING], "sm_80")


def test_what_does_not_compile_is_told_in_the_words_of_the_compiler() -> None:
    with pytest.raises(compiler.DeviceError, match=r"(?s)could not compile the kernels.*nonsense"):
        compiler.compile_module(Module("nonsense;", ()), "sm_80")


def test_every_ablation_changes_a_kernel_that_still_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cuda.core")
    benchmarks = Path(__file__).parents[3] / "benchmarks"
    monkeypatch.syspath_prepend(str(benchmarks))
    ablations = runpy.run_path(str(benchmarks / "persistent_ablations.py"))
    defines = persistent.defines(shape("Llama-3.2-1B"), 1)
    for variant in ablations["VARIANTS"]:
        changed = variant.of(persistent_source())
        if not variant.name.split()[0].isupper():  # another number of a constant compiles
            compiler.compile_module(Module(changed, defines), "sm_90a")
    with pytest.raises(LookupError, match="what the kernel does not have: 'no such words'"):
        ablations["Variant"]("odd", (("no such words", ""),)).of(persistent_source())
