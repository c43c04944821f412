"""Device memory is handed out again, and given up when the device is full."""

from __future__ import annotations

import pytest
from layerlift.backends.errors import DeviceOutOfMemory
from layerlift.backends.gpu_memory import GpuArray, Pool, rounded


class Driver:
    """Counts what it gave; refuses from the `limit`th allocation on, until something is `lost`."""

    def __init__(self, limit: int = 10**9):
        self.sizes: list[int] = []
        self.limit = limit

    def allocate(self, nbytes: int) -> object:
        if len(self.sizes) >= self.limit:
            self.limit += 1  # the next try finds what was given up
            raise DeviceOutOfMemory("full", nbytes=nbytes)
        self.sizes.append(nbytes)
        return object()


def test_memory_of_a_dead_array_is_used_again():
    driver = Driver()
    pool = Pool(driver.allocate)
    for _ in range(5):
        array = GpuArray(pool.take(1000), (250,))
        del array
    assert len(driver.sizes) == 1


def test_living_arrays_never_share_memory():
    pool = Pool(Driver().allocate)
    blocks = [pool.take(1000) for _ in range(5)]
    assert len({id(block.handle) for block in blocks}) == 5


def test_idle_memory_is_given_up_before_the_device_counts_as_full():
    driver = Driver(limit=1)
    pool = Pool(driver.allocate)
    del_me = pool.take(1000)
    del del_me
    assert pool.take(1 << 20).size >= 1 << 20


def test_a_full_device_says_so():
    with pytest.raises(DeviceOutOfMemory):
        Pool(Driver(limit=0).allocate).take(1000)


@pytest.mark.parametrize("nbytes", [1, 256, 257, 4097, 10**6, (1 << 30) + 1])
def test_size_classes_waste_an_eighth_at_most(nbytes):
    assert nbytes <= rounded(nbytes) <= max(256, nbytes * 9 // 8 + 256)
    assert rounded(rounded(nbytes)) == rounded(nbytes)
