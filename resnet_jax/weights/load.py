"""Load weights into a network: all of them unchanged, or none."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.nn.initializers import normal

from resnet_jax.data.image import Preprocessing
from resnet_jax.errors import InputError, unknown
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.shortcuts import SHORTCUTS
from resnet_jax.models.zoo import MODELS, PARTS
from resnet_jax.weights.entries import Entry
from resnet_jax.weights.locate import locate
from resnet_jax.weights.names import HEAD, abstract_variables, from_torch, to_torch, torch_name
from resnet_jax.weights.names import KeyPath as Leaf
from resnet_jax.weights.rename import describe_names, rename
from resnet_jax.weights.state_dict import TensorFile, listed
from resnet_jax.weights.tensors import read_tensor_file

_log = logging.getLogger("resnet_jax")
_HEAD = (HEAD, (*HEAD[:-1], "bias"))
_NARROW = {np.dtype(np.float16), np.dtype(jnp.bfloat16)}
Variables = dict[str, Any]


class Loaded(NamedTuple):
    """Variables from a file, with notes on what was adapted."""

    variables: Variables
    """"params" and "batch_stats", without the head if it does not fit."""
    notes: tuple[str, ...]
    """One line for each part that was replaced or adapted."""
    file: Path
    preprocessing: Preprocessing | None = None
    """As the weights were trained, if that is known."""


def load(model: ResNet, where: str, *, cast: bool = False) -> Loaded:
    """Return the variables of a network from a file, a folder, the hub or a published entry.

    If the number of classes differs, the head is left out. If `model.input_shape` has another number of channels than
    three, the first convolution of an RGB network is adapted: its kernels are summed for one channel, and repeated and
    scaled for others.

    Args:
        model: the network.
        where: as in `locate`.
        cast: round float64 to float32; float16 and bfloat16 are always widened, which is exact.

    Raises:
        InputError: A parameter is missing, unknown, not finite, or of another shape or dtype; names file and parameter.
    """
    file, entry = locate(where)
    loaded = match_tensors(model, rename(model, read_tensor_file(file)), cast=cast)
    notes = (*loaded.notes, *_unheard(model, entry))
    return loaded._replace(notes=notes, preprocessing=entry and entry.preprocessing)


def _unheard(model: ResNet, entry: Entry | None) -> list[str]:
    """Return a note on what a config.json says of a network that is not so of this one."""
    if entry is None:
        return []
    what = [f"{name} {value!r}" for name, value in entry.fields if getattr(model, name) is not PARTS[name][value]]
    what += [entry.refused] if entry.refused else []
    return [f"{entry.source}: config.json says {listed(what)}, which this network does not have"] if what else []


def match_tensors(model: ResNet, found: TensorFile, *, cast: bool = False) -> Loaded:
    """Return the variables of a network from tensors under PyTorch's names or ours, as `load` does."""
    shapes = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(abstract_variables(model)).items()}
    tensors, file = dict(found.tensors), found.path
    native = any(name.startswith("params/") for name in tensors)
    names = {path: "/".join(path) if native else torch_name(model, path) for path in shapes}
    notes = _drop_head(model, tensors, {path: names[path] for path in _HEAD if path in names}, file)
    for path in _HEAD if notes else ():
        del names[path]
    _require_names(tensors, set(names.values()), found)
    notes += [f"{file}: beside the weights and left out: {listed(found.left_out)}"] if found.left_out else []
    dtypes = {tensors[name].dtype for name in names.values()} & _NARROW
    notes += [f"{file}: weights in {listed(sorted(map(str, dtypes)))} are read as float32"] if dtypes else []
    leaves: dict[Leaf, jax.Array] = {}
    for path, name in names.items():
        tensor = _checked(tensors.pop(name), name, file, cast)
        leaf = tensor if native else from_torch(path, tensor, len(shapes[path]))
        leaf, note = _fit_channels(path, leaf, shapes[path])
        if leaf.shape != shapes[path]:
            expected = shapes[path] if native else to_torch(model, path, np.empty(shapes[path], bool)).shape
            raise InputError(f"{file}: {name} has the shape {tensor.shape}, the network {expected}; is it another one?")
        # Copied, since the mapped file may change
        leaves[path] = jnp.array(leaf)
        notes += note
    return Loaded(traverse_util.unflatten_dict(leaves), tuple(notes), file)


def _drop_head(model: ResNet, tensors: dict[str, np.ndarray], head: Mapping[Leaf, str], file: Path) -> list[str]:
    """Remove a head that does not fit from the tensors, and return a note on it."""
    names = list(head.values()) or ["fc.weight", "fc.bias", "head.fc.weight", "head.fc.bias", *map("/".join, _HEAD)]
    there = [name for name in names if name in tensors]
    if model.num_classes == 0:
        for name in there:
            del tensors[name]
        return []
    if not there:
        return [f"{file}: has no head; one of {model.num_classes:,} classes is initialised"]
    classes = count_classes(tensors)
    if len(there) < len(names) or classes == model.num_classes:
        return []
    for name in there:
        del tensors[name]
    return [f"{file}: its head of {classes:,} classes is left out; one of {model.num_classes:,} is initialised"]


def count_classes(tensors: Mapping[str, np.ndarray]) -> int | None:
    """Return the number of outputs of the head among tensors, or None if there is no head."""
    for name in ("fc.bias", "head.fc.bias", "/".join(_HEAD[1])):
        if name in tensors and tensors[name].ndim == 1:
            return len(tensors[name])
    return None


