"""Boxes of objects on the host and under crops: as files have them, as bytes, moved and clipped."""

from typing import Any, NamedTuple

import numpy as np

from resnet_jax.errors import InputError
from resnet_jax.models.detection.objects import NO_OBJECT, Objects, make_objects

# Pixels by which a box may reach over the edge of its image, as rounded numbers do; it is clipped there
_OVER = 1.0
_ROW = np.dtype([("boxes", "<f4", 4), ("labels", "<i4"), ("crowd", "?"), ("area", "<f4")])


class StoredObjects(NamedTuple):
    """Objects as a file has them, not checked against their image."""

    objects: Objects
    where: str
    """Origin, for messages."""
    names: tuple[str, ...] = ()
    """What messages call each object; () numbers them."""
    relative: bool = False
    """Whether boxes are fractions of the width and the height."""
    classes: int | None = None
    """Number of classes, if labels are not checked yet."""


def decode_objects(stored: StoredObjects, shape: tuple[int, ...]) -> Objects:
    """Return the objects of an image of shape (h, w), in pixels.

    Raises:
        InputError: A box is outside the image, or of no area; or a label is no class.
    """
    objects, size = stored.objects, np.array([shape[1], shape[0]] * 2, np.float32)
    boxes = objects.boxes * size if stored.relative else objects.boxes
    area = objects.area * size[:2].prod() if stored.relative else objects.area
    # Also of numbers that are not finite
    inside = (boxes >= -_OVER) & (boxes <= size + _OVER)
    extended = boxes[:, 2:] > boxes[:, :2]
    for place in np.flatnonzero(~(inside.all(1) & extended.all(1))):
        fault = "of no area" if inside[place].all() else f"outside its image of {shape[1]} x {shape[0]} pixels"
        corners = ", ".join(f"{number:g}" for number in boxes[place])
        raise InputError(f"{stored.where}: {_name(stored, place)} has the box {corners}, {fault}; correct or remove it")
    labels = objects.labels
    if stored.classes is not None:
        for place in np.flatnonzero((labels < 0) | (labels >= stored.classes)):
            raise InputError(
                f"{stored.where}: label {labels[place]} of {_name(stored, place)}, expected 0 to {stored.classes - 1}"
            )
    return objects._replace(boxes=np.clip(boxes, 0, size), area=area)


def _name(stored: StoredObjects, place: Any) -> str:
    return stored.names[place] if stored.names else f"object {place + 1}"


def move_objects(objects: Objects, scale: Any, shift: Any, size: tuple[int, int], visible: float = 0.0) -> Objects:
    """Return objects where scale * (x, y) + shift takes them, clipped to an image; what leaves it becomes padding.

    Args:
        objects: (n, ...) of one image, of NumPy or JAX.
        scale: (2,) along x and y; a negative one mirrors.
        shift: (2,) in pixels.
        size: height and width of the new image in pixels.
        visible: fraction of the area of a box that must remain; otherwise it is dropped.

    Example:
        >>> moved = move_objects(make_objects([[0, 0, 4, 4]], [0]), np.array([-2, 2]), np.array([12, 0]), (8, 10))
        >>> moved.boxes.tolist(), moved.area.tolist(), float(moved.scale)
        ([[4.0, 0.0, 10.0, 8.0]], [12.0], 2.0)
    """
    xp = objects.boxes.__array_namespace__()
    scale, shift = (xp.asarray(two, dtype=objects.boxes.dtype).reshape(1, 1, 2) for two in (scale, shift))
    corners = objects.boxes.reshape(-1, 2, 2) * scale + shift
    low, high = corners.min(1), corners.max(1)
    limits = xp.asarray([size[1], size[0]], dtype=low.dtype).reshape(1, 2)
    inner_low, inner_high = xp.clip(low, 0, limits), xp.clip(high, 0, limits)
    whole, rest = (high - low).prod(1), (inner_high - inner_low).prod(1)
    kept = rest / xp.where(whole > 0, whole, 1)
    there = (objects.labels != NO_OBJECT) & (rest > 0) & (kept >= visible)
    return Objects(
        xp.where(there[:, None], xp.concatenate([inner_low, inner_high], axis=1), 0),
        xp.where(there, objects.labels, NO_OBJECT),
        objects.crowd & there,
        xp.where(there, objects.area * kept, 0),
        objects.scale * xp.sqrt(xp.abs(scale.prod())),
    )


def present(objects: Objects) -> Objects:
    """Return the objects that are no padding, as NumPy arrays."""
    there = np.asarray(objects.labels) != NO_OBJECT
    *leaves, scale = map(np.asarray, objects)
    return Objects(*[*(leaf[there] for leaf in leaves), scale])


def encode_objects(objects: Objects) -> bytes:
    """Return objects as bytes without loss."""
    rows = np.zeros(len(objects.labels), _ROW)
    for name in _ROW.names or ():
        rows[name] = getattr(objects, name)
    return np.asarray(objects.scale, "<f4").tobytes() + rows.tobytes()


def decode_object_bytes(content: bytes) -> Objects:
    """Return the objects in bytes of `encode_objects`; raise ValueError for another length or scale."""
    (scale,), rows = np.frombuffer(content[:4], "<f4"), np.frombuffer(content[4:], _ROW)
    if not 0 < scale < np.inf:
        raise ValueError(f"a scale of {scale}")
    return make_objects(*(rows[name] for name in _ROW.names or ()))._replace(scale=scale)
