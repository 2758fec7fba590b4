"""Reading ahead: the same batches with any number of threads, whatever is bad in between."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from resnet_jax.data.source import Example, default_threads, from_arrays, to_arrays
from resnet_jax.errors import InputError
from resnet_jax.input_pipeline.host_input import skip_corrupt, stream
from resnet_jax.input_pipeline.sampler import batch_indices

IMAGES = np.arange(30, dtype=np.uint8).reshape(30, 1, 1, 1)
SOURCE = from_arrays(IMAGES, np.arange(30) % 3, ("a", "b", "c"))


def order(step):
    return batch_indices(7, step, 4, 30)


def batches(read=lambda index, _: SOURCE.read(index), steps=range(9), threads=2):
    return [
        (images.ravel().tolist(), labels.tolist()) for images, labels in stream(read, order, steps, threads=threads)
    ]


@pytest.mark.parametrize("threads", [0, 1, 2, 16])
def test_any_number_of_threads_gives_the_same_batches(threads):
    expected = [(order(step).tolist(), (order(step) % 3).tolist()) for step in range(9)]
    assert batches(threads=threads) == expected
    assert batches(threads=threads, steps=range(5, 9)) == expected[5:]  # the number of a batch is the position
    assert batches(threads=threads, steps=range(3, 3)) == []


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_read_their_rows_of_the_same_batches(hosts, threads):
    places = []

    def read(index, place):
        places.append(place)
        return SOURCE.read(index)

    shares = [list(stream(read, order, range(3, 7), threads=threads, host=h, hosts=hosts)) for h in range(hosts)]
    for batch, parts in enumerate(zip(*shares, strict=True), 3):
        np.testing.assert_array_equal(np.concatenate([images for images, _ in parts]).ravel(), order(batch))
    assert sorted(places) == list(range(12, 28))  # each row knows its position in the run


def test_slow_rows_do_not_change_the_order():
    def read(index, _):
        time.sleep(0.02 if index % 4 == 0 else 0)
        return SOURCE.read(index)

    assert batches(read, threads=8) == batches(threads=0)


def test_a_row_knows_its_position():
    seen = []
    batches(lambda index, place: seen.append((index, place)) or SOURCE.read(index), range(2, 4), threads=0)
    assert seen == [(int(index), 8 + row) for row, index in enumerate([*order(2), *order(3)])]


def test_reading_ahead_is_bounded_and_ends():
    read = []

    def slow(index, place):
        read.append(place)
        return SOURCE.read(index)

    running = threading.active_count()
    ahead = stream(slow, order, range(1000), threads=4)
    next(ahead)
    time.sleep(0.3)
    assert 4 <= len(read) <= 4 * (1 + 2) + 4
    ahead.close()
    del ahead
    for _ in range(100):
        if threading.active_count() <= running:
            break
        time.sleep(0.05)
    assert threading.active_count() <= running


def test_an_error_reaches_who_asks():
    def read(index, _):
        raise InputError("x.jpg: damaged")

    for threads in (0, 2):
        with pytest.raises(InputError, match=r"x\.jpg: damaged"):
            batches(read, threads=threads)


def test_images_of_two_sizes_are_refused():
    def read(index, _):
        return Example(np.zeros((1 + index % 2, 1, 1), np.uint8), 0)

    with pytest.raises(InputError, match="set data.image_size to resize all to one size"):
        batches(read)


def broken(*bad):
    def read(index, position):
        if index in bad:
            raise InputError(f"{index}.jpg: damaged")
        return SOURCE.read(index)

    return read


def test_what_is_bad_gives_way_to_the_next():
    replaced = {}
    read = skip_corrupt(broken(3, 4, 29), 30, replaced)
    assert [int(read(index, 0).image.item()) for index in (2, 3, 4, 5, 29)] == [2, 5, 5, 5, 0]
    assert read(3, 0).target == 5 % 3
    assert replaced == {3: "3.jpg: damaged", 4: "4.jpg: damaged", 29: "29.jpg: damaged"}


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_what_takes_its_place_is_always_the_same(threads):
    first = batches(skip_corrupt(broken(1, 8), 30, {}), threads=0)
    assert batches(skip_corrupt(broken(1, 8), 30, {}), threads=threads) == first


def test_where_all_is_bad_reading_gives_up():
    with pytest.raises(InputError, match=r"5\.jpg: damaged; the next 29 images cannot be read either"):
        skip_corrupt(broken(*range(30)), 30, {})(5, 0)


def test_threads_of_this_process():
    assert default_threads() >= 1


def test_resident_images_are_replaced_as_well():
    read = skip_corrupt(broken(3), 30, {})
    images, labels = to_arrays(SOURCE._replace(read=lambda index: read(index, 0)))
    assert images.ravel()[[2, 3, 4]].tolist() == [2, 4, 4]
    assert labels[3] == 4 % 3


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_nothing_can_outlive_the_trainer():
    """No worker process and no shared memory: there are only threads, which end with their process."""
    process = Path(f"/proc/self/task/{os.getpid()}/children")
    before, shared = process.read_text(), set(os.listdir("/dev/shm"))
    ahead = stream(lambda index, _: SOURCE.read(index), order, range(1000), threads=4)
    next(ahead)
    assert process.read_text() == before
    assert {name for name in set(os.listdir("/dev/shm")) - shared if not name.startswith("pytest")} == set()
    ahead.close()