def count_channels(model: ResNet, tensors: Mapping[str, np.ndarray]) -> int | None:
    """Return the input channels of the first convolution among tensors, or None if it is missing."""
    for layer in ("conv", "conv1"):
        path = ("params", "stem", layer, "kernel")
        for name, axis in (("/".join(path), -2), (_first_name(model, path), 1)):
            if name in tensors and tensors[name].ndim > 2:
                return tensors[name].shape[axis]
    return None


def _first_name(model: ResNet, path: Leaf) -> str:
    try:
        return torch_name(model, path)
    except InputError:
        # The stem has no such layer
        return ""


def _require_names(tensors: Mapping[str, np.ndarray], names: set[str], found: TensorFile) -> None:
    missing = sorted(names - set(tensors))
    extra = sorted(name for name in set(tensors) - names if not name.endswith("num_batches_tracked"))
    for kind, wrong in (("has no", missing), ("has an unknown", extra)):
        if wrong:
            more = f" and {len(wrong) - 1:,} others" if len(wrong) > 1 else ""
            hint = f"{describe_names(found)}; is it of another network?"
            raise InputError(f"{found.path}: {kind} parameter {wrong[0][:200]!r}{more}{hint}")


def _checked(tensor: np.ndarray, name: str, file: Path, cast: bool) -> np.ndarray:
    if tensor.dtype != np.float32:
        # Widening is exact
        if tensor.dtype not in _NARROW and not (cast and jnp.issubdtype(tensor.dtype, jnp.floating)):
            hint = "; `resnet-jax convert --cast` rounds it" if jnp.issubdtype(tensor.dtype, jnp.floating) else ""
            raise InputError(f"{file}: {name} is {tensor.dtype}, the network float32{hint}")
        tensor = tensor.astype(np.float32)
    if not np.isfinite(tensor).all():
        raise InputError(f"{file}: {name} is not finite everywhere; the file is of no use")
    return tensor


def _fit_channels(path: Leaf, kernel: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, list[str]]:
    """Adapt the first convolution from three input channels to another number, as timm does."""
    if path[1] != "stem" or path[2] not in ("conv", "conv1") or kernel.ndim < 3 or kernel.shape[-2] != 3:
        return kernel, []
    channels = shape[-2]
    if channels == 3:
        return kernel, []
    if channels == 1:
        kernel = kernel.sum(-2, keepdims=True)
    else:
        kernel = np.take(kernel, np.arange(channels) % 3, axis=-2) * np.float32(3 / channels)
    return kernel, [f"the first convolution is adapted from 3 input channels to {channels}"]


def with_head(model: ResNet, variables: Variables, seed: int = 0) -> Variables:
    """Return the variables with a new head, N(0, 0.01), if they have none and the network needs one."""
    params = variables["params"]
    if model.num_classes == 0 or "head" in params:
        return variables
    width = model.stages()[-1].channels
    kernel = normal(0.01)(jax.random.key(seed), (width, model.num_classes), jnp.float32)
    return {**variables, "params": {**params, "head": {"kernel": kernel, "bias": jnp.zeros(model.num_classes)}}}


def log_notes(notes: Iterable[str]) -> None:
    """Log what was adapted in weights."""
    for note in notes:
        _log.warning(note)


@overload
def create_model(name: str, *, pretrained: None = None, **fields: Any) -> ResNet: ...


@overload
def create_model(name: str, *, pretrained: Path | str, **fields: Any) -> tuple[ResNet, Variables]: ...


def create_model(
    name: str, *, pretrained: Path | str | None = None, cast: bool = False, seed: int = 0, **fields: Any
) -> ResNet | tuple[ResNet, Variables]:
    """Return a published network with some fields changed and, if `pretrained` is given, its variables.

    Args:
        name: one of MODELS.
        pretrained: a file, a folder, "hf:OWNER/NAME" or a name of WEIGHTS, as in `load`; what was adapted is logged.
            Without `num_classes` and `input_shape` the network has the classes and input channels of the file.
        cast: as in `load`.
        seed: of a new head, if the number of classes differs.
        fields: of ResNet; `shortcut` is a class or its name in SHORTCUTS.

    Raises:
        InputError: The name is unknown or the weights do not fit.
        TypeError: ResNet has no such field.

    Example:
        >>> create_model("resnet50", num_classes=10).num_classes
        10
        >>> model, variables = create_model("resnet50", pretrained="hf:timm/resnet50.a1_in1k")  # doctest: +SKIP
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    if isinstance(shortcut := fields.get("shortcut"), str):
        if shortcut not in SHORTCUTS:
            raise unknown("shortcut", shortcut, SHORTCUTS)
        fields["shortcut"] = SHORTCUTS[shortcut]
    model = MODELS[name].clone(**fields)
    if pretrained is None:
        return model
    file, entry = locate(pretrained)
    said = {name: PARTS[name][value] for name, value in (entry.fields if entry else ())}
    model = model.clone(**(said | fields))
    found = rename(model, read_tensor_file(file))
    classes, channels = count_classes(found.tensors), count_channels(model, found.tensors)
    if "num_classes" not in fields and classes is not None:
        model = model.clone(num_classes=classes)
    if "input_shape" not in fields and channels is not None:
        model = model.clone(input_shape=(*model.input_shape[:-1], channels))
    loaded = match_tensors(model, found, cast=cast)
    log_notes([*loaded.notes, *_unheard(model, entry)])
    return model, with_head(model, loaded.variables, seed)
