"""The network that a recipe describes."""

import importlib
import inspect
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from resnet_jax.errors import InputError, first_line, nearest
from resnet_jax.models.backbone import BackboneModel, Network, backbone_of, with_fields
from resnet_jax.models.log_mel import LogMel
from resnet_jax.models.norm import BatchNorm
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.zoo import PARTS
from resnet_jax.recipe import Model
from resnet_jax.run_dir.files import DatasetInfo
from resnet_jax.weights.load import create_model

# Fields of a network that a recipe sets by fields of its own, or that the data decide
_OWN = {
    "shortcut": "model.shortcut",
    "dropout": "model.dropout",
    "head_dropout": "model.head_dropout",
    "drop_path": "model.drop_path",
    "zero_init_residual": "model.zero_init_residual",
    "quantize": "model.quantize",
    "dtype": "model.dtype",
    "num_classes": "",
    "input_shape": "",
    "sample_rate": "data.sample_rate",
    "parent": "",
    "name": "",
}


def build_network(model: Model, num_classes: int, sample_rate: int | None = None) -> nn.Module:
    """Return the network of a recipe.

    Args:
        model: a published network with changed fields, or a network of your own, `package.module:network`, which is
            imported here.
        num_classes: outputs of the head.
        sample_rate: Hz, of sound.

    Raises:
        InputError: There is no such network, field or class, or it needs a sample rate.

    Example:
        >>> network = build_network(Model(name="resnet20", fields={"width": 32, "block": "Bottleneck"}), 10)
        >>> network.width, network.block.__name__
        (32, 'Bottleneck')
    """
    if ":" in model.name:
        return import_network(model, num_classes)
    published = create_model(model.name)
    fields = {name: resolve_field(published, name, value) for name, value in dict(model.fields).items()}
    if isinstance(published, LogMel):
        if sample_rate is None:
            raise InputError(f"model.name is {model.name}; it needs data.sample_rate, in samples per second")
        fields["sample_rate"] = sample_rate
    if model.shortcut is not None:
        fields["shortcut"] = model.shortcut
    network = create_model(
        model.name,
        **fields,
        num_classes=num_classes,
        dropout=model.dropout,
        head_dropout=model.head_dropout,
        drop_path=model.drop_path,
        zero_init_residual=model.zero_init_residual,
        quantize=model.quantize,
        dtype=jnp.dtype(model.dtype),
    )
    return _with_norm(network, model)


def resolve_field(network: Network, name: str, value: Any) -> Any:
    """Return the value of a field of a network that a recipe describes, with classes looked up by name.

    Raises:
        InputError: There is no such field or class, the type is wrong, or the recipe has a field of its own for it.
    """
    if name in _OWN:
        hint = f"set {_OWN[name]} instead" if _OWN[name] else "the data decide it"
        raise InputError(f"model.fields: {name} cannot be set here; {hint}")
    defaults = _defaults(network)
    if name not in defaults:
        hint = nearest(name, defaults) or f"; known: {', '.join(defaults)}"
        raise InputError(f"model.fields: {type(network).__name__} has no field {name!r}{hint}")
    if name in PARTS:
        if value not in PARTS[name]:
            choices = ", ".join(map(str, PARTS[name]))
            raise InputError(f"model.fields: {name} is {value!r}; take one of {choices}")
        return PARTS[name][value]
    _require_type(name, value, defaults[name])
    return value


def _defaults(network: Network) -> dict[str, Any]:
    """Return the defaults of the fields that a recipe can set: of the network, then of its backbone."""
    kinds = (type(network), ResNet) if isinstance(network, BackboneModel) else (type(network),)
    known = {name: field.default for kind in kinds for name, field in kind.__dataclass_fields__.items()}
    return {name: default for name, default in known.items() if name not in _OWN}


