"""Bring the names in a file to those of a network: wrappers' prefixes, other heads, transformers' ResNet."""

import re

import numpy as np
from flax.traverse_util import flatten_dict

from resnet_jax.errors import InputError
from resnet_jax.models.backbone import BackboneModel, Network
from resnet_jax.weights.names import HEAD, abstract_variables, torch_name, torch_names
from resnet_jax.weights.outside import in_torchvision, modern_name
from resnet_jax.weights.state_dict import TensorFile, listed

# Names of the last layer: of torchvision, timm, much code for CIFAR, Cadene's models, and behind a dropout
_HEADS = ("fc", "head.fc", "linear", "classifier", "classifier.1", "head", "last_linear", "fc.1")
# What self-supervised training puts behind the features: SwAV's, DINO's and MoCo v3's names, and another usual one
_PROJECTION = re.compile(r"(?:^|\.)(projection_head|prototypes|head\.mlp|head\.last_layer|predictor|projector)\d*\.")
# MoCo's encoder that is trained, and the one that averages it
_ENCODERS = (("encoder_q.", "encoder_k."), ("base_encoder.", "momentum_encoder."))
_EMBEDDER = re.compile(r"embedder\.embedder\.(convolution|normalization)\.")
_LAYER = re.compile(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(?:shortcut|layer\.(\d+))\.(convolution|normalization)\.")


def rename(model: Network, found: TensorFile) -> TensorFile:
    """Return the tensors under PyTorch's names for a network, as far as they can be told; native names stay.

    One prefix of the names, such as `module.`, is left out if the rest then has all layers of the network, and so are
    counters that do not have it.

    Raises:
        InputError: Several prefixes would fit, or two tensors would have one name.
    """
    if any(name.startswith("params/") for name in found.tensors):
        return found
    found = _without_momentum_encoder(found)
    if isinstance(model, BackboneModel) and not has_all(model, found):
        return rename(model.backbone, found)
    if isinstance(model, BackboneModel):
        names = {name: modern_name(model, name) for name in found.tensors}
    else:
        names = {name: _from_transformers(name) for name in found.tensors}
    expected = {name for path, name in torch_names(model).items() if not {"head", "aux"} & set(path)}
    prefix = _prefix(set(names.values()), expected, found)
    names = {
        name: new.removeprefix(prefix)
        for name, new in names.items()
        if new.startswith(prefix) or not _is_counter(found.tensors[name])
    }
    if not isinstance(model, BackboneModel):
        names, left_out = _without_projection(names, prefix)
        found = found._replace(left_out=(*found.left_out, *left_out))
        names = _with_head(names, torch_name(model, HEAD).removesuffix(".weight"))
    tensors: dict[str, np.ndarray] = {}
    for name, new in names.items():
        if new in tensors:
            raise InputError(f"{found.path}: two tensors are the network's {new!r}; save a file with one of them")
        tensors[new] = found.tensors[name]
    return found._replace(tensors=tensors)


def _without_momentum_encoder(found: TensorFile) -> TensorFile:
    """Leave out what MoCo has beside the encoder that it trains: the averages of that one, and a queue of outputs."""
    for trained, averaged in _ENCODERS:
        before = {name.partition(trained)[0] for name in found.tensors if trained in name}
        averages = f"{next(iter(before), '')}{averaged}"
        if len(before) == 1 and any(name.startswith(averages) for name in found.tensors):
            beside = averages, averages.replace(averaged, "queue")
            tensors = {name: tensor for name, tensor in found.tensors.items() if not name.startswith(beside)}
            left_out = (*found.left_out, f"the momentum encoder under {averages!r}")
            return found._replace(tensors=tensors, left_out=left_out)
    return found


def _without_projection(names: dict[str, str], prefix: str) -> tuple[dict[str, str], list[str]]:
    """Leave out the layers behind the features of self-supervised training; also return what they are."""
    layers = {new.split(".")[1] for new in names.values() if new.startswith("fc.")}
    # MoCo calls its layers as the head of a classifier is called, but they are several or in an encoder
    several = len(layers - {"weight", "bias"}) > 1 or prefix.endswith(tuple(trained for trained, _ in _ENCODERS))
    homes = {
        name: "fc" if several and new.startswith("fc.") else match[1] if (match := _PROJECTION.search(new)) else ""
        for name, new in names.items()
    }
    kept = {name: new for name, new in names.items() if not homes[name]}
    found = sorted(map(repr, set(homes.values()) - {""}))
    return kept, [f"the layers trained after the features, {listed(found)}"] if found else []


def has_all(model: BackboneModel, found: TensorFile) -> bool:
    """Return whether tensors are of a whole network on a backbone, rather than of a classifier."""
    outside = {path for path in flatten_dict(abstract_variables(model)) if path[1] not in ("backbone", "aux")}
    if any(name.startswith("params/") for name in found.tensors):
        return {path[1] for path in outside} <= {name.split("/")[1] for name in found.tensors}
    kernels = [torch_name(model, path) for path in outside if path[-1] == "kernel"] if in_torchvision(model) else []
    names = [modern_name(model, name) for name in found.tensors]
    return bool(kernels) and all(any(name.endswith(kernel) for name in names) for kernel in kernels)


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
