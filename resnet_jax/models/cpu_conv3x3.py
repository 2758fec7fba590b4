"""3x3 convolutions of stride 1 or 2, and their gradients, as one primitive of JAX.

A convolution is linear in an image x and a kernel k; with a map y of the shape of its result, the sum of y * conv(x, k)
is linear in all three. The derivatives of this sum by y, x and k are the convolution, the gradient of the image and
that of the kernel, and each has the other two as its derivatives. So one primitive with three results differentiates
to any order. On CPUs each result has formulas of its own; elsewhere, in an export, and in programs that XLA partitions,
all are XLA's.

Axes: n images, c channels, d features; x (n, h, w, c), k (3, 3, c, d), y (n, h, w, d). vmap adds axes before them.
"""

from functools import cache, partial
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from resnet_jax.models import cpu_patches, cpu_winograd

# The operands of each result
OPERANDS = {"y": "xk", "x": "yk", "k": "xy"}
# For which Winograd's formulas are faster than XLA's: pixels along both axes, and channels of both sides
SMALLEST_MAP, FEWEST_CHANNELS = 14, {"y": 64, "x": 64, "k": 256}
# Channels of both sides from which they are faster than machine code too, for several images; for the gradient of an
# image only if there are more pixels than this number of times the channels
CHANNELS_BEYOND_CODE, PIXELS_PER_CHANNEL = {"y": 128, "x": 128, "k": 256}, 6
# Largest map of a result for which one product with patches is: up to 12x faster than machine code for the gradient of
# a kernel, 15x than XLA's convolution (2x2 and 1x1 pixels of 256 and 512 channels, a batch of 128)
TINY_MAP = 2

conv3x3_p = Primitive("conv3x3")


def conv3x3(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Convolve (n, h, w, c) with a kernel (3, 3, c, d), padded by one pixel on each side."""
    return _bind(x, kernel, want="y", size=x.shape[1:3], stride=stride)


def is_supported(x: Array, kernel: Array, strides: tuple[int, ...]) -> bool:
    """Return whether `conv3x3` computes this convolution."""
    sizes = (*x.shape[1:], *kernel.shape)
    known = (
        strides in ((1, 1), (2, 2))
        and all(isinstance(size, int) for size in sizes)
        and x.dtype == kernel.dtype in ("float32", "float64")
    )
    return known and kernel.shape[:2] == (3, 3) and x.ndim == 4


def plain(a: Array, b: Array, *, want: str, size: tuple[int, int], stride: int) -> Array:
    """Return a result by XLA's own formula; `size` is that of the image."""
    if a.ndim > 4:
        return jax.vmap(partial(plain, want=want, size=size, stride=stride))(a, b)
    convolve = partial(_xla, stride=stride)
    if want == "y":
        return convolve(a, b)
    # What stands for the missing operand; XLA drops it. Made of `a`, it varies over the same devices
    shape = (len(a), *size, b.shape[2]) if want == "x" else (3, 3, a.shape[3], b.shape[3])
    missing = lax.full_like(a, 0, shape=shape)
    linear = (lambda x: convolve(x, b)) if want == "x" else partial(convolve, a)
    return jax.linear_transpose(linear, missing)(a if want == "x" else b)[0]


def _xla(x: Array, kernel: Array, stride: int) -> Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride,) * 2, [(1, 1), (1, 1)], dimension_numbers=layout)


@cache
def machine_code() -> ModuleType | None:
    """Return the module that generates machine code, if llvmlite is installed."""
    if find_spec("llvmlite") is None:
        return None
    from resnet_jax.models import cpu_tiles

    return cpu_tiles


def _on_cpu(a: Array, b: Array, *, want: str, size: tuple[int, int], stride: int) -> Array:
    """Return a result by the fastest formula for its size."""
    if a.ndim > 4:
        return jnp.stack([_on_cpu(*each, want=want, size=size, stride=stride) for each in zip(a, b, strict=True)])
    formulas = _fastest(a, b.shape[2 if want == "x" else 3], want, size, stride)
    if formulas is None:
        return plain(a, b, want=want, size=size, stride=stride)
    if want == "x":
        return formulas.image_gradient(a, b, size, stride)
    return formulas.convolve(a, b, stride) if want == "y" else formulas.kernel_gradient(a, b, stride)


