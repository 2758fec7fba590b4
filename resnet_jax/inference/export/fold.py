"""Fold batch normalisation into the convolutions before it: the same function with fewer operations.

Reference:
    Jacob et al. 2018, "Quantization and training of neural networks", section 3.2.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from resnet_jax.models.cpu_ops import cpu_kernels
from resnet_jax.models.layers import Conv
from resnet_jax.models.norm import BatchNorm
from resnet_jax.models.quantize import fake_quantize_kernel
from resnet_jax.weights.load import Variables

# Names of modules from the outermost: ("stem", "conv")
ModulePath = tuple[str, ...]
_Intercepted = Callable[..., Any]


class Folded(NamedTuple):
    """A network in evaluation mode whose normalisations are folded."""

    apply: Callable[[Variables, Array], Any]
    """(variables, images) -> outputs."""
    variables: Variables
    """"params": kernels and biases of the convolutions, and scales and biases of norms that do not follow one; and
    "batch_stats": the ranges of quantisation-aware training."""
    norms: Mapping[ModulePath, ModulePath]
    """The convolution into which each folded normalisation went."""


def fold_batch_norm(model: nn.Module, variables: Variables, image_shape: tuple[int, ...]) -> Folded:
    """Return a network with every batch normalisation folded into the convolution before it.

    A normalisation whose input is used elsewhere too, as before the blocks of pre-activation networks, becomes a
    multiplication and an addition. Kernels are those that the convolutions use: standardised, for example. The
    arithmetic is in float64, the result has the dtypes of the parameters.

    Args:
        model: a network of this library, or one with its or flax's `Conv` and `BatchNorm`.
        variables: "params" and "batch_stats".
        image_shape: (spatial..., c).

    Example:
        >>> from resnet_jax import create_model
        >>> model, images = create_model("resnet8", width=4), jnp.zeros((1, 8, 8, 3))
        >>> folded = fold_batch_norm(model, model.init(jax.random.key(0), images), (8, 8, 3))
        >>> folded.norms["stem", "norm"], folded.apply(folded.variables, images).shape
        (('stem', 'conv'), (1, 10))
    """
    convs, norms, pairs = _layers(model, variables, image_shape)
    flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(dict(variables)).items()}
    for path, conv in convs.items():
        # Kernels may be shared by calls of one module, and none is folded twice
        if isinstance(conv, Conv):
            own = conv.standardize(jnp.asarray(flat["params", *path, "kernel"]))
            # Its levels are those before a normalisation scales it
            flat["params", *path, "kernel"] = np.asarray(own if conv.quantizer is None else fake_quantize_kernel(own))
    for path, norm in norms.items():
        scale, bias = _affine(flat, path, norm)
        if path in pairs:
            at = pairs[path]
            kernel, before = flat["params", *at, "kernel"], flat.get(("params", *at, "bias"), np.zeros_like(bias))
            flat["params", *at, "kernel"] = (kernel * scale).astype(kernel.dtype)
            flat["params", *at, "bias"] = (before * scale + bias).astype(kernel.dtype)
        else:
            dtype = flat["batch_stats", *path, "mean"].dtype
            flat["params", *path, "scale"], flat["params", *path, "bias"] = scale.astype(dtype), bias.astype(dtype)
        for name in ("scale", "bias") if path in pairs else ():
            flat.pop(("params", *path, name), None)
        for name in ("mean", "var"):
            del flat["batch_stats", *path, name]
    kept = unflatten_dict({path: jnp.asarray(leaf) for path, leaf in flat.items()})

    def evaluate(
        call: _Intercepted, args: tuple[Any, ...], kwargs: dict[str, Any], context: nn.module.InterceptorContext
    ) -> Any:
        module, path = context.module, context.module.path
        if context.method_name != "__call__" or path not in convs | norms:
            return call(*args, **kwargs)
        if path in pairs:
            return args[0]
        params = module.variables["params"]
        if path in norms:
            return args[0] * _as_channels(params["scale"], args[0]) + _as_channels(params["bias"], args[0])
        if isinstance(module, Conv):
            x, kernel = args[0], params["kernel"]
            if module.quantizer is not None:
                x, kernel = module.quantizer(name="quant")(x, kernel)
            # Not a subclass's, which may be another formula for accelerators
            y = Conv.convolve(module, x, kernel)
        else:
            y = call(*args, **kwargs)
        added = "bias" in params and (isinstance(module, Conv) or not module.use_bias)
        return y + _as_channels(params["bias"], y) if added else y

    def apply(variables: Variables, images: Array) -> Any:
        with cpu_kernels(False), nn.intercept_methods(evaluate):
            return model.apply(variables, images, train=False)

    return Folded(apply, kept, pairs)


def _as_channels(values: Array, x: Array) -> Array:
    return values.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def _affine(flat: dict[ModulePath, np.ndarray], path: ModulePath, norm: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and bias, float64 (c,), of a normalisation by its running averages."""
    mean, var = (flat["batch_stats", *path, name].astype(np.float64) for name in ("mean", "var"))
    scale = flat.get(("params", *path, "scale"), np.ones(())) / np.sqrt(var + norm.epsilon)
    return scale, flat.get(("params", *path, "bias"), np.zeros(())) - mean * scale


def _layers(
    model: nn.Module, variables: Variables, image_shape: tuple[int, ...]
) -> tuple[dict[ModulePath, Any], dict[ModulePath, Any], dict[ModulePath, ModulePath]]:
    """Return convolutions and normalisations by path, and the convolution into which each normalisation can go."""
    convs: dict[ModulePath, Any] = {}
    norms: dict[ModulePath, Any] = {}
    calls: Counter[ModulePath] = Counter()

    def mark(
        call: _Intercepted, args: tuple[Any, ...], kwargs: dict[str, Any], context: nn.module.InterceptorContext
    ) -> Any:
        module, path = context.module, context.module.path
        if context.method_name != "__call__" or not isinstance(module, Conv | nn.Conv | BatchNorm | nn.BatchNorm):
            return call(*args, **kwargs)
        calls[path] += 1
        if isinstance(module, BatchNorm | nn.BatchNorm):
            norms[path] = module
            return call(checkpoint_name(args[0], _written(path)), *args[1:], **kwargs)
        convs[path] = module
        return checkpoint_name(call(*args, **kwargs), _written(path))

    def apply(variables: Variables, images: Array) -> Any:
        with cpu_kernels(False), nn.intercept_methods(mark):
            return model.apply(variables, images, train=False)

    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    jaxpr = jax.make_jaxpr(apply)(variables, images).jaxpr
    uses = Counter(id(var) for eqn in jaxpr.eqns for var in eqn.invars) + Counter(map(id, jaxpr.outvars))
    marked = [(_read(eqn), eqn) for eqn in jaxpr.eqns if eqn.primitive.name == "name"]
    outputs = {id(eqn.outvars[0]): path for path, eqn in marked if path in convs}
    pairs = {}
    for path, eqn in marked:
        conv = outputs.get(id(eqn.invars[0]))
        if path in norms and conv and uses[id(eqn.invars[0])] == calls[path] == calls[conv] == 1:
            pairs[path] = conv
    return convs, norms, pairs


def _written(path: ModulePath) -> str:
    return "/".join(path)


def _read(eqn: Any) -> ModulePath:
    return tuple(eqn.params["name"].split("/"))
