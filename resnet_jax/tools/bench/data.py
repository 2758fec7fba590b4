"""Speed of each stage of the data pipeline alone."""

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from resnet_jax.data.source import default_threads
from resnet_jax.input_pipeline.device_input import gather_batch
from resnet_jax.input_pipeline.host_input import reader, stream
from resnet_jax.input_pipeline.preprocess import make_preprocess, original_crop
from resnet_jax.input_pipeline.sampler import Batch, batch_indices
from resnet_jax.parallel.sharding import batch_sharding
from resnet_jax.recipe import Recipe, check
from resnet_jax.runtime.compiler_options import compiler_options
from resnet_jax.training.make_step import train_size_at
from resnet_jax.training.setup import make_setup
from resnet_jax.training.sources import open_sources


class Speed(NamedTuple):
    """One stage of the data pipeline, alone."""

    stage: str
    images_per_second: float


def measure_data(
    recipe: Recipe, *, data_dir: Path, num_threads: int | None = None, seconds: float = 3.0, devices: int | None = None
) -> list[Speed]:
    """Return the speed of each stage: read on one thread, read on all, copy to devices, augment there.

    Args:
        recipe: names data, batch size and augmentation.
        data_dir: folder of the data sets.
        num_threads: number of threads that read images; None is one per core.
        seconds: duration of each stage.
        devices: number of devices; None is all.

    Raises:
        InputError: The recipe or its data are wrong.
    """
    recipe = check(recipe)
    sources = open_sources(recipe, data_dir)
    setup = make_setup(recipe, sources.dataset, devices)
    source, batch, seed = sources.train, recipe.batch_size, recipe.seed
    threads = default_threads() if num_threads is None else num_threads

    def indices(step: int) -> np.ndarray:
        return batch_indices(seed, step, batch, source.size, recipe.augment.aug_repeats, source.draws)

    read = reader(source, original_crop(recipe, source))

    def batches(count: int) -> Iterator[Any]:
        return stream(read, indices, range(10**9), threads=count)

    images, labels = next(batches(0))
    copy = partial(jax.device_put, device=batch_sharding(setup.mesh))
    size = train_size_at(recipe, source.size, 0)
    spec = setup.task.targets
    prepared = make_preprocess(recipe, source.size, len(source.classes), spec.to_soft, image_size=size, fill=spec.fill)
    preprocess = partial(jax.jit(prepared, compiler_options=compiler_options()), jax.random.key(0), 0)
    resident = gather_batch(Batch(copy(images), copy(labels), None, copy(indices(0))))
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
    """Return images per second of a call that handles `images`, over about `seconds` after a first call."""
    call()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        call()
        count += 1
    return images * count / (time.perf_counter() - start)
