"""resnet-jax train."""

import shlex
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from resnet_jax.cli.parse import Unnamed, named_network, parse, split_first
from resnet_jax.cli.seeds import parse_seeds, report_seeds
from resnet_jax.cli.tables import plain_table
from resnet_jax.errors import InputError
from resnet_jax.parallel.hosts import HostOptions, join_hosts
from resnet_jax.recipe import Recipe, check, load_recipe
from resnet_jax.recipe.overrides import rescale_times
from resnet_jax.runtime.terminal import Terminal, show
from resnet_jax.training.options import RunFlags, RunOptions, validate_options

if TYPE_CHECKING:
    from resnet_jax.training.loop import TrainResult

# Fraction of the time from which waiting for data is reported
_WAITED = 0.1


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Run directory and seeds."""

    out: Path | None = None
    """Run directory; None is runs/NAME, with a number if that is taken. A run that is already there is resumed."""
    seeds: tuple[str, ...] = ()
    """Seeds to train with, START:STOP as in Python or one by one; their runs are OUT/seed0, OUT/seed1, ..."""
    seed_layout: Literal["auto", "vmap", "devices", "sequential"] = "auto"
    """Layout of several seeds: one program (vmap), one seed per device, one after the other, or the fastest (auto)."""
    on_corrupt_image: Literal["replace", "fail"] = "replace"
    """Action if a training image cannot be read: use the next one instead, or stop."""


def train(words: list[str]) -> int:
    """Train a recipe, or resume a run: train [RECIPE.py | RUN] [--field value ...] [--seeds 0:5] [--out DIR]"""
    path, recipe, train_options, options, hosts = _parsed(words)
    # What follows takes seconds
    if Terminal().is_terminal:
        show("starting")
    seeds = parse_seeds(train_options.seeds)
    join_hosts(hosts)

    from resnet_jax.parallel.multihost import is_primary_host, same_on_hosts

    out = train_options.out or (path if path and path.is_dir() and not seeds else None)
    # What fails on one host fails on all; they compare the rest when the data is open
    with same_on_hosts() as facts:
        validate_options(options)
        check(recipe)
        _require_out(out)
        facts |= {"--seeds": seeds, "--seed-layout": train_options.seed_layout}
    if seeds:
        return _train_seeds(path, recipe, seeds, train_options, options)
    from resnet_jax.training import run

    out = out or _default_out(Path("runs") / (path.stem if path else recipe.data.name), recipe)
    result = run.train(recipe, out, options=options)
    if is_primary_host():
        _report(result, recipe, options, out)
    return 128 + result.signal if result.signal else 0


def _default_out(stem: Path, recipe: Recipe) -> Path:
    """Return the run directory to write if none is named, and say so if the obvious one is taken."""
    from resnet_jax.run_dir.files import is_run, next_run_dir, read_recipe

    out = next_run_dir(stem, recipe)
    if out != stem:
        finished = is_run(stem) and read_recipe(stem) == recipe
        show(f"{stem} {'is finished' if finished else 'holds something else'}; writing {out}")
    return out


def _require_out(out: Path | None) -> None:
    import jax

    if out is None and jax.process_count() > 1:
        raise InputError("several hosts write to one directory that all of them see; name it with --out")


def _train_seeds(
    path: Path | None,
    recipe: Recipe,
    seeds: list[int],
    train_options: TrainOptions,
    options: RunOptions,
) -> int:
    """Train several seeds; raise the first error that ended one, after the others have ended."""
    if train_options.out is None and path is not None and path.is_dir():
        raise InputError(f"{path}: is one run; name a directory for those of the --seeds with --out")

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
    base = load_recipe(path, network=named_network(rest)) if path else Recipe()
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
        raise InputError("--seed and --seeds are given; name the seeds with one of them")
    if "--seeds" in given and not train_options.seeds:
        raise InputError("--seeds is empty; give START:STOP, such as 0:5, or seeds such as 0 3 7")
    options = RunOptions(**vars(flags), return_on_signal=True)
    if train_options.on_corrupt_image == "fail":
        options = replace(options, max_corrupt_fraction=0.0)
    return path, rescale_times(recipe, base, rest), train_options, options, hosts


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
