"""Input and output of the exported network."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Interface:
    """Input and output of the exported network."""

    preprocess: bool = False
    """Take uint8 (b, h, w, c) and normalise in the network; resize images yourself."""
    outputs: Literal["logits", "probabilities"] = "logits"
    """Return logits, or probabilities: softmax for classes, sigmoid for several labels."""
    batch_size: int | None = None
    """Images per call; None is any number, or 1 for LiteRT."""
