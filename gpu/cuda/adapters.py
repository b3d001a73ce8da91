"""LoRA adapters as the kernels of `adapters.cu` read them: the memory for them, and how they come there."""

import numpy as np

from gpu.adapter import Adapter
from gpu.cuda.arena import Arena, Array, Plan
from gpu.cuda.shape import Shape
from gpu.cuda.staging import Staging
from gpu.cuda.weights import places, rows_of

NOBODY = -1  # the index of no adapter
PARTS = {"qkv": ("q_proj", "k_proj", "v_proj"), "output": ("o_proj",), "gate_up": ("gate_proj", "up_proj"),
         "down": ("down_proj",)}  # fmt: skip


def state(shape: Shape) -> Plan:
    """Plan the memory for the adapters that there is to be room for, all in float32."""
    if not shape.adapters:
        return {}
    layers, count, rank, products = shape.model.layers, shape.adapters, shape.lora_rank, shape.products
    plan = {}
    for name, parts in PARTS.items():
        product = products[name]
        plan[f"{name}_a"] = Array((layers, count, len(parts) * rank, product.k), "float32")
        plan[f"{name}_b"] = Array((layers, count, rank, product.n), "float32")
    widest = max(products[name].n for name in PARTS)
    return {
        **plan,
        "adapters": Array((shape.rows,), "int32"),  # the index of each row's, -1 for none
        "between": Array((shape.tokens, max(map(len, PARTS.values())) * rank), "float32"),
        "added": Array((shape.tokens, widest), "float32"),  # to the sums of a product
    }


def load(index: int, adapter: Adapter, shape: Shape, arena: Arena, staging: Staging) -> None:
    """Send an adapter into the place of this index, which holds zeros."""
    of_model, rank = places(shape.model), shape.lora_rank
    for layer in range(shape.model.layers):
        for name, parts in PARTS.items():
            product = shape.products[name]
            a, b = np.zeros((len(parts) * rank, product.k), np.float32), np.zeros((rank, product.n), np.float32)
            for part, linear in enumerate(parts):
                module = f"model.layers.{layer}.{'mlp' if name in ('gate_up', 'down') else 'self_attn'}.{linear}"
                if module in adapter.matrices:
                    of_a, of_b = adapter.matrices[module]
                    a[part * rank : part * rank + len(of_a)] = of_a
                    b[: len(of_a), rows_of(of_model[f"{module}.weight"], len(of_b))] = of_b.T
            staging.write(arena.lines(f"{name}_a", layer, index), a)
            staging.write(arena.lines(f"{name}_b", layer, index), b)
