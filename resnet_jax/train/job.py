"""A recipe made concrete: its data, network, optimiser and devices, all checked before anything is written."""

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from resnet_jax.backend import compiler_options
from resnet_jax.data.datasets import found_in, hold_out, open_split
from resnet_jax.data.decode import Fit
from resnet_jax.data.source import Source
from resnet_jax.errors import InputError
from resnet_jax.model.resnet import ResNet
from resnet_jax.recipe import Augment, Data, Recipe, fields_of, in_steps, total_steps
from resnet_jax.train.devices import data_mesh, replicate, replicated, split, spread
from resnet_jax.train.directory import Dataset
from resnet_jax.train.feed import Item, batch_of
from resnet_jax.train.loss import is_right, make_loss, make_measure, require_labels_fit
from resnet_jax.train.masks import frozen_mask
from resnet_jax.train.optimizer import make_optimizer
from resnet_jax.train.preprocess import make_preprocess
from resnet_jax.train.schedule import learning_rate
from resnet_jax.train.state import TrainState, build_model, first_state, init_state
from resnet_jax.train.step import LossFn, Right, Sums, add_sums, train_step, zero_sums
from resnet_jax.train.sweep import make_sweep, unit_of
from resnet_jax.weights.load import Loaded, Variables, load

Shard = Literal["nothing", "params"]

_KINDS = {2: "sequences", 3: "images", 4: "video"}  # by the axes of an example

_QUICKLY = {"xla_backend_optimization_level": 1}  # for what runs once, so that compiling it is what counts


class Job(NamedTuple):
    """What a run needs and does not change."""

    recipe: Recipe
    dataset: Dataset
    mesh: Mesh
    model: ResNet
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    loss: LossFn  # that is minimised
    measure: LossFn  # that evaluation reports
    right: Right | None  # which answers are; None where none is right or wrong
    steps: int  # of the whole recipe
    accumulate: int  # parts into which a batch is cut, one after the other
    shard: Shard  # what is spread over the devices, and gathered for each step


class Sources(NamedTuple):
    """What a run reads."""

    train: Source
    held: Source  # that it is measured on: the held-out training images, or else the test split
    dataset: Dataset


def fit_of(data: Data) -> Fit:
    """How a recipe brings images to one size."""
    return Fit(data.size, data.crop, data.interpolation)


def held_split(recipe: Recipe) -> str:
    """The split that a run is measured on while it trains."""
    return "validation" if recipe.data.validation else "test"


def open_sources(recipe: Recipe, data_dir: Path, splits: tuple[Source, Source] | None = None) -> Sources:
    """A recipe's data set, or else `splits`; raises InputError where it is unknown, missing or incomplete."""
    data, names = recipe.data, ("train", held_split(recipe))
    if splits is None:
        train, held = (open_split(data.name, name, data_dir, data.validation, fit_of(data)) for name in names)
    else:
        train, held = (hold_out(splits[name == "test"], name, data.validation, data.name) for name in names)
    shape = train.read(0).image.shape
    if held.read(0).image.shape != shape:
        raise InputError(f"{data.name}: the splits have images of different sizes; set data.size to bring all to one")
    for source in (train, held):
        require_labels_fit(recipe.loss, source)
    home = found_in(data.name, data_dir).absolute()  # where the run will be evaluated, from whatever directory
    dataset = Dataset(train.classes, shape, train.size, str(home))
    return Sources(train, held, dataset)


def prepare(
    recipe: Recipe, dataset: Dataset, devices: int | None = None, *, accumulate: int = 1, shard: Shard = "nothing"
) -> Job:
    """Builds everything; devices, accumulation and shards change nothing but rounding.

    Raises InputError where recipe, data and devices do not fit each other.
    """
    channels = dataset.image_shape[-1]
    for name, values in (("data.mean", recipe.data.mean), ("data.std", recipe.data.std)):
        if len(values) not in (1, channels):
            raise InputError(f"{name} has {len(values)} numbers; {recipe.data.name} has {channels} channels")
    model, schedule = build_model(recipe.model, len(dataset.classes)), learning_rate(recipe, dataset.train_size)
    require_kind(recipe, model, dataset.image_shape)
    return Job(
        recipe=recipe,
        dataset=dataset,
        mesh=data_mesh(devices),
        model=model,
        schedule=schedule,
        optimizer=make_optimizer(recipe.optimizer, schedule, abstract_params(model, dataset)),
        loss=make_loss(recipe.loss),
        measure=make_measure(recipe.loss),
        right=is_right(recipe.loss),
        steps=total_steps(recipe, dataset.train_size),
        accumulate=accumulate,
        shard=shard,
    )


def require_kind(recipe: Recipe, model: ResNet, shape: tuple[int, ...]) -> None:
    """Raises InputError where the network, or an augmentation, is for another kind of data."""
    wanted, given = (_KINDS[len(s)] for s in (model.input_shape, shape))
    if wanted != given:
        raise InputError(f"model.name is {recipe.model.name}, for {wanted}; the data are {given}: take another network")
    if given == "images":
        return
    plain = dict(fields_of(Augment(pad=0, repeats=recipe.augment.repeats)))
    for name, value in fields_of(recipe.augment):
        if value != plain[name]:
            raise InputError(f"augment.{name} is {value}, for images; the data are {given}: set it to {plain[name]}")


def abstract_params(model: ResNet, dataset: Dataset) -> dict:
    """Shapes and dtypes of the parameters, without computing them."""
    return _abstract_variables(model, dataset.image_shape)["params"]


