"""Compare an exported network with the original, or with what it returned when it was exported."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from resnet_jax.errors import InputError
from resnet_jax.inference.export.interface import Interface
from resnet_jax.inference.export.network import Network, normalized

# Images (n, spatial..., c) to outputs
Run = Callable[[np.ndarray], list[np.ndarray]]
# Largest difference of an output over the largest output
LIMIT = 1e-4


class Difference(NamedTuple):
    """How the outputs of a network differ from others."""

    relative: float
    """Largest difference over the largest number of an output; the worst of several outputs."""
    same: int
    """Images with the same answer: the largest output, or the labels of all detections."""
    total: int

    def format(self) -> str:
        """Return the difference as people read it."""
        return (
            f"largest relative difference {self.relative:.1e}, same prediction for {self.same} of {self.total} images"
        )


def compare(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> Difference:
    """Compare outputs; raise InputError if their shapes differ."""
    shapes, others = ([output.shape for output in outputs] for outputs in (found, expected))
    if shapes != others:
        raise InputError(f"the outputs have the shapes {shapes}, but those of the network are {others}")
    pairs = list(zip(found, expected, strict=True))
    # Whole numbers are the labels of detections
    labels = [pair for pair in pairs if pair[0].dtype.kind == "i"]
    told, known = labels[0] if labels else (_likeliest(found[0]), _likeliest(expected[0]))
    same = (told.reshape(len(told), -1) == known.reshape(len(known), -1)).all(-1)
    return Difference(max(_relative(*pair) for pair in pairs), int(same.sum()), len(same))


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    apart, largest = float(np.abs(found.astype(np.float64) - expected).max()), float(np.abs(expected).max())
    relative = apart / largest if largest else apart
    return relative if math.isfinite(relative) else math.inf


def _likeliest(output: np.ndarray) -> np.ndarray:
    return np.argmax(output.reshape(len(output), -1), -1)


def require_equal(difference: Difference, what: str, limit: float = LIMIT) -> None:
    """Raise InputError if outputs differ by more than rounding."""
    if not difference.relative <= limit or difference.same < difference.total:
        raise InputError(f"{what} differs from the network: {difference.format()}; nothing was written")


def as_taken(network: Network, interface: Interface, pixels: np.ndarray) -> np.ndarray:
    """Return uint8 pixels as an exported network takes them."""
    return pixels if interface.preprocess else normalized(network, pixels)
