"""Weights: dtypes and shards come out right, and damaged or hostile files are refused."""

import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import DTYPES, FAMILIES, random_tensors, stored, tiny_config, write_checkpoint, write_safetensors

from gpu import Checkpoint, CheckpointError, ModelConfig, load_engine

MODEL = ModelConfig.from_json(tiny_config())
NORM = "model.norm.weight"


def raw_safetensors(path: Path, header: Any, data: bytes = b"", *, size: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + data)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shards", [1, 3])
def test_values_come_out_as_they_were_stored(tmp_path: Path, family: str, dtype: str, shards: int) -> None:
    folder = write_checkpoint(tmp_path, family, dtype=dtype, shards=shards)
    model = ModelConfig.from_folder(folder)
    steps: list[tuple[int, int]] = []
    checkpoint = Checkpoint.open(folder, model, lambda *step: steps.append(step[1:]))
    for name, values in random_tensors(model).items():
        expected = stored(values, dtype)
        if dtype == "bfloat16":
            expected = (expected.astype(np.uint32) << 16).view(np.float32)
        assert np.array_equal(checkpoint.read(name), expected.astype(np.float32)), name
    assert steps[-1] == (checkpoint.total, checkpoint.total)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)


def test_differences_are_counted_and_named(tmp_path: Path) -> None:
    tensors = random_tensors(MODEL)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors[NORM] = tensors[NORM][:-1]
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(32, np.float32)
    write_safetensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(CheckpointError) as error:
        Checkpoint.open(tmp_path, MODEL)
    head, _, named = str(error.value).partition("(3 tensors differ): ")
    assert head
    assert set(named.split("; ")) == {
        "missing: model.layers.1.mlp.up_proj.weight",
        "wrong shape: model.norm.weight is [31], expected [32]",
        "unexpected: model.layers.0.self_attn.q_proj.bias [32]",
    }


def test_a_long_list_of_differences_is_cut(tmp_path: Path) -> None:
    tensors = {f"\x1b[31m{number}": np.zeros(1, np.float32) for number in range(10_000)}
    write_safetensors(tmp_path / "model.safetensors", random_tensors(MODEL) | tensors)
    with pytest.raises(CheckpointError, match=r"10000 tensors differ.*unexpected: .*; and 9992 more$") as error:
        Checkpoint.open(tmp_path, MODEL)
    assert len(str(error.value)) < 1000
    assert str(error.value).isprintable()


def test_harmless_extras_are_ignored(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, tie_word_embeddings=True)
    model = ModelConfig.from_folder(folder)
    tensors = random_tensors(model)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    write_safetensors(folder / "model.safetensors", tensors)
    assert "lm_head.weight" not in Checkpoint.open(folder, model).entries


def test_an_integer_dtype_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header[NORM]["dtype"] = "I32"
    raw_safetensors(path, header, data[8 + size :])
    with pytest.raises(CheckpointError, match=r"wrong dtype: model\.norm\.weight is I32, expected one of F32"):
        Checkpoint.open(tmp_path, MODEL)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F32", "shape": [32], "data_offsets": [0, 64]}, "makes no sense"),
        ({"dtype": "F32", "shape": [32], "data_offsets": [128, 0]}, "makes no sense"),
        ({"dtype": "F32", "shape": [-32], "data_offsets": [0, 128]}, "makes no sense"),
        ({"dtype": "F32", "shape": [32.0], "data_offsets": [0, 128]}, "makes no sense"),
        ({"dtype": "F32", "shape": 32, "data_offsets": [0, 128]}, "makes no sense"),
        ({"dtype": 3, "shape": [32], "data_offsets": [0, 128]}, "makes no sense"),
        ({"dtype": "F32", "shape": [32], "data_offsets": [0, 128, 5]}, "makes no sense"),
        ({"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4 << 40]}, "outside the file"),
        ({"dtype": "F32", "shape": [32], "data_offsets": [64, 192]}, "outside the file"),
        ({}, "makes no sense"),
        ([], "makes no sense"),
        (None, "makes no sense"),
    ],
)
def test_a_hostile_header_entry_is_refused(tmp_path: Path, entry: Any, message: str) -> None:
    raw_safetensors(tmp_path / "model.safetensors", {NORM: entry}, bytes(128))
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(tmp_path, MODEL)


def test_overlapping_tensors_are_refused(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [32], "data_offsets": [0, 128]}
    raw_safetensors(tmp_path / "model.safetensors", {NORM: entry, "other": entry}, bytes(128))
    with pytest.raises(CheckpointError, match="over another tensor"):
        Checkpoint.open(tmp_path, MODEL)


@pytest.mark.parametrize(
    ("header", "size", "message"),
    [
        (b"{}", 1 << 62, "claims 4611686018427387904 bytes"),
        (b"{}", 3, "claims 3 bytes"),
        (b"{nonsense", None, "not JSON"),
        (b"[" * 100_000, None, "not JSON"),
        (b"[]", None, "expected a JSON object"),
    ],
)
def test_a_hostile_header_is_refused(tmp_path: Path, header: bytes, size: int | None, message: str) -> None:
    raw_safetensors(tmp_path / "model.safetensors", header, size=size)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(tmp_path, MODEL)


@pytest.mark.parametrize("kept", [0, 5, 8, 100, -1])
def test_a_file_cut_short_is_refused(tmp_path: Path, kept: int) -> None:
    path = write_checkpoint(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"cut short|outside the file"):
        Checkpoint.open(tmp_path, MODEL)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..\\x.safetensors", ".safetensors", 3, "x.bin"]
)
def test_an_index_may_only_name_files_of_its_folder(tmp_path: Path, name: object) -> None:
    folder = write_checkpoint(tmp_path / "inner", shards=2)
    write_checkpoint(tmp_path)  # so that ../model.safetensors exists
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": weight_map | {NORM: name}}))
    with pytest.raises(CheckpointError, match=r"expected a plain \*\.safetensors name"):
        Checkpoint.open(folder, MODEL)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": "no.safetensors"}}'])
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        Checkpoint.open(tmp_path, MODEL)


def test_pickled_weights_are_refused_and_never_opened(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=re.escape("pickled weights only (pytorch_model.bin)")):
        load_engine(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="holds neither"):
        load_engine(folder)
