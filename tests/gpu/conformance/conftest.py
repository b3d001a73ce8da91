"""Every engine that this machine can run, one after the other; a new one has passed when these tests have.

An engine that `load_engine` knows takes part by itself. Another one is added to `ENGINES`.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from asynchronous_engine import AsynchronousEngine
from chat_checkpoint import write_chat_checkpoint
from emulated_device import CAN_EMULATE, emulated
from tensorrt_stand_in import CAN_STAND_IN, stood_in

from gpu import Checkpoint, Engine, HostEngine, ModelConfig, engines, load_engine, unavailable_engines
from phases import Generator, SamplingParams
from phases.tokenizer import Tokenizer

Load = Callable[..., Engine]  # folder, max_batch=, capacity= -> engine


def _asynchronous(folder: Path, **options: Any) -> Engine:
    device = load_engine(folder, "numpy", **options)
    assert isinstance(device, HostEngine)
    return AsynchronousEngine(device)


def _taking_adapters(folder: Path, **options: Any) -> Engine:
    from gpu.onnx.export import export

    model = ModelConfig.from_folder(folder)
    target = Path(mkdtemp(dir=folder.parent)) / "export"
    export(Checkpoint.open(folder, model), model, target, lora_rank=8)
    return load_engine(folder, "onnx", export=target, **options)


ENGINES: dict[str, Load] = {
    **{name: partial(load_engine, engine=name) for name in engines()},
    "numpy, 2 threads": partial(load_engine, engine="numpy", threads=2),
    "numpy, together": partial(load_engine, engine="numpy", threads=2, decode="together"),
    **(
        {
            "onnx, int8": partial(load_engine, engine="onnx", quantize="int8"),
            "onnx, adapters": _taking_adapters,
        }
        if "onnx" in engines()
        else {}
    ),
    **({"tensorrt": partial(load_engine, engine="tensorrt", dtype="float32")} if "tensorrt" in engines() else {}),
    "asynchronous": _asynchronous,
    **({"cuda, emulated": emulated} if CAN_EMULATE else {}),
    **({"tensorrt, stand-in": stood_in} if CAN_STAND_IN else {}),
}
ALLOCATES_NOTHING = ("numpy", "numpy, together")  # whose decode promises it
CLEARS = ("tensorrt", "tensorrt, stand-in")  # whose steps look at positions without a token, and make them zero first
OF_CODES = ("onnx, int8",)  # whose weights are quantised, and activations rounded
OF_DEVICES = ("cuda", "tensorrt")  # engines that need one, and are skipped visibly where there is none
STAND_INS = ("cuda, emulated", "tensorrt, stand-in")  # for these, which are slow: what is long is done in full there
MISSING = unavailable_engines()


def _parameters() -> Iterator[Any]:
    for name in {**ENGINES, **dict.fromkeys(OF_DEVICES)}:
        skipped = [pytest.mark.skipif(name in MISSING, reason=f"no engine {name}: {MISSING.get(name)}")]
        yield pytest.param(name, marks=[pytest.mark.gpu, *skipped] if name in OF_DEVICES else [])


@pytest.fixture(params=_parameters())
def load(request: pytest.FixtureRequest) -> Iterator[Load]:
    """Loads a checkpoint into the engine under test, and closes it after the test."""
    with ExitStack() as stack:
        yield lambda folder, **options: stack.enter_context(closing(ENGINES[request.param](folder, **options)))


@pytest.fixture
def allocates_nothing(request: pytest.FixtureRequest) -> bool:
    return request.node.callspec.params["load"] in ALLOCATES_NOTHING


@pytest.fixture
def clears(request: pytest.FixtureRequest) -> bool:
    """Whether a step may make zero what lies behind the tokens of its rows."""
    return request.node.callspec.params["load"] in CLEARS


@pytest.fixture
def near(request: pytest.FixtureRequest) -> float:
    """How near logits come to one another that are computed in other pieces; see `gpu.self_check`."""
    return {"onnx, int8": 0.1, "tensorrt": 1e-3}.get(request.node.callspec.params["load"], 1e-4)


@pytest.fixture
def on_device(request: pytest.FixtureRequest) -> bool:
    """Whether the engine under test runs on a device, where more can be computed than on an emulated one."""
    return request.node.callspec.params["load"] in OF_DEVICES


@pytest.fixture
def stands_in(request: pytest.FixtureRequest) -> bool:
    """Whether the engine under test stands in for one on a device, so slowly that less is computed."""
    return request.node.callspec.params["load"] in STAND_INS


@pytest.fixture
def stride(stands_in: bool) -> int:
    """How far apart the places are that a test goes to: 5 of a slow stand-in, which meets every phase of a round."""
    return 5 if stands_in else 1


@pytest.fixture
def engine(load: Load, checkpoint: Path) -> Engine:
    return load(checkpoint, max_batch=4, capacity=48)


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_checkpoint(tmp_path_factory.mktemp("chat"))


@pytest.fixture
def generator(load: Load, chat_folder: Path) -> Generator:
    return generator_of(load(chat_folder, max_batch=8), chat_folder)


@pytest.fixture
def reference(request: pytest.FixtureRequest, load: Load, chat_folder: Path) -> Iterator[Generator]:
    """The same model on the reference engine; where that has not the same weights, on another engine of the kind."""
    if request.node.callspec.params["load"] in OF_CODES:
        yield generator_of(load(chat_folder, max_batch=8), chat_folder)
        return
    with Generator.from_pretrained(chat_folder, "numpy", max_batch=8) as loaded:
        yield loaded


def generator_of(engine: Engine, folder: Path) -> Generator:
    """Make a generator of an engine that `load_engine` need not know."""
    defaults = SamplingParams(stop_token_ids=engine.model.eos_ids)
    return Generator(engine, Tokenizer.from_pretrained(folder), defaults=defaults, folder=folder)


@pytest.fixture
def poison() -> Callable[[Engine], None]:
    """Fills whatever no row uses with NaN, so that reading it would show."""

    def fill(engine: Engine) -> None:
        for row in range(engine.kv_cache.rows):
            used = engine.kv_cache.length(row)
            unused = engine.export_kv(row, used, engine.kv_cache.capacity)
            engine.import_kv(row, used, np.full_like(unused, np.nan))
            if not used:
                for kept in (False, True):
                    engine.write_logits(row, np.full(engine.model.vocab, np.nan, np.float32), kept=kept)

    return fill