def _fastest(a: Array, features: int, want: str, size: tuple[int, int], stride: int) -> ModuleType | None:
    """Return the module whose formulas are the fastest for an operand and the features of the result; None is XLA's."""
    code, channels = machine_code(), min(a.shape[3], features)
    code = code if code is not None and code.supports(features, a.dtype) else None
    longest = max(-(-extent // stride) for extent in size)
    # For one pixel of the result, machine code would compute with padding
    if longest <= TINY_MAP and (want == "k" or longest == 1 or code is None) and (want != "x" or stride == 1):
        return cpu_patches
    if stride > 1:
        return code
    if code is None:
        return cpu_winograd if min(size) >= SMALLEST_MAP and channels >= FEWEST_CHANNELS[want] else None
    enough = want != "x" or len(a) * size[0] * size[1] >= PIXELS_PER_CHANNEL * channels
    suits = len(a) > 1 and min(size) > TINY_MAP and channels >= CHANNELS_BEYOND_CODE[want] and enough
    return cpu_winograd if suits else code


def _bind(a: Array, b: Array, **params: Any) -> Array:
    """Bind the primitive to operands that vary over the same devices of a shard_map."""
    axes = [jax.typeof(each).manual_axis_type.varying for each in (a, b)]
    a, b = (
        lax.pcast(each, tuple((axes[0] | axes[1]) - own), to="varying") if (axes[0] | axes[1]) - own else each
        for each, own in zip((a, b), axes, strict=True)
    )
    return conv3x3_p.bind(a, b, **params)


def _shape(a: Any, b: Any, *, want: str, size: tuple[int, int], stride: int) -> Any:
    """Return the abstract result."""
    after = tuple(-(-extent // stride) for extent in size)
    shape = {"y": (*a.shape[:-3], *after, b.shape[-1]), "x": (*a.shape[:-3], *size, b.shape[-2])}
    shape["k"] = (*a.shape[:-4], 3, 3, a.shape[-1], b.shape[-1])
    return a.update(shape=shape[want], weak_type=False)


def _transposed(side: int, ct: Array, a: Array, b: Array, *, want: str, **params: Any) -> Array:
    """Return the derivative by one operand: the result that has the other operand and the cotangent as its own."""
    found, wanted = dict(zip(OPERANDS[want], (a, b), strict=True)), OPERANDS[want][side]
    found[want] = ct
    return _bind(*(found[name] for name in OPERANDS[wanted]), want=wanted, **params)


def _batched(operands: Any, axes: Any, **params: Any) -> tuple[Array, int]:
    """Move the new axis to the front of both operands."""
    size = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
    moved = (
        jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(operands, axes, strict=True)
    )
    return _bind(*moved, **params), 0


def _lower_on_cpu(ctx: mlir.LoweringRuleContext, *operands: Any, **params: Any) -> Any:
    whole = ctx.module_context.lowering_parameters.for_export or _is_partitioned(ctx.module_context.axis_context)
    return mlir.lower_fun(plain if whole else _on_cpu, multiple_results=False)(ctx, *operands, **params)


def _is_partitioned(context: Any) -> bool:
    """Return whether XLA divides the operands over devices; it cannot divide a call of machine code."""
    if isinstance(context, mlir.SPMDAxisContext):
        return context.manual_axes != frozenset(context.mesh.axis_names)
    return getattr(context, "num_devices", 1) > 1


conv3x3_p.def_impl(jax.jit(conv3x3_p.bind, static_argnames=("want", "size", "stride")))
conv3x3_p.def_abstract_eval(_shape)
ad.defbilinear(conv3x3_p, partial(_transposed, 0), partial(_transposed, 1))
batching.primitive_batchers[conv3x3_p] = _batched
mlir.register_lowering(conv3x3_p, mlir.lower_fun(plain, multiple_results=False))
mlir.register_lowering(conv3x3_p, _lower_on_cpu, platform="cpu")
