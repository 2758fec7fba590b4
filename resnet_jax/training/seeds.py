"""One recipe with several seeds: each is an ordinary run in a directory of its own.

The layout on the devices decides when they are done, and not what they become. In sequence, or each on devices of its
own, a seed takes the steps of its single run on as many devices, by the same program: the same bits. In one program
(`vmap`) they are equal up to rounding.
"""

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console

from resnet_jax.data.source import Source
from resnet_jax.errors import InputError, MachineError
from resnet_jax.parallel.multihost import is_primary_host, same_on_hosts
from resnet_jax.parallel.sharding import data_mesh
from resnet_jax.recipe import Recipe, check
from resnet_jax.run_dir.files import is_finished, is_run, require_same_run
from resnet_jax.run_dir.lock import run_lock
from resnet_jax.runtime.signals import reraise_signal, stop_signal, watchdog
from resnet_jax.runtime.threads import run_in_threads
from resnet_jax.training.loop import (
    RunState,
    TrainResult,
    finished_result,
    guarded_loggers,
    train_loop,
)
from resnet_jax.training.options import RunOptions, default_data_dir, validate_options
from resnet_jax.training.progress import (
    AddBar,
    RunConsole,
    Tick,
    console_log,
    corrupt_log,
    progress,
)
from resnet_jax.training.run import (
    all_of,
    log_start,
    restore_or_init,
    unless_stopped,
    write_start,
)
from resnet_jax.training.seed_layout import (
    SeedLayout,
    SeedRuns,
    choose_layout,
    device_slices,
    possible_layouts,
    programs_on,
)
from resnet_jax.training.setup import BatchLayout, Parts, setup_training, step_key
from resnet_jax.training.sources import eval_split, facts_of, open_sources, with_digest
from resnet_jax.training.stacked import Ended, train_stacked


def train_seeds(recipe: Recipe, seeds: Sequence[int], out: Path | str, **options: Any) -> list[TrainResult]:
    """Train a recipe with each of the seeds in OUT/seed0, OUT/seed1, ..., and return how each ended.

    Seeds that have started are resumed, and those that have ended are left alone. The states are NumPy arrays.

    Args:
        recipe: everything that decides the results but the seed.
        seeds: different ones.
        out: parent of the run directories.
        **options: those of `train_each_seed`.

    Raises:
        InputError: As `train`; if a seed cannot continue, after the others have ended.
        MachineError: Likewise.
        KeyboardInterrupt: As `train`, after the others have stopped.

    Example:
        >>> results = train_seeds(Recipe(), range(5), "runs/digits-seeds")  # doctest: +SKIP
        >>> [result.rows[-1]["test/accuracy"] for result in results]  # doctest: +SKIP
    """
    ended = train_each_seed(recipe, seeds, out, **options)
    for result in ended.values():
        if isinstance(result, Exception):
            raise result
    chosen = options.get("options", RunOptions())
    return [unless_stopped(result, chosen) for result in ended.values() if isinstance(result, TrainResult)]


def train_each_seed(
    recipe: Recipe,
    seeds: Sequence[int],
    out: Path | str,
    *,
    options: RunOptions = RunOptions(),
    seed_layout: SeedLayout = "auto",
    data: tuple[Source, Source] | None = None,
    parts: Parts = Parts(),
    log: Sequence[Callable[..., None]] = (),
    console: Console | None = None,
) -> dict[int, Ended]:
    """Train each seed as `train_seeds` does; return by seed how it ended, or the error that ended it.

    After a signal, seeds that have not started are left out.

    Args:
        recipe: everything that decides the results but the seed.
        seeds: different ones.
        out: parent of the run directories.
        options: as for `train`.
        seed_layout: "devices", each on devices of its own; "vmap", in one program, as many as fit into memory;
            "sequential", one after the other on all devices; or "auto", whichever measures fastest.
        data: as for `train`.
        parts: values instead of names, as for `train`.
        log: as for `train`.
        console: as for `train`.

    Raises:
        InputError: Recipe, seeds, data, devices or directories do not fit each other, and nothing was written.
    """
    validate_options(options)
    require_seeds(seeds)
    out = Path(out).expanduser()
    recipes = {seed: check(replace(recipe, seed=seed)) for seed in seeds}
    recipe = recipes[seeds[0]]
    if is_run(out):
        raise InputError(f"{out}: is a run itself; choose another --out for its seeds")
    with ExitStack() as locks:
        signal_received = locks.enter_context(stop_signal())
        for seed in seeds:
            locks.enter_context(run_lock(run_of(out, seed)))
        with same_on_hosts() as facts:
            sources = with_digest(open_sources(recipe, Path(options.data_dir or default_data_dir()), data, parts.task))
            facts |= facts_of(recipe, sources, out, options)
        mesh = data_mesh(options.devices)
        reraise_signal(signal_received())
        todo = [seed for seed in seeds if not (is_run(run_of(out, seed)) and is_finished(run_of(out, seed)))]
        names = possible_layouts(seed_layout, len(todo), recipe.batch_size, mesh)
        first = device_slices(mesh, 1, recipe.batch_size)[0]
        layout = BatchLayout(first, options.grad_accum_steps, options.param_sharding)
        # For its errors, before anything is written
        setup_training(recipe, sources.dataset, layout, parts, options.metrics)
        for seed in seeds:
            require_same_run(run_of(out, seed), recipes[seed], sources.dataset, parts.given())
        console = console or RunConsole(quiet=not is_primary_host())
        say = console_log(console)
        for note in sources.notes():
            say(note)
        shared = SeedRuns(
            recipes, out, sources, layout, options, parts, guarded_loggers(log, say), say, {}, {}, signal_received
        )
        with watchdog(options.watchdog_seconds) as kick, progress(console) as add_bar:
            return _train(shared, todo, names, mesh, kick, add_bar)


