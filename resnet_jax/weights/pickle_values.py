"""What a pickle of torch.save may hold: names that are known, and stand-ins for everything that is not plain data."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from resnet_jax.errors import InputError

STORAGES = {
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
}
ORDERED = ("collections.OrderedDict",)
TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
# Found beside weights in real checkpoints (best accuracies, schedules); their values are left out
IGNORED = (
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "_codecs.encode",
    "collections.Counter",
    "builtins.set",
    "__builtin__.set",
    "torch.Size",
    "torch.device",
    *(f"torch.{name}" for name in ("float64", "float32", "float16", "bfloat16")),
    *(f"torch.{name}" for name in ("int64", "int32", "int16", "int8", "uint8", "bool")),
)
KNOWN = frozenset((*STORAGES, *ORDERED, *TENSORS, *PARAMETERS, *IGNORED))
CONSTRUCTORS = ("copy_reg._reconstructor", "copyreg._reconstructor", "copy_reg.__newobj__", "copyreg.__newobj__")


@dataclass(frozen=True)
class Storage:
    """A run of `numel` numbers, stored elsewhere in the file under `key`."""

    key: str
    dtype: np.dtype
    numel: int


@dataclass(frozen=True)
class Tensor:
    """A tensor as the file describes it, unchecked: `torch_file.view` checks it."""

    storage: Storage
    offset: Any
    size: Any
    stride: Any


@dataclass(frozen=True)
class Global:
    """The name of a class or function, never the object."""

    name: str


@dataclass(frozen=True, eq=False)
class Foreign:
    """Stand-in for an object, or a key of a dict, that is neither a tensor nor plain data."""

    name: str


class Ordered(dict[Any, Any]):
    """Stand-in for an OrderedDict; it may get a state (torch's `_metadata`), which is only searched."""

    state: Any = None


class Ignored:
    """Stand-in for known values that are neither tensors nor plain data."""


def leaves(value: Any) -> Iterator[Any]:
    """Yield the keys and values of nested containers that are not containers themselves, each container once.

    Globals that the reader does not know are yielded as `Foreign`.
    """
    seen, todo = set(), [value]
    while todo:
        item = todo.pop()
        if not isinstance(item, dict | list | tuple):
            yield Foreign(repr(item.name[:100])) if isinstance(item, Global) and item.name not in KNOWN else item
        elif id(item) not in seen:
            seen.add(id(item))
            todo += [*item, *item.values()] if isinstance(item, dict) else item
            if isinstance(item, Ordered):
                todo.append(item.state)


def refuse_foreign(value: Any) -> None:
    """Raise InputError, without the file name, if a value holds a `Foreign`."""
    if found := foreign_in(value):
        raise refusal(f"has {found}")


def foreign_in(value: Any) -> str | None:
    """Return the name of a `Foreign` in a value, or None if there is none."""
    return next((leaf.name for leaf in leaves(value) if isinstance(leaf, Foreign)), None)


def refusal(what: str) -> InputError:
    """Return the error for what is neither a tensor nor plain data."""
    return InputError(f"{what}, which is not for tensors; nothing was run; ask for its state_dict or for safetensors")
