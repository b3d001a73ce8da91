"""Plans that the engine makes itself, by the real builder: once, whole or not at all, and again if damaged."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_checkpoint

from gpu import Checkpoint, ModelConfig, PlanError
from gpu.tensorrt.plan import Here, ReadPlan, read_identity
from gpu.user_cache import KINDS, clear, kept, user_cache

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("builds_anywhere", "own_cache")]
OPTIONS: dict[str, Any] = {"dtype": "bfloat16", "rows": 2, "capacity": 32}


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(tmp_path / "cache"))
    return user_cache("plans")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("planned"))


@pytest.fixture
def here() -> Here:
    from gpu.tensorrt.library import FLAVOUR, VERSION, device_classes, device_here

    return Here(FLAVOUR, VERSION, "sm89" if device_classes() else str(device_here()))


def cached(folder: Path, here: Here, told: list[str] | None = None, **options: Any) -> ReadPlan:
    from gpu.tensorrt.cached import cached_plan

    model = ModelConfig.from_folder(folder)

    def note(what: str, done: int, total: int) -> None:
        if told is not None:
            told.append(what)

    return cached_plan(Checkpoint.open(folder, model, note), model, here, **OPTIONS | options)


def files(own_cache: Path) -> list[str]:
    return sorted(str(path.relative_to(own_cache)) for path in own_cache.rglob("*"))


def test_it_is_made_once_with_words_for_what_takes_long(folder: Path, here: Here, own_cache: Path) -> None:
    told: list[str] = []
    made = cached(folder, here, told)
    assert (made.identity.dtype, made.identity.max_batch, made.identity.devices) == ("bfloat16", 2, (here.device,))
    assert made.identity.capacity > 32
    building = [what for what in told if what.startswith("building a plan with TensorRT (once for this model")]
    assert len(building) == len(set(building)) > 1
    [name, plan] = files(own_cache)
    assert plan == f"{name}/model.plan"  # and no export beside it
    for part in (here.flavour, here.version, here.device, "bfloat16", "2x256"):
        assert part in name
    told.clear()
    assert cached(folder, here, told) == made
    assert told == []
    assert kept("plans").entries == 1


def test_one_that_takes_adapters_is_another_one(folder: Path, here: Here) -> None:
    made = [cached(folder, here, lora_rank=rank) for rank in (None, 4, 8)]
    assert [plan.identity.lora_rank for plan in made] == [None, 4, 8]
    assert kept("plans").entries == 3


def test_another_size_dtype_or_checkpoint_has_another_plan(folder: Path, here: Here, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", "qwen3")
    made = [
        cached(folder, here), cached(folder, here, rows=3), cached(folder, here, dtype="float16"), cached(other, here),
    ]  # fmt: skip
    assert len({plan.sha256 for plan in made}) == len(made)
    assert kept("plans").entries == len(made)
    assert "plans" in KINDS
    clear("plans")
    assert kept("plans").entries == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_row_is_aligned_and_there_is_a_position_more_than_tokens(folder: Path, dtype: str) -> None:
    from gpu.tensorrt.cached import positions_of

    model, item = ModelConfig.from_folder(folder), 4 if dtype == "float32" else 2
    for capacity in range(1, 200):
        positions = positions_of(capacity)
        assert capacity < positions <= capacity + 256
        assert model.kv_heads * model.head_dim * item * positions % 256 == 0


def test_capacities_near_by_take_the_same_plan(folder: Path, here: Here, own_cache: Path) -> None:
    plans = {cached(folder, here, capacity=capacity).sha256 for capacity in (20, 21, 100)}
    assert len(plans) == 1
    assert len(list(own_cache.iterdir())) == 1


def test_the_spare_position_is_none_of_the_models(folder: Path, here: Here) -> None:
    most = ModelConfig.from_folder(folder).max_positions
    assert cached(folder, here, capacity=most).identity.capacity > most


def test_a_damaged_one_is_made_again(folder: Path, here: Here, own_cache: Path) -> None:
    made = cached(folder, here)
    [plan] = own_cache.rglob("model.plan")
    for damage in (lambda: plan.write_bytes(plan.read_bytes()[:-1]), lambda: plan.write_bytes(b""), plan.unlink):
        damage()
        assert cached(folder, here).identity == made.identity
        assert read_identity(plan) == made.identity
        assert len(files(own_cache)) == 2


def test_several_at_once_leave_one_whole_plan(folder: Path, here: Here, own_cache: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(cached, folder, here) for _ in range(2)]
    assert {len(plan.result().engine) for plan in found}
    assert len(files(own_cache)) == 2


def test_a_build_that_ends_before_its_time_leaves_nothing(folder: Path, here: Here, own_cache: Path) -> None:
    class Enough(Exception):
        pass

    class Impatient(list[str]):
        def append(self, what: str) -> None:
            if what.startswith("building"):
                raise Enough

    with pytest.raises(Enough):
        cached(folder, here, Impatient())
    assert files(own_cache) == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_cache_that_cannot_be_written_to_is_told(folder: Path, here: Here, own_cache: Path) -> None:
    own_cache.mkdir(parents=True)
    own_cache.chmod(0o500)
    with pytest.raises(
        PlanError, match=r"cannot be kept in .*plans \(Permission denied\): make room there, or set XDG"
    ):
        cached(folder, here)


def test_a_cache_that_is_a_file_is_told(folder: Path, here: Here, own_cache: Path) -> None:
    own_cache.parent.mkdir(parents=True)
    own_cache.write_text("")
    with pytest.raises(PlanError, match=r"cannot be kept in .*: make room there, or set XDG_CACHE_HOME"):
        cached(folder, here)


def test_what_does_not_build_is_told_in_tensorrts_words(folder: Path, here: Here, own_cache: Path) -> None:
    from gpu.tensorrt.library import device_classes

    if not device_classes():
        pytest.skip("of TensorRT for RTX")
    with pytest.raises(PlanError, match="builds for no device class sm90"):
        cached(folder, here._replace(device="sm90"))
    with pytest.raises(PlanError, match="cannot build it: "):
        cached(folder, here._replace(device="sm75"))  # which has no bfloat16
    assert files(own_cache) == []


def test_the_real_runtime_takes_it_where_it_is_for_and_says_why_elsewhere(folder: Path, here: Here) -> None:
    from gpu.onnx.graph import cache_names
    from gpu.tensorrt.available import missing_to_run
    from gpu.tensorrt.execution import LoadedPlan

    made = cached(folder, here)
    caches = [name for layer in range(2) for name in cache_names(layer)]
    if missing_to_run() is None and here.device in made.identity.devices:
        LoadedPlan(made.engine, "bfloat16", caches).close()
        return
    with pytest.raises(PlanError, match=r"cannot (take|make) (the plan|a runtime).*: .*[a-z]"):
        LoadedPlan(made.engine, "bfloat16", caches)
