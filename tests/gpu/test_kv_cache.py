"""The cache counts its rows and lengths, and refuses by numbers."""

import threading

import pytest

from gpu import CapacityError, LinearKVCache, NoFreeRows


@pytest.fixture
def cache() -> LinearKVCache:
    return LinearKVCache(rows=4, capacity=10, bytes_per_position=256)


def test_rows_are_handed_out_and_taken_back(cache: LinearKVCache) -> None:
    assert cache.acquire(2) == (0, 1)
    assert cache.acquire(1) == (2,)
    cache.commit(1, 5)
    cache.release([1])
    assert cache.length(1) == 0
    assert cache.acquire(2) == (1, 3)
    assert cache.free == 0


def test_too_many_rows_are_refused_and_none_is_taken(cache: LinearKVCache) -> None:
    cache.acquire(3)
    with pytest.raises(NoFreeRows, match="2 rows were asked for, 1 of 4 are free"):
        cache.acquire(2)
    assert cache.free == 1
    with pytest.raises(ValueError, match="expected at least 1"):
        cache.acquire(0)


@pytest.mark.parametrize("rows", [[0, 0], [3], [0, 3]])
def test_release_refuses_free_rows_and_repeats_and_releases_nothing(cache: LinearKVCache, rows: list[int]) -> None:
    cache.acquire(3)
    cache.commit(0, 4)
    with pytest.raises(ValueError, match="free already or named twice"):
        cache.release(rows)
    assert cache.free == 1
    assert cache.length(0) == 4


def test_rows_that_do_not_exist_are_refused(cache: LinearKVCache) -> None:
    with pytest.raises(ValueError, match="no row 4"):
        cache.release([4])


def test_lengths_stay_within_the_capacity(cache: LinearKVCache) -> None:
    cache.acquire(1)
    cache.commit(0, 7)
    with pytest.raises(CapacityError, match="row 0 holds 7 of 10 tokens, 4 more do not fit"):
        cache.commit(0, 4)
    assert cache.length(0) == 7
    cache.commit(0, 3)
    assert cache.length(0) == cache.capacity
    cache.truncate(0, 2)
    with pytest.raises(ValueError, match="holds 2 tokens, it cannot be truncated to 3"):
        cache.truncate(0, 3)
    with pytest.raises(ValueError, match="truncate"):
        cache.commit(0, -1)


def test_rows_are_acquired_once_by_many_threads() -> None:
    cache = LinearKVCache(rows=64, capacity=1, bytes_per_position=1)
    taken: list[int] = []

    def work() -> None:
        for _ in range(200):
            rows = cache.acquire(2)
            taken.extend(rows)
            for row in rows:
                cache.commit(row, 1)  # refused if the row had been given twice: it has one position
            cache.release(rows)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 8 * 200 * 2
    assert cache.free == 64
