"""Which examples of a data set a run learns, and which it holds out: a function of the data and the recipe alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnet_jax.data.classes import map_classes
from resnet_jax.data.labels import class_labels, known_labels
from resnet_jax.data.permutation import Draws, epoch_permutation
from resnet_jax.data.source import Source, subset
from resnet_jax.errors import InputError, first_line

SAMPLING = ("uniform", "balanced", "sqrt")


class Selection(NamedTuple):
    """The fields of a recipe's data that choose examples, under their names there."""

    num_validation: int | float = 0
    fold: tuple[int, int] | None = None
    """Place of the fold, from 0, and the number of folds."""
    stratify: bool = False
    group_by: str | None = None
    class_map: tuple[tuple[str, Any], ...] = ()
    limit: int | float | None = None
    sampling: str = "uniform"
    mix: tuple[tuple[str, Any], ...] = ()


def select(source: Source, split: str, selection: Selection, name: str) -> Source:
    """Return the examples of a split: the test images, the held-out training images, or the other training images.

    Args:
        source: the test images for the split "test", otherwise all training images.
        split: "train", "validation" or "test".
        selection: what is held out, left out and renamed, and how often examples are drawn.
        name: of the data set, for messages.

    Raises:
        InputError: The selection does not fit the data.
    """
    if split == "train" and selection.sampling not in SAMPLING:
        source = source._replace(draws=_draws_of_file(Path(selection.sampling), source.size))
    if selection.class_map:
        source = map_classes(source, dict(selection.class_map))
    if split == "test":
        return source
    if selection.num_validation or selection.fold or split == "validation":
        held = held_out(source, selection, name)
        source = subset(source, np.flatnonzero(held if split == "validation" else ~held))
    if split == "validation":
        return source
    if selection.limit is not None:
        source = subset(source, _first_of_each(source, selection.limit))
    if selection.sampling in SAMPLING[1:]:
        labels = class_labels(source, f"data.sampling {selection.sampling}")
        power = -1.0 if selection.sampling == "balanced" else -0.5
        source = source._replace(draws=Draws(np.bincount(labels).astype(float)[labels] ** power, labels))
    return source


def held_out(source: Source, selection: Selection, name: str) -> np.ndarray:
    """Return which training examples are held out, (n,) bool: always the same ones.

    Args:
        source: all training examples.
        selection: a number, a fraction or a fold of them; stratified, and by groups.
        name: of the data set, for messages.
    """
    size, strata = source.size, np.zeros(source.size, int)
    if selection.fold:
        part, parts = selection.fold
        fractions = [1 / parts] * parts
    else:
        part, count = 0, _count(selection.num_validation, size)
        if not 0 < count < size:
            raise InputError(f"data.num_validation is {selection.num_validation}; {name} has {size:,} training images")
        fractions = [count / size, 1 - count / size]
    if selection.stratify:
        strata = class_labels(source, "data.stratify")
    if selection.group_by:
        held = assign_groups(_groups(source, selection.group_by, name), strata, fractions) == part
        if not 0 < held.sum() < size:
            raise InputError(f"data.group_by {selection.group_by}: {name} has too few groups to hold some out")
        return held
    order = epoch_permutation(0, 0, size)
    places = np.empty(size, int)
    places[order[np.argsort(strata[order], kind="stable")]] = np.arange(size)
    if selection.fold:
        if parts > size:
            raise InputError(f"data.fold is {part + 1}/{parts}; {name} has {size:,} training images")
        return places % parts == part
    if selection.stratify:
        # Evenly over the classes, one after the other
        return (places + 1) * count // size > places * count // size
    return places >= size - count


def assign_groups(groups: np.ndarray, strata: np.ndarray, fractions: Sequence[float]) -> np.ndarray:
    """Return the part of each example, (n,) int, such that no group is in two parts.

    From the largest group to the smallest, each goes to the part where the fractions of all strata are then nearest to
    the wanted ones.

    Args:
        groups: (n,) any values.
        strata: (n,) int, such as classes.
        fractions: of each part, which sum to 1.
    """
    _, group = np.unique(groups, return_inverse=True)
    # Of all examples of a stratum, the fraction that is in a group
    shares = np.zeros((group.max() + 1, strata.max() + 1))
    np.add.at(shares, (group, strata), 1 / np.bincount(strata)[strata])
    parts, missing = np.empty(len(shares), int), np.tile(np.array(fractions)[:, None], shares.shape[1])
    shuffled = epoch_permutation(0, 0, len(shares))
    for number in shuffled[np.argsort(-np.square(shares[shuffled]).sum(1), kind="stable")]:
        worse = np.square(missing - shares[number]) - np.square(missing)
        # Rounded, so that parts of equal content tie
        parts[number] = np.argmin(worse.sum(1).round(12))
        missing[parts[number]] -= shares[number]
    return parts[group]


def _count(amount: int | float, size: int) -> int:
    """Return a number of examples, or a fraction of `size` as a number."""
    return amount if isinstance(amount, int) else max(1, round(amount * size))


def _groups(source: Source, rule: str, name: str) -> np.ndarray:
    if source.groups is None:
        raise InputError(f"data.group_by is {rule}; {name} has no groups: leave it out")
    return source.groups(rule)


def _first_of_each(source: Source, limit: int | float) -> np.ndarray:
    """Return the first `limit` examples of each class in an order that is always the same; more contain fewer."""
    labels = known_labels(source)
    labels = np.zeros(source.size, int) if labels is None else labels
    order = epoch_permutation(0, 1, source.size)
    kept = [of_class[: _count(limit, len(of_class))] for of_class in _by_class(order, labels)]
    return np.sort(np.concatenate(kept))


def _by_class(order: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    ordered = order[np.argsort(labels[order], kind="stable")]
    return np.split(ordered, np.flatnonzero(np.diff(labels[ordered])) + 1)


def _draws_of_file(path: Path, size: int) -> Draws:
    """Return the weights in a text file, one of each training example; those of a data set are in its own order."""
    try:
        weights = np.loadtxt(path, dtype=float, ndmin=1)
    except (OSError, ValueError, UnicodeDecodeError) as error:
        kinds = " or ".join((", ".join(SAMPLING), "a file of weights, one number per line"))
        raise InputError(f"data.sampling is {path}: cannot be read ({first_line(error)}); give {kinds}") from error
    if weights.shape != (size,):
        raise InputError(f"{path}: {weights.size:,} weights for {size:,} training images; give one of each")
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise InputError(f"{path}: weights must be finite, not negative, and not all 0")
    return Draws(weights, np.zeros(size, int))
