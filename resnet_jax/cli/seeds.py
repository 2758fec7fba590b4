"""Several seeds of one recipe on the command line: parse them, and print their results."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_jax.cli.tables import plain_table
from resnet_jax.errors import InputError
from resnet_jax.recipe import Recipe
from resnet_jax.runtime.terminal import show

if TYPE_CHECKING:
    from resnet_jax.training.run_state import TrainResult
    from resnet_jax.training.stacked import Ended

# A longer range of seeds is a typing error
_MOST = 10_000


def parse_seeds(words: Sequence[str]) -> list[int]:
    """Return the seeds of words such as "0:3" or "7"; raise InputError for other words and empty ranges.

    Example:
        >>> parse_seeds(["0:3", "7"])
        [0, 1, 2, 7]
    """
    seeds: list[int] = []
    for word in words:
        found = re.fullmatch(r"(\d{1,10})(?::(\d{1,10}))?", word, re.ASCII)
        if not found:
            raise InputError(f"--seeds is {' '.join(words)!r}; give START:STOP, such as 0:5, or seeds such as 0 3 7")
        start = int(found[1])
        stop = start + 1 if found[2] is None else int(found[2])
        if stop <= start or stop - start > _MOST:
            raise InputError(f"--seeds {word} is not a range of seeds; give START:STOP, such as 0:5")
        seeds += range(start, stop)
    return seeds


def report_seeds(ended: Mapping[int, "Ended"], seeds: Sequence[int], recipe: Recipe, out: Path) -> None:
    """Draw the curves of each seed, print the table, and print how to resume."""
    from resnet_jax.report.curves import draw_curves
    from resnet_jax.training.run_state import TrainResult
    from resnet_jax.training.seed_groups import run_of

    results = {seed: end for seed, end in ended.items() if isinstance(end, TrainResult)}
    for seed, result in results.items():
        if result.rows:
            title = f"{recipe.model.name} on {recipe.data.name}, seed {seed}"
            draw_curves(result.rows, title, run_of(out, seed) / "curves.png")
    if any(result.rows for result in results.values()):
        show_seeds(results, out)
    left = [seed for seed in seeds if seed not in results or not has_ended(results[seed])]
    if left:
        again = f"resume with the same command and --out {shlex.quote(str(out))}"
        show(f"not finished: {', '.join(f'seed {seed}' for seed in left)}; {again}")


def has_ended(result: "TrainResult") -> bool:
    """Return whether a run reached the end of its recipe, or its target, or stopped early."""
    return result.step == result.steps or result.reached is not None or result.early_stopped is not None


def show_seeds(results: Mapping[int, "TrainResult"], out: Path, what: str = "seed") -> None:
    """Print the last row of each seed, or fold, with mean and standard deviation over the runs that have ended.

    The standard deviation is of the sample. If no run has ended, the runs with the most steps are averaged.
    """
    from resnet_jax.tasks.metrics import display_of

    last = {seed: result.rows[-1] for seed, result in results.items() if result.rows}
    furthest = max(row["step"] for row in last.values())
    ended = [row for seed, row in last.items() if has_ended(results[seed])]
    ended = ended or [row for row in last.values() if row["step"] == furthest]
    # The loss on augmented images says least, and has no column
    keys = [key for key in ended[0] if "/" in key and key != "train/loss" and display_of(_name(key)).shown]
    keys.sort(key=lambda key: (key.startswith("train/"), _name(key) == "loss"))
    table = plain_table(what, "step", *map(_title, keys), "training time s")
    for seed, row in last.items():
        cells = (_format(key, [row.get(key)]) for key in (*keys, "train_seconds"))
        table.add_row(str(seed), f"{row['step']} of {results[seed].steps}", *cells)
    table.add_section()
    means = (_format(key, [row.get(key) for row in ended]) for key in (*keys, "train_seconds"))
    table.add_row(f"n = {len(ended)}", "mean ± std", *means)
    show(table)
    show(f"runs: {', '.join(str(out / f'{what}{number}') for number in results)}")


def _name(key: str) -> str:
    """Return the name of a metric value: "accuracy" of "ema/test/accuracy"."""
    return key.removeprefix("ema/").partition("/")[2]


def _title(key: str) -> str:
    from resnet_jax.tasks.metrics import display_of

    return key.replace("/", " ").replace("_", " ") + (" %" if display_of(_name(key)).percent else "")


def _format(key: str, values: Sequence[Any]) -> str:
    from resnet_jax.report.statistics import mean_and_std
    from resnet_jax.tasks.metrics import display_of

    how = display_of(_name(key))
    if any(value is None for value in values):
        return "-"
    digits = 2 if how.percent else 1 if key == "train_seconds" else how.digits
    return mean_and_std([100 * value if how.percent else value for value in values]).format(digits)
