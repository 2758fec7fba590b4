"""Load weights into a network: all of them unchanged, or none."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.nn.initializers import normal

from resnet_jax.data.image import Preprocessing
from resnet_jax.errors import InputError, unknown
from resnet_jax.models.backbone import BackboneModel, Network, with_fields
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.shortcuts import SHORTCUTS
from resnet_jax.models.zoo import MODELS, PARTS, known_as
from resnet_jax.weights.entries import Entry
from resnet_jax.weights.locate import locate
from resnet_jax.weights.names import HEAD, abstract_variables, from_torch, to_torch, torch_name
from resnet_jax.weights.names import KeyPath as Leaf
from resnet_jax.weights.outside import body
from resnet_jax.weights.rename import describe_names, has_all, rename
from resnet_jax.weights.state_dict import TensorFile, listed
from resnet_jax.weights.tensors import read_tensor_file

_log = logging.getLogger("resnet_jax")
_HEAD = (HEAD, (*HEAD[:-1], "bias"))
_NARROW = {np.dtype(np.float16), np.dtype(jnp.bfloat16)}
Variables = dict[str, Any]


class Loaded(NamedTuple):
    """Variables from a file, with notes on what was adapted."""

    variables: Variables
    """"params" and "batch_stats", without the head if it does not fit; of a classifier, the backbone alone."""
    notes: tuple[str, ...]
    """One line for each part that was replaced or adapted."""
    file: Path
    preprocessing: Preprocessing | None = None
    """As the weights were trained, if that is known."""


def load(model: Network, where: str, *, cast: bool = False) -> Loaded:
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


def _unheard(model: Network, entry: Entry | None) -> list[str]:
    """Return a note on what a config.json says of a network that is not so of this one."""
    if entry is None or not isinstance(model, ResNet):
        return []
    what = [f"{name} {value!r}" for name, value in entry.fields if getattr(model, name) != _part(name, value)]
    what += [entry.refused] if entry.refused else []
    return [f"{entry.source}: config.json says {listed(what)}, which this network does not have"] if what else []


def _part(name: str, value: Any) -> Any:
    """Return the value of a field that is said by name."""
    return PARTS[name][value] if name in PARTS else value


def match_tensors(model: Network, found: TensorFile, *, cast: bool = False) -> Loaded:
    """Return the variables of a network from tensors under PyTorch's names or ours, as `load` does."""
    if isinstance(model, BackboneModel) and not has_all(model, found):
        return _fill_backbone(model, found, cast)
    shapes = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(abstract_variables(model)).items()}
    tensors, file = dict(found.tensors), found.path
    native = any(name.startswith("params/") for name in tensors)
    names = {path: _own_name(path, tensors) if native else torch_name(model, path) for path in shapes}
    notes = _drop_aux(tensors, names, file) if isinstance(model, BackboneModel) else []
    heads = {path: name for path, name in names.items() if "head" in path}
    if headless := _drop_head(model, tensors, heads, file):
        names = {path: name for path, name in names.items() if path not in heads}
        notes += headless
    _require_names(tensors, set(names.values()), found)
    notes += [f"{file}: left out, as not part of the network: {listed(found.left_out)}"] if found.left_out else []
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


def _own_name(path: Leaf, tensors: Mapping[str, np.ndarray]) -> str:
    """Return our name of a leaf: in frozen normalisations, scale and bias are statistics and no parameters."""
    name, (collection, *rest) = "/".join(path), path
    other = "/".join(["batch_stats" if collection == "params" else "params", *rest])
    return other if name not in tensors and other in tensors else name


def _fill_backbone(model: BackboneModel, found: TensorFile, cast: bool) -> Loaded:
    """Return the variables of the backbone alone, from the tensors of a classifier or of another such network."""
    inside = {
        name.replace("/backbone/", "/", 1): tensor for name, tensor in found.tensors.items() if "/backbone/" in name
    }
    found = found._replace(tensors=inside or found.tensors)
    loaded = match_tensors(model.backbone.clone(input_shape=model.input_shape), found, cast=cast)
    variables = {collection: {"backbone": tree} for collection, tree in loaded.variables.items()}
    note = f"{found.path}: fills the backbone; the other layers of the {type(model).__name__} are initialised"
    return loaded._replace(variables=variables, notes=(*loaded.notes, note))


