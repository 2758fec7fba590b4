"""Sequences: scanned digits, read pixel by pixel, by a one-dimensional residual network.

    python experiments/tasks/sequences.py

Real data, on board: each image of 8x8 pixels is a sequence of 64, row after row, so what was above a pixel is now eight
places before it. Convolutions along one axis have to find that out.

Measured: 97.50 % of the 360 test digits (as images, experiments/digits.py, 99.2 %), in 30 s from start to end on two
shared CPU cores.
"""

from pathlib import Path
from typing import Any

from experiments import script
from resnet_jax import MODELS, fit
from resnet_jax.data.datasets import digits
from resnet_jax.data.source import Source, to_arrays
from resnet_jax.model.stems import CifarStem
from resnet_jax.recipe import Augment, Data, Model, Optimizer, Recipe, Schedule
from resnet_jax.train.run import Result

# resnet18_1d, narrower, without its last stage, and with a stem that keeps the length
MODELS["small_1d"] = MODELS["resnet18_1d"].clone(depths=(2, 2, 2), stem=CifarStem, width=32, input_shape=(64, 1))
recipe = Recipe(
    model=Model(name="small_1d"),
    data=Data(mean=(0.3,), std=(0.37,)),
    augment=Augment(pad=0),
    optimizer=Optimizer(lr=0.1),
    schedule=Schedule(name="cosine", warmup=2),
    batch_size=64,
    epochs=15,
)


def read(split: Source) -> tuple:
    """Sequences, uint8 (n, 64), and their digits (n,)."""
    images, labels = to_arrays(split)
    return images.reshape(len(images), 64), labels


def run(out: Path, **options: Any) -> Result:
    """Trains on the 1,437 training digits, and measures on the other 360."""
    train, test = (read(digits(split, Path())) for split in ("train", "test"))
    return fit(recipe, train, test, out, **options)


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/tasks/sequences"))
    line = script.last_line(run(parser.parse_args().out))
    print(f"{line['test_accuracy']:.2%} of the test digits, {line['seconds']:.0f} s of training")


if __name__ == "__main__":
    script.run(main)
