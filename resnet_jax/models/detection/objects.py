"""Objects: the boxes and classes of an image, which detectors learn."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

# Label of padding
NO_OBJECT = -1


class Objects(NamedTuple):
    """The objects of an image, or of a batch with a leading axis (b, ...); labels of -1 are padding."""

    boxes: Any
    """(n, 4) float32: x1, y1, x2, y2 in pixels."""
    labels: Any
    """(n,) int32."""
    crowd: Any
    """(n,) bool: a group of objects that are not told apart."""
    area: Any
    """(n,) float32, of the object itself in square pixels of the file, by which COCO's metric calls it small or
    large."""
    scale: Any = np.float32(1)
    """() float32: pixels of the boxes per pixel of the file."""

    @property
    def learned(self) -> Array:
        """Labels (n,) of the objects that are learned: those of crowds are -1, as if they were not there."""
        return jnp.where(self.crowd, NO_OBJECT, self.labels)


# Boxes that are no numbers are found by those who check them
@np.errstate(over="ignore", invalid="ignore")
def make_objects(boxes: Any, labels: Any, crowd: Any = None, area: Any = None) -> Objects:
    """Return objects as NumPy arrays; by default none is a crowd, and areas are those of the boxes.

    Example:
        >>> make_objects([[0, 0, 4, 2]], [1]).area.tolist()
        [8.0]
    """
    corners = np.asarray(boxes, np.float32).reshape(-1, 4)
    sides = corners[:, 2:] - corners[:, :2]
    return Objects(
        corners,
        np.asarray(labels, np.int32).reshape(-1),
        np.zeros(len(corners), bool) if crowd is None else np.asarray(crowd, bool).reshape(-1),
        sides.prod(1) if area is None else np.asarray(area, np.float32).reshape(-1),
    )


def pad_objects(objects: Objects, count: int) -> Objects:
    """Return objects padded to `count`, NumPy arrays; there must be no more of them.

    Example:
        >>> pad_objects(make_objects([[0, 0, 4, 2]], [1]), 3).labels.tolist()
        [1, -1, -1]
    """
    *leaves, scale = objects
    rest, values = count - len(objects.labels), (0, NO_OBJECT, False, 0)
    padded = (
        np.pad(leaf, [(0, rest)] + [(0, 0)] * (leaf.ndim - 1), constant_values=value)
        for leaf, value in zip(leaves, values, strict=True)
    )
    return Objects(*[*padded, scale])
