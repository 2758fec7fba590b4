"""PyTorch's names and layouts of parameters.

torchvision and timm use the same names for post-activation networks. Pre-activation networks have timm's names, video
networks torchvision's. Networks that neither library has get the names that they would have there.

Ours: kernel (spatial..., in, out) and (in, out). PyTorch's: weight (out, in, spatial...) and (out, in).
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from resnet_jax.errors import InputError
from resnet_jax.models.backbone import Network
from resnet_jax.models.blocks import Block, InvertedResidual, R2Plus1DBlock
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.shortcuts import AverageShortcut
from resnet_jax.models.stems import DeepStem, MobileStem, PoollessStem, R2Plus1DStem, Stem, VideoStem
from resnet_jax.weights.outside import body, outside_name

# ("params", "stem", "conv", "kernel"): a collection, modules, a leaf
KeyPath = tuple[str, ...]
HEAD: KeyPath = ("params", "head", "kernel")

# A dense layer of a map of that height and width: PyTorch flattens the map, channels first
_FLATTENED, _POOLED = "fc6", (7, 7)
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_PLAIN = {"conv": "conv1", "norm": "bn1"}
_DEEP = {
    "conv1": "conv1.0",
    "norm1": "conv1.1",
    "conv2": "conv1.3",
    "norm2": "conv1.4",
    "conv3": "conv1.6",
    "norm3": "bn1",
}
_MOBILE = {"conv1": "0.0", "norm1": "0.1", "conv2": "1.0", "norm2": "1.1", "conv3": "2", "norm3": "3"}
_STEMS: dict[type[Stem], dict[str, str]] = {
    DeepStem: _DEEP,
    PoollessStem: {**_DEEP, "conv4": "maxpool.0", "norm4": "maxpool.1"},
    VideoStem: {"conv": "stem.0", "norm": "stem.1"},
    R2Plus1DStem: {"conv1": "stem.0", "norm1": "stem.1", "conv2": "stem.3", "norm2": "stem.4"},
    MobileStem: {
        "conv1": "features.0.0",
        "norm1": "features.0.1",
        "conv2": "features.1.conv.0.0",
        "norm2": "features.1.conv.0.1",
        "conv3": "features.1.conv.1",
        "norm3": "features.1.conv.2",
    },
}
_FACTORED = {("conv", False): "0.0", ("norm", False): "0.1", ("conv", True): "0.3", ("norm", True): "1"}
_BLOCK = re.compile(r"stage(\d+)_block(\d+)")
_LAYER = re.compile(r"(conv|norm)(\d+)")


def abstract_variables(model: Network) -> dict[str, Any]:
    """Return shapes and dtypes of all parameters and statistics, for images of `input_shape`."""
    return jax.tree.map(lambda leaf: leaf, _traced_variables(model))


# Tracing a deep network takes a second, and loading weights asks several times
@lru_cache(maxsize=8)
def _traced_variables(model: Network) -> dict[str, Any]:
    images = jax.ShapeDtypeStruct((1, *model.input_shape), jnp.float32)
    variables: dict[str, Any] = jax.eval_shape(model.init, jax.random.key(0), images)
    return variables


def torch_names(model: Network) -> dict[KeyPath, str]:
    """Return PyTorch's name of each parameter and statistic of a network."""
    return {path: torch_name(model, path) for path in traverse_util.flatten_dict(abstract_variables(model))}


def torch_name(model: Network, path: KeyPath) -> str:
    """Return PyTorch's name of a leaf; raise InputError if PyTorch's libraries lack the layer.

    Example:
        >>> from resnet_jax.models.zoo import MODELS
        >>> torch_name(MODELS["resnet18"], ("params", "stage1_block1", "conv1", "kernel"))
        'layer1.0.conv1.weight'
    """
    *modules, leaf = path[1:]
    if leaf not in _LEAVES:
        raise _unnamed("the network", "/".join(path[1:]))
    return f"{_layer_name(model, modules)}.{_LEAVES[leaf]}"


def _layer_name(model: Network, modules: list[str]) -> str:
    if isinstance(model, ResNet):
        return _module(model, modules)
    if modules[0] == "backbone":
        return f"{body(model)}.{_module(model.backbone, modules[1:])}"
    name = outside_name(model, "/".join(modules))
    if name is None:
        raise _unnamed(type(model).__name__, "/".join(modules))
    return name


def _unnamed(part: str, layer: str) -> InputError:
    return InputError(
        f"{part}: PyTorch has no name for {layer}; keep the names of resnet_jax (convert --to flax), or add the layer"
        " to the tables of resnet_jax/weights/names.py"
    )


