"""JAX's primitives as ONNX operators: a function for each, from a graph, an equation and its operands to a result."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from resnet_jax.inference.export.choice import gather_places, pool_boxes, sort, suppress, top_k
from resnet_jax.inference.export.graph import Const, Graph, Operand, Tensor, channels_first, stored_size

Translate = Callable[..., Operand]


def _shape(eqn: Any) -> tuple[Any, ...]:
    return tuple(eqn.outvars[0].aval.shape)


def elementwise(g: Graph, shape: tuple[Any, ...], op: str, *operands: Operand, **attributes: Any) -> Tensor:
    """Add an operator on values that broadcast, stored as the operand with most values is."""
    if not any(isinstance(x, Tensor) for x in operands):
        operands = (g.stored(operands[0]), *operands[1:])
    tensors = [x for x in operands if isinstance(x, Tensor)]
    axes = min(tensors, key=lambda x: (-len(x.shape), len(x.stretched), len(x.axes))).axes
    name = g.add(op, *(g.arrange(x, axes if len(x.shape) else ()) for x in operands), **attributes)
    whole = [x for x in operands if len(x.shape)]
    stretched = {a for a in range(len(shape)) if shape[a] != 1 and all(stored_size(x, a) == 1 for x in whole)}
    return Tensor(name, axes, shape, frozenset(stretched))


def _simple(*ops: str, **attributes: Any) -> Translate:
    """Return the translation to one operator on all operands, and others on its result."""

    def translate(g: Graph, eqn: Any, *operands: Operand) -> Operand:
        y = elementwise(g, _shape(eqn), ops[0], *operands, **attributes)
        for op in ops[1:]:
            y = elementwise(g, _shape(eqn), op, y)
        return y

    return translate


def _scalar(eqn: Any, value: float) -> Const:
    return Const(np.asarray(value, eqn.outvars[0].aval.dtype), ())


def _square(g: Graph, eqn: Any, x: Operand) -> Operand:
    return elementwise(g, _shape(eqn), "Mul", x, x)


def _integer_pow(g: Graph, eqn: Any, x: Operand) -> Operand:
    if eqn.params["y"] == 2:
        return _square(g, eqn, x)
    return elementwise(g, _shape(eqn), "Pow", x, _scalar(eqn, eqn.params["y"]))


def _max(g: Graph, eqn: Any, *operands: Operand) -> Operand:
    for x, other in (operands, operands[::-1]):
        if isinstance(other, Const) and not other.value.any():
            return elementwise(g, _shape(eqn), "Relu", x)
    return elementwise(g, _shape(eqn), "Max", *operands)


def _expm1(g: Graph, eqn: Any, x: Operand) -> Operand:
    return elementwise(g, _shape(eqn), "Sub", elementwise(g, _shape(eqn), "Exp", x), _scalar(eqn, 1))


def _clamp(g: Graph, eqn: Any, low: Operand, x: Operand, high: Operand) -> Operand:
    return elementwise(g, _shape(eqn), "Min", elementwise(g, _shape(eqn), "Max", x, low), high)


def _select(g: Graph, eqn: Any, which: Operand, *cases: Operand) -> Operand:
    if len(cases) != 2:
        raise g.unsupported("select_n of several cases")
    return elementwise(g, _shape(eqn), "Where", which, cases[1], cases[0])


def _cast(g: Graph, eqn: Any, x: Tensor) -> Operand:
    if eqn.invars[0].aval.dtype == eqn.outvars[0].aval.dtype:
        return x
    return x._replace(name=g.add("Cast", x.name, to=np.dtype(eqn.outvars[0].aval.dtype)))


def _same(g: Graph, eqn: Any, x: Operand) -> Operand:
    return x


def _convolution(g: Graph, eqn: Any, x: Operand, kernel: Operand) -> Operand:
    p, numbers = eqn.params, eqn.params["dimension_numbers"]
    if set(p["lhs_dilation"]) != {1} or p["batch_group_count"] != 1 or min(min(p["padding"])) < 0:
        raise g.unsupported("conv_general_dilated with a dilated or cropped input")
    name = g.add(
        "Conv",
        g.arrange(g.full(x), tuple(numbers.lhs_spec)),
        g.arrange(kernel, tuple(numbers.rhs_spec)),
        features=kernel.shape[numbers.rhs_spec[0]],
        kernel_shape=[kernel.shape[axis] for axis in numbers.rhs_spec[2:]],
        strides=list(p["window_strides"]),
        pads=[low for low, _ in p["padding"]] + [high for _, high in p["padding"]],
        dilations=list(p["rhs_dilation"]),
        group=p["feature_group_count"],
    )
    return Tensor(name, tuple(numbers.out_spec), _shape(eqn))


def _max_window(g: Graph, eqn: Any, x: Operand) -> Operand:
    p, rank = eqn.params, len(x.shape)
    ends = {p[name][axis] for name in ("window_dimensions", "window_strides") for axis in (0, rank - 1)}
    if rank < 3 or ends != {1} or set(p["base_dilation"]) != {1}:
        raise g.unsupported("reduce_window_max over other than spatial axes")
    name = g.add(
        "MaxPool",
        g.arrange(g.full(x), channels_first(rank)),
        kernel_shape=list(p["window_dimensions"][1:-1]),
        strides=list(p["window_strides"][1:-1]),
        pads=[low for low, _ in p["padding"][1:-1]] + [high for _, high in p["padding"][1:-1]],
        dilations=list(p["window_dilation"][1:-1]),
    )
    return Tensor(name, channels_first(rank), _shape(eqn))


def _reduce(op: str) -> Translate:
    def translate(g: Graph, eqn: Any, x: Operand) -> Operand:
        x, gone = g.full(x), eqn.params["axes"]
        places = [place for place, axis in enumerate(x.axes) if axis in gone]
        sizes = [x.shape[axis] for axis in gone]
        count = math.prod(sizes) if all(isinstance(size, int) for size in sizes) else 0
        pixels = places == list(range(2, len(x.axes)))
        name = g.add(op, x.name, g.ints(places), count=count, pixel=pixels, keepdims=1)
        left = [axis for axis in range(len(x.shape)) if axis not in gone]
        axes = tuple(None if axis is None or axis in gone else left.index(axis) for axis in x.axes)
        return Tensor(name, axes, _shape(eqn))

    return translate


def _argmax(op: str) -> Translate:
    def translate(g: Graph, eqn: Any, x: Operand) -> Operand:
        x, (axis,) = g.full(x), eqn.params["axes"]
        name = g.add(op, x.name, axis=x.axes.index(axis), keepdims=1)
        name = g.add("Cast", name, to=np.dtype(eqn.params["index_dtype"]))
        axes = tuple(None if a in (axis, None) else a - (a > axis) for a in x.axes)
        return Tensor(name, axes, _shape(eqn))

    return translate


def _dot(g: Graph, eqn: Any, a: Operand, b: Operand) -> Operand:
    """Translate a product of matrices, or a sum over one axis of a tensor and a constant matrix."""
    ((of_a, of_b), batch), shape = eqn.params["dimension_numbers"], _shape(eqn)
    if len(of_a) > 1 and isinstance(b, Const) and not any(batch) and len(b.shape) == len(of_b) + 1:
        return _dot_over_several(g, eqn, a, b)
    if len(of_a) != 1 or (any(batch) and isinstance(a, Const) != isinstance(b, Const)):
        raise g.unsupported("dot_general over several axes")
    if any(batch):
        return _batched_dot(g, eqn, a, b)
    x, matrix, along, across = (b, a, of_b[0], of_a[0]) if isinstance(a, Const) else (a, b, of_a[0], of_b[0])
    x = g.full(x)
    if len(matrix.shape) != 2:
        raise g.unsupported("dot_general of two tensors of more than two axes")
    free = [axis for axis in x.axes if axis not in (along, None)]
    # In the result the axes of the left operand come first
    first = isinstance(a, Const)
    places = {axis: sorted(free).index(axis) + first for axis in free}
    last = 0 if first else len(free)
    gate = len(free) == 1 and x.axes[:2] == (free[0], along) and len(x.axes) > 2
    if gate and isinstance(matrix, Const):
        # A convolution over the one pixel that is left of each channel, as PyTorch writes squeeze and excitation
        units = (None,) * (len(x.axes) - 2)
        ones = [1] * len(units)
        name = g.add(
            "Conv",
            x.name,
            g.arrange(matrix, (1 - across, across, *units)),
            features=matrix.shape[1 - across],
            pixel=True,
            kernel_shape=ones,
            strides=ones,
            pads=[0] * 2 * len(ones),
            dilations=ones,
            group=1,
        )
        return Tensor(name, (places[free[0]], last, *units), shape)
    values = g.arrange(x, (*free, along))
    if len(free) == 1:
        stored = g.arrange(matrix, (1 - across, across))
        name = g.add("Gemm", values, stored, features=matrix.shape[1 - across], transB=1)
    else:
        name = g.add("MatMul", values, g.arrange(matrix, (across, 1 - across)))
    return Tensor(name, (*(places[axis] for axis in free), last), shape)


def _dot_over_several(g: Graph, eqn: Any, a: Operand, b: Const) -> Operand:
    """Translate a sum over several axes of a tensor and of a constant as a product with a matrix."""
    (of_a, of_b), _ = eqn.params["dimension_numbers"]
    x, other = g.full(a), dict(zip(of_a, of_b, strict=True))
    free = [axis for axis in range(len(x.shape)) if axis not in of_a]
    along = [axis for axis in x.axes if axis in of_a]
    (out,) = (axis for axis in range(len(b.shape)) if axis not in of_b)
    matrix = (
        np.broadcast_to(b.value, b.shape).transpose([*(other[axis] for axis in along), out]).reshape(-1, b.shape[out])
    )
    values = g.add("Reshape", g.arrange(x, (*free, *along)), g.ints([*[0] * len(free), -1]))
    return Tensor(g.add("MatMul", values, g.constant(matrix, b.name)), tuple(range(len(free) + 1)), _shape(eqn))


def _batched_dot(g: Graph, eqn: Any, a: Operand, b: Operand) -> Operand:
    ((of_a,), (of_b,)), (batch_a, batch_b) = eqn.params["dimension_numbers"]
    a, b = g.full(a), g.full(b)
    rows = [axis for axis in range(len(a.shape)) if axis != of_a and axis not in batch_a]
    columns = [axis for axis in range(len(b.shape)) if axis != of_b and axis not in batch_b]
    if len(rows) != 1 or len(columns) != 1:
        raise g.unsupported("dot_general over several axes")
    left, right = g.arrange(a, (*batch_a, rows[0], of_a)), g.arrange(b, (*batch_b, of_b, columns[0]))
    return Tensor(g.add("MatMul", left, right), tuple(range(len(_shape(eqn)))), _shape(eqn))


def _reshape(g: Graph, eqn: Any, x: Operand) -> Operand:
    """Relabel the axes if only some of size 1 come or go."""
    shape = _shape(eqn)
    before = [axis for axis, size in enumerate(x.shape) if size != 1]
    after = [axis for axis, size in enumerate(shape) if size != 1]
    if [x.shape[axis] for axis in before] == [shape[axis] for axis in after]:
        return g.relabel(x, dict(zip(before, after, strict=True)), shape)
    sizes = [size if isinstance(size, int) else -1 for size in shape]
    if sizes.count(-1) > 1:
        raise g.unsupported("reshape of a batch of any size")
    name = g.arrange(g.full(x), tuple(range(len(x.shape))))
    return Tensor(g.add("Reshape", name, g.ints(sizes)), tuple(range(len(shape))), shape)


def _broadcast(g: Graph, eqn: Any, x: Operand) -> Operand:
    return g.relabel(x, dict(enumerate(eqn.params["broadcast_dimensions"])), _shape(eqn))


def _transpose(g: Graph, eqn: Any, x: Operand) -> Operand:
    return g.relabel(x, {axis: to for to, axis in enumerate(eqn.params["permutation"])}, _shape(eqn))


def _slice(g: Graph, eqn: Any, x: Operand) -> Operand:
    p, x = eqn.params, g.full(x)
    steps = p["strides"] or (1,) * len(x.shape)
    cut = [
        a for a in range(len(x.shape)) if (p["start_indices"][a], p["limit_indices"][a], steps[a]) != (0, x.shape[a], 1)
    ]
    if not cut:
        return x
    ends = [[p[name][a] for a in cut] for name in ("start_indices", "limit_indices")]
    places, strides = [x.axes.index(a) for a in cut], [steps[a] for a in cut]
    name = g.add("Slice", x.name, *(g.ints(values) for values in (*ends, places, strides)))
    return Tensor(name, x.axes, _shape(eqn))


def _pad(g: Graph, eqn: Any, x: Operand, value: Operand) -> Operand:
    x, each = g.full(x), eqn.params["padding_config"]
    if any(inside for _, _, inside in each) or not isinstance(value, Const):
        raise g.unsupported("pad between values")
    if not any(low or high for low, high, _ in each):
        return x
    ends = [[0 if axis is None else each[axis][end] for axis in x.axes] for end in (0, 1)]
    name = g.add("Pad", x.name, g.ints(ends[0] + ends[1]), g.constant(value.value), mode="constant")
    return Tensor(name, x.axes, _shape(eqn))


def _concatenate(g: Graph, eqn: Any, *operands: Operand) -> Operand:
    parts = [g.full(x) for x in operands]
    axes = max(parts, key=lambda x: len(x.axes)).axes
    place = axes.index(eqn.params["dimension"])
    return Tensor(g.add("Concat", *(g.arrange(x, axes) for x in parts), axis=place), axes, _shape(eqn))


def _stack(g: Graph, eqn: Any, *operands: Operand) -> Operand:
    axis, shape = eqn.params["axis"], list(_shape(eqn))
    shape[axis] = 1
    moved = {a: a + (a >= axis) for a in range(len(shape) - 1)}
    parts = [g.full(g.relabel(x, moved, tuple(shape))) for x in operands]
    axes = parts[0].axes
    return Tensor(g.add("Concat", *(g.arrange(x, axes) for x in parts), axis=axes.index(axis)), axes, _shape(eqn))


def _gather(g: Graph, eqn: Any, x: Operand, indices: Operand) -> Operand:
    """Translate a choice of known places along one axis, as in an enlargement, or a cut at known places."""
    if isinstance(indices, Tensor):
        return gather_places(g, eqn, x, indices)
    numbers, sizes, x = eqn.params["dimension_numbers"], eqn.params["slice_sizes"], g.full(x)
    if indices.value.ndim == 1:
        starts, axes = indices.value, numbers.start_index_map
        ends = [start + sizes[axis] for start, axis in zip(starts, axes, strict=True)]
        places = g.ints([x.axes.index(axis) for axis in axes])
        cut = Tensor(g.add("Slice", x.name, g.ints(starts), g.ints(ends), places), x.axes, sizes)
        left = [a for a in range(len(sizes)) if a not in numbers.collapsed_slice_dims]
        return g.relabel(cut, dict(zip(left, numbers.offset_dims, strict=True)), _shape(eqn))
    axis = numbers.start_index_map[0] if len(numbers.start_index_map) == 1 else None
    others = [a for a in range(len(x.shape)) if a != axis]
    along_one = numbers.collapsed_slice_dims == (axis,) and not numbers.operand_batching_dims
    if not (indices.value.ndim == 2 and along_one) or any(sizes[a] != x.shape[a] for a in others):
        raise g.unsupported("gather")
    name = g.add("Gather", x.name, g.ints(indices.value[:, 0]), axis=x.axes.index(axis))
    where = next(a for a in range(len(x.shape)) if a not in numbers.offset_dims)
    moved: dict[Any, int] = {**dict(zip(others, numbers.offset_dims, strict=True)), axis: where}
    return Tensor(name, tuple(None if a is None else moved[a] for a in x.axes), _shape(eqn))


def group_norm(g: Graph, eqn: Any, x: Operand, scale: Operand, bias: Operand) -> Operand:
    """Translate the composite operation of that name."""
    attributes = {name: leaves[0] for name, leaves, _ in eqn.params["attributes"]}
    axes = channels_first(len(x.shape))
    name = g.add(
        "GroupNormalization",
        g.arrange(g.full(x), axes),
        g.arrange(scale, (0,)),
        g.arrange(bias, (0,)),
        num_groups=int(attributes["groups"]),
        epsilon=float(attributes["epsilon"]),
    )
    return Tensor(name, axes, _shape(eqn))


def fake_quantize(g: Graph, eqn: Any, x: Operand, low: Const, high: Const) -> Operand:
    """Translate the composite operation of that name to a quantisation and its inverse."""
    least, most = min(low.value.item(), 0.0), max(high.value.item(), 0.0)
    # Without a range nothing is rounded
    if not high.value > low.value:
        return x
    scale = np.float32((np.float32(most) - np.float32(least)) / np.float32(255))
    stored = g.constant(scale, f"{g.layer}/scale"), g.constant(np.uint8(np.round(-least / scale)), f"{g.layer}/zero")
    x = g.full(x)
    return x._replace(name=g.add("DequantizeLinear", g.add("QuantizeLinear", x.name, *stored), *stored))


def fake_quantize_kernel(g: Graph, eqn: Any, kernel: Const) -> Operand:
    """Translate the composite operation of that name to int8 levels and a scale for each output channel."""
    rank = kernel.value.ndim
    largest = np.abs(kernel.value).max(tuple(range(rank - 1)))
    scale = np.where(largest > 0, largest, 1).astype(np.float32) / np.float32(127)
    # As convolutions and products with matrices take it: output channels first
    axes = (rank - 1, rank - 2, *range(rank - 2))
    levels = np.round(kernel.value / scale).astype(np.int8).transpose(axes)
    each = g.constant(levels, f"{kernel.name}_quantized"), g.constant(scale, f"{kernel.name}_scale")
    return Tensor(g.add("DequantizeLinear", *each, axis=0), axes, kernel.shape)


def average_pool(g: Graph, eqn: Any, x: Operand) -> Operand | None:
    """Translate `layers.average_pool` of stride 2; None if the operator has no such mode."""
    shape, rank = _shape(eqn), len(x.shape)
    sizes = [(x.shape[axis], shape[axis]) for axis in range(1, rank - 1)]
    if any(size < 2 or after != (size + 1) // 2 for size, after in sizes):
        return None
    twos = [2] * len(sizes)
    odd = int(any(size % 2 for size, _ in sizes))
    name = g.arrange(g.full(x), channels_first(rank))
    pooled = g.add("AveragePool", name, kernel_shape=twos, strides=twos, ceil_mode=odd, count_include_pad=0)
    return Tensor(pooled, channels_first(rank), shape)


def blur_pool(g: Graph, eqn: Any, x: Operand) -> Operand | None:
    """Translate `layers.blur_pool` of neighbouring pixels to a padding and a convolution; None for distant ones."""
    shape, rank = _shape(eqn), len(x.shape)
    sizes = [(x.shape[axis], shape[axis]) for axis in range(1, rank - 1)]
    far = next(eq.params["start_indices"] for eq in eqn.params["jaxpr"].jaxpr.eqns if eq.primitive.name == "slice")
    if max(far) != 1 or any(size < 2 for size, _ in sizes):
        return None
    channels, spatial = x.shape[-1], rank - 2
    taps = np.array([0.25, 0.5, 0.25], np.float32)
    kernel = math.prod(np.ix_(*[taps] * spatial)) if spatial > 1 else taps
    kernel = np.broadcast_to(kernel, (channels, 1, *[3] * spatial))
    ends = g.ints([0, 0, *[1] * spatial] * 2)
    padded = g.add("Pad", g.arrange(g.full(x), channels_first(rank)), ends, mode="reflect")
    name = g.add(
        "Conv",
        padded,
        g.constant(kernel, f"blur{channels}"),
        kernel_shape=[3] * spatial,
        strides=[-(-size // after) for size, after in sizes],
        pads=[0] * 2 * spatial,
        dilations=[1] * spatial,
        group=channels,
    )
    return Tensor(name, channels_first(rank), shape)


def softmax(g: Graph, eqn: Any, x: Operand, *_: Operand) -> Operand | None:
    """Translate `jax.nn.softmax` over the last axis; None for another one."""
    last = len(x.shape) - 1
    over = [eq.params["axes"] for eq in eqn.params["jaxpr"].jaxpr.eqns if eq.primitive.name == "reduce_max"]
    if over != [(last,)]:
        return None
    x = g.full(x)
    return Tensor(g.add("Softmax", x.name, axis=x.axes.index(last)), x.axes, x.shape)


OPERATORS: dict[str, Callable[..., Operand | list[Operand]]] = {
    **{
        name: _simple(op)
        for name, op in {
            "add": "Add",
            "add_any": "Add",
            "sub": "Sub",
            "mul": "Mul",
            "div": "Div",
            "min": "Min",
            "pow": "Pow",
            "exp": "Exp",
            "log": "Log",
            "sqrt": "Sqrt",
            "neg": "Neg",
            "abs": "Abs",
            "sign": "Sign",
            "erf": "Erf",
            "floor": "Floor",
            "ceil": "Ceil",
            "round": "Round",
            "tanh": "Tanh",
            "logistic": "Sigmoid",
            "not": "Not",
            "and": "And",
            "or": "Or",
            "gt": "Greater",
            "lt": "Less",
            "ge": "GreaterOrEqual",
            "le": "LessOrEqual",
            "eq": "Equal",
        }.items()
    },
    "ne": _simple("Equal", "Not"),
    "rem": _simple("Mod", fmod=1),
    "rsqrt": _simple("Sqrt", "Reciprocal"),
    "square": _square,
    "integer_pow": _integer_pow,
    "max": _max,
    "expm1": _expm1,
    "clamp": _clamp,
    "select_n": _select,
    "convert_element_type": _cast,
    **dict.fromkeys(("stop_gradient", "copy", "copy_p", "optimization_barrier", "name", "reduce_precision"), _same),
    "conv_general_dilated": _convolution,
    "reduce_window_max": _max_window,
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "argmax": _argmax("ArgMax"),
    "argmin": _argmax("ArgMin"),
    "dot_general": _dot,
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), _reshape),
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "slice": _slice,
    "pad": _pad,
    "concatenate": _concatenate,
    "stack": _stack,
    "gather": _gather,
    "top_k": top_k,
    "sort": sort,
}
"""By the name of the primitive."""

COMPOSITES: dict[str, Translate] = {
    "group_norm": group_norm,
    "fake_quantize": fake_quantize,
    "fake_quantize_kernel": fake_quantize_kernel,
}
"""Functions that are kept as one operation, by name."""

JITTED: dict[str, Callable[..., Operand | None]] = {
    "average_pool": average_pool,
    "blur_pool": blur_pool,
    "_softmax": softmax,
    "suppress": suppress,
    "pool_boxes": pool_boxes,
}
"""Jitted functions that are one operation or two; None from a translation is the function itself, step by step."""
