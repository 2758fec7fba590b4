"""The state of training: arrays only."""

import math
from functools import partial
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from resnet_jax.errors import InputError
from resnet_jax.model.layers import he_normal_fan_out
from resnet_jax.model.norm import BatchNorm
from resnet_jax.model.resnet import ResNet
from resnet_jax.model.zoo import published
from resnet_jax.recipe import Model
from resnet_jax.weights.load import Variables

Path = tuple[str, ...]  # of an array in a tree


class TrainState(struct.PyTreeNode):
    """Everything that a step changes. `step` counts the steps taken and is the only clock."""

    step: Array  # () int32
    params: dict
    batch_stats: dict
    opt_state: optax.OptState
    ema: dict = struct.field(default_factory=dict)  # averages of params and batch_stats under these names; or empty


def build_model(model: Model, num_classes: int) -> ResNet:
    """The network of a recipe; raises InputError for a name that does not exist."""
    network = published(
        model.name,
        **({} if model.shortcut is None else {"shortcut": model.shortcut}),
        num_classes=num_classes,
        dropout=model.dropout,
        head_dropout=model.head_dropout,
        drop_path=model.drop_path,
        zero_init=model.zero_init,
        dtype=jnp.dtype(model.dtype),
    )
    if network.norm is BatchNorm:
        norm = partial(BatchNorm, group=model.norm_group, momentum=model.norm_momentum, frozen=model.norm_frozen)
        network = network.clone(norm=norm)
    elif model.norm_group is not None or model.norm_frozen:
        field = f"norm_frozen is {model.norm_frozen}" if model.norm_frozen else f"norm_group is {model.norm_group}"
        raise InputError(f"model.{field}; {model.name} has no BatchNorm, so leave it out")
    return network


def init_state(
    key: Array,
    model: ResNet,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, ...],
    pretrained: Variables | None = None,
    *,
    averages: bool = False,
) -> TrainState:
    """The state before the first step, for images of `image_shape` (h, w, c).

    What `pretrained` has of "params" and "batch_stats" takes the place of what is drawn: all, or all but the head.
    `averages` keeps averages of both, which begin there.
    """
    drawn, pretrained = draw_variables(key, model, image_shape), pretrained or {}
    return first_state({c: {**drawn.get(c, {}), **pretrained.get(c, {})} for c in drawn}, optimizer, averages=averages)


def first_state(variables: Variables, optimizer: optax.GradientTransformation, *, averages: bool) -> TrainState:
    """The state before the first step, of a network with these variables."""
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    ema = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if averages else {}
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params), ema)


def draw_variables(key: Array, model: ResNet, image_shape: tuple[int, ...]) -> dict:
    """What `model.init` draws for images of `image_shape` (h, w, c), in other numbers of the same distribution.

    Kernels of He's initialisation are cut from one long draw. A compiler takes long over a draw of normal numbers, and
    `model.init` has one for each kernel; under jit those that are replaced here are not computed.
    """
    shapes: dict[Path, tuple[int, ...]] = {}

    def note(call: Any, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        output, module = call(*args, **kwargs), context.module
        if context.method_name == "__call__" and getattr(module, "kernel_init", None) is he_normal_fan_out:
            shapes["params", *module.path, "kernel"] = module.variables["params"]["kernel"].shape
        return output

    with nn.intercept_methods(note):
        variables = flatten_dict(model.init(key, jnp.zeros((1, *image_shape), jnp.float32)))
    return unflatten_dict(variables | he_kernels(jax.random.fold_in(key, 0), shapes))


def he_kernels(key: Array, shapes: dict[Path, tuple[int, ...]]) -> dict[Path, Array]:
    """float32 kernels of these shapes (spatial..., in, out), normal with variance 2 / (out x spatial extent).

    He et al. 2015, "Delving deep into rectifiers", section 2.2, backward case: as `he_normal_fan_out`.
    """
    ends = list(accumulate(map(math.prod, shapes.values()), initial=0))
    draw = jax.random.normal(key, (ends[-1],), jnp.float32)
    draw = jax.lax.optimization_barrier(draw)  # or else it would be compiled anew into each of the kernels
    return {
        path: draw[start:end].reshape(shape) * math.sqrt(2 / (shape[-1] * math.prod(shape[:-2])))
        for (path, shape), start, end in zip(shapes.items(), ends, ends[1:], strict=False)
    }


def averaged(state: TrainState) -> TrainState:
    """The state with the averages in place of parameters and statistics, if it has such."""
    return state.replace(**state.ema) if state.ema else state
