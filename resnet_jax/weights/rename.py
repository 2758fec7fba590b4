"""Bring the names in a file to those of a network: wrappers' prefixes, other heads, transformers' ResNet."""

import re

import numpy as np

from resnet_jax.errors import InputError
from resnet_jax.models.resnet import ResNet
from resnet_jax.weights.names import HEAD, torch_name, torch_names
from resnet_jax.weights.state_dict import TensorFile, listed

# Names of the last layer: of torchvision, timm, much code for CIFAR, Cadene's models, and behind a dropout
_HEADS = ("fc", "head.fc", "linear", "classifier", "classifier.1", "head", "last_linear", "fc.1")
_EMBEDDER = re.compile(r"embedder\.embedder\.(convolution|normalization)\.")
_LAYER = re.compile(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(?:shortcut|layer\.(\d+))\.(convolution|normalization)\.")


def rename(model: ResNet, found: TensorFile) -> TensorFile:
    """Return the tensors under PyTorch's names for a network, as far as they can be told; native names stay.

    One prefix of the names, such as `module.`, is left out if the rest then has all layers of the network, and so are
    counters that do not have it.

    Raises:
        InputError: Several prefixes would fit, or two tensors would have one name.
    """
    if any(name.startswith("params/") for name in found.tensors):
        return found
    names = {name: _from_transformers(name) for name in found.tensors}
    head = torch_name(model, HEAD).removesuffix(".weight")
    expected = {name for name in torch_names(model).values() if not name.startswith(f"{head}.")}
    prefix = _prefix(set(names.values()), expected, found)
    names = {
        name: new.removeprefix(prefix)
        for name, new in names.items()
        if new.startswith(prefix) or not _is_counter(found.tensors[name])
    }
    names = _with_head(names, head)
    tensors: dict[str, np.ndarray] = {}
    for name, new in names.items():
        if new in tensors:
            raise InputError(f"{found.path}: two tensors are the network's {new!r}; save a file with one of them")
        tensors[new] = found.tensors[name]
    return found._replace(tensors=tensors)


def _prefix(names: set[str], expected: set[str], found: TensorFile) -> str:
    """Return the prefix with which all expected names are there; empty if there is none."""
    anchor = max(expected, key=len)
    prefixes = {name.removesuffix(anchor) for name in names if name.endswith(f".{anchor}") or name == anchor}
    fitting = sorted(prefix for prefix in prefixes if all(f"{prefix}{name}" in names for name in expected))
    if len(fitting) > 1 and "" not in fitting:
        raise InputError(
            f"{found.path}: has several networks, under {listed(map(repr, fitting))}; save a file with one of them"
        )
    return "" if "" in fitting else next(iter(fitting), "")


def _is_counter(tensor: np.ndarray) -> bool:
    """Return whether a tensor counts something, as AveragedModel's `n_averaged` does."""
    return tensor.ndim == 0 and np.issubdtype(tensor.dtype, np.integer)


def _with_head(names: dict[str, str], head: str) -> dict[str, str]:
    """Give the head the name that the network has for it, unless several could be meant."""
    there = [other for other in _HEADS if f"{other}.weight" in names.values()]
    if len(there) != 1:
        return names
    heads = {f"{there[0]}.{leaf}": f"{head}.{leaf}" for leaf in ("weight", "bias")}
    return {name: heads.get(new, new) for name, new in names.items()}


def describe_names(found: TensorFile) -> str:
    """Return what could explain names that do not fit: how they begin, and other tensors in the file."""
    starts = {f"{name.partition('.')[0][:100]}." for name, tensor in found.tensors.items() if not _is_counter(tensor)}
    what = [f"names begin with {listed(sorted(map(repr, starts)))}"] if len(starts) < 4 else []
    if found.beside:
        what.append(f"it has other tensors under {listed(map(repr, found.beside))}")
    return f" ({'; '.join(what)})" if what else ""


def _from_transformers(name: str) -> str:
    """Return torchvision's name for one of transformers' ResNet; all others stay."""
    name = _EMBEDDER.sub(lambda match: "conv1." if match[1] == "convolution" else "bn1.", name)
    return _LAYER.sub(_layer, name)


def _layer(match: re.Match[str]) -> str:
    stage, block, layer, norm = int(match[1]) + 1, match[2], match[3], match[4] == "normalization"
    part = f"downsample.{norm:d}" if layer is None else f"{'bn' if norm else 'conv'}{int(layer) + 1}"
    return f"layer{stage}.{block}.{part}."
