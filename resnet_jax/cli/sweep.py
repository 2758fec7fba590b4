"""resnet-jax sweep."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from resnet_jax.cli.parse import Unnamed, named, parse, split_first
from resnet_jax.cli.tables import plain_table
from resnet_jax.errors import InputError
from resnet_jax.recipe import Recipe, load_recipe
from resnet_jax.recipe.overrides import rescale_times
from resnet_jax.runtime.strict_json import parse_json
from resnet_jax.runtime.terminal import show
from resnet_jax.training.options import RunFlags, RunOptions

if TYPE_CHECKING:
    from resnet_jax.tools.sweep import Range

# Trials in the printed table
_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """What to search, and how long."""

    vary: tuple[str, ...] = ()
    """Fields to search: FIELD=LOW:HIGH, on a logarithmic scale FIELD=log:LOW:HIGH, or a choice, FIELD=A,B,C."""
    trials: int = 20
    """Total number of trials, including those already finished."""
    halving: int = 3
    """Reduction factor of successive halving: trials are compared after 1/9 and 1/3 of their steps; 0 = off."""
    out: Path | None = None
    """Directory of the sweep; an existing sweep is resumed. None is runs/NAME-sweep."""


def sweep_recipes(words: list[str]) -> int:
    """Search for a recipe: sweep [RECIPE.py] --vary optimizer.lr=log:0.01:1 [--trials 30]"""
    path, rest = split_first(words)
    base = load_recipe(path, network=named(rest, "--model.name"), data=named(rest, "--data.name")) if path else Recipe()
    kind = cast(
        type[tuple[Recipe, SweepOptions, RunFlags]],
        tuple[Unnamed[Recipe], Unnamed[SweepOptions], Unnamed[RunFlags]],
    )
    recipe, options, flags = parse(
        kind,
        rest,
        prog="resnet-jax sweep",
        description=sweep_recipes.__doc__ or "",
        default=(base, SweepOptions(), RunFlags()),
    )
    recipe, vary = rescale_times(recipe, base, rest), parse_vary(options.vary)
    from resnet_jax.tasks.make import make_task
    from resnet_jax.tasks.task import monitoring
    from resnet_jax.tools import sweep as tool
    from resnet_jax.tools.sweep_page import write_page

    out = options.out or Path("runs") / f"{path.stem if path else recipe.data.name}-sweep"
    run_options = replace(RunOptions(), **vars(flags))
    found = tool.run_sweep(
        recipe, out, vary, trials=options.trials, halving=options.halving, options=run_options, log=show
    )
    task, notes = monitoring(make_task(recipe.loss), flags.monitor), tool.split_note(recipe)
    larger = task.mode == "max"
    title = f"{len(found.trials)} trials of {recipe.model.name} on {recipe.data.name}"
    page = write_page(found, vary, out, title=title, monitor=task.monitor, larger_is_better=larger, notes=notes)
    _show(found, list(vary), task.monitor, larger)
    for note in notes:
        show(note)
    show(f"page: {page}")
    if found.best:
        show(
            f"best: resnet-jax train {shlex.quote(str(out / f'trial{found.best.number}' / 'recipe.json'))} --seeds 0:5"
        )
    return 128 + found.signal if found.signal else 0


def _show(found: Any, names: Sequence[str], monitor: str, larger: bool) -> None:
    from resnet_jax.tools.sweep_page import format_number, in_order

    table = plain_table("trial", *names, monitor, "steps", "state")
    for trial in in_order(found, larger)[:_SHOWN]:
        values = (format_number(trial.values.get(name, "")) for name in names)
        value = "-" if trial.value is None else f"{trial.value:.4f}"
        table.add_row(str(trial.number), *values, value, f"{trial.step:,}", trial.state)
    show(table)


def parse_vary(words: Sequence[str]) -> "dict[str, Range | tuple[Any, ...]]":
    """Return what to search by field; raise InputError for other words.

    Example:
        >>> parse_vary(["optimizer.lr=log:0.01:1", "optimizer.name=sgd,adamw"])
        {'optimizer.lr': Range(low=0.01, high=1, log=True), 'optimizer.name': ('sgd', 'adamw')}
    """
    from resnet_jax.tools.sweep import Range

    vary: dict[str, Range | tuple[Any, ...]] = {}
    for word in words:
        name, _, space = word.partition("=")
        interval = re.fullmatch(r"(log:)?([^:,]+):([^:,]+)", space)
        if not name or not space or name in vary:
            raise InputError(f"--vary {word}: give FIELD=LOW:HIGH, FIELD=log:LOW:HIGH or FIELD=A,B,C, each field once")
        if interval is None:
            vary[name] = tuple(_value(part) for part in space.split(","))
            continue
        low, high = _value(interval[2]), _value(interval[3])
        if not all(type(end) in (int, float) for end in (low, high)):
            raise InputError(f"--vary {word}: {interval[2]}:{interval[3]} are not two numbers")
        vary[name] = Range(low, high, bool(interval[1]))
    return vary


def _value(word: str) -> Any:
    """Return a number, true, false or null as JSON has them, or the word itself."""
    try:
        value = parse_json(word)
    except ValueError:
        return word
    return value if isinstance(value, (int, float, bool)) or value is None else word
