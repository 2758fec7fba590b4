"""How fast each part of the data pipeline is by itself."""

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from resnet_jax.backend import compiler_options
from resnet_jax.data.batches import Batch, batch_indices
from resnet_jax.data.stream import default_threads, reading, stream
from resnet_jax.recipe import Recipe, check
from resnet_jax.train.devices import split
from resnet_jax.train.job import open_sources, prepare, train_size_at
from resnet_jax.train.preprocess import make_preprocess, original_crop


class Speed(NamedTuple):
    """One stage of the data pipeline, alone."""

    stage: str
    images_per_second: float


def measure_data(
    recipe: Recipe, *, data_dir: Path, threads: int | None = None, seconds: float = 3.0, devices: int | None = None
) -> list[Speed]:
    """Reading in one thread, reading ahead by all, copying to the devices, and what is done to a batch there.

    Each stage runs for about `seconds`. Raises InputError where the recipe or its data are not in order.
    """
    recipe = check(recipe)
    sources = open_sources(recipe, data_dir)
    job = prepare(recipe, sources.dataset, devices)
    source, batch, seed = sources.train, recipe.batch_size, recipe.seed
    threads = default_threads() if threads is None else threads

    def indices(step: int) -> np.ndarray:
        return batch_indices(seed, step, batch, source.size, recipe.augment.repeats)

    read = reading(source, original_crop(recipe, source))

    def batches(count: int) -> Iterator[Any]:
        return stream(read, indices, range(10**9), threads=count)

    images, labels = next(batches(0))
    copy = partial(jax.device_put, device=split(job.mesh))
    size = train_size_at(recipe, source.size, 0)
    prepared = make_preprocess(recipe, source.size, len(source.classes), size)
    preprocess = partial(jax.jit(prepared, compiler_options=compiler_options()), jax.random.key(0), 0)
    resident = Batch(copy(images), copy(labels), None, copy(indices(0)))
    one = (
        read(int(index), place) for place, index in enumerate(i for step in itertools.count() for i in indices(step))
    )
    return [
        Speed("read and decode, 1 thread", rate(lambda: next(one), 1, seconds)),
        Speed(f"batches, {threads} threads", rate(partial(next, batches(threads)), batch, seconds)),
        Speed("copy to the devices", rate(lambda: jax.block_until_ready(copy(images)), batch, seconds)),
        Speed(
            "augment and normalise there",
            rate(lambda: jax.block_until_ready(preprocess(resident)), batch, seconds),
        ),
    ]


def rate(call: Callable[[], Any], images: int, seconds: float) -> float:
    """Images a second of a call that handles so many, over about so many seconds after a first call."""
    call()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        call()
        count += 1
    return images * count / (time.perf_counter() - start)
