"""resnet-jax train."""

import os
import shlex
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from rich.markup import escape
from rich.table import Table

from resnet_jax.cli.seeding import parse_seeds, report_seeds
from resnet_jax.cli.tables import plain_table, show
from resnet_jax.errors import InputError
from resnet_jax.hosts import Hosts, join
from resnet_jax.parse import Unnamed, parse, split_first, unset_other_length
from resnet_jax.recipe import Recipe, load_recipe
from resnet_jax.train.habits import Feeding, Habits

_WAITED = 0.1  # share of the time from which waiting for data is worth a word

if TYPE_CHECKING:
    from resnet_jax.train.run import Result


def default_data_dir() -> Path:
    return Path(os.environ.get("RESNET_JAX_DATA", "data"))


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How and where to run; none of it changes the curve."""

    out: Path | None = None
    """Run directory. None is runs/NAME, with a number if that is taken; a run already there goes on."""
    data_dir: Path | None = None
    """Where data sets are looked for; None is $RESNET_JAX_DATA, or else data/."""
    devices: int | None = None
    """Devices to use; None is all."""
    accumulate: int | Literal["auto"] = 1
    """Parts into which a batch is cut, one after the other, for less memory; auto takes as few as it can."""
    shard: Literal["nothing", "params"] = "nothing"
    """What is spread over the devices, and gathered for each step, in place of being on each of them."""
    seeds: tuple[str, ...] = ()
    """Seeds to train with, START:STOP as in Python or one by one; their runs are OUT/seed0, OUT/seed1, ..."""
    side_by_side: Literal["auto", "devices", "vmap", "none"] = "auto"
    """How several seeds are trained: each on devices of its own, in one program, one after the other, or what is
    fastest."""
    on_bad_image: Literal["replace", "fail"] = "replace"
    """What happens where a training image cannot be read: the next takes its place, or the run stops at once."""


def train(words: list[str]) -> int:
    """train a recipe, or go on with a run: train [RECIPE.py | RUN] [--field value ...] [--seeds 0:5] [--out DIR]"""
    path, recipe, options, habits, feeding, hosts = _parsed(words)
    if options.seeds:
        return _train_seeds(path, recipe, parse_seeds(options.seeds), options, habits, feeding, hosts)
    join(hosts)

    import jax

    from resnet_jax.train.devices import on_first_host
    from resnet_jax.train.directory import free_run
    from resnet_jax.train.run import train_recipe

    out = options.out or (path if path and path.is_dir() else None)
    if out is None and jax.process_count() > 1:
        raise InputError("several hosts write to one directory that all of them see; name it with --out")
    out = out or free_run(Path("runs") / (path.stem if path else recipe.data.name), recipe)
    result = train_recipe(recipe, out, **_how(options, habits, feeding))
    if on_first_host():
        _report(result, recipe, habits, out)
    return 128 + result.signal if result.signal else 0


def _how(options: TrainOptions, habits: Habits, feeding: Feeding) -> dict[str, Any]:
    """What one run and those of several seeds are given alike."""
    return {
        "data_dir": options.data_dir or default_data_dir(),
        "devices": options.devices,
        "accumulate": options.accumulate,
        "shard": options.shard,
        "habits": habits,
        "feeding": feeding,
    }


def _train_seeds(
    path: Path | None,
    recipe: Recipe,
    seeds: list[int],
    options: TrainOptions,
    habits: Habits,
    feeding: Feeding,
    hosts: Hosts,
) -> int:
    """`train` for several seeds; raises the first error that stopped one, after the others have ended."""
    if options.out is None and path is not None and path.is_dir():
        raise InputError(f"{path}: is one run; name a directory for those of the --seeds with --out")
    join(hosts)

    import jax

    from resnet_jax.train.devices import on_first_host
    from resnet_jax.train.seeds import free_folder, train_each

    if options.out is None and jax.process_count() > 1:
        raise InputError("several hosts write to one directory that all of them see; name it with --out")
    stem = Path("runs") / f"{path.stem if path else recipe.data.name}-seeds"
    out = options.out or free_folder(stem, recipe, seeds)
    ended = train_each(recipe, seeds, out, side_by_side=options.side_by_side, **_how(options, habits, feeding))
    if on_first_host():
        report_seeds(ended, seeds, recipe, out)
    if signal := max(getattr(end, "signal", 0) for end in ended.values()):
        return 128 + signal
    for end in ended.values():
        if isinstance(end, Exception):
            raise end
    return 0


def _parsed(words: list[str]) -> tuple[Path | None, Recipe, TrainOptions, Habits, Feeding, Hosts]:
    """What the words of a command say, and where its recipe was read."""
    path, rest = split_first(words)
    base = load_recipe(path) if path else Recipe()
    kind = cast(
        type[tuple[Recipe, TrainOptions, Habits, Feeding, Hosts]],
        tuple[Unnamed[Recipe], Unnamed[TrainOptions], Unnamed[Habits], Unnamed[Feeding], Unnamed[Hosts]],
    )
    default = (base, TrainOptions(), Habits(), Feeding(), Hosts())
    recipe, options, habits, feeding, hosts = parse(
        kind, rest, prog="resnet-jax train", description=train.__doc__ or "", default=default
    )
    given = {word.split("=")[0] for word in rest}
    if {"--seed", "--seeds"} <= given:
        raise InputError("--seed and --seeds are given; name the seeds with one of them")
    if "--seeds" in given and not options.seeds:
        raise InputError("--seeds names none; give START:STOP, such as 0:5, or seeds such as 0 3 7")
    if options.on_bad_image == "fail":
        habits = replace(habits, max_bad_images=0.0)
    recipe = unset_other_length(recipe, base, rest)
    return path, recipe, options, habits, feeding, hosts


def _report(result: "Result", recipe: Recipe, habits: Habits, out: Path) -> None:
    """The curves as a picture, the table, and how to go on."""
    from resnet_jax.curves import draw_curves

    if result.lines:
        title = f"{recipe.model.name} on {recipe.data.name}"
        draw_curves(result.lines, result.split, title, out / "curves.png")
        show_result(result, out)
    if result.reached:
        line = result.reached
        print(f"target {habits.target:.2%} reached at step {line['step']}, in {line['seconds']:.1f} s of training")
    if result.step < result.steps:
        why, again = "interrupted" if result.signal else "stopped", f"resnet-jax train {shlex.quote(str(out))}"
        print(f"{why} at step {result.step} of {result.steps}, checkpoint saved; go on with: {again}")


def show_result(result: "Result", out: Path) -> None:
    """The short table at the end of training."""
    line, split = result.lines[-1], result.split
    table = plain_table(f"step {line['step']} of {result.steps}", "")
    for prefix, of in (("", ""), ("ema_", ", averages")):
        add_measured(table, line, f"{prefix}{split}", f"{split}{{}}{of}")
    if "train_accuracy" in line:
        table.add_row("train accuracy", f"{line['train_accuracy']:.2%}")
    speed = statistics.median(line["images_per_second"] for line in result.lines)
    table.add_row("training time", f"{line['seconds']:.1f} s  ({speed:,.0f} images/s)")
    waited = statistics.median(line["data_wait"] for line in result.lines)
    if waited > _WAITED:
        advice = "more --threads, or `resnet-jax prepare` the data once"
        table.add_row("waiting for data", f"{waited:.0%} of the time; {advice}")
    table.add_row("curves", escape(str(out / "curves.png")))
    table.add_row("run", escape(str(out)))
    show(table)


def add_measured(table: Table, line: dict[str, Any], prefix: str, name: str) -> None:
    """Rows with accuracy and loss of what a line of metrics calls PREFIX_..., if it has them."""
    if f"{prefix}_accuracy" in line:
        wrong, count = line[f"{prefix}_wrong"], line[f"{prefix}_examples"]
        table.add_row(name.format(" accuracy"), f"{line[f'{prefix}_accuracy']:.2%}  ({wrong} of {count:,} wrong)")
    if f"{prefix}_loss" in line:
        table.add_row(name.format(" loss"), f"{line[f'{prefix}_loss']:.4f}")
