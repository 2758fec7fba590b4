"""The network that a recipe describes."""

import importlib
import inspect
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from resnet_jax.errors import InputError, first_line, nearest
from resnet_jax.models.norm import BatchNorm
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.zoo import PARTS
from resnet_jax.recipe import Model
from resnet_jax.weights.load import create_model

# Fields of ResNet that a recipe sets by fields of its own, or that the data decide
_OWN = {
    "shortcut": "model.shortcut",
    "dropout": "model.dropout",
    "head_dropout": "model.head_dropout",
    "drop_path": "model.drop_path",
    "zero_init_residual": "model.zero_init_residual",
    "dtype": "model.dtype",
    "num_classes": "",
    "input_shape": "",
    "parent": "",
    "name": "",
}


def build_network(model: Model, num_classes: int) -> nn.Module:
    """Return the network of a recipe.

    Args:
        model: a published network with changed fields, or a network of your own, `package.module:network`, which is
            imported here.
        num_classes: outputs of the head.

    Raises:
        InputError: There is no such network, field or class.

    Example:
        >>> network = build_network(Model(name="resnet20", fields={"width": 32, "block": "Bottleneck"}), 10)
        >>> network.width, network.block.__name__
        (32, 'Bottleneck')
    """
    if ":" in model.name:
        return import_network(model, num_classes)
    shortcut: dict[str, Any] = {} if model.shortcut is None else {"shortcut": model.shortcut}
    network = create_model(
        model.name,
        **shortcut,
        num_classes=num_classes,
        dropout=model.dropout,
        head_dropout=model.head_dropout,
        drop_path=model.drop_path,
        zero_init_residual=model.zero_init_residual,
        dtype=jnp.dtype(model.dtype),
    )
    network = network.clone(**{name: resolve_field(name, value) for name, value in dict(model.fields).items()})
    return _with_norm(network, model)


def resolve_field(name: str, value: Any) -> Any:
    """Return the value of a field of ResNet that a recipe describes, with classes looked up by name.

    Raises:
        InputError: There is no such field or class, the type is wrong, or the recipe has a field of its own for it.
    """
    if name in _OWN:
        hint = f"set {_OWN[name]} instead" if _OWN[name] else "the data decide it"
        raise InputError(f"model.fields: {name} is not set here; {hint}")
    known = [field for field in ResNet.__dataclass_fields__ if field not in _OWN]
    if name not in known:
        hint = nearest(name, known) or f"; known: {', '.join(known)}"
        raise InputError(f"model.fields: ResNet has no field {name!r}{hint}")
    if name in PARTS:
        if value not in PARTS[name]:
            choices = ", ".join(map(str, PARTS[name]))
            raise InputError(f"model.fields: {name} is {value!r}; take one of {choices}")
        return PARTS[name][value]
    _require_type(name, value)
    return value


def _require_type(name: str, value: Any) -> None:
    default = ResNet.__dataclass_fields__[name].default
    tuples = name in ("depths", "strides")
    whole = isinstance(value, int) and not isinstance(value, bool)
    fits = {
        "depths": tuples
        and isinstance(value, tuple)
        and bool(value)
        and all(isinstance(n, int) and n > 0 for n in value),
        "strides": value is None or (isinstance(value, tuple) and all(isinstance(n, int) and n > 0 for n in value)),
        "antialias": isinstance(value, bool),
    }.get(name, (whole and value > 0) or (value is None and default is None))
    if not fits:
        wanted = {"depths": "positive integers", "strides": "positive integers", "antialias": "true or false"}
        raise InputError(f"model.fields: {name} is {value!r}; it must be {wanted.get(name, 'a positive integer')}")


def _with_norm(network: ResNet, model: Model) -> ResNet:
    """Return the network with the recipe's BatchNorm; raise InputError if it has none and the recipe sets it."""
    if network.norm is BatchNorm:
        norm = partial(BatchNorm, group=model.norm_group_size, momentum=model.norm_momentum, frozen=model.freeze_norm)
        return network.clone(norm=norm)
    if model.norm_group_size is not None or model.freeze_norm:
        field = (
            f"freeze_norm is {model.freeze_norm}"
            if model.freeze_norm
            else f"norm_group_size is {model.norm_group_size}"
        )
        raise InputError(f"model.{field}; {model.name} has no BatchNorm, so leave it out")
    return network


def require_resnet(model: nn.Module, what: str) -> ResNet:
    """Return the network; raise InputError if it is not a `ResNet`, which `what` needs."""
    if not isinstance(model, ResNet):
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
