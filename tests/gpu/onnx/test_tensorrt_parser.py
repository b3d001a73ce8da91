"""TensorRT takes the exported graph: its parser and its builder run on any CPU, where TensorRT for RTX is installed."""

from pathlib import Path

import pytest
from checkpoints import FAMILIES, write_checkpoint

from gpu import Checkpoint, ModelConfig
from gpu.onnx.export import export
from gpu.onnx.graph import cache_names

trt = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu13")

pytestmark = pytest.mark.slow

CAPACITY = 64
BATCHES = (1, 2, 4)  # the smallest, the one to be fast for, the largest


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_it_parses_and_builds(tmp_path: Path, family: str, dtype: str) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", family, head_dim=64)
    model = ModelConfig.from_folder(folder)
    export(
        Checkpoint.open(folder, model), model, tmp_path / "made", dtype=dtype, capacity=CAPACITY, max_batch=BATCHES[-1]
    )
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse_from_file(str(tmp_path / "made" / "model.onnx"))
    assert parsed, [str(parser.get_error(index)) for index in range(parser.num_errors)]
    kinds = [network.get_layer(index).type for index in range(network.num_layers)]
    assert kinds.count(trt.LayerType.KV_CACHE_UPDATE) == 2 * model.layers
    assert kinds.count(trt.LayerType.ROTARY_EMBEDDING) == 2 * model.layers
    assert kinds.count(trt.LayerType.ATTENTION_INPUT) == model.layers
    if dtype == "float32":  # for which it has no kernel that does attention at once
        return
    config = builder.create_builder_config()
    for tokens in ((1, 16, 32), (1, 1, 1)):  # prefill, decode
        profile = builder.create_optimization_profile()
        profile.set_shape("input_ids", *zip(BATCHES, tokens, strict=True))
        for name in ("input_lengths", "write_index"):
            profile.set_shape(name, *((batch,) for batch in BATCHES))
        profile.set_shape("positions", *[(CAPACITY,)] * 3)
        for layer in range(model.layers):
            for name in cache_names(layer):
                profile.set_shape(name, *((batch, model.kv_heads, CAPACITY, model.head_dim) for batch in BATCHES))
        config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    assert builder.build_serialized_network(network, config) is not None
