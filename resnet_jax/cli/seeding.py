"""Several seeds of one recipe on the command line: their names, and the table at their end."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from resnet_jax.cli.tables import plain_table, show
from resnet_jax.errors import InputError
from resnet_jax.recipe import Recipe
from resnet_jax.spread import spread

if TYPE_CHECKING:
    from resnet_jax.train.run import Result
    from resnet_jax.train.seeds import Ended


def parse_seeds(words: Sequence[str]) -> list[int]:
    """["0:3", "7"] as [0, 1, 2, 7]; raises InputError for words that are neither, and for a range of nothing."""
    seeds: list[int] = []
    for word in words:
        found = re.fullmatch(r"(\d+)(?::(\d+))?", word, re.ASCII)
        if not found:
            raise InputError(f"--seeds is {' '.join(words)!r}; give START:STOP, such as 0:5, or seeds such as 0 3 7")
        start = int(found[1])
        stop = start + 1 if found[2] is None else int(found[2])
        if stop <= start:
            raise InputError(f"--seeds {word} is no seed; give START:STOP with a START less than STOP, such as 0:5")
        seeds += range(start, stop)
    return seeds


def report_seeds(ended: Mapping[int, "Ended"], seeds: Sequence[int], recipe: Recipe, out: Path) -> None:
    """The curves of each as a picture, the table, and how to go on."""
    from resnet_jax.curves import draw_curves
    from resnet_jax.train.run import Result
    from resnet_jax.train.seeds import run_of

    results = {seed: end for seed, end in ended.items() if isinstance(end, Result)}
    for seed, result in results.items():
        if result.lines:
            title = f"{recipe.model.name} on {recipe.data.name}, seed {seed}"
            draw_curves(result.lines, result.split, title, run_of(out, seed) / "curves.png")
    if any(result.lines for result in results.values()):
        show_seeds(results, out)
    left = [seed for seed in seeds if seed not in results or not has_ended(results[seed])]
    if left:
        again = f"the same command with --out {shlex.quote(str(out))} goes on"
        print(f"not at the end: {', '.join(f'seed {seed}' for seed in left)}; {again}")


def has_ended(result: "Result") -> bool:
    """Whether a run came to the end of its recipe, or to its target."""
    return result.step == result.steps or result.reached is not None


def show_seeds(results: Mapping[int, "Result"], out: Path) -> None:
    """The last line of each seed, and mean and standard deviation (of a sample) over those that have ended.

    Where none has, over those that are furthest.
    """
    from resnet_jax.train.seeds import run_of

    last = {seed: result.lines[-1] for seed, result in results.items() if result.lines}
    furthest = max(line["step"] for line in last.values())
    ended = [line for seed, line in last.items() if has_ended(results[seed])]
    ended = ended or [line for line in last.values() if line["step"] == furthest]
    split = next(iter(results.values())).split
    columns = [column for column in _columns(split) if column.name in ended[0]]
    table = plain_table("seed", "step", *(column.title for column in columns))
    for seed, line in last.items():
        cells = (f"{line[column.name] * column.unit:.{column.digits}f}" for column in columns)
        table.add_row(str(seed), f"{line['step']} of {results[seed].steps}", *cells)
    table.add_section()
    table.add_row(f"n = {len(ended)}", "mean ± std", *(_mean(ended, column) for column in columns))
    show(table)
    print(f"runs: {', '.join(str(run_of(out, seed)) for seed in results)}")


class _Column(NamedTuple):
    name: str  # in a line of metrics
    title: str
    unit: float
    digits: int


def _columns(split: str) -> list[_Column]:
    return [
        _Column(f"{split}_accuracy", f"{split} accuracy %", 100, 2),
        _Column(f"{split}_loss", f"{split} loss", 1, 4),
        _Column(f"ema_{split}_accuracy", "of averages %", 100, 2),
        _Column(f"ema_{split}_loss", "of averages", 1, 4),
        _Column("train_accuracy", "train accuracy %", 100, 2),
        _Column("seconds", "training time s", 1, 1),
    ]


def _mean(lines: Sequence[Mapping[str, Any]], column: _Column) -> str:
    return spread([line[column.name] * column.unit for line in lines]).written(column.digits)
