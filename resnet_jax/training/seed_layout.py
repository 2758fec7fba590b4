"""Where the seeds of a recipe train: in one program, each on its own devices, or in sequence; what they share."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import jax
from jax.sharding import Mesh

from resnet_jax.errors import InputError
from resnet_jax.input_pipeline.device_input import move_to_mesh, training_batches
from resnet_jax.parallel.sharding import mesh_of, require_divisible_batch
from resnet_jax.recipe import Recipe
from resnet_jax.training.aot import compile_once
from resnet_jax.training.distillation import Teacher
from resnet_jax.training.init import abstract_train_state, init_train_state
from resnet_jax.training.make_step import step_constants, train_size_at
from resnet_jax.training.opening import make_programs, open_splits
from resnet_jax.training.options import RunOptions
from resnet_jax.training.progress import Log
from resnet_jax.training.run_state import RunPrograms
from resnet_jax.training.setup import Parts, TrainSetup, setup_training
from resnet_jax.training.sources import Sources
from resnet_jax.training.stacked import make_stacked_step, seeds_that_fit, stack_trees

SeedLayout = Literal["auto", "vmap", "devices", "sequential"]

# Steps that are timed to choose a layout, after one that is not
_ROUNDS = 5
_WORDS = {"devices": "each on its own devices", "vmap": "in one program", "sequential": "in sequence"}


class SeedRuns(NamedTuple):
    """What the seeds of a recipe share."""

    recipes: Mapping[int, Recipe]
    """By seed."""
    out: Path
    sources: Sources
    mesh: Mesh
    """Of one seed that has all devices."""
    options: RunOptions
    parts: Parts
    loggers: Sequence[Callable[..., None]]
    log: Log
    programs: dict[Mesh, RunPrograms]
    """On the devices that have been used so far."""
    stacked: dict[tuple[Mesh, int | None], jax.stages.Wrapped]
    """Steps of several seeds in one program, by devices and image size."""
    corrupt: dict[int, str]
    """Training images that could not be read."""
    stop: Callable[[], int]
    teacher: Teacher | None = None
    """That of the recipe."""


def possible_layouts(asked: SeedLayout, count: int, batch_size: int, mesh: Mesh) -> list[str]:
    """Return the layouts to choose from for `count` seeds on these devices; one if it was asked for.

    On CPUs `vmap` is left to those who ask for it: convolutions become grouped ones, which take longer to compile and
    about twice the time.

    Raises:
        InputError: This machine does not have the layout.
    """
    if jax.process_count() > 1 and asked in ("devices", "vmap"):
        raise InputError(f"--seed-layout is {asked}; on several hosts each step takes all devices: leave it out")
    if asked == "devices" and mesh.size == 1:
        raise InputError("--seed-layout is devices; there is one device: leave it out, or take vmap")
    if asked in ("sequential", "vmap") or jax.process_count() > 1:
        require_divisible_batch(batch_size, mesh)
    if asked != "auto" or jax.process_count() > 1:
        return ["sequential" if asked == "auto" else asked]
    if batch_size % mesh.size:
        return ["devices"]
    if count <= 1:
        return ["sequential"]
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return ["sequential", *(["devices"] if mesh.size > 1 else []), *([] if on_cpu else ["vmap"])]


def device_slices(mesh: Mesh, count: int, batch_size: int) -> list[Mesh]:
    """Return as many equal slices of the devices as there are seeds, or devices; each divides the batch."""
    devices = list(mesh.devices.flat)
    slices = min(count, len(devices))
    size = max(n for n in range(1, len(devices) // slices + 1) if batch_size % n == 0)
    return [mesh_of(devices[k * size : (k + 1) * size]) for k in range(slices)]


def choose_layout(shared: SeedRuns, names: Sequence[str], count: int, mesh: Mesh) -> tuple[str, list[Mesh]]:
    """Return the fastest of the possible layouts, and the devices of the seeds that train at the same time."""
    batch_size = next(iter(shared.recipes.values())).batch_size
    meshes = {
        "sequential": lambda: [mesh],
        "devices": lambda: device_slices(mesh, count, batch_size),
        "vmap": lambda: [mesh] * _vmap_group(shared, mesh, count),
    }
    layouts = {name: meshes[name]() for name in names}
    if len(layouts) == 1:
        return next(iter(layouts.items()))
    seconds = {name: math.ceil(count / len(m)) * seconds_per_round(shared, m, name) for name, m in layouts.items()}
    best = min(seconds, key=lambda name: seconds[name])
    measured = ", ".join(f"{_WORDS[name]} {1000 * taken:.1f} ms" for name, taken in seconds.items())
    shared.log(f"a step of all {count} seeds: {measured}; training {_WORDS[best]}")
    return best, layouts[best]


def _vmap_group(shared: SeedRuns, mesh: Mesh, count: int) -> int:
    """Return the number of seeds per program: as many as fit into memory, in groups of about the same size."""
    programs, (setup, _) = programs_on(shared, mesh), _first_setup(shared, mesh)
    inputs, (key, *teacher) = next(training_batches(programs.train, setup.recipe, range(1))), step_constants(setup)
    fitting = seeds_that_fit(setup, abstract_train_state(setup), inputs, key, count, teacher)
    groups = math.ceil(count / fitting)
    if groups == count > 1:
        shared.log("two seeds do not fit into the memory of a device: training in sequence")
    return math.ceil(count / groups)


def _first_setup(shared: SeedRuns, mesh: Mesh) -> tuple[TrainSetup, list[int]]:
    """Return `setup_training` of the first seed, with the teacher of all."""
    recipe = next(iter(shared.recipes.values()))
    setup, accum = setup_training(recipe, shared.sources.dataset, mesh, shared.parts, shared.options)
    return setup._replace(teacher=shared.teacher), accum


def seconds_per_round(shared: SeedRuns, meshes: Sequence[Mesh], name: str) -> float:
    """Return the median time of a step of all seeds of a group, on states that are thrown away."""
    distinct = list(dict.fromkeys(meshes))
    setups = [_first_setup(shared, mesh)[0] for mesh in distinct]
    programs = [programs_on(shared, mesh) for mesh in distinct]
    states = [init_train_state(setup) for setup in setups]
    feeds = [training_batches(p.train, s.recipe, range(1 + _ROUNDS)) for p, s in zip(programs, setups, strict=True)]
    constants = [step_constants(setup) for setup in setups]
    if name == "vmap":
        count, (key, *teacher) = len(meshes), constants[0]
        states, constants = [stack_trees([states[0]] * count)], [(stack_trees([key] * count), *teacher)]
        size = train_size_at(setups[0].recipe, setups[0].dataset.train_size, 0)
        stacked = stacked_step_on(shared, distinct[0], size)
    seconds = []
    for _ in range(1 + _ROUNDS):
        start, queued = time.perf_counter(), []
        for place, (state, feed, fixed) in enumerate(zip(states, feeds, constants, strict=True)):
            inputs = next(feed)
            if name == "vmap":
                states[place], sums = stacked(state, [inputs] * len(meshes), *fixed)
            else:
                step, compiling = programs[place].train_step(0, (state, inputs, *fixed))
                start += compiling
                states[place], sums = step(state, inputs, *fixed)
            queued.append(sums)
        jax.block_until_ready(queued)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def stacked_step_on(shared: SeedRuns, mesh: Mesh, image_size: int | None) -> jax.stages.Wrapped:
    """Return the step of several seeds in one program; measuring and training share what it compiles."""
    key = mesh, image_size
    if key not in shared.stacked:
        shared.stacked[key] = make_stacked_step(_first_setup(shared, mesh)[0], image_size)
    return shared.stacked[key]


def programs_on(shared: SeedRuns, mesh: Mesh) -> RunPrograms:
    """Return data and programs on these devices; data is read once, and copied from the devices that have it."""
    if mesh not in shared.programs:
        setup, accum = _first_setup(shared, mesh)
        if shared.programs:
            first = next(iter(shared.programs.values()))
            splits = move_to_mesh(first.train, mesh), move_to_mesh(first.evaluation, mesh)
        else:
            splits = open_splits(setup, shared.sources, shared.options, shared.corrupt)
        shared.programs[mesh] = make_programs(setup, *splits, compile_once(setup, accum, shared.log))
    return shared.programs[mesh]