def _module(model: ResNet, modules: list[str]) -> str:
    pre, mobile = model.block.preactivation, issubclass(model.block, InvertedResidual)
    first, *inside = modules
    if first == "head":
        return "head.fc" if pre else "classifier.1" if mobile else "fc"
    if first in ("last_conv", "last_norm"):
        return f"features.{2 + sum(model.depths)}.{int(first == 'last_norm')}"
    # The final normalisation of pre-activation networks
    if first == "norm":
        return "norm"
    if first == "stem":
        return f"stem.{inside[0]}" if pre else _stem_layer(model.stem, "/".join(inside))
    match = _BLOCK.fullmatch(first)
    if not match:
        raise _unnamed("the network", "/".join(modules))
    stage, block = int(match[1]), int(match[2]) - 1
    if mobile:
        return f"features.{2 + sum(model.depths[: stage - 1]) + block}.{_layer(model, model.block, inside)}"
    home = f"stages.{stage - 1}.blocks.{block}" if pre else f"layer{stage}.{block}"
    return f"{home}.{_layer(model, model.block_of(stage - 1), inside)}"


def _stem_layer(stem: type[Stem], layer: str) -> str:
    """Return the name of a layer of the stem; a subclass has the names of its nearest known base."""
    names = next((_STEMS[base] for base in stem.__mro__ if base in _STEMS), _PLAIN)
    if layer not in names:
        raise _unnamed(f"stem {stem.__name__}", layer)
    return names[layer]


def _layer(model: ResNet, block: type[Block], modules: list[str]) -> str:
    """Return the name of a layer inside a block."""
    if modules[0] == "gate":
        return f"se.{modules[1]}"
    if modules[0] == "shortcut":
        if block.preactivation:
            return f"downsample.{modules[1]}"
        # The pool comes first in the sequence
        pooled = issubclass(model.shortcut, AverageShortcut)
        return f"downsample.{pooled + (modules[1] == 'norm')}"
    match = _LAYER.fullmatch(modules[0])
    if not match:
        raise _unnamed(f"block {block.__name__}", "/".join(modules))
    kind, number = match[1], int(match[2])
    if issubclass(block, R2Plus1DBlock):
        # Pairs of a convolution in space and one in time
        pair, second = (number + 1) // 2, number % 2 == 0
        return f"conv{pair}.{_FACTORED[kind, second]}"
    if issubclass(block, InvertedResidual):
        return f"conv.{_MOBILE[modules[0]]}"
    if issubclass(model.stem, VideoStem):
        return f"conv{number}.{int(kind == 'norm')}"
    return modules[0] if kind == "conv" or block.preactivation else f"bn{number}"


def is_pointwise(model: Network, path: KeyPath) -> bool:
    """Return whether PyTorch has a 1x1 convolution for our dense kernel: gates, pre-activation heads."""
    if path[-1] != "kernel":
        return False
    return path[-2] in ("fc1", "fc2") or (isinstance(model, ResNet) and path[1] == "head" and model.block.preactivation)


def to_torch(model: Network, path: KeyPath, leaf: np.ndarray) -> np.ndarray:
    """Return a leaf in PyTorch's layout, contiguous."""
    if path[-1] != "kernel":
        return np.ascontiguousarray(leaf)
    spatial = tuple(range(leaf.ndim - 2))
    weight = leaf.transpose(-1, -2, *spatial)
    if path[-2] == _FLATTENED:
        weight = weight.reshape(len(weight), -1)
    if is_pointwise(model, path):
        weight = weight.reshape(*weight.shape, *(1,) * (len(model.input_shape) - 1))
    return np.ascontiguousarray(weight)


def from_torch(path: KeyPath, weight: np.ndarray, ndim: int) -> np.ndarray:
    """Return a PyTorch tensor in our layout; a 1x1 convolution becomes dense if `ndim` is 2."""
    if path[-1] != "kernel" or weight.ndim < 2:
        return weight
    if path[-2] == _FLATTENED and weight.ndim == 2:
        weight = weight.reshape(len(weight), -1, *_POOLED)
    if ndim == 2 and set(weight.shape[2:]) <= {1}:
        weight = weight.reshape(weight.shape[:2])
    return weight.transpose(*range(2, weight.ndim), 1, 0)


def to_state_dict(model: Network, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return all parameters and statistics as `load_state_dict(..., strict=True)` takes them."""
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in traverse_util.flatten_dict(dict(variables)).items():
        name = torch_name(model, path)
        tensors[name] = to_torch(model, path, np.asarray(leaf))
        # PyTorch also counts batches; we do not need that
        if path[-1] == "var":
            tensors[f"{name.removesuffix('running_var')}num_batches_tracked"] = np.zeros((), np.int64)
    return tensors
