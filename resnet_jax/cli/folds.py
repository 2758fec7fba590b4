"""Cross-validation on the command line: a run for each fold, and their results together."""

import shlex
from dataclasses import replace
from pathlib import Path

from resnet_jax.cli.seeds import has_ended, show_seeds
from resnet_jax.errors import InputError
from resnet_jax.recipe import Recipe
from resnet_jax.runtime.terminal import show
from resnet_jax.training.options import RunOptions


def fold_of(recipe: Recipe, part: int, folds: int) -> Recipe:
    """Return the recipe of one fold, from 1."""
    return replace(recipe, data=replace(recipe.data, fold=f"{part}/{folds}"))


def first_fold(recipe: Recipe, folds: int) -> Recipe:
    """Return the recipe of the first fold; raise InputError if there are fewer than two, or if it is one already."""
    if folds < 2 or recipe.data.fold:
        raise InputError(f"--folds is {folds}; give 2 or more, and leave --data.fold out")
    return fold_of(recipe, 1, folds)


def train_folds(recipe: Recipe, folds: int, out: Path, options: RunOptions) -> int:
    """Train OUT/fold1, fold2, ... one after the other, print their table, and return the exit code.

    Folds that have ended are left alone, and the others are resumed.
    """
    from resnet_jax.parallel.multihost import is_primary_host
    from resnet_jax.training import run

    results = {}
    for part in range(1, folds + 1):
        results[part] = run.train(fold_of(recipe, part, folds), out / f"fold{part}", options=options)
        if results[part].signal:
            break
    if is_primary_host():
        if any(result.rows for result in results.values()):
            show_seeds(results, out, "fold")
        if len(results) < folds or not all(map(has_ended, results.values())):
            show(f"not finished; resume with the same command and --out {shlex.quote(str(out))}")
    return 128 + results[max(results)].signal if results[max(results)].signal else 0
