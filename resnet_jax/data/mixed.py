"""Several sources as one, of which each has its fraction of the draws."""

import hashlib
import itertools
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from resnet_jax.data.permutation import Draws
from resnet_jax.data.source import Source, source_digest
from resnet_jax.errors import InputError


def mix_sources(sources: Sequence[Source], weights: Sequence[float], names: Sequence[str]) -> Source:
    """Return the examples of several sources, one after the other, drawn so that each has its fraction of an epoch.

    Args:
        sources: of the same classes. Within one, examples are drawn by its own `draws`, if it has any.
        weights: of each source, relative to each other.
        names: of the sources, for messages.

    Raises:
        InputError: The classes differ.

    Example:
        >>> from resnet_jax.data.source import from_arrays
        >>> one, two = (from_arrays(np.zeros((n, 1, 1, 1), np.uint8), np.zeros(n, int), ["a"]) for n in (2, 4))
        >>> mix_sources([one, two], [3, 1], ["one", "two"]).draws.weights.tolist()
        [0.375, 0.375, 0.0625, 0.0625, 0.0625, 0.0625]
    """
    first = sources[0]
    for source, name in zip(sources, names, strict=True):
        if source.classes != first.classes:
            raise InputError(f"data.mix: {name} has other classes than {names[0]}; unify them with data.class_map")
    ends = tuple(itertools.accumulate(source.size for source in sources))
    labels = [source.labels for source in sources if source.labels is not None]
    raws = [source.raw for source in sources]
    return Source(
        ends[-1],
        first.classes,
        partial(_read, tuple(source.read for source in sources), ends),
        np.concatenate(labels) if len(labels) == len(sources) else None,
        None if None in raws else partial(_read, tuple(filter(None, raws)), ends),
        partial(_digest, tuple(sources)),
        tuple(note for source in sources for note in source.notes),
        _draws(sources, weights),
    )


def _draws(sources: Sequence[Source], weights: Sequence[float]) -> Draws:
    shares, strata, count = [], [], 0
    for source, weight in zip(sources, weights, strict=True):
        own = source.draws or Draws(np.ones(source.size), np.zeros(source.size, int))
        shares.append(weight / sum(weights) * own.weights / own.weights.sum())
        # A stratum of one source is none of another
        strata.append(own.strata + count)
        count = int(strata[-1].max()) + 1
    return Draws(np.concatenate(shares), np.concatenate(strata))


def _read(reads: tuple[Callable[[int], Any], ...], ends: tuple[int, ...], index: int) -> Any:
    number = bisect_right(ends, index)
    return reads[number](index - (ends[number - 1] if number else 0))


def _digest(sources: tuple[Source, ...]) -> str:
    return hashlib.sha256("".join(map(source_digest, sources)).encode()).hexdigest()
