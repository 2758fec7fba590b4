"""Layers, parameters and multiply-adds of a network, by abstract evaluation: nothing is computed."""

import math
from functools import cache, partial
from importlib import resources
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from resnet_jax.models.backbone import Network, backbone_of, with_fields
from resnet_jax.models.layers import Conv, extents
from resnet_jax.models.norm import FrozenBatchNorm
from resnet_jax.runtime.strict_json import parse_json


class Row(NamedTuple):
    """One layer."""

    path: str
    kind: str
    output: tuple[int, ...]
    """Shape without the batch."""
    parameters: int
    multiply_adds: int
    """Per image; of convolutions and matrix products alone, as is usual."""


def summarize(model: nn.Module, image_shape: tuple[int, ...]) -> list[Row]:
    """Return a row for every layer with parameters, in order of evaluation, for images (spatial..., c).

    Example:
        >>> from resnet_jax.models.zoo import MODELS
        >>> summarize(MODELS["resnet20"], (32, 32, 3))[0].path
        'stem/conv'
    """
    rows: list[Row] = []

    def record(call: Any, args: tuple[Any, ...], kwargs: dict[str, Any], context: nn.module.InterceptorContext) -> Any:
        output = call(*args, **kwargs)
        module = context.module
        if context.method_name == "__call__" and "params" in module.variables and is_leaf(module):
            params = module.variables["params"]
            # A layer that is applied to several maps has its parameters once
            seen = any(row.path == "/".join(module.path) for row in rows)
            count = 0 if seen else sum(math.prod(leaf.shape) for leaf in params.values())
            rows.append(
                Row(
                    path="/".join(module.path),
                    kind=type(module).__name__,
                    output=output.shape[1:],
                    parameters=count,
                    multiply_adds=multiply_adds(module, output.shape),
                )
            )
        return output

    def apply() -> Any:
        with nn.intercept_methods(record):
            return model.init(jax.random.key(0), jnp.zeros((1, *image_shape)))

    jax.eval_shape(apply)
    return rows


def is_leaf(module: nn.Module) -> bool:
    """Return whether a module owns all its parameters, so that no submodule has any."""
    return not any(isinstance(value, dict) for value in module.variables["params"].values())


def multiply_adds(module: nn.Module, output: tuple[int, ...]) -> int:
    """Return multiply-adds for a batch of one: each output value costs the number of inputs that it sums over."""
    if not isinstance(module, Conv | nn.Conv | nn.Dense | nn.DenseGeneral):
        return 0
    kernel = module.variables["params"]["kernel"].shape
    return math.prod(output) * math.prod(kernel[:-1])


class ModelCost(NamedTuple):
    """The cost of a network, counted as publications count it."""

    parameters: int
    multiply_adds: int
    """Per image."""


def model_cost(model: nn.Module, image_shape: tuple[int, ...] | None = None) -> ModelCost:
    """Return the number of trainable parameters, and of multiply-adds per image.

    A ResNet is not traced whole: the blocks of a stage after its first are alike, so two blocks of each stage suffice.

    Args:
        model: a network.
        image_shape: (spatial..., c); None is `input_shape` of a published network.

    Example:
        >>> from resnet_jax.models.zoo import MODELS
        >>> model_cost(MODELS["resnet18"]).parameters
        11689512
    """
    if not isinstance(model, Network):
        assert image_shape is not None, "a network of one's own has no shape of its images"
        costs = [(row.parameters, row.multiply_adds) for row in summarize(model, image_shape)]
        return ModelCost(*(sum(cost[i] for cost in costs) for i in range(2)))
    if image_shape is not None:
        model = model.clone(input_shape=image_shape)
    backbone = backbone_of(model)
    assert backbone is not None
    depths = tuple(min(depth, 2) for depth in backbone.depths)
    conv = _BIASED_SHAPES if has_biases(backbone) else _ConvShapes
    frozen = getattr(backbone.norm, "func", backbone.norm) is FrozenBatchNorm
    norm = FrozenBatchNorm if frozen else _NormShapes
    shallow = with_fields(model, depths=depths, conv=conv, norm=norm, act=_identity)
    repeats = {f"stage{i + 1}_block2": depth - 1 for i, depth in enumerate(backbone.depths)}
    parts = [(repeats.get(part, 1), cost) for part, cost in _costs(shallow)]
    return ModelCost(*(sum(times * cost[i] for times, cost in parts) for i in range(2)))


def has_biases(model: Network) -> bool:
    """Return whether the convolutions of a network have biases beside their normalisations."""
    backbone = backbone_of(model)
    return backbone is not None and bool(getattr(backbone.conv, "keywords", {}).get("bias"))


@cache
def _published_costs() -> dict[str, list[int]]:
    costs: dict[str, list[int]] = parse_json(resources.files("resnet_jax.models").joinpath("costs.json").read_bytes())
    return costs


def published_cost(name: str, model: Network) -> ModelCost:
    """Return the `model_cost` of a network of MODELS, which is kept as data: counting all of them takes seconds.

    Example:
        >>> from resnet_jax.models.zoo import MODELS
        >>> published_cost("resnet18", MODELS["resnet18"])
        ModelCost(parameters=11689512, multiply_adds=1814073344)
    """
    known = _published_costs().get(name)
    return ModelCost(*known) if known else model_cost(model)


def _identity(x: Array) -> Array:
    return x


class _ConvShapes(Conv):
    """The shapes of a convolution, without its computation and without random numbers: faster to trace."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        (batch, *spatial, channels), rank = x.shape, x.ndim - 2
        window, strides = extents(self.kernel, rank), extents(self.stride, rank)
        self.variable("params", "kernel", jnp.zeros, (*window, channels // self.groups, self.features))
        if self.bias:
            self.variable("params", "bias", jnp.zeros, (self.features,))
        # Padded by dilation * (k // 2) on both sides
        lost = [self.dilation * (k - 1 - k // 2 * 2) for k in window]
        after = ((n - less - 1) // stride + 1 for n, less, stride in zip(spatial, lost, strides, strict=True))
        return jnp.zeros((batch, *after, self.features), x.dtype)


_BIASED_SHAPES = partial(_ConvShapes, bias=True)


class _NormShapes(nn.Module):
    """The parameters of a normalisation, without its computation."""

    use_running_average: bool
    dtype: Any
    scale_init: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for name in ("scale", "bias"):
            self.variable("params", name, jnp.zeros, x.shape[-1:])
        return x


# Networks of a family differ by their depths alone
@cache
def _costs(model: Network) -> list[tuple[str, ModelCost]]:
    """Return the cost of each layer, with the name of the stem, block or head that contains it."""
    rows = summarize(model, model.input_shape)
    return [
        (row.path.removeprefix("backbone/").split("/")[0], ModelCost(row.parameters, row.multiply_adds)) for row in rows
    ]
