"""The processor that the host computes on, as far as it can change a bit."""

import platform
from typing import Any

import numpy as np


def processor() -> dict[str, Any]:
    """Name it and the instructions that it has: libraries choose their kernels by them."""
    config: Any = np.show_config(mode="dicts")
    return {"processor": platform.machine(), "simd": sorted(config["SIMD Extensions"].get("found", []))}
