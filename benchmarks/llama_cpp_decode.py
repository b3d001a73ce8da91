"""Decodes with llama.cpp, for `cpu_decode.py`, which starts this with another interpreter: nothing of ours is imported.

    python benchmarks/llama_cpp_decode.py CHECKPOINT GGUF {F32,Q8_0,Q4_0} THREADS

The interpreter needs `llama-cpp-python`, built for the processor of this machine, and `gguf`:

    python3 -m venv /tmp/llama
    CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF" \\
        /tmp/llama/bin/pip install --no-binary llama-cpp-python llama-cpp-python gguf

A Llama checkpoint in float32 is written as GGUF with all its matrices of one type, also the two that llama.cpp's own
tool would give more bits, and is decoded greedily: a line of JSON in, {"prompts": [[id, ...], ...], "count": n}, and
one out, {"tokens": [...], "seconds": s, "read": bytes}, of the first row, of all steps, and of one step. The sequences
of a step go through one call of `llama_decode`. The first line out says what there is: {"version", "system"}.
"""

import ctypes
import json
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from gguf.quants import quantize

CAPACITY, SEQUENCES = 512, 32
NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def main() -> None:
    checkpoint, target, kind, threads = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    weights = write_gguf(checkpoint, target, kind)
    log = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    decoder = Decoder(target, threads)
    about = {"version": llama_cpp.__version__, "system": llama_cpp.llama_print_system_info().decode()}
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        tokens, seconds = decoder.decode(asked["prompts"], asked["count"])
        print(json.dumps({"tokens": tokens, "seconds": seconds, "read": weights}), flush=True)


def write_gguf(checkpoint: Path, target: Path, kind: str) -> int:
    """Write the file, and count the bytes of weights that a step reads."""
    config = json.loads((checkpoint / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    read = 0
    for name, values in tensors(checkpoint / "model.safetensors"):
        if "q_proj" in name or "k_proj" in name:
            values = interleaved(values, heads if "q_proj" in name else kv_heads)
        if values.ndim == 1 or kind == "F32":
            stored, dtype = values, None
        else:
            dtype = gguf.GGMLQuantizationType[kind]
            stored = quantize(values, dtype)
        writer.add_tensor(renamed(name), stored, raw_dtype=dtype)
        read += 0 if "embed_tokens" in name else stored.nbytes  # of which a token reads one row
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read


def tensors(path: Path) -> Any:
    """Give names and float32 values of all tensors; the format is a length, a header in JSON, and the numbers."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    data = np.memmap(path, np.uint8, "r", 8 + size)
    for name, entry in header.items():
        if name != "__metadata__":
            assert entry["dtype"] == "F32", "the checkpoint is in float32"
            first, end = entry["data_offsets"]
            yield name, np.array(data[first:end]).view(np.float32).reshape(entry["shape"])


def interleaved(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Order a head's rows as llama.cpp rotates them: in pairs of neighbours, not of halves."""
    rows, columns = matrix.shape
    return np.ascontiguousarray(
        matrix.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    )


def renamed(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in ENDS:
        return f"{ENDS[stem]}.weight"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.weight"


class Decoder:
    """A model of llama.cpp with a context for some sequences."""

    def __init__(self, path: Path, threads: int) -> None:
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        assert self.model, "llama.cpp loads the file"
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_seq_max = CAPACITY * SEQUENCES, CAPACITY, SEQUENCES
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        assert self.context, "there is memory for the context"
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(CAPACITY, 0, 1)

    def decode(self, prompts: list[list[int]], count: int) -> tuple[list[int], float]:
        """Decode `count` tokens of each prompt greedily; give the first row's tokens, and the seconds of the steps."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        last = []
        for row, prompt in enumerate(prompts):
            self.feed([(row, position, token) for position, token in enumerate(prompt)])
            last.append(self.likeliest(len(prompt) - 1))
        written = [last[0]]
        began = time.perf_counter()
        for step in range(count):
            self.feed([(row, len(prompts[row]) + step, token) for row, token in enumerate(last)])
            last = [self.likeliest(row) for row in range(len(prompts))]
            written.append(last[0])
        return written, time.perf_counter() - began

    def feed(self, entries: list[tuple[int, int, int]]) -> None:
        """Feed (sequence, position, token); there are logits of the last one of each sequence."""
        batch = self.batch
        batch.n_tokens = len(entries)
        for index, (row, position, token) in enumerate(entries):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, row
            batch.logits[index] = index + 1 == len(entries) or entries[index + 1][0] != row
        assert llama_cpp.llama_decode(self.context, batch) == 0, "the step succeeds"

    def likeliest(self, index: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self.context, index)
        return int(np.argmax(np.ctypeslib.as_array(logits, (self.vocab,))))


if __name__ == "__main__":
    main()
