"""Speed of a training or evaluation step, compiled by the functions that training and evaluation use."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from resnet_jax.data.resize import height_and_width
from resnet_jax.data.source import Example, Source, from_arrays
from resnet_jax.errors import InputError
from resnet_jax.input_pipeline.device_input import StepInput, evaluation_batches, open_device_split, training_batches
from resnet_jax.input_pipeline.loading import DataLoading
from resnet_jax.input_pipeline.preprocess import original_crop
from resnet_jax.models.backbone import Network
from resnet_jax.models.detection.objects import make_objects
from resnet_jax.models.summary import model_cost
from resnet_jax.models.zoo import MODELS
from resnet_jax.parallel.sharding import require_divisible_batch
from resnet_jax.recipe import Augment, Data, Model, Recipe, Schedule, check, load_recipe
from resnet_jax.tasks.make import published_loss
from resnet_jax.tools.bench.compile import cold_and_warm
from resnet_jax.tools.bench.device import memory_of, peak_bytes, peak_of, process_bytes
from resnet_jax.training.aot import compile_within
from resnet_jax.training.evaluate import make_eval_step
from resnet_jax.training.init import init_train_state
from resnet_jax.training.make_step import step_constants, train_size_at
from resnet_jax.training.setup import TrainSetup, make_setup
from resnet_jax.training.sources import Sources, open_sources
from resnet_jax.training.teacher import with_teacher
from resnet_jax.weights.load import create_model

What = Literal["train", "eval"]

# Steps that may be queued, as in training
_AHEAD = 2
# Steps that are not counted
_WARM_UP = 3
# Steps in a profile
_TRACED = 3
# Images per step of networks that predict pixels or boxes
_BATCHES = {"pixels": 8, "boxes": 2}
# FLOPs per multiply-add: two forward, four backward
_COSTS = {"train": 6, "eval": 2}


class MeasureFor(NamedTuple):
    """Limits of a measurement, which ends at the first one reached."""

    seconds: float = 10.0
    steps: int = 100


class BenchTarget(NamedTuple):
    """A recipe to measure."""

    name: str
    recipe: Recipe
    made_up: bool
    """Whether the images are random, of the network's published shape."""


class StepBenchmark(NamedTuple):
    """Speed, memory and compilation time of a step of one network."""

    name: str
    what: str  # "train" or "eval"
    device: str
    devices: int
    dtype: str
    batch: int  # images per step
    asked: int  # images per step in the recipe; more than `batch` if they do not fit or the split is smaller
    image: str  # height x width x channels
    steps: int  # number of measured steps
    images_per_second: float
    step_ms: float  # median
    low_ms: float  # 10th percentile
    high_ms: float  # 90th percentile
    data_wait_fraction: float
    flops_per_image: float  # 2 per multiply-add in evaluation, 6 in training
    peak_flops: float  # FLOP/s of all devices
    peak_source: str
    mfu: float  # fraction 0 to 1 of the peak
    memory: int  # bytes, on one device
    memory_source: str  # "device": peak of this process there; "compiler": computed for the step
    process_memory: int  # peak bytes of main memory so far
    compile_cold_s: float
    compile_warm_s: float  # from the persistent cache


def bench_target(word: str, *, network: str | None = None, data: str | None = None) -> BenchTarget:
    """Return a network on random images, or a recipe file or run; raise InputError for other words."""
    path = Path(word)
    if word not in MODELS and (path.exists() or path.suffix in (".py", ".json") or len(path.parts) > 1):
        return BenchTarget(word, load_recipe(path, network=network, data=data), made_up=False)
    model = create_model(word)
    if len(model.input_shape) != 3:
        raise InputError(f"bench: {word} takes no images; name a network that does")
    batch = _BATCHES.get(_predicts(model), 32 if model.input_shape[0] >= 128 else 128)
    recipe = Recipe(
        model=Model(name=word),
        loss=published_loss(word),
        data=Data(name="synthetic"),
        augment=Augment(crop_padding=0) if _predicts(model) else Augment(),
        schedule=Schedule(warmup=0.0),
        batch_size=batch,
        epochs=None,
        steps=10**6,
    )
    return BenchTarget(word, recipe, made_up=True)


