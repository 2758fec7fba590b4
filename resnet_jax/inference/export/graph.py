"""A graph of ONNX operators under construction, in which every tensor knows how its axes are stored.

JAX keeps channels last, ONNX's convolutions want them first. Instead of transposing, a `Tensor` says which axis of JAX
each stored dimension is; most operations only look that up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from resnet_jax.errors import InputError

# A size, or a symbol for that of the batch
Dim = Any
Axes = tuple[int | None, ...]


class Const(NamedTuple):
    """A value known at export."""

    value: np.ndarray
    """With JAX's axes; a size may be 1 where that of `shape` is larger."""
    shape: tuple[Dim, ...]
    name: str = ""
    """Of the parameter that it is or comes from."""


class Tensor(NamedTuple):
    """A value computed by a node."""

    name: str
    axes: Axes
    """JAX's axis of each stored dimension; None is a dimension of size 1 that JAX does not have."""
    shape: tuple[Dim, ...]
    """In JAX's order."""
    stretched: frozenset[int] = frozenset()
    """JAX's axes that are stored with size 1, because operators broadcast."""


Operand = Const | Tensor


@dataclass
class Node:
    """One operator."""

    op: str
    inputs: list[str]
    output: str
    attributes: dict[str, Any]
    layer: str
    """Module that it belongs to, "stage1_block1/conv1"."""
    count: int = 0
    """Of a sum: number of values in it."""
    features: int = 0
    """Of a convolution or a product with a matrix: number of channels of the result."""
    pixel: bool = False
    """Of a convolution: whether each channel is one pixel; of a sum: whether it is over all pixels of each channel."""
    unused: int = 0
    """Number of outputs before `output`, which no node takes."""


@dataclass
class Graph:
    """Nodes in order of evaluation, and constants by the names under which nodes refer to them."""

    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, Const] = field(default_factory=dict)
    layer: str = ""
    """Module of the nodes that are added now."""
    batch: Dim = None
    """Size of the batch: the first of "images"."""

    def constant(self, value: Any, name: str = "") -> str:
        """Add a constant as it is stored, and return how nodes refer to it."""
        key = f"constant{len(self.constants)}"
        array = np.ascontiguousarray(value) if np.ndim(value) else np.asarray(value)
        self.constants[key] = Const(array, array.shape, name)
        return key

    def add(
        self,
        op: str,
        *inputs: str,
        count: int = 0,
        features: int = 0,
        pixel: bool = False,
        unused: int = 0,
        **attributes: Any,
    ) -> str:
        """Add a node and return the name of its output."""
        output = f"value{len(self.nodes)}"
        self.nodes.append(Node(op, list(inputs), output, attributes, self.layer, count, features, pixel, unused))
        return output

    def ints(self, values: Sequence[int] | np.ndarray) -> str:
        """Add a constant of integers, as operators take axes and sizes."""
        return self.constant(np.asarray(values, np.int64))

    def unsupported(self, what: str) -> InputError:
        """Return the error for an operation without a counterpart."""
        where = self.layer or "the network"
        return InputError(f"{where}: ONNX export does not know the operation {what}; StableHLO has all operations")

    def arrange(self, x: Operand, axes: Axes) -> str:
        """Return the name of a value whose stored dimensions are these axes."""
        target = [axis for axis in axes if axis is not None]
        if isinstance(x, Const):
            value = x.value if x.value.ndim == 0 else x.value.transpose(target)
            units = [place for place, axis in enumerate(axes) if axis is None]
            return self.constant(np.expand_dims(value, units) if value.ndim and units else value, x.name)
        if x.axes == axes:
            return x.name
        name, order = x.name, [axis for axis in x.axes if axis is not None]
        if units := [place for place, axis in enumerate(x.axes) if axis is None]:
            name = self.add("Squeeze", name, self.ints(units))
        if order != target:
            name = self.add("Transpose", name, perm=[order.index(axis) for axis in target])
        if units := [place for place, axis in enumerate(axes) if axis is None]:
            name = self.add("Unsqueeze", name, self.ints(units))
        return name

    def stored(self, x: Operand) -> Tensor:
        """Return a tensor as it is, and a constant as a tensor in the order of JAX."""
        if isinstance(x, Tensor):
            return x
        sizes = [size if isinstance(size, int) else 1 for size in x.shape]
        value = np.broadcast_to(x.value, sizes)
        stretched = frozenset(axis for axis, size in enumerate(x.shape) if size != sizes[axis])
        return Tensor(self.constant(value, x.name), tuple(range(value.ndim)), x.shape, stretched)

    def full(self, x: Operand) -> Tensor:
        """Return a tensor stored with all its values, in the order of JAX if it was a constant."""
        x = self.stored(x)
        if not x.stretched:
            return x
        sizes = [x.shape[axis] if axis in x.stretched else 1 for axis in x.axes]
        wanted = self.ints([size if isinstance(size, int) else 1 for size in sizes])
        for place, size in enumerate(sizes):
            if size == self.batch and not isinstance(size, int):
                wanted = self._with_batch(sizes, place)
            elif not isinstance(size, int):
                raise self.unsupported("broadcast along a size that depends on that of the batch")
        return Tensor(self.add("Expand", x.name, wanted), x.axes, x.shape)

    def _with_batch(self, sizes: Sequence[Dim], place: int) -> str:
        """Return sizes of which one is that of the batch."""
        batch = self.add("Shape", "images", start=0, end=1)
        return self.add("Concat", self.ints(sizes[:place]), batch, self.ints(sizes[place + 1 :]), axis=0)

    def relabel(self, x: Operand, moved: Mapping[int, int], shape: tuple[Dim, ...]) -> Operand:
        """Return `x` with axis `a` as axis `moved[a]` of `shape`; axes that are new are stored with size 1."""
        new = [axis for axis in range(len(shape)) if axis not in moved.values()]
        if isinstance(x, Const):
            kept = x.value.reshape([size for axis, size in enumerate(x.value.shape) if axis in moved])
            kept = kept.transpose(np.argsort([moved[axis] for axis in sorted(moved)]))
            return Const(np.expand_dims(kept, new), shape, x.name)
        axes: list[int | None] = [None if axis is None else moved.get(axis) for axis in x.axes]
        waiting = list(new)
        for place, axis in enumerate(axes):
            if axis is None and waiting:
                axes[place] = waiting.pop(0)
        name = x.name
        if waiting:
            name = self.add("Unsqueeze", name, self.ints(range(len(axes), len(axes) + len(waiting))))
            axes += waiting
        grown = {to for axis, to in moved.items() if axis in x.stretched or x.shape[axis] != shape[to]}
        return Tensor(name, tuple(axes), shape, frozenset(grown | {axis for axis in new if shape[axis] != 1}))


def stored_size(x: Operand, axis: int) -> Dim:
    """Return the size with which an axis is stored: 1 if the operators broadcast it."""
    if isinstance(x, Const):
        return x.value.shape[axis]
    return 1 if axis in x.stretched else x.shape[axis]


def channels_first(rank: int) -> Axes:
    """Return the axes of (b, spatial..., c) with the channels after the batch."""
    return (0, rank - 1, *range(1, rank - 1))
