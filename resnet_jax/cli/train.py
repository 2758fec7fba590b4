"""resnet-jax train."""

import shlex
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from resnet_jax.cli.folds import first_fold, train_folds
from resnet_jax.cli.log import TrackerName
from resnet_jax.cli.parse import Unnamed, named, parse, split_first
from resnet_jax.cli.seeds import parse_seeds, report_seeds
from resnet_jax.cli.tables import plain_table
from resnet_jax.errors import InputError
from resnet_jax.parallel.hosts import HostOptions, join_hosts
from resnet_jax.recipe import Recipe, check, load_recipe, total_steps
from resnet_jax.recipe.overrides import rescale_times
from resnet_jax.runtime.terminal import Terminal, show
from resnet_jax.training.options import RunFlags, RunOptions, validate_options

if TYPE_CHECKING:
    from resnet_jax.training.run_state import TrainResult

# Fraction of the time from which waiting for data is reported
_WAITED = 0.1


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Run directory, seeds and data."""

    out: Path | None = None
    """Run directory; an existing run is resumed. None is runs/NAME, with a number if that is taken."""
    seeds: tuple[str, ...] = ()
    """Seeds to train with, START:STOP as in Python or a list; the runs are OUT/seed0, OUT/seed1, ..."""
    seed_layout: Literal["auto", "vmap", "devices", "sequential"] = "auto"
    """Layout of several seeds: one program (vmap), one seed per device, one after the other, or the fastest (auto)."""
    folds: int | None = None
    """Number of folds for cross-validation: one run per fold, OUT/fold1, OUT/fold2, ..."""
    log: tuple[TrackerName, ...] = ()
    """Trackers to send metrics to during training; `resnet-jax log` sends any that are missing."""
    download: bool = False
    """Download the data set unless it is there: cifar10, cifar100, imagenette, flowers102 or oxford_iiit_pet."""
    deterministic: bool = False
    """Use deterministic GPU kernels: slower, but bitwise the same results each time."""
    on_corrupt_image: Literal["replace", "fail"] = "replace"
    """Action if a training image cannot be read: use the next one instead, or stop."""


def train(words: list[str]) -> int:
    """Train a recipe, or resume a run: train [RECIPE.py | RUN] [--field value ...] [--seeds 0:5] [--out DIR]"""
    path, recipe, train_options, options, hosts = _parsed(words)
    if train_options.deterministic:
        from resnet_jax.runtime.compiler_options import ask_for_determinism

        ask_for_determinism()
    if train_options.folds is not None:
        recipe = first_fold(recipe, train_options.folds)
    # What follows takes seconds
    if Terminal().is_terminal:
        show("starting")
    seeds = parse_seeds(train_options.seeds)
    join_hosts(hosts)

    from resnet_jax.parallel.multihost import is_primary_host, same_on_hosts

    is_child = not train_options.out and not seeds and not train_options.folds and _continues(path, recipe)
    recipe = replace(recipe, parent=str(path)) if is_child else recipe
    in_place = path if path and path.is_dir() and not (seeds or train_options.folds) and not is_child else None
    out = train_options.out or in_place
    # What fails on one host fails on all; they compare the rest when the data is open
    with same_on_hosts() as facts:
        validate_options(options)
        check(recipe)
        _require_out(out)
        facts |= {"--seeds": seeds, "--seed-layout": train_options.seed_layout}
        if train_options.download:
            _download(recipe, options)
    if seeds:
        return _train_seeds(path, recipe, seeds, train_options, options)
    if train_options.folds is not None:
        stem = Path("runs") / f"{path.stem if path else recipe.data.name}-folds"
        return train_folds(recipe, train_options.folds, train_options.out or stem, options)
    from resnet_jax.training import run

    out = out or _default_out(
        path if is_child else None, Path("runs") / (path.stem if path else recipe.data.name), recipe
    )
    from resnet_jax.training.trackers import tracking

    with tracking(train_options.log, out, show) as loggers:
        result = run.train(recipe, out, options=options, log=loggers)
        if is_primary_host():
            _report(result, recipe, options, out)
    return 128 + result.signal if result.signal else 0


def _continues(path: Path | None, recipe: Recipe) -> bool:
    """Return whether the changed recipe of a run has steps after its newest checkpoint: a new run continues it."""
    if path is None or not (path / "dataset.json").is_file():
        return False
    from resnet_jax.checkpoint.store import committed
    from resnet_jax.run_dir.files import read_dataset_info, read_recipe

    steps = committed(path / "checkpoints")
    length = total_steps(recipe, read_dataset_info(path).train_size)
    return bool(steps) and recipe != read_recipe(path) and max(steps) < length


def _default_out(parent: Path | None, stem: Path, recipe: Recipe) -> Path:
    """Return the run directory to write if none is named, and say so if the obvious one is taken."""
    from resnet_jax.run_dir.files import is_run, next_run_dir, read_recipe

    # A parent may be given as "."
    out = next_run_dir(parent.absolute() if parent and not parent.name else parent or stem, recipe)
    if parent:
        show(f"the recipe differs from that of {parent}; a new run, {out}, continues its newest state")
    elif out != stem:
        finished = is_run(stem) and read_recipe(stem) == recipe
        show(f"{stem} {'is finished' if finished else 'is taken'}; writing {out}")
    return out


def _download(recipe: Recipe, options: RunOptions) -> None:
    from resnet_jax.data.formats.published import fetch
    from resnet_jax.training.options import default_data_dir

    fetch(recipe.data.name, options.data_dir or default_data_dir(), show)


def _require_out(out: Path | None) -> None:
    import jax

    if out is None and jax.process_count() > 1:
        raise InputError("on several hosts, name the run directory with --out; all hosts must share it")


def _train_seeds(
    path: Path | None,
    recipe: Recipe,
    seeds: list[int],
    train_options: TrainOptions,
    options: RunOptions,
) -> int:
    """Train several seeds; raise the first error that ended one, after the others have ended."""
    if train_options.out is None and path is not None and path.is_dir():
        raise InputError(f"{path}: is a single run; name a directory for the runs of --seeds with --out")

    from resnet_jax.parallel.multihost import is_primary_host
    from resnet_jax.training.seeds import next_seeds_dir, train_each_seed

    stem = Path("runs") / f"{path.stem if path else recipe.data.name}-seeds"
    out = train_options.out or next_seeds_dir(stem, recipe, seeds)
    ended = train_each_seed(recipe, seeds, out, options=options, seed_layout=train_options.seed_layout)
    if is_primary_host():
        report_seeds(ended, seeds, recipe, out)
    if signal := max(getattr(end, "signal", 0) for end in ended.values()):
        return 128 + signal
    for end in ended.values():
        if isinstance(end, Exception):
            raise end
    return 0


def _parsed(words: list[str]) -> tuple[Path | None, Recipe, TrainOptions, RunOptions, HostOptions]:
    """Return the path of the recipe or run, if given, and the parsed recipe and options."""
    path, rest = split_first(words)
    base = load_recipe(path, network=named(rest, "--model.name"), data=named(rest, "--data.name")) if path else Recipe()
    kind = cast(
        type[tuple[Recipe, TrainOptions, RunFlags, HostOptions]],
        tuple[Unnamed[Recipe], Unnamed[TrainOptions], Unnamed[RunFlags], Unnamed[HostOptions]],
    )
    default = (base, TrainOptions(), _flags_of(path), HostOptions())
    recipe, train_options, flags, hosts = parse(
        kind, rest, prog="resnet-jax train", description=train.__doc__ or "", default=default
    )
    given = {word.split("=")[0] for word in rest}
    if {"--seed", "--seeds"} <= given:
        raise InputError("--seed and --seeds cannot be combined; use one of them")
    if train_options.seeds and train_options.folds is not None:
        raise InputError("--seeds and --folds cannot be combined; use one of them, or --seed 1 --folds 5")
    if (train_options.seeds or train_options.folds) and train_options.log:
        raise InputError("--log is for a single run; for several, use resnet-jax log OUT/seed* --to ... afterwards")
    if "--seeds" in given and not train_options.seeds:
        raise InputError("--seeds is empty; give START:STOP, such as 0:5, or seeds such as 0 3 7")
    options = RunOptions(**vars(flags), return_on_signal=True)
    if train_options.on_corrupt_image == "fail":
        options = replace(options, max_corrupt_fraction=0.0)
    # The times of a run that is continued are in the past, and stay
    continued = recipe.parent or (path and path.is_dir() and not train_options.out)
    return path, recipe if continued else rescale_times(recipe, base, rest), train_options, options, hosts


def _flags_of(path: Path | None) -> RunFlags:
    """Return the options that a run was started with, and where its data were; the defaults if it is no run."""
    if path is None or not path.is_dir():
        return RunFlags()
    from resnet_jax.run_dir.files import read_dataset_info, read_options

    found = Path(read_dataset_info(path).data_dir) if (path / "dataset.json").is_file() else None
    return RunFlags(**read_options(path), data_dir=found if found and found.is_dir() else None)


def _report(result: "TrainResult", recipe: Recipe, options: RunOptions, out: Path) -> None:
    """Draw the curves, print the table, and print how to resume."""
    from resnet_jax.report.curves import draw_curves

    if result.rows:
        draw_curves(result.rows, f"{recipe.model.name} on {recipe.data.name}", out / "curves.png")
        show_result(result, out)
    if result.reached:
        row = result.reached
        seconds = row["train_seconds"]
        show(f"target {options.target_metric:g} reached at step {row['step']}, in {seconds:.1f} s of training")
    if result.early_stopped:
        best = result.early_stopped["step"]
        show(f"stopped early: no improvement in {options.patience} evaluations after step {best}, which --best uses")
    if result.step < result.steps:
        why, again = "interrupted" if result.signal else "stopped", f"resnet-jax train {shlex.quote(str(out))}"
        again += f" --model.name {recipe.model.name}" if ":" in recipe.model.name else ""
        show(f"{why} at step {result.step} of {result.steps}, checkpoint saved; resume with: {again}")


def show_result(result: "TrainResult", out: Path) -> None:
    """Print the short table at the end of training."""
    from resnet_jax.tasks.metrics import display_of, format_value

    row = result.rows[-1]
    table = plain_table(f"step {row['step']} of {result.steps}", "")
    for key, value in row.items():
        prefix, _, name = key.rpartition("/")
        if prefix and value is not None and display_of(name).shown:
            errors, count = row.get(f"{prefix}/errors"), row.get(f"{prefix}/count")
            wrong = (
                f"  ({errors} of {count:,} wrong)"
                if errors is not None and display_of(name).complement == "error"
                else ""
            )
            table.add_row(f"{prefix.replace('/', ' ')} {name.replace('_', ' ')}", format_value(name, value) + wrong)
    speed = statistics.median(row["images_per_second"] for row in result.rows)
    table.add_row("training time", f"{row['train_seconds']:.1f} s  ({speed:,.0f} images/s)")
    waited = statistics.median(row["data_wait_fraction"] for row in result.rows)
    if waited > _WAITED:
        advice = "more --num-threads, or `resnet-jax prepare` the data once"
        table.add_row("waiting for data", f"{waited:.0%} of the time; {advice}")
    table.add_row("curves", str(out / "curves.png"))
    table.add_row("run", str(out))
    show(table)
