"""Sequences: scanned digits, read pixel by pixel, by a one-dimensional residual network.

    python experiments/tasks/sequences.py

The bundled digits: each image of 8x8 pixels is a sequence of 64, row by row, so the pixel above another is now eight
places before it. Convolutions along one axis have to learn that.

Measured: 97.50 % of the 360 test digits (as images, experiments/digits.py, 99.2 %), in 30 s from start to end on two
shared CPU cores.
"""

from pathlib import Path
from typing import Any

import numpy as np

from experiments import script
from resnet_jax import fit
from resnet_jax.data.datasets import digits
from resnet_jax.data.source import Source, to_arrays
from resnet_jax.recipe import Augment, Data, Model, Optimizer, Recipe, Schedule
from resnet_jax.training.run_state import TrainResult

recipe = Recipe(
    # Narrower, without the last stage, and with a stem that keeps the length
    model=Model(name="resnet18_1d", fields={"depths": (2, 2, 2), "stem": "CifarStem", "width": 32}),
    data=Data(mean=(0.3,), std=(0.37,)),
    augment=Augment(crop_padding=0),
    optimizer=Optimizer(lr=0.1),
    schedule=Schedule(name="cosine", warmup=2),
    batch_size=64,
    epochs=15,
)


def read(split: Source) -> tuple[np.ndarray, np.ndarray]:
    """Return sequences, (n, 64) uint8, and their digits (n,)."""
    images, labels = to_arrays(split)
    return images.reshape(len(images), 64), labels


def run(out: Path, **options: Any) -> TrainResult:
    """Train on the 1,437 training digits and evaluate on the other 360."""
    train, test = (read(digits(split, Path())) for split in ("train", "test"))
    return fit(recipe, train, test, out, **options).result


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/tasks/sequences"))
    row = run(parser.parse_args().out).rows[-1]
    print(f"{row['test/accuracy']:.2%} of the test digits, {row['train_seconds']:.0f} s of training")


if __name__ == "__main__":
    script.run(main)
