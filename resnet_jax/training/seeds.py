"""One recipe with several seeds: each is an ordinary run in a directory of its own.

The layout on the devices decides when they are done, and not what they become. In sequence, or each on devices of its
own, a seed takes the steps of its single run on as many devices, by the same program: the same bits. In one program
(`vmap`) they are equal up to rounding.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from resnet_jax.data.source import Source
from resnet_jax.errors import InputError
from resnet_jax.parallel.multihost import is_primary_host, same_on_hosts
from resnet_jax.parallel.sharding import data_mesh
from resnet_jax.recipe import Recipe, check
from resnet_jax.run_dir.files import is_finished, is_run, require_same_monitor, require_same_run
from resnet_jax.run_dir.lock import run_lock
from resnet_jax.runtime.safe_files import numbered
from resnet_jax.runtime.signals import reraise_signal, stop_signal, watchdog
from resnet_jax.training.loop import guarded_loggers
from resnet_jax.training.options import RunOptions, default_data_dir, require_epoch_rows, validate_options
from resnet_jax.training.progress import RunConsole, console_log, corrupt_log, progress, require_written
from resnet_jax.training.run import make_tick, unless_stopped
from resnet_jax.training.run_state import TrainResult
from resnet_jax.training.seed_groups import run_of, train_groups
from resnet_jax.training.seed_layout import SeedLayout, SeedRuns, device_slices, possible_layouts
from resnet_jax.training.setup import Parts, setup_training
from resnet_jax.training.sources import facts_of, notes_on_data, open_sources, with_digest
from resnet_jax.training.stacked import Ended
from resnet_jax.training.teacher import with_teacher


def train_seeds(recipe: Recipe, seeds: Sequence[int], out: Path | str, **options: Any) -> list[TrainResult]:
    """Train a recipe with each of the seeds in OUT/seed0, OUT/seed1, ..., and return how each ended.

    Unfinished seeds are resumed, and finished ones are not touched. The states are NumPy arrays.

    Args:
        recipe: everything that determines the results, except the seed.
        seeds: distinct seeds.
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
        recipe: everything that determines the results, except the seed.
        seeds: distinct seeds.
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
    require_epoch_rows(recipe, options)
    require_seeds(seeds)
    out = Path(out).expanduser()
    recipes = {seed: check(replace(recipe, seed=seed)) for seed in seeds}
    recipe = recipes[seeds[0]]
    if is_run(out):
        raise InputError(f"{out}: is a run itself; choose another --out for its seeds")
    with ExitStack() as locks:
        signal_received = locks.enter_context(stop_signal(options.time_limit))
        for seed in seeds:
            locks.enter_context(run_lock(run_of(out, seed)))
        with same_on_hosts() as facts:
            sources = with_digest(open_sources(recipe, Path(options.data_dir or default_data_dir()), data, parts.task))
            facts |= facts_of(recipe, sources, out, options)
        mesh = data_mesh(options.devices)
        reraise_signal(signal_received())
        todo = [seed for seed in seeds if not (is_run(run_of(out, seed)) and is_finished(run_of(out, seed)))]
        names = possible_layouts(seed_layout, len(todo), recipe.batch_size, mesh)
        (first,) = device_slices(mesh, 1, recipe.batch_size)
        # For its errors, before anything is written
        setup, _ = setup_training(recipe, sources.dataset, first, parts, options)
        teacher = with_teacher(setup).teacher if todo else None
        for seed in seeds:
            require_same_run(run_of(out, seed), recipes[seed], sources.dataset, parts.given())
            require_same_monitor(run_of(out, seed), options.monitor)
        console = console or RunConsole(quiet=not is_primary_host())
        say, corrupt = console_log(console), dict[int, str]()
        loggers, most = guarded_loggers(log, say), options.max_corrupt_fraction * sources.dataset.train_size
        for note in (*sources.notes(), *notes_on_data(recipe, sources)):
            say(note)
        shared = SeedRuns(
            recipes, out, sources, first, options, parts, loggers, say, {}, {}, corrupt, signal_received, teacher
        )
        with watchdog(options.watchdog_seconds) as kick, progress(console, setup.task.facts.display) as add_bar:
            log_corrupt = corrupt_log(corrupt, most, say)
            ticks = partial(make_tick, options=options, kick=kick, log_corrupt=log_corrupt, add_bar=add_bar)
            ended = train_groups(shared, todo, names, mesh, ticks)
    require_written(console)
    return ended


def require_seeds(seeds: Sequence[int]) -> None:
    """Raise InputError if there is no seed, or one twice."""
    if not seeds:
        raise InputError("--seeds is empty; give at least one seed")
    seed, times = Counter(seeds).most_common(1)[0]
    if times > 1:
        raise InputError(f"--seeds has {seed} twice; give each seed once")


def next_seeds_dir(stem: Path, recipe: Recipe, seeds: Sequence[int]) -> Path:
    """Return the first of STEM, STEM-2, ... that does not exist, or whose runs of these seeds have this recipe."""
    for folder in numbered(stem):
        with suppress(InputError):
            for seed in seeds if folder.exists() else ():
                require_same_run(run_of(folder, seed), replace(recipe, seed=seed))
            return folder
    raise AssertionError("unreachable")
