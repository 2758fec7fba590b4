"""Train seeds in groups, as many at the same time as a layout has room for."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
from jax.sharding import Mesh

from resnet_jax.errors import InputError, MachineError
from resnet_jax.runtime.signals import reraise_signal
from resnet_jax.runtime.threads import run_in_threads
from resnet_jax.training.loop import train_loop
from resnet_jax.training.make_step import step_constants
from resnet_jax.training.progress import Tick
from resnet_jax.training.run import log_start, restore_or_init, run_with_teacher, write_start
from resnet_jax.training.run_state import RunState, TrainResult, ended_result, finished_result
from resnet_jax.training.seed_layout import SeedRuns, choose_layout, programs_on, stacked_step_on
from resnet_jax.training.setup import setup_training
from resnet_jax.training.stacked import Ended, train_stacked


def run_of(out: Path, seed: int) -> Path:
    """Return the run directory of a seed."""
    return out / f"seed{seed}"


def train_groups(
    shared: SeedRuns, todo: list[int], names: Sequence[str], mesh: Mesh, make_tick: Callable[[RunState], Tick]
) -> dict[int, Ended]:
    """Train group after group until a signal stops one; seeds that have ended only report."""
    ended: dict[int, Ended] = {}
    for seed in shared.recipes:
        if seed not in todo:
            ended |= _train_group(shared, [seed], [shared.mesh], False, make_tick)
    if todo:
        name, meshes = choose_layout(shared, names, len(todo), mesh)
        # No seed has taken a step yet
        reraise_signal(shared.stop())
        for other in shared.programs.keys() - set(meshes):
            del shared.programs[other]
    while todo and not any(isinstance(end, TrainResult) and end.signal for end in ended.values()):
        group, todo = todo[: len(meshes)], todo[len(meshes) :]
        ended |= _train_group(shared, group, meshes, name == "vmap", make_tick)
    return {seed: ended[seed] for seed in shared.recipes if seed in ended}


def _train_group(
    shared: SeedRuns,
    seeds: Sequence[int],
    meshes: Sequence[Mesh],
    stacked: bool,
    make_tick: Callable[[RunState], Tick],
) -> dict[int, Ended]:
    """Return how the seeds ended that train at the same time."""
    ended: dict[int, Ended] = {}
    runs: dict[int, RunState] = {}
    for seed, mesh in zip(seeds, meshes, strict=False):
        try:
            run = _open(shared, seed, mesh)
            done = finished_result(run, shared.options)
            run = run if done else run_with_teacher(run, shared.teacher)
        except (InputError, MachineError) as error:
            ended[seed] = _end_with(shared, seed, error)
            continue
        if done:
            ended[seed] = _on_host(done)
        else:
            runs[seed] = run
    for run in runs.values():
        log_start(run)
    if not runs:
        return ended
    for run in runs.values():
        programs_on(shared, run.setup.mesh)
    for run in runs.values():
        write_start(run, shared.options)
    ticks = {seed: make_tick(run) for seed, run in runs.items()}
    train_runs = _train_vmap if stacked and len(runs) > 1 else _train_threads
    return ended | train_runs(shared, runs, ticks)


def _open(shared: SeedRuns, seed: int, mesh: Mesh) -> RunState:
    recipe, dataset = shared.recipes[seed], shared.sources.dataset
    setup, _ = setup_training(recipe, dataset, mesh, shared.parts, shared.options)
    setup = setup._replace(draws=shared.sources.train.draws)
    return restore_or_init(setup, run_of(shared.out, seed), lambda line: shared.log(f"seed {seed}: {line}"))


def _train_threads(shared: SeedRuns, runs: Mapping[int, RunState], ticks: Mapping[int, Tick]) -> dict[int, Ended]:
    """Train each run with a loop of its own, several of them on threads."""
    aborted = threading.Event()

    def train_one(seed: int) -> Ended:
        run = runs[seed]
        try:
            result = train_loop(
                run,
                shared.programs[run.setup.mesh],
                shared.options,
                constants=step_constants(run.setup),
                loggers=shared.loggers,
                stop=lambda: shared.stop() or int(aborted.is_set()),
                tick=ticks[seed],
            )
        except (InputError, MachineError) as error:
            return _end_with(shared, seed, error)
        return _on_host(result)

    calls = [lambda seed=seed: train_one(seed) for seed in runs]
    ends = [calls[0]()] if len(calls) == 1 else run_in_threads(calls, aborted.set)
    return dict(zip(runs, ends, strict=True))


def _train_vmap(shared: SeedRuns, runs: Mapping[int, RunState], ticks: Mapping[int, Tick]) -> dict[int, Ended]:
    """Train runs in one program; those that are behind train alone until all are at the same step."""
    furthest = max(run.step for run in runs.values())
    ended: dict[int, Ended] = {}
    ready: dict[int, RunState] = {}
    for seed, run in runs.items():
        if run.step < furthest:
            alone = shared._replace(options=replace(shared.options, stop_at=furthest))
            (end,) = _train_threads(alone, {seed: run}, ticks).values()
            if isinstance(end, Exception) or end.signal or end.reached or end.early_stopped:
                ended[seed] = end
                continue
            run = run_with_teacher(_open(shared, seed, run.setup.mesh), shared.teacher)
        ready[seed] = run
    if not ready or shared.stop():
        results = {seed: ended_result(run, shared.options, shared.stop()) for seed, run in ready.items()}
        return ended | {seed: _on_host(result) for seed, result in results.items()}
    seeds = list(ready)
    mesh = next(iter(ready.values())).setup.mesh
    ends = train_stacked(
        list(ready.values()),
        shared.programs[mesh],
        partial(stacked_step_on, shared, mesh),
        shared.options,
        constants=[step_constants(run.setup) for run in ready.values()],
        loggers=shared.loggers,
        stop=shared.stop,
        ticks=[ticks[seed] for seed in ready],
        ended=lambda number, error: shared.log(f"seed {seeds[number]}: {error}"),
    )
    for seed, end in zip(ready, ends, strict=True):
        ended[seed] = _on_host(end) if isinstance(end, TrainResult) else _named(seed, end)
    return {seed: ended[seed] for seed in runs}


def _end_with(shared: SeedRuns, seed: int, error: InputError | MachineError) -> InputError | MachineError:
    """Say what ended a seed, at once, and return it with the name of the seed."""
    shared.log(f"seed {seed}: {error}")
    return _named(seed, error)


def _named(seed: int, error: InputError | MachineError) -> InputError | MachineError:
    return type(error)(f"seed {seed}: {error}").with_traceback(error.__traceback__)


def _on_host(result: TrainResult) -> TrainResult:
    """Return the result with its state as NumPy arrays: the devices are for seeds that are still training."""
    return result._replace(state=jax.device_get(result.state)) if jax.process_count() == 1 else result
