"""Anchors: boxes of several sizes and shapes around every pixel of a map (Ren et al. 2015, section 3.1.1)."""

from collections.abc import Sequence

import numpy as np

# Of torchvision's detectors: by level, the sides of squares of the anchors' areas
RETINANET_SIZES = tuple(tuple(int(side * 2 ** (i / 3)) for i in range(3)) for side in (32, 64, 128, 256, 512))
RATIOS = (0.5, 1.0, 2.0)


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
    """Return anchors around the origin, float32 (ratios * sizes, 4), with sides rounded as torchvision's are.

    Args:
        sizes: sides of squares of the same area.
        ratios: height over width.

    Example:
        >>> cell_anchors((32,), (0.5, 1.0)).tolist()
        [[-23.0, -11.0, 23.0, 11.0], [-16.0, -16.0, 16.0, 16.0]]
    """
    heights = np.sqrt(np.asarray(ratios, np.float32))
    widths = np.float32(1) / heights
    scales = np.asarray(sizes, np.float32)
    w, h = (np.outer(factors, scales).ravel() for factors in (widths, heights))
    return np.round(np.stack([-w, -h, w, h], 1) / 2)


def grid_anchors(shape: Sequence[int], canvas: Sequence[int], cell: np.ndarray) -> np.ndarray:
    """Return anchors around every pixel of a map, float32 (height * width * anchors, 4).

    Args:
        shape: height and width of the map.
        canvas: height and width of the images in pixels; pixels of the map are canvas // shape apart.
        cell: anchors around the origin.

    Example:
        >>> grid_anchors((1, 2), (8, 16), cell_anchors((4,), (1.0,))).tolist()
        [[-2.0, -2.0, 2.0, 2.0], [6.0, -2.0, 10.0, 2.0]]
    """
    y, x = (np.arange(n, dtype=np.float32) * (size // n) for n, size in zip(shape, canvas, strict=True))
    ys, xs = (axis.ravel() for axis in np.meshgrid(y, x, indexing="ij"))
    shifts = np.stack([xs, ys, xs, ys], 1)
    return (shifts[:, None] + cell[None]).reshape(-1, 4)
