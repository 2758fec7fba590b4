"""Find the state dict in what torch.save wrote; what stands beside it is left out and named."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnet_jax.errors import InputError
from resnet_jax.weights.pickle_values import Foreign, Tensor, foreign_in, leaves, refuse_foreign
from resnet_jax.weights.torch_file import TorchFile, view

# Keys of the weights in checkpoints, of which there may be one; averages are taken only if there are no others
_WEIGHTS = (
    *("state_dict", "model", "model_state_dict", "model_state", "net", "network", "params"),
    *("weights", "model_weights"),
)
_AVERAGES = ("state_dict_ema", "model_ema", "ema", "teacher")


class TensorFile(NamedTuple):
    """The named tensors of a file."""

    path: Path
    tensors: dict[str, np.ndarray]
    left_out: tuple[str, ...] = ()
    """What stands beside the weights and is not read."""
    beside: tuple[str, ...] = ()
    """Keys under which the file has other tensors."""
    metadata: Mapping[str, str] | None = None
    """Of a safetensors file."""


def find_state_dict(path: Path, file: TorchFile) -> TensorFile:
    """Return the tensors of the innermost state dict.

    Raises InputError, without the path, if there are several to choose from, or one has anything but tensors and plain
    data in it.
    """
    found = file.value
    beside: dict[Any, Any] = {}
    # A dict can contain itself
    for _ in range(8):
        key = _container(found) if isinstance(found, dict) else None
        if key is None:
            break
        beside |= {other: value for other, value in found.items() if other != key}
        found = found[key]
    refuse_foreign(found)
    tensors = found if isinstance(found, dict) else {}
    named = {name: _named(file, name, value) for name, value in tensors.items() if isinstance(value, Tensor)}
    # Without tensors of its own, what is nested in it is what may have been meant
    others = _with_tensors(beside if named else {**beside, **tensors})
    return TensorFile(path, named, _left_out(beside), others)


def _container(found: dict[Any, Any]) -> str | None:
    """Return the key under which a dict has the weights, or None if it has none."""
    for keys in (_WEIGHTS, _AVERAGES):
        inside = [key for key in _with_tensors(found) if key in keys]
        if len(inside) > 1:
            raise InputError(f"has weights under {listed(map(repr, inside))}; save a file with one of them")
        if inside:
            return inside[0]
    return None


def _with_tensors(found: dict[Any, Any]) -> tuple[str, ...]:
    """Return the keys under which there are dicts with tensors."""
    return tuple(
        str(key)
        for key, value in found.items()
        if isinstance(value, dict) and any(isinstance(leaf, Tensor) for leaf in leaves(value))
    )


def _left_out(beside: dict[Any, Any]) -> tuple[str, ...]:
    objects = {str(key): foreign_in(value) for key, value in beside.items() if not isinstance(key, Foreign)}
    averages = [f"averages under {key!r}" for key in _with_tensors(beside) if key in _AVERAGES]
    keys = [key.name for key in beside if isinstance(key, Foreign)]
    return (*averages, *(f"{key[:100]!r} ({name})" for key, name in objects.items() if name), *keys)


def listed(names: Iterable[str]) -> str:
    """Return names as a list in a sentence, the first few of them.

    Example:
        >>> listed(["'a'", "'b'", "'c'"])
        "'a', 'b' and 'c'"
    """
    names = list(names)
    few = [*names[:4], f"{len(names) - 4:,} more"] if len(names) > 5 else names
    return " and ".join(part for part in (", ".join(few[:-1]), few[-1]) if part)


def _named(file: TorchFile, name: Any, tensor: Tensor) -> np.ndarray:
    if not isinstance(name, str):
        raise InputError(f"a tensor is called {name}, which is no name; save a state_dict")
    try:
        return view(file, tensor)
    except InputError as error:
        raise InputError(f"tensor {name[:200]!r}: {error}") from error
