"""Buffers keep their addresses, and refuse sampling parameters out of range."""

from typing import Any

import numpy as np
import pytest

from gpu import Buffers

GREEDY: dict[str, Any] = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 0}


def test_iteration_lists_every_buffer_with_its_address() -> None:
    buffers = Buffers.allocate(rows=3, capacity=5, vocab=7)
    listed = {info.name: (info.shape, info.dtype) for info in buffers}
    assert listed["input_ids"] == ((3, 5), "int32")
    assert listed["logits"] == ((3, 7), "float32")
    assert listed["seed"] == ((3,), "uint64")
    before = buffers.addresses()
    assert before.keys() == listed.keys()
    assert before["logits"] == buffers.logits.ctypes.data
    buffers.set_sampling(1, **GREEDY | {"seed": 2**64 - 1, "top_k": 2**40})
    assert buffers.addresses() == before
    assert int(buffers.seed[1]) == 2**64 - 1
    assert buffers.top_k[1] == np.iinfo(np.int32).max


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 1.1),
        ("top_p", float("nan")),
        ("min_p", -0.5),
        ("min_p", 2.0),
        ("seed", -1),
        ("seed", 2**64),
    ],
)
def test_parameters_out_of_range_are_refused_by_name(name: str, value: float) -> None:
    buffers = Buffers.allocate(rows=1, capacity=1, vocab=1)
    with pytest.raises(ValueError, match=f"^{name} is"):
        buffers.set_sampling(0, **GREEDY | {name: value})


def test_a_row_that_does_not_exist_is_refused() -> None:
    buffers = Buffers.allocate(rows=2, capacity=1, vocab=1)
    for row in (2, -1):
        with pytest.raises(ValueError, match=f"no row {row}"):
            buffers.set_sampling(row, **GREEDY)