def _require_type(name: str, value: Any, default: Any) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    tuples = isinstance(value, tuple) and all(isinstance(n, int) and n > 0 for n in value)
    if name in ("depths", "strides", "widths"):
        fits, wanted = (tuples and bool(value)) or (value is None and default is None), "positive integers"
    elif isinstance(default, tuple):
        flat = jax.tree.leaves(value) if isinstance(value, tuple) else []
        fits, wanted = bool(flat) and all(isinstance(n, int) and n > 0 for n in flat), "positive integers"
    elif isinstance(default, bool):
        fits, wanted = isinstance(value, bool), "true or false"
    else:
        fits, wanted = (whole and value > 0) or (value is None and default is None), "a positive integer"
    if not fits:
        raise InputError(f"model.fields: {name} is {value!r}; it must be {wanted}")


def _with_norm(network: Network, model: Model) -> Network:
    """Return the network with the recipe's BatchNorm; raise InputError if it has none and the recipe sets it."""
    backbone = backbone_of(network)
    if backbone is not None and backbone.norm is BatchNorm:
        return with_fields(network, norm=_batch_norm(model.norm_group_size, model.norm_momentum, model.freeze_norm))
    if model.norm_group_size is not None or model.freeze_norm:
        field = (
            f"freeze_norm is {model.freeze_norm}"
            if model.freeze_norm
            else f"norm_group_size is {model.norm_group_size}"
        )
        raise InputError(f"model.{field}; {model.name} has no BatchNorm, so leave it out")
    return network


# The same object each time: two partials are never equal, nor would be the networks of two runs of a recipe
@lru_cache
def _batch_norm(group: int | None, momentum: float, frozen: bool) -> partial[BatchNorm]:
    return partial(BatchNorm, group=group, momentum=momentum, frozen=frozen)


def require_resnet(model: nn.Module, what: str) -> ResNet:
    """Return the network; raise InputError if it is not a `ResNet`, which `what` needs."""
    if isinstance(model, BackboneModel):
        raise InputError(f"{what} is for classifiers; this network is a {type(model).__name__} on a ResNet")
    if not isinstance(model, ResNet):
        raise InputError(f"{what} knows the parts of ResNet; this network is a {type(model).__name__} of your own")
    return model


def require_published(model: nn.Module, what: str) -> Network:
    """Return the network; raise InputError if it is a network of one's own, whose layers `what` does not know."""
    if not isinstance(model, Network):
        raise InputError(f"{what} knows the parts of ResNet; this network is a {type(model).__name__} of your own")
    return model


def import_network(model: Model, num_classes: int) -> nn.Module:
    """Import a network of your own: a linen module, or a function of `num_classes` that returns one.

    Raises:
        InputError: It cannot be imported, is not a linen module, or `model.fields` do not fit.
    """
    module_name, _, attribute = model.name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"model.name is {model.name}: cannot be imported ({first_line(error)})") from error
    fields = dict(model.fields)
    if inspect.isclass(found) or not isinstance(found, nn.Module):
        network = _call(found, model.name, {"num_classes": num_classes, **fields})
    else:
        network = _call(found.clone, model.name, fields)
    if not isinstance(network, nn.Module):
        raise InputError(f"model.name is {model.name}: a {type(network).__name__}, not a linen module")
    return network


def _call(function: Any, name: str, fields: dict[str, Any]) -> Any:
    try:
        return function(**fields)
    except TypeError as error:
        raise InputError(f"model.name is {name}: {first_line(error)}; see model.fields") from error


def abstract_params(model: nn.Module, dataset: DatasetInfo) -> dict[str, Any]:
    """Return the shapes and dtypes of the parameters without computing them."""
    return abstract_variables(model, dataset.image_shape)["params"]


# Tracing a deep network takes a second, and a run asks several times
@lru_cache(maxsize=8)
def abstract_variables(model: nn.Module, image_shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the shapes and dtypes of the variables for images (h, w, c) without computing them."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    try:
        return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), image)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        # In a network of your own it is your code that fails, and the traceback says where
        if not isinstance(model, Network):
            raise
        raise InputError(f"model: it cannot be built for images of {image_shape} ({first_line(error)})") from error
