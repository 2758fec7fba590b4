"""How fast a step of training or of evaluation is, compiled by the very functions that training and evaluation use."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from resnet_jax.bench.compile import cold_and_warm
from resnet_jax.bench.device import memory_of, peak_bytes, peak_of, process_bytes
from resnet_jax.data.source import Source, from_arrays
from resnet_jax.errors import InputError
from resnet_jax.model.zoo import MODELS, published
from resnet_jax.recipe import Data, Model, Recipe, Schedule, check, load_recipe
from resnet_jax.summary import totals
from resnet_jax.train.compiling import compile_within
from resnet_jax.train.devices import replicate, require_even_split
from resnet_jax.train.evaluate import make_add
from resnet_jax.train.feed import Item, evaluation_items, supply, training_items
from resnet_jax.train.habits import Feeding
from resnet_jax.train.job import Job, Sources, initial, open_sources, prepare, step_key, train_size_at
from resnet_jax.train.preprocess import original_crop
from resnet_jax.train.step import zero_sums

What = Literal["train", "eval"]

_AHEAD = 2  # steps that may be queued, as in training
_WARM_UP = 3  # steps that are not counted
_TRACED = 3  # steps in a profile
_COSTS = {"train": 6, "eval": 2}  # FLOPs for a multiply-add: two forward, twice as many backward


class Bounds(NamedTuple):
    """How long to measure: until one of both is reached."""

    seconds: float = 10.0
    steps: int = 100


class Subject(NamedTuple):
    """What is measured."""

    name: str
    recipe: Recipe
    made_up: bool  # images: of the shape that the network is published with


class Measured(NamedTuple):
    """A step of one network."""

    name: str
    what: str  # "train" or "eval"
    device: str
    devices: int
    dtype: str
    batch: int  # images a step
    asked: int  # images a step that were asked for; more, where they did not fit or the split is smaller
    image: str  # height x width x channels
    steps: int  # that were measured
    images_per_second: float
    step_ms: float  # median
    low_ms: float  # that a tenth of the steps is below
    high_ms: float  # that a tenth of the steps is above
    data_wait: float  # share of the time
    flops_per_image: float  # two for a multiply-add of the network, and in training as many backward twice
    peak_flops: float  # a second, of all devices
    peak_source: str
    utilisation: float  # 0 to 1, of the peak
    memory: int  # bytes, on one device
    memory_source: str  # "device": all that this process has had there at most; "compiler": what the step takes
    process_memory: int  # bytes of main memory, at most so far
    compile_cold_s: float
    compile_warm_s: float  # from the persistent cache


def subject_of(word: str) -> Subject:
    """A network by its name, on images made up, or a recipe file or run; raises InputError where it is neither."""
    path = Path(word)
    if word not in MODELS and (path.exists() or path.suffix in (".py", ".json") or len(path.parts) > 1):
        return Subject(word, load_recipe(path), made_up=False)
    model = published(word)
    if len(model.input_shape) != 3:
        raise InputError(f"bench: {word} takes no images; name a network that does")
    batch = 32 if model.input_shape[0] >= 128 else 128
    data, schedule = Data(name="synthetic"), Schedule(warmup=0.0)
    recipe = Recipe(model=Model(name=word), data=data, schedule=schedule, batch_size=batch, epochs=None, steps=10**6)
    return Subject(word, recipe, made_up=True)


def measure_step(
    subject: Subject,
    what: What,
    *,
    bounds: Bounds,
    data_dir: Path = Path("data"),
    devices: int | None = None,
    threads: int | None = None,
    profile: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Measured:
    """Compiles a step twice and takes it again and again; halves the batch for as long as it does not fit.

    `profile` is a folder for a trace of some steps. Raises InputError where recipe, data and devices do not fit.
    """
    recipe = check(subject.recipe)
    asked = recipe.batch_size
    while True:
        try:
            bench = _open(subject._replace(recipe=recipe), what, data_dir, devices, threads)
            return _measured(bench, asked, bounds, profile)
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            smaller = recipe.batch_size // 2
            if not _is_for_memory(error) or not smaller:
                raise
        say(f"{subject.name}: {recipe.batch_size} images a step do not fit into the memory, trying {smaller}")
        recipe = check(replace(recipe, batch_size=smaller))


def _is_for_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


class _Bench(NamedTuple):
    """A step and what it is given."""

    name: str
    what: What
    job: Job
    compiled: jax.stages.Compiled
    call: Callable[[Any, Item], tuple[Any, Any]]  # (what it carries on, item) -> (the same after it, what ends with it)
    carried: Any
    items: Iterator[Item]
    image: tuple[int, ...]
    compile_seconds: tuple[float, float]  # cold, warm
    had: int  # bytes on a device, at most, before


def _open(subject: Subject, what: What, data_dir: Path, devices: int | None, threads: int | None) -> _Bench:
    """Opens the data and compiles the step; raises InputError where they do not fit each other."""
    recipe, had = subject.recipe, peak_bytes(jax.local_devices()[0])
    recipe, splits = _made_up(recipe) if subject.made_up and recipe.data.name == "synthetic" else (recipe, None)
    sources = open_sources(recipe, data_dir, splits)
    job = prepare(recipe, sources.dataset, devices)
    require_even_split(recipe.batch_size, job.mesh)
    feeding = Feeding(threads=threads)
    build = _training if what == "train" else _evaluation
    return build(subject.name, job, sources, feeding, had)


def _training(name: str, job: Job, sources: Sources, feeding: Feeding, had: int) -> _Bench:
    recipe = job.recipe
    data = supply(sources.train, job.mesh, feeding, None, original_crop(recipe, sources.train))
    items = training_items(data, recipe.seed, recipe.batch_size, range(10**9), recipe.augment.repeats)
    (state, sums), first, key = initial(job), next(items), step_key(job)
    size = train_size_at(recipe, job.dataset.train_size, 0)
    (step, _), *seconds = cold_and_warm(lambda: compile_within(job, [1], size, (state, sums, first, key, None)))

    def call(carried: Any, item: Item) -> tuple[Any, Any]:
        state, sums, told = step(*carried, item, key, None)
        return (state, sums), told

    shape = job.dataset.image_shape if size is None else (size, size, job.dataset.image_shape[-1])
    return _Bench(name, "train", job, step, call, (state, sums), items, shape, (seconds[0], seconds[1]), had)


def _evaluation(name: str, job: Job, sources: Sources, feeding: Feeding, had: int) -> _Bench:
    data = supply(sources.held, job.mesh, feeding)

    def again() -> Iterator[Item]:
        while True:
            yield from evaluation_items(data, job.recipe.batch_size)

    items, state, sums = again(), initial(job)[0], replicate(zero_sums(), job.mesh)
    add = make_add(job.model, job.recipe.data, job.mesh, loss=job.measure, right=job.right)
    first = next(items)
    step, *seconds = cold_and_warm(lambda: add.lower(state, sums, first).compile())

    def call(carried: Any, item: Item) -> tuple[Any, Any]:
        sums = step(state, carried, item)
        return sums, sums

    shape = job.dataset.image_shape
    return _Bench(name, "eval", job, step, call, sums, items, shape, (seconds[0], seconds[1]), had)


def _measured(bench: _Bench, asked: int, bounds: Bounds, profile: Path | None) -> Measured:
    """Takes the steps, and says what they took."""
    seconds, waited, carried = _take(bench, bench.carried, bounds)
    if profile is not None:
        with jax.profiler.trace(str(profile), create_perfetto_trace=True):
            _take(bench, carried, Bounds(bounds.seconds, _TRACED), warm_up=1)
    job, batch, counted = bench.job, _rows(bench), sum(seconds)
    flops = _COSTS[bench.what] * totals(job.model.clone(input_shape=bench.image)).multiply_adds
    devices = list(job.mesh.devices.flat)
    peak, memory = peak_of(devices, job.recipe.model.dtype), memory_of(devices[0], bench.compiled, bench.had)
    rate = batch * len(seconds) / counted
    low, median, high = (1e3 * float(x) for x in np.quantile(seconds, (0.1, 0.5, 0.9)))
    return Measured(
        name=bench.name,
        what=bench.what,
        device=devices[0].device_kind,
        devices=len(devices),
        dtype=job.recipe.model.dtype,
        batch=batch,
        asked=asked,
        image=" x ".join(map(str, bench.image)),
        steps=len(seconds),
        images_per_second=rate,
        step_ms=median,
        low_ms=low,
        high_ms=high,
        data_wait=waited / counted,
        flops_per_image=float(flops),
        peak_flops=peak.flops,
        peak_source=peak.source,
        utilisation=rate * flops / peak.flops,
        memory=memory.bytes,
        memory_source=memory.source,
        process_memory=process_bytes(),
        compile_cold_s=bench.compile_seconds[0],
        compile_warm_s=bench.compile_seconds[1],
    )


def _rows(bench: _Bench) -> int:
    """Images of a step: those that the recipe says or, of an evaluation, as many as there are or are taken at once."""
    return next(bench.items)[1].shape[0]


def _take(bench: _Bench, carried: Any, bounds: Bounds, warm_up: int = _WARM_UP) -> tuple[list[float], float, Any]:
    """Seconds of each step from the end of the one before, those that were spent waiting for data, and what is left.

    As in training a few steps are queued, so that the devices need not wait for this process.
    """
    ahead: deque[Any] = deque()
    ends: list[float] = []
    waited, start = 0.0, time.perf_counter()
    while len(ends) <= warm_up + 1 or (len(ends) <= warm_up + bounds.steps and ends[-1] - start < bounds.seconds):
        before = time.perf_counter()
        item = next(bench.items)
        if len(ends) > warm_up:
            waited += time.perf_counter() - before
        carried, told = bench.call(carried, item)
        ahead.append(told)
        if len(ahead) > _AHEAD:
            jax.block_until_ready(ahead.popleft())
            ends.append(time.perf_counter())
            if len(ends) == warm_up + 1:
                start = ends[-1]
    jax.block_until_ready(carried)
    return [after - before for before, after in zip(ends[warm_up:], ends[warm_up + 1 :], strict=False)], waited, carried


def _made_up(recipe: Recipe) -> tuple[Recipe, tuple[Source, Source]]:
    """Two batches of random images, of data.size or as large as the network is published for, and of its classes."""
    network, channels = published(recipe.model.name), max(len(recipe.data.mean), len(recipe.data.std))
    height, width, published_channels = network.input_shape
    shape = (*((recipe.data.size,) * 2 if recipe.data.size else (height, width)), max(channels, published_channels))
    count, rng = 2 * recipe.batch_size, np.random.Generator(np.random.Philox(key=0))
    images = rng.integers(0, 256, (count, *shape), np.uint8)
    labels = np.arange(count) % network.num_classes
    split = partial(from_arrays, images, labels, [str(number) for number in range(network.num_classes)])
    return replace(recipe, data=replace(recipe.data, size=None)), (split(), split())
