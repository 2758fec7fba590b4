"""Weight decay masks, frozen parameters and learning rate multipliers, by the path of each parameter.

A path joins the keys of a parameter by "/": "stage1_block1/conv1/kernel". Masks depend on paths alone, so they also
fit the partial trees that `optax.partition` passes on.
"""

import difflib
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import jax

from resnet_jax.errors import InputError, unknown
from resnet_jax.recipe import Optimizer


def keys(path: tuple[Any, ...]) -> list[str]:
    """Return the names in a JAX key path."""
    return [str(key.key) for key in path]


def _in_norm(path: tuple[Any, ...]) -> bool:
    """Return whether a parameter belongs to a normalisation: ours are norm1, flax's BatchNorm_0, others' bn1."""
    *parents, name = keys(path)
    return name == "scale" or (name == "bias" and bool(re.search("norm|bn", "".join(parents[-1:]), re.IGNORECASE)))


# Value of optimizer.weight_decay_mask -> (key path -> whether the parameter decays)
DECAY_SCOPES: dict[str, Callable[[tuple[Any, ...]], bool]] = {
    "all": lambda path: True,
    "no_norm": lambda path: not _in_norm(path),
    "kernels": lambda path: keys(path)[-1] == "kernel",
}


def decay_mask(params: Any, scope: str) -> Any:
    """Return a tree of bools like `params`: what decays; raise InputError for an unknown scope."""
    if scope not in DECAY_SCOPES:
        raise unknown("optimizer.weight_decay_mask", scope, DECAY_SCOPES)
    return jax.tree_util.tree_map_with_path(lambda path, _: DECAY_SCOPES[scope](path), params)


def frozen_mask(params: Any, patterns: tuple[str, ...]) -> Any:
    """Return a tree of bools like `params`: whether a shell pattern matches the path or a prefix of it.

    Raises:
        InputError: A pattern matches nothing, or all parameters are frozen.
    """
    paths = ["/".join(keys(path)) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    places = list(dict.fromkeys(part for path in paths for part in _beginnings(path)))
    for pattern in patterns:
        if not any(fnmatchcase(place, pattern) for place in places):
            near = difflib.get_close_matches(pattern, places, n=3, cutoff=0.5) or list(dict.fromkeys(_tops(paths)))
            raise InputError(f"optimizer.freeze: {pattern!r} is no parameter; nearest: {', '.join(near)}")
    frozen = [any(fnmatchcase(part, pattern) for part in _beginnings(path) for pattern in patterns) for path in paths]
    if all(frozen):
        raise InputError(f"optimizer.freeze is {patterns}, which leaves nothing to train; leave out the head")
    return jax.tree.unflatten(jax.tree.structure(params), frozen)


def _beginnings(path: str) -> list[str]:
    """Return the prefixes of a path: "a/b/c" gives ["a", "a/b", "a/b/c"]."""
    keys = path.split("/")
    return ["/".join(keys[:length]) for length in range(1, len(keys) + 1)]


def _tops(paths: list[str]) -> list[str]:
    return [path.partition("/")[0] for path in paths]


def rate_factors(params: Any, optimizer: Optimizer) -> Any:
    """Return a tree of floats like `params`: the factor on the learning rate of each parameter.

    The head has head_lr_mult. Of B blocks the last one has layer_decay, the first one layer_decay**B and the stem
    layer_decay**(B + 1). The final normalisation of a pre-activation network counts as part of the last block. In a
    network on a backbone, everything outside the backbone counts as the head.
    """
    tops = params.get("backbone", params)
    blocks = sorted({top for top in tops if re.fullmatch(r"stage\d+_block\d+", top)}, key=_numbers)
    above = {"head": 0, "norm": 1, **{name: len(blocks) - place for place, name in enumerate(blocks)}}

    def factor(path: tuple[Any, ...], _: Any) -> float:
        top = _part(keys(path), "backbone" in params)
        rate = optimizer.layer_decay ** above.get(top, len(blocks) + 1)
        return rate * optimizer.head_lr_mult if top == "head" else rate

    return jax.tree_util.tree_map_with_path(factor, params)


def _part(names: list[str], on_backbone: bool) -> str:
    """Return the name of the stem, block or head that has a parameter."""
    if not on_backbone:
        return names[0]
    return names[1] if names[0] == "backbone" else "head"


def _numbers(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", name)]
