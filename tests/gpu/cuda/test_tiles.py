"""Rounding to bfloat16 and the layout of matrices: nothing is lost but what rounding takes."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu.cuda.bfloat16 import rounded, widened
from gpu.cuda.tiles import tiled, tiled_shape, untiled


@settings(max_examples=500, deadline=None)
@given(st.floats(-(2.0**126), 2.0**126, width=32))
def test_rounding_is_to_the_nearest_and_ties_to_even(value: float) -> None:
    [half] = rounded(np.array([value], np.float32)).tolist()
    neighbours = [n for n in (half - 1, half, half + 1) if 0 <= n & 0x7FFF < 0x7F80 and (n ^ half) & 0x8000 == 0]
    exact = {n: Fraction(float(widened(np.array([n], np.uint16))[0])) for n in neighbours}
    distance = {n: abs(found - Fraction(value)) for n, found in exact.items()}
    nearest = [n for n in neighbours if distance[n] == min(distance.values())]
    assert half in nearest
    assert len(nearest) == 1 or half % 2 == 0


def test_numbers_that_are_none_stay_so() -> None:
    odd = np.array([0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7F800000, 0xFF800000], np.uint32).view(np.float32)
    found = widened(rounded(odd))
    assert np.isnan(found[:4]).all()
    assert found[4:].tolist() == [np.inf, -np.inf]
    assert widened(rounded(np.array([3.4e38], np.float32))).tolist() == [np.inf]


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (16, 32), (17, 33), (97, 36), (9000, 5)])
def test_a_matrix_comes_back_from_its_tiles(rows: int, columns: int) -> None:
    matrix = np.random.default_rng(rows).standard_normal((rows, columns)).astype(np.float32)
    matrix = widened(rounded(matrix))
    tiles = tiled(matrix)
    assert tiles.shape == tiled_shape(rows, columns)
    assert np.array_equal(untiled(tiles, rows, columns), matrix)
    assert np.count_nonzero(tiles) == np.count_nonzero(matrix)


def test_a_tile_is_eight_rows_of_four_turned_chunks() -> None:
    matrix = np.arange(16 * 64, dtype=np.float32).reshape(16, 64) % 256
    tile = widened(tiled(matrix))[1, 1].reshape(8, 4, 8)
    for row in range(8):
        for chunk in range(4):
            first = 32 + chunk * 8
            assert np.array_equal(tile[row, chunk ^ row // 2], matrix[8 + row, first : first + 8])