@lru_cache(maxsize=8)  # tracing a deep network takes a second, and a run asks several times
def _abstract_variables(model: ResNet, image_shape: tuple[int, ...]) -> dict:
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))


def random_keys(recipe: Recipe) -> tuple[Array, Array]:
    """The keys of the initial parameters and of the augmentation."""
    init_key, augment_key = jax.random.split(jax.random.key(recipe.seed))
    return init_key, augment_key


def step_key(job: Job) -> Array:
    """The numbers, (2,) uint32, of the second of the `random_keys`, on the devices.

    They are given to the step, and not compiled into it: one program serves all seeds.
    """
    return replicate(jax.random.key_data(random_keys(job.recipe)[1]), job.mesh)


def start(job: Job, key: Array, pretrained: Variables | None = None) -> tuple[TrainState, Sums]:
    """State and totals before the first step, drawn with the first of the `random_keys`; pure, to be jitted."""
    averages = job.recipe.ema > 0
    state = init_state(key, job.model, job.optimizer, job.dataset.image_shape, pretrained, averages=averages)
    return state, zero_sums()


def initial(job: Job, pretrained: Variables | None = None) -> tuple[TrainState, Sums]:
    """`start`, on the devices."""
    on_cpu = job.mesh.devices.flat[0].platform == "cpu"
    options = compiler_options() | (_QUICKLY if on_cpu else {})
    init = jax.jit(partial(start, job), out_shardings=shardings(job), compiler_options=options)
    return init(random_keys(job.recipe)[0], pretrained)


def abstract(job: Job) -> tuple[TrainState, Sums]:
    """Shapes, dtypes and places on the devices of what `initial` returns, without computing it."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        _shapes(job),
        shardings(job),
    )


def _shapes(job: Job) -> tuple[TrainState, Sums]:
    first = partial(first_state, optimizer=job.optimizer, averages=job.recipe.ema > 0)
    variables = _abstract_variables(job.model, job.dataset.image_shape)
    return jax.eval_shape(lambda variables: (first(variables), zero_sums()), variables)


def shardings(job: Job) -> tuple[TrainState, Sums]:
    """Where each array of state and totals lies."""
    state, sums = _shapes(job)
    everywhere = replicated(job.mesh)
    shares = partial(spread, mesh=job.mesh) if job.shard == "params" else lambda leaf: everywhere
    state, batch_stats = jax.tree.map(shares, state), jax.tree.map(lambda _: everywhere, state.batch_stats)
    return state.replace(batch_stats=batch_stats), jax.tree.map(lambda _: everywhere, sums)


def load_pretrained(job: Job) -> Loaded | None:
    """The weights that the recipe starts from, if it names some; raises InputError where they do not fit."""
    where = job.recipe.model.pretrained
    return load(job.model.clone(input_shape=job.dataset.image_shape), where) if where else None


class Told(NamedTuple):
    """What the loop is told of a step, as soon as it is done: the state itself is gone with the next call."""

    step: Array  # () int32, steps taken
    bad: Array  # () int32, 1 where loss or gradient were not finite
    stop: Array | None  # () int32, the largest number of a signal that reached any host; None on a single host


def train_size_at(recipe: Recipe, train_size: int, step: int) -> int | None:
    """Height and width in pixels of the images of a step; None where the recipe leaves them."""
    times = [round(in_steps(recipe, time, train_size)) for time in recipe.augment.size_times]
    return next(
        (size for time, size in reversed([*zip(times, recipe.augment.sizes, strict=True)]) if step >= time), None
    )


Advance = Callable[[TrainState, Sums, Item, Array, Array | None], tuple[TrainState, Sums, Told]]


def make_advance(job: Job, size: int | None = None) -> jax.stages.Wrapped:
    """Jitted (state, totals, item of the feed, `step_key`, signals of the hosts or None) -> (state, totals, Told).

    State and totals are donated. It is the same function for all seeds. `size` is the height and width in pixels to
    which training images are scaled.
    """
    where = (*shardings(job), replicated(job.mesh))
    return jax.jit(
        unjitted_advance(job, size), donate_argnums=(0, 1), out_shardings=where, compiler_options=compiler_options()
    )


def unjitted_advance(job: Job, size: int | None = None) -> Advance:
    """The function that `make_advance` compiles."""
    recipe, train_size, classes = job.recipe, job.dataset.train_size, len(job.dataset.classes)
    freeze = recipe.optimizer.freeze
    step = partial(
        train_step,
        model=job.model,
        optimizer=job.optimizer,
        loss=job.loss,
        right=job.right,
        preprocess=make_preprocess(recipe, train_size, classes, size),
        frozen=frozen_mask(abstract_params(job.model, job.dataset), freeze) if freeze else None,
        sweep=make_sweep(job.mesh, job.accumulate, unit_of(recipe, job.model.norm)),
        skip=recipe.nonfinite == "skip",
        ema=recipe.ema,
        ema_every=recipe.ema_every,
    )

    def advance(
        state: TrainState, sums: Sums, item: Item, key: Array, signals: Array | None
    ) -> tuple[TrainState, Sums, Told]:
        batch = jax.lax.with_sharding_constraint(batch_of(item), split(job.mesh))
        state, new = step(state, batch, key=jax.random.wrap_key_data(key))
        stop = None if signals is None else signals.max()
        return state, add_sums(sums, new), Told(jnp.copy(state.step), new.bad, stop)

    return advance
