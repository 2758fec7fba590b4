"""The state of training: arrays only."""

import math
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from resnet_jax.models.layers import he_normal_fan_out
from resnet_jax.weights.load import Variables, fill

# Path of an array in a tree
KeyPath = tuple[str, ...]


class TrainState(struct.PyTreeNode):
    """Everything that a training step changes. `step` counts the steps taken and is the only clock."""

    step: Array
    """() int32."""
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    opt_state: optax.OptState
    ema: dict[str, Any] = struct.field(default_factory=dict)
    """EMA of params and batch_stats under these names, or empty."""


def init_state(
    key: Array,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, ...],
    pretrained: Variables | None = None,
    *,
    ema: bool = False,
) -> TrainState:
    """Return the state before the first step.

    Args:
        key: of the initial parameters.
        model: the network.
        optimizer: of its parameters.
        image_shape: (h, w, c) of the images.
        pretrained: "params" and "batch_stats" that replace what is drawn: all, or a part.
        ema: keep an EMA of parameters and statistics, which starts at their initial values.
    """
    return first_state(fill(init_variables(key, model, image_shape), pretrained or {}), optimizer, ema=ema)


def first_state(variables: Variables, optimizer: optax.GradientTransformation, *, ema: bool) -> TrainState:
    """Return the state before the first step of a network with these variables."""
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    copies = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if ema else {}
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params), copies)


def init_variables(key: Array, model: nn.Module, image_shape: tuple[int, ...]) -> dict[str, Any]:
    """Draw what `model.init` draws for images (h, w, c), from the same distributions but with other numbers.

    Kernels with He initialisation are cut from one long draw. A compiler takes long over a draw of normal numbers, and
    `model.init` has one per kernel; under jit those that are replaced here are not computed.
    """
    shapes: dict[KeyPath, tuple[int, ...]] = {}

    def note(call: Any, args: tuple[Any, ...], kwargs: dict[str, Any], context: nn.module.InterceptorContext) -> Any:
        output, module = call(*args, **kwargs), context.module
        if context.method_name == "__call__" and getattr(module, "kernel_init", None) is he_normal_fan_out:
            shapes["params", *module.path, "kernel"] = module.variables["params"]["kernel"].shape
        return output

    with nn.intercept_methods(note):
        variables = flatten_dict(model.init(key, jnp.zeros((1, *image_shape), jnp.float32), train=False))
    return unflatten_dict(variables | he_kernels(jax.random.fold_in(key, 0), shapes))


def he_kernels(key: Array, shapes: dict[KeyPath, tuple[int, ...]]) -> dict[KeyPath, Array]:
    """Draw float32 kernels (spatial..., in, out), normal with variance 2 / (out x spatial extent).

    Reference:
        He et al. 2015, "Delving deep into rectifiers", section 2.2, backward case; as `he_normal_fan_out`.
    """
    if not shapes:
        return {}
    ends = list(accumulate(map(math.prod, shapes.values()), initial=0))
    draw = jax.random.normal(key, (ends[-1],), jnp.float32)
    # Otherwise the draw would be compiled again into each of the kernels
    draw = jax.lax.optimization_barrier(draw)
    return {
        path: draw[start:end].reshape(shape) * math.sqrt(2 / (shape[-1] * math.prod(shape[:-2])))
        for (path, shape), start, end in zip(shapes.items(), ends, ends[1:], strict=False)
    }


def with_ema_params(state: TrainState) -> TrainState:
    """Return the state with the EMA in place of parameters and statistics, if it has one."""
    return state.replace(**state.ema) if state.ema else state


def update_ema(state: TrainState, *, decay: float, every: int = 1, warmup: bool = False) -> dict[str, Any]:
    """Return the EMA after a step; it moves every `every` steps.

    With a warm-up, the decay of the n-th update is at most (1 + n) / (10 + n), as in TensorFlow.
    """
    updates = state.step // every
    decay_now = jnp.minimum(decay, (1 + updates) / (10 + updates)) if warmup else decay
    decay_now = jnp.where(state.step % every == 0, decay_now, 1.0)
    now = {"params": state.params, "batch_stats": state.batch_stats}
    return jax.tree.map(lambda old, new: (decay_now * old + (1 - decay_now) * new).astype(old.dtype), state.ema, now)
