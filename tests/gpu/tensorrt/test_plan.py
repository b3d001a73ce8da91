"""The file of a plan: what it says, and how a damaged or foreign one is refused before TensorRT sees any of it."""

import hashlib
import os
from pathlib import Path

import msgspec
import pytest

from gpu import PlanError
from gpu.tensorrt.plan import FORMAT, MAGIC, PAGE, Here, PlanIdentity, read_engine, read_identity, write_plan

ENGINE = bytes(range(256)) * 40
HERE = Here("tensorrt_rtx", "1.7.1.116", "sm89")
IDENTITY = PlanIdentity(
    fingerprint="f" * 32, flavour=HERE.flavour, version=HERE.version, devices=("sm86", "sm89"), dtype="bfloat16",
    capacity=64, max_batch=2, chunk=32, lora_rank=None,
)  # fmt: skip


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    write_plan(tmp_path / "model.plan", IDENTITY, memoryview(ENGINE))
    return tmp_path / "model.plan"


NO_COUNTS = (0, -1, 2**31, 1.5, "9")


def read(path: Path) -> None:
    read_engine(path, HERE, IDENTITY.fingerprint)


def sealed(page: object, engine: bytes = ENGINE) -> bytes:
    """A file whose first page is intact, whatever it says."""
    text = (page if isinstance(page, bytes) else msgspec.json.encode(page)).ljust(PAGE - len(MAGIC) - 32)
    return MAGIC + hashlib.sha256(text).digest() + text + engine


def test_a_plan_reads_back(plan: Path) -> None:
    assert read_identity(plan) == IDENTITY
    adapting = msgspec.structs.replace(IDENTITY, lora_rank=16)
    write_plan(plan.with_name("adapting.plan"), adapting, memoryview(ENGINE))
    assert read_identity(plan.with_name("adapting.plan")) == adapting
    plan.with_name("adapting.plan").unlink()
    assert read_engine(plan, HERE, IDENTITY.fingerprint) == (IDENTITY, ENGINE, hashlib.sha256(ENGINE).hexdigest())
    assert plan.stat().st_size == PAGE + len(ENGINE)
    assert [path.name for path in plan.parent.iterdir()] == ["model.plan"]


@pytest.mark.parametrize(
    ("here", "message"),
    [
        (HERE._replace(flavour="tensorrt"), r"built by tensorrt_rtx 1\.7\.1\.116, installed is tensorrt 1\.7\.1\.116"),
        (HERE._replace(version="1.8.0.1"), r"built by tensorrt_rtx 1\.7\.1\.116, installed is tensorrt_rtx 1\.8\.0\.1"),
        (HERE._replace(device="sm90"), "it is for sm86, sm89, the GPU is sm90"),
    ],
)
def test_elsewhere_it_is_refused_with_the_reason(plan: Path, here: Here, message: str) -> None:
    with pytest.raises(PlanError, match=rf"model\.plan cannot be run here: .*{message}; build it again"):
        read_engine(plan, here, IDENTITY.fingerprint)


def test_the_plan_of_another_model_is_refused(plan: Path) -> None:
    with pytest.raises(
        PlanError, match=r"it is of another model: it names the fingerprint f{32}, the checkpoint has e"
    ):
        read_engine(plan, HERE, "e" * 32)


def test_a_changed_byte_is_found_wherever_it_is(plan: Path) -> None:
    whole = plan.read_bytes()
    for at in [*range(0, PAGE, 7), *range(PAGE, len(whole), 997), len(whole) - 1]:
        plan.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(PlanError, match=r"is damaged|is no plan"):
            read(plan)


def test_a_file_that_was_cut_short_or_grew_is_refused(plan: Path) -> None:
    whole = plan.read_bytes()
    for length in (0, 1, len(MAGIC), 100, PAGE - 1, PAGE, PAGE + 1, len(whole) - 1):
        plan.write_bytes(whole[:length])
        with pytest.raises(PlanError, match=r"is damaged|is no plan"):
            read_identity(plan)
    plan.write_bytes(whole + b"\0")
    with pytest.raises(PlanError, match=rf"it has {len(whole) + 1} bytes, expected {len(whole)}"):
        read(plan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": FORMAT + 1}, f"of format {FORMAT + 1}, this version reads and writes {FORMAT}"),
        ({"format": "1"}, "makes no sense"),
        ({"format": 1}, f"of format 1, this version reads and writes {FORMAT}"),
        ({"engine_size": -1}, "makes no sense"),
        ({"engine_size": 2**70}, "makes no sense|is damaged"),
        ({"engine_size": 2**60}, "expected 1152921504606851072"),
        ({"identity": {}}, "makes no sense"),
        ({"more": 1}, "makes no sense"),
    ],
)
def test_a_page_that_makes_no_sense_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    page: dict[str, object] = {
        "format": FORMAT, "identity": IDENTITY, "engine_size": len(ENGINE),
        "engine_sha256": hashlib.sha256(ENGINE).hexdigest(),
    }  # fmt: skip
    (tmp_path / "model.plan").write_bytes(sealed(page | change))
    with pytest.raises(PlanError, match=message):
        read(tmp_path / "model.plan")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field, value) for field in ("capacity", "max_batch", "chunk", "lora_rank") for value in NO_COUNTS),
        *((field, None) for field in ("capacity", "max_batch", "chunk")),
    ],
)
def test_numbers_that_make_no_sense_are_refused(tmp_path: Path, field: str, value: object) -> None:
    identity = msgspec.to_builtins(IDENTITY) | {field: value}
    page = {"format": FORMAT, "identity": identity, "engine_size": len(ENGINE), "engine_sha256": ""}
    (tmp_path / "model.plan").write_bytes(sealed(page))
    with pytest.raises(PlanError, match="makes no sense"):
        read(tmp_path / "model.plan")


def test_a_page_cannot_make_the_reader_recurse_or_the_terminal_obey(tmp_path: Path) -> None:
    path = tmp_path / "model.plan"
    for text in (b"[" * 4000, b'{"format": %d, "identity": ' % FORMAT + b'{"a":' * 700, b"\xff\xfe", b""):
        path.write_bytes(sealed(text))
        with pytest.raises(PlanError, match="makes no sense"):
            read(path)
    identity = msgspec.to_builtins(IDENTITY) | {"flavour": "\x1b[31m"}
    path.write_bytes(sealed({"format": FORMAT, "identity": identity, "engine_size": len(ENGINE), "engine_sha256": ""}))
    with pytest.raises(PlanError) as caught:
        read(path)
    assert "\x1b" not in str(caught.value)


def test_other_files_are_no_plans(tmp_path: Path) -> None:
    path = tmp_path / "model.plan"
    for text in (b"", b"ftrt" * 4000, b"\x08\x0bphasewalk", bytes(PAGE)):
        path.write_bytes(text)
        with pytest.raises(PlanError, match=r"model\.plan is no plan that phasewalk build made"):
            read_identity(path)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(PlanError, match="is no regular file"):
            read_identity(path)
    with pytest.raises(FileNotFoundError):
        read_identity(tmp_path / "nothing")


def test_what_stands_there_is_kept(plan: Path) -> None:
    before = plan.read_bytes()
    with pytest.raises(PlanError, match="exists already"):
        write_plan(plan, IDENTITY, memoryview(b"other"))
    assert plan.read_bytes() == before
    assert [path.name for path in plan.parent.iterdir()] == ["model.plan"]