def require_seeds(seeds: Sequence[int]) -> None:
    """Raise InputError if there is no seed, or one twice."""
    if not seeds:
        raise InputError("--seeds is empty; give at least one seed")
    seed, times = Counter(seeds).most_common(1)[0]
    if times > 1:
        raise InputError(f"--seeds has {seed} twice; give each seed once")


def run_of(out: Path, seed: int) -> Path:
    """Return the run directory of a seed."""
    return out / f"seed{seed}"


def next_seeds_dir(stem: Path, recipe: Recipe, seeds: Sequence[int]) -> Path:
    """Return the first of STEM, STEM-2, ... that does not exist, or whose runs of these seeds have this recipe."""
    for number in itertools.count(1):
        folder = stem if number == 1 else stem.with_name(f"{stem.name}-{number}")
        with suppress(InputError):
            for seed in seeds if folder.exists() else ():
                require_same_run(run_of(folder, seed), replace(recipe, seed=seed))
            return folder
    raise AssertionError("unreachable")


def _train(
    shared: SeedRuns, todo: list[int], names: Sequence[str], mesh: Mesh, kick: Callable[[], None], add_bar: AddBar
) -> dict[int, Ended]:
    """Train group after group until a signal stops one; seeds that have ended only report."""
    ended: dict[int, Ended] = {}
    for seed in shared.recipes:
        if seed not in todo:
            ended |= _train_group(shared, [seed], [shared.layout.mesh], False, kick, add_bar)
    if todo:
        name, meshes = choose_layout(shared, names, len(todo), mesh)
        # No seed has taken a step yet
        reraise_signal(shared.stop())
        for other in shared.programs.keys() - set(meshes):
            del shared.programs[other]
    while todo and not any(isinstance(end, TrainResult) and end.signal for end in ended.values()):
        group, todo = todo[: len(meshes)], todo[len(meshes) :]
        ended |= _train_group(shared, group, meshes, name == "vmap", kick, add_bar)
    return {seed: ended[seed] for seed in shared.recipes if seed in ended}


def _train_group(
    shared: SeedRuns,
    seeds: Sequence[int],
    meshes: Sequence[Mesh],
    stacked: bool,
    kick: Callable[[], None],
    add_bar: AddBar,
) -> dict[int, Ended]:
    """Return how the seeds ended that train at the same time."""
    ended: dict[int, Ended] = {}
    runs: dict[int, RunState] = {}
    for seed, mesh in zip(seeds, meshes, strict=False):
        try:
            run = _open(shared, seed, mesh)
            done = finished_result(run, shared.options)
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
    most = shared.options.max_corrupt_fraction * shared.sources.dataset.train_size
    log_corrupt = corrupt_log(shared.corrupt, most, shared.log)
    ticks = {seed: all_of(kick, log_corrupt, _bar(shared, run, add_bar)) for seed, run in runs.items()}
    train_runs = _train_vmap if stacked and len(runs) > 1 else _train_threads
    return ended | train_runs(shared, runs, ticks)


def _open(shared: SeedRuns, seed: int, mesh: Mesh) -> RunState:
    layout, options = shared.layout._replace(mesh=mesh), shared.options
    setup, _ = setup_training(shared.recipes[seed], shared.sources.dataset, layout, shared.parts, options.metrics)
    return restore_or_init(setup, run_of(shared.out, seed), lambda line: shared.log(f"seed {seed}: {line}"))


def _bar(shared: SeedRuns, run: RunState, add_bar: AddBar) -> Tick:
    last = min(run.setup.steps, shared.options.stop_at or run.setup.steps)
    return add_bar(f"{run.out.name} step", run.setup.recipe.batch_size, run.step, last)


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
                key=step_key(run.setup),
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
            if isinstance(end, Exception) or end.signal or end.reached:
                ended[seed] = end
                continue
            run = _open(shared, seed, run.setup.mesh)
        ready[seed] = run
    if not ready or shared.stop():
        stopped = {seed: _on_host(_stopped(run, shared.stop())) for seed, run in ready.items()}
        return ended | stopped
    seeds = list(ready)
    ends = train_stacked(
        list(ready.values()),
        shared.programs[next(iter(ready.values())).setup.mesh],
        shared.options,
        keys=[step_key(run.setup) for run in ready.values()],
        loggers=shared.loggers,
        stop=shared.stop,
        ticks=[ticks[seed] for seed in ready],
        ended=lambda number, error: shared.log(f"seed {seeds[number]}: {error}"),
    )
    for seed, end in zip(ready, ends, strict=True):
        ended[seed] = _on_host(end) if isinstance(end, TrainResult) else _named(seed, end)
    return {seed: ended[seed] for seed in runs}


def _stopped(run: RunState, signal: int) -> TrainResult:
    split = eval_split(run.setup.recipe)
    return TrainResult(run.state, run.step, run.setup.steps, split, run.rows, signal)


def _end_with(shared: SeedRuns, seed: int, error: InputError | MachineError) -> InputError | MachineError:
    """Say what ended a seed, at once, and return it with the name of the seed."""
    shared.log(f"seed {seed}: {error}")
    return _named(seed, error)


def _named(seed: int, error: InputError | MachineError) -> InputError | MachineError:
    return type(error)(f"seed {seed}: {error}").with_traceback(error.__traceback__)


def _on_host(result: TrainResult) -> TrainResult:
    """Return the result with its state as NumPy arrays: the devices are for seeds that are still training."""
    return result._replace(state=jax.device_get(result.state)) if jax.process_count() == 1 else result