def _drop_aux(tensors: dict[str, np.ndarray], names: dict[Leaf, str], file: Path) -> list[str]:
    """Remove an auxiliary head that only the file or only the network has, and return a note on it."""
    ours = {path for path in names if path[1] == "aux"}
    theirs = [name for name in tensors if name.startswith(("aux_classifier.", "params/aux/", "batch_stats/aux/"))]
    if bool(ours) == bool(theirs):
        return []
    for name in theirs:
        del tensors[name]
    for path in ours:
        del names[path]
    if ours:
        return [f"{file}: has no auxiliary head; one is initialised"]
    return [f"{file}: its auxiliary head is dropped"]


def _drop_head(model: Network, tensors: dict[str, np.ndarray], head: Mapping[Leaf, str], file: Path) -> list[str]:
    """Remove a head that does not fit from the tensors, and return a note on it."""
    names = list(head.values()) or ["fc.weight", "fc.bias", "head.fc.weight", "head.fc.bias", *map("/".join, _HEAD)]
    there = [name for name in names if name in tensors]
    if model.num_classes == 0:
        for name in there:
            del tensors[name]
        return []
    if not there:
        return [f"{file}: has no head; one of {model.num_classes:,} classes is initialised"]
    classes = count_classes(model, tensors)
    if len(there) < len(names) or classes == model.num_classes:
        return []
    for name in there:
        del tensors[name]
    return [f"{file}: its head for {classes:,} classes is dropped; a new one for {model.num_classes:,} is initialised"]


def count_classes(model: Network, tensors: Mapping[str, np.ndarray]) -> int | None:
    """Return the number of outputs of the head among tensors, or None if there is no head."""
    if isinstance(model, ResNet):
        path, theirs = _HEAD[1], ["fc.bias", "head.fc.bias", "classifier.1.bias"]
    else:
        path = ("params", *model.head_path, "bias")
        theirs = [_first_name(model, path)]
    for name in (*theirs, "/".join(path)):
        if name in tensors and tensors[name].ndim == 1:
            outputs = len(tensors[name])
            return outputs if isinstance(model, ResNet) else model.classes_of(outputs)
    return None


def count_channels(model: Network, tensors: Mapping[str, np.ndarray]) -> int | None:
    """Return the input channels of the first convolution among tensors, or None if it is missing."""
    if isinstance(model, BackboneModel):
        tensors = {name.replace(f"{body(model)}.", "").replace("backbone/", ""): x for name, x in tensors.items()}
        model = model.backbone
    for layer in ("conv", "conv1"):
        path = ("params", "stem", layer, "kernel")
        for name, axis in (("/".join(path), -2), (_first_name(model, path), 1)):
            if name in tensors and tensors[name].ndim > 2:
                return tensors[name].shape[axis]
    return None


def _first_name(model: Network, path: Leaf) -> str:
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
            hint = f"{describe_names(found)}; is it for another network?"
            raise InputError(f"{found.path}: {kind} parameter {wrong[0][:200]!r}{more}{hint}")


def _checked(tensor: np.ndarray, name: str, file: Path, cast: bool) -> np.ndarray:
    if tensor.dtype != np.float32:
        # Widening is exact
        if tensor.dtype not in _NARROW and not (cast and jnp.issubdtype(tensor.dtype, jnp.floating)):
            hint = "; `resnet-jax convert --cast` rounds it" if jnp.issubdtype(tensor.dtype, jnp.floating) else ""
            raise InputError(f"{file}: {name} is {tensor.dtype}, the network float32{hint}")
        tensor = tensor.astype(np.float32)
    if not np.isfinite(tensor).all():
        raise InputError(f"{file}: {name} has values that are not finite; use another file")
    return tensor


def _fit_channels(path: Leaf, kernel: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, list[str]]:
    """Adapt the first convolution from three input channels to another number, as timm does."""
    first = path[-3:-1] in (("stem", "conv"), ("stem", "conv1"))
    if not first or kernel.ndim < 3 or kernel.shape[-2] != 3:
        return kernel, []
    channels = shape[-2]
    if channels == 3:
        return kernel, []
    if channels == 1:
        kernel = kernel.sum(-2, keepdims=True)
    else:
        kernel = np.take(kernel, np.arange(channels) % 3, axis=-2) * np.float32(3 / channels)
    return kernel, [f"the first convolution is adapted from 3 input channels to {channels}"]