def _predicts(network: Network) -> str:
    """Return "pixels" or "boxes"; empty for classes of images."""
    return getattr(network, "predicts", "")


def measure_step(
    subject: BenchTarget,
    what: What,
    *,
    bounds: MeasureFor,
    data_dir: Path = Path("data"),
    devices: int | None = None,
    num_threads: int | None = None,
    profile: Path | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> StepBenchmark:
    """Compile a step twice and measure it; the batch is halved until it fits in memory.

    Args:
        subject: the recipe to measure.
        what: "train" or "eval".
        bounds: seconds and steps to measure.
        data_dir: folder of the data sets.
        devices: number of devices; None is all.
        num_threads: number of threads that read images; None is one per core.
        profile: folder for a trace of some steps.
        log: called with a line for each batch size that does not fit.

    Raises:
        InputError: Recipe, data and devices do not fit each other.
    """
    recipe = check(subject.recipe)
    asked = recipe.batch_size
    while True:
        try:
            bench = _open(subject._replace(recipe=recipe), what, data_dir, devices, num_threads)
            log(f"{subject.name}: compiling, then up to {bounds.steps} steps or {bounds.seconds:g} s")
            return _measured(bench, asked, bounds, profile)
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            smaller = recipe.batch_size // 2
            if not _is_for_memory(error) or not smaller:
                raise
        log(f"{subject.name}: {recipe.batch_size} images per step do not fit into the memory, trying {smaller}")
        recipe = check(replace(recipe, batch_size=smaller))


def _is_for_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


class _Bench(NamedTuple):
    """A compiled step and its inputs."""

    name: str
    what: What
    setup: TrainSetup
    compiled: jax.stages.Compiled
    # (carried, input) -> (carried, output to wait for)
    call: Callable[[Any, StepInput], tuple[Any, Any]]
    carried: Any
    items: Iterator[StepInput]
    image: tuple[int, ...]
    compile_seconds: tuple[float, float]  # cold, warm
    had: int  # peak bytes on a device before


def _open(subject: BenchTarget, what: What, data_dir: Path, devices: int | None, num_threads: int | None) -> _Bench:
    """Open the data and compile the step; raise InputError if they do not fit each other."""
    recipe, had = subject.recipe, peak_bytes(jax.local_devices()[0])
    recipe, splits = _made_up(recipe) if subject.made_up and recipe.data.name == "synthetic" else (recipe, None)
    sources = open_sources(recipe, data_dir, splits)
    setup = make_setup(recipe, sources.dataset, devices)
    require_divisible_batch(recipe.batch_size, setup.mesh)
    loading = DataLoading(num_threads=num_threads)
    build = _training if what == "train" else _evaluation
    return build(subject.name, setup, sources, loading, had)


def _training(name: str, setup: TrainSetup, sources: Sources, loading: DataLoading, had: int) -> _Bench:
    recipe = setup.recipe
    split = open_device_split(sources.train, setup.mesh, loading, None, original_crop(recipe, sources.train))
    batches = training_batches(split, recipe, range(10**9))
    setup = with_teacher(setup)
    state, first, constants = init_train_state(setup), next(batches), step_constants(setup)
    size = train_size_at(recipe, setup.dataset.train_size, 0)
    (step, _), *seconds = cold_and_warm(lambda: compile_within(setup, [1], size, (state, first, *constants)))

    def call(state: Any, inputs: StepInput) -> tuple[Any, Any]:
        return step(state, inputs, *constants)

    shape = setup.dataset.image_shape if size is None else (size, size, setup.dataset.image_shape[-1])
    return _Bench(name, "train", setup, step, call, state, batches, shape, (seconds[0], seconds[1]), had)


def _evaluation(name: str, setup: TrainSetup, sources: Sources, loading: DataLoading, had: int) -> _Bench:
    split = open_device_split(sources.evaluation, setup.mesh, loading)

    def again() -> Iterator[StepInput]:
        while True:
            yield from evaluation_batches(split, setup.recipe.batch_size)

    batches, state = again(), init_train_state(setup)
    batch_sums = make_eval_step(setup.model, setup.recipe.data, setup.mesh, setup.metrics)
    first = next(batches)
    step, *seconds = cold_and_warm(lambda: batch_sums.lower(state, first).compile())

    def call(state: Any, inputs: StepInput) -> tuple[Any, Any]:
        return state, step(state, inputs)

    shape = setup.dataset.image_shape
    return _Bench(name, "eval", setup, step, call, state, batches, shape, (seconds[0], seconds[1]), had)


def _measured(bench: _Bench, asked: int, bounds: MeasureFor, profile: Path | None) -> StepBenchmark:
    """Run the steps, and return the measurements."""
    seconds, waited, carried = _take(bench, bench.carried, bounds)
    if profile is not None:
        with jax.profiler.trace(str(profile), create_perfetto_trace=True):
            _take(bench, carried, MeasureFor(bounds.seconds, _TRACED), warm_up=1)
    setup, batch, counted = bench.setup, _rows(bench), sum(seconds)
    flops = _COSTS[bench.what] * model_cost(setup.model, bench.image).multiply_adds
    devices = list(setup.mesh.devices.flat)
    peak, memory = peak_of(devices, setup.recipe.model.dtype), memory_of(devices[0], bench.compiled, bench.had)
    rate = batch * len(seconds) / counted
    low, median, high = (1e3 * float(x) for x in np.quantile(seconds, (0.1, 0.5, 0.9)))
    return StepBenchmark(
        name=bench.name,
        what=bench.what,
        device=devices[0].device_kind,
        devices=len(devices),
        dtype=setup.recipe.model.dtype,
        batch=batch,
        asked=asked,
        image=" x ".join(map(str, bench.image)),
        steps=len(seconds),
        images_per_second=rate,
        step_ms=median,
        low_ms=low,
        high_ms=high,
        data_wait_fraction=waited / counted,
        flops_per_image=float(flops),
        peak_flops=peak.flops,
        peak_source=peak.source,
        mfu=rate * flops / peak.flops,
        memory=memory.bytes,
        memory_source=memory.source,
        process_memory=process_bytes(),
        compile_cold_s=bench.compile_seconds[0],
        compile_warm_s=bench.compile_seconds[1],
    )


def _rows(bench: _Bench) -> int:
    """Return the number of images per step, which in an evaluation may be smaller than the recipe's."""
    return len(next(bench.items).indices)  # type: ignore[arg-type]


def _take(bench: _Bench, carried: Any, bounds: MeasureFor, warm_up: int = _WARM_UP) -> tuple[list[float], float, Any]:
    """Return the seconds between ends of steps, the seconds of waiting for data, and the carried value.

    As in training, a few steps are queued, so that the devices do not wait for this process.
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
    """Return two batches of random images, of data.image_size or the network's published size."""
    network, channels = create_model(recipe.model.name), max(len(recipe.data.mean), len(recipe.data.std))
    height, width, published_channels = network.input_shape
    shape = (
        *(height_and_width(recipe.data.image_size) if recipe.data.image_size else (height, width)),
        max(channels, published_channels),
    )
    count, rng = 2 * recipe.batch_size, np.random.Generator(np.random.Philox(key=0))
    images = rng.integers(0, 256, (count, *shape), np.uint8)
    split = _made_up_split(network, images, rng)
    return replace(recipe, data=replace(recipe.data, image_size=None)), (split, split)


def _made_up_split(network: Network, images: np.ndarray, rng: np.random.Generator) -> Source:
    """Return images (n, h, w, c) with random targets of what a network predicts; with boxes, eight an image."""
    (count, height, width, _), classes = images.shape, network.num_classes
    names = tuple(map(str, range(classes)))
    if _predicts(network) == "pixels":
        masks = rng.integers(0, classes, (count, height, width), np.uint8)
        return Source(count, names, lambda index: Example(images[index], masks[index]))
    if _predicts(network) == "boxes":
        corners = np.sort(rng.random((count, 8, 2, 2)), 2) * (width - 1, height - 1)
        corners[:, :, 1] += 1
        labels = rng.integers(0, classes, (count, 8))
        return Source(
            count,
            names,
            lambda index: Example(images[index], make_objects(corners[index].reshape(8, 4), labels[index])),
        )
    return from_arrays(images, np.arange(count) % classes, names)
