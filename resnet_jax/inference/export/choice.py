"""JAX's primitives that choose values as ONNX operators: the largest of them, an order, computed places, boxes."""

from typing import Any

import numpy as np

from resnet_jax.inference.export.graph import Const, Graph, Operand, Tensor
from resnet_jax.models.detection.roi_align import FIRST_STRIDE, SAMPLES


def _places(g: Graph, x: Operand, count: int, largest: int) -> str:
    """Return the places (b, m) int64 of the `count` largest or smallest values of (b, n), in order; ties as in JAX."""
    if len(x.shape) != 2:
        raise g.unsupported("top_k or sort of other than two axes")
    return g.add("TopK", g.arrange(g.full(x), (0, 1)), g.ints([count]), axis=1, largest=largest, unused=1)


def _chosen(g: Graph, x: Operand, places: str, count: int) -> Tensor:
    """Return the values of (b, n) at `count` places."""
    name = g.add("GatherElements", g.arrange(g.full(x), (0, 1)), places, axis=1)
    return Tensor(name, (0, 1), (x.shape[0], count))


def top_k(g: Graph, eqn: Any, x: Operand) -> list[Operand]:
    """Translate `lax.top_k` along the last of two axes."""
    count = eqn.params["k"]
    places = _places(g, x, count, largest=1)
    values = _chosen(g, x, places, count)
    return [values, values._replace(name=g.add("Cast", places, to=np.dtype(eqn.outvars[1].aval.dtype)))]


def sort(g: Graph, eqn: Any, *operands: Operand) -> list[Operand]:
    """Translate a sort of all operands by the first, along the last of two axes."""
    if eqn.params["num_keys"] != 1 or eqn.params["dimension"] != 1:
        raise g.unsupported("sort by several keys")
    count = operands[0].shape[1]
    places = _places(g, operands[0], count, largest=0)
    return [_chosen(g, x, places, count) for x in operands]


def gather_places(g: Graph, eqn: Any, x: Operand, indices: Operand) -> Operand:
    """Translate a choice of places that are computed, along the first axes or those after the batch."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    shape, rank, batch = tuple(eqn.outvars[0].aval.shape), len(indices.shape), tuple(numbers.operand_batching_dims)
    axes = tuple(range(len(batch), len(batch) + indices.shape[-1]))
    if (
        (batch, numbers.start_indices_batching_dims) not in (((), ()), ((0,), (0,)))
        or not axes == tuple(numbers.start_index_map) == tuple(numbers.collapsed_slice_dims)
        or tuple(numbers.offset_dims) != tuple(range(rank - 1, len(shape)))
        or any(size != 1 if axis in (*batch, *axes) else size != x.shape[axis] for axis, size in enumerate(sizes))
    ):
        raise g.unsupported("gather")
    values, places = (g.arrange(g.full(each), tuple(range(len(each.shape)))) for each in (x, indices))
    places = g.add("Cast", places, to=np.dtype(np.int64))
    return Tensor(g.add("GatherND", values, places, batch_dims=len(batch)), tuple(range(len(shape))), shape)


def suppress(g: Graph, eqn: Any, boxes: Operand, labels: Operand, valid: Operand, threshold: Operand) -> Operand | None:
    """Translate `nms.suppress` of images: the same greedy choice, of which the operator returns image, label, box."""
    if len(boxes.shape) != 3 or not isinstance(threshold, Const):
        return None
    corners, there = g.arrange(g.full(boxes), (0, 1, 2)), g.arrange(g.full(valid), (0, 1))
    # Labels of no batch are the same in all images: classes do not count
    every = labels if len(labels.shape) == 2 else g.relabel(labels, {0: 1}, valid.shape)
    label = g.arrange(g.full(every), (0, 1))
    number = g.add("Add", g.add("ReduceMax", label, keepdims=0), g.constant(np.int32(1)))
    of_label = g.add("OneHot", label, number, g.constant(np.array([0, 1], np.float32)), axis=1)
    # The best come first
    falling = g.constant(np.arange(boxes.shape[1], 0, -1, dtype=np.float32))
    score = g.add("Mul", g.add("Cast", there, to=np.dtype(np.float32)), falling)
    scores = g.add("Mul", of_label, g.add("Unsqueeze", score, g.ints([1])))
    limits = g.constant(threshold.value.astype(np.float32).reshape(1)), g.constant(np.zeros(1, np.float32))
    found = g.add("NonMaxSuppression", corners, scores, g.ints([boxes.shape[1]]), *limits)
    places = g.add("Gather", found, g.ints([0, 2]), axis=1)
    yes = g.add("Expand", g.constant(np.array([True])), g.add("Shape", found, start=0, end=1))
    keep = g.add("ScatterND", g.add("Xor", there, there), places, yes)
    return Tensor(keep, (0, 1), valid.shape)


def pool_boxes(g: Graph, eqn: Any, *operands: Operand) -> Operand | None:
    """Translate `roi_align.pool_boxes` of images: an operator per level on its boxes, and the results in order."""
    *maps, boxes, levels = operands
    shape = tuple(eqn.outvars[0].aval.shape)
    if len(shape) != 5:
        return None
    corners = g.add("Reshape", g.arrange(g.full(boxes), (0, 1, 2)), g.ints([-1, 4]))
    level = g.add("Reshape", g.arrange(g.full(levels), (0, 1)), g.ints([-1]))
    count = g.add("Shape", corners, start=0, end=1)
    zero, one = g.constant(np.int64(0)), g.constant(np.int64(1))
    every = g.add("Range", zero, g.add("Squeeze", count, g.ints([0])), one)
    image = g.add("Div", every, g.constant(np.int64(shape[1])))
    places, pooled = [], []
    for number, values in enumerate(maps):
        on_level = g.add("Equal", level, g.constant(np.int32(number)))
        places.append(g.add("Compress", every, on_level, axis=0))
        name = g.add(
            "RoiAlign",
            g.arrange(g.full(values), (0, 3, 1, 2)),
            *(g.add("Compress", each, on_level, axis=0) for each in (corners, image)),
            coordinate_transformation_mode="output_half_pixel",
            output_height=shape[2],
            output_width=shape[3],
            sampling_ratio=SAMPLES,
            spatial_scale=1 / (FIRST_STRIDE * 2**number),
        )
        pooled.append(name)
    back = g.add("TopK", g.add("Concat", *places, axis=0), count, axis=0, largest=0, unused=1)
    features = g.add("Gather", g.add("Concat", *pooled, axis=0), back, axis=0)
    sizes = g.ints([-1, shape[1], shape[4], shape[2], shape[3]])
    return Tensor(g.add("Reshape", features, sizes), (0, 1, 4, 2, 3), shape)