def with_head(model: Network, variables: Variables, seed: int = 0) -> Variables:
    """Return the variables with a new head, N(0, 0.01), if they have none and the network needs one.

    In a network on a backbone, all layers that are missing are drawn.
    """
    if isinstance(model, BackboneModel):
        images = jnp.zeros((1, *model.input_shape))
        drawn = jax.jit(model.init)(jax.random.key(seed), images)
        return fill(drawn, variables)
    params = variables["params"]
    if model.num_classes == 0 or "head" in params:
        return variables
    width = model.stages()[-1].channels
    kernel = normal(0.01)(jax.random.key(seed), (width, model.num_classes), jnp.float32)
    return {**variables, "params": {**params, "head": {"kernel": kernel, "bias": jnp.zeros(model.num_classes)}}}


def fill(drawn: Variables, loaded: Variables) -> Variables:
    """Return what was drawn, with what was loaded in its place."""
    leaves = traverse_util.flatten_dict(drawn, keep_empty_nodes=True)
    return traverse_util.unflatten_dict(leaves | traverse_util.flatten_dict(loaded))


def log_notes(notes: Iterable[str]) -> None:
    """Log what was adapted in weights."""
    for note in notes:
        _log.warning(note)


@overload
def create_model(name: str, *, pretrained: None = None, **fields: Any) -> Network: ...


@overload
def create_model(name: str, *, pretrained: Path | str | Literal[True], **fields: Any) -> tuple[Network, Variables]: ...


def create_model(
    name: str, *, pretrained: Path | str | Literal[True] | None = None, cast: bool = False, seed: int = 0, **fields: Any
) -> Network | tuple[Network, Variables]:
    """Return a published network with some fields changed and, if `pretrained` is given, its variables.

    Args:
        name: one of MODELS, or timm's name of it; with `pretrained=True` the weights, whose network is known.
        pretrained: a file, a folder, "hf:OWNER/NAME" or a name of WEIGHTS, as in `load`; adaptations are logged.
            Without `num_classes` and `input_shape` the network has the classes and input channels of the file.
        cast: as in `load`.
        seed: seed of a new head, if the number of classes differs.
        fields: fields of the network or its backbone; `shortcut` is a class or its name in SHORTCUTS.

    Raises:
        InputError: The name is unknown or the weights do not fit.
        TypeError: The network has no such field.

    Example:
        >>> create_model("resnet50", num_classes=10).num_classes
        10
        >>> model, variables = create_model("resnet50", pretrained="hf:timm/resnet50.a1_in1k")  # doctest: +SKIP
        >>> model, variables = create_model("hf:timm/resnet50.a1_in1k", pretrained=True)  # doctest: +SKIP
    """
    if pretrained is True:
        pretrained, name = name, _network_of(name)
    name = known_as(name)
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    if isinstance(shortcut := fields.get("shortcut"), str):
        if shortcut not in SHORTCUTS:
            raise unknown("shortcut", shortcut, SHORTCUTS)
        fields["shortcut"] = SHORTCUTS[shortcut]
    model = with_fields(MODELS[name], **fields)
    if pretrained is None:
        return model
    file, entry = locate(pretrained)
    said = {name: _part(name, value) for name, value in (entry.fields if entry else ())}
    model = with_fields(model, **(said | fields))
    found = rename(model, read_tensor_file(file))
    classes, channels = count_classes(model, found.tensors), count_channels(model, found.tensors)
    if "num_classes" not in fields and classes is not None:
        model = model.clone(num_classes=classes)
    if "input_shape" not in fields and channels is not None:
        model = model.clone(input_shape=(*model.input_shape[:-1], channels))
    loaded = match_tensors(model, found, cast=cast)
    log_notes([*loaded.notes, *_unheard(model, entry)])
    return model, with_head(model, loaded.variables, seed)


def _network_of(where: str) -> str:
    """Return the name of the network of weights; raise InputError if nothing says it."""
    file, entry = locate(where)
    name = entry.model if entry else (read_tensor_file(file).metadata or {}).get("model", "")
    if name not in MODELS:
        raise InputError(
            f"{where}: does not say which network it is; name it: create_model(NAME, pretrained={where!r})"
        )
    return name
