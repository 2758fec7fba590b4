"""The fields of a recipe by their dotted names."""

import dataclasses
import difflib
from collections.abc import Iterator
from typing import Any

from resnet_jax.recipe.fields import Recipe


def fields_of(part: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every leaf of a recipe with its dotted name.

    Example:
        >>> dict(fields_of(Recipe()))["optimizer.lr"]
        0.1
    """
    for item in dataclasses.fields(part):
        value = getattr(part, item.name)
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, value


def differences(old: Recipe, new: Recipe) -> list[str]:
    """Return the fields in which two recipes differ, as "optimizer.lr 0.1 -> 0.2"."""
    values = dict(fields_of(new))
    return [f"{k} {v} -> {values[k]}" for k, v in fields_of(old) if values[k] != v]


def nearest_fields(name: str, known: list[str]) -> list[str]:
    """Return up to three of the `known` dotted names that resemble `name` as a whole or in their last part."""
    by_part = {k.rsplit(".", 1)[-1]: k for k in reversed(known)}
    whole = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    last = difflib.get_close_matches(name.rsplit(".", 1)[-1], by_part, n=3, cutoff=0.6)
    return list(dict.fromkeys([by_part[part] for part in last] + whole))[:3]
