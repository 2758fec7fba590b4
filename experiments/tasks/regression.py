"""Regression: by how many degrees a digit is rotated, with the mean squared error as loss.

    python experiments/tasks/regression.py

Real digits, rotated by a random angle of up to 60 degrees either way; the test digits are in no training image. People
write at a slant, so there is an error that no network can avoid.

Measured: off by 6.4 degrees, root mean square (34.5 by always predicting 0), in 45 s from start to end on two shared
CPU cores.
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from experiments import script
from resnet_jax import compiler_options, fit, load_run
from resnet_jax.data.datasets import digits
from resnet_jax.data.source import Source, to_arrays
from resnet_jax.inference.predict import predict_probs
from resnet_jax.recipe import Augment, Data, Loss, Model, Optimizer, Recipe, Schedule
from resnet_jax.training.run_state import TrainResult

# Largest angle in degrees, degrees per unit of the network's output, and pixels in height and width
LARGEST, UNIT, SIDE = 60, 30, 16
recipe = Recipe(
    model=Model(name="resnet20"),
    data=Data(mean=(0.25,), std=(0.33,)),
    augment=Augment(crop_padding=1),
    loss=Loss(name="mse"),
    optimizer=Optimizer(lr=0.005),
    schedule=Schedule(name="cosine", warmup=2),
    batch_size=64,
    epochs=14,
)


def rotated(split: Source, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rotated digits of a split, (n, h, w) uint8, and their angles (n,) float32 / 30 degrees."""
    images, _ = to_arrays(split)
    angles = np.random.default_rng(seed).uniform(-LARGEST, LARGEST, len(images))
    bilinear = Image.Resampling.BILINEAR
    result = [
        Image.fromarray(image[..., 0]).resize((SIDE, SIDE), bilinear).rotate(angle, bilinear)
        for image, angle in zip(images, angles, strict=True)
    ]
    return np.stack([np.asarray(image) for image in result]), (angles / UNIT).astype(np.float32)


def run(out: Path, **options: Any) -> TrainResult:
    """Train on the 1,437 training digits and evaluate on the other 360."""
    train, test = (rotated(digits(split, Path()), seed) for seed, split in enumerate(("train", "test")))
    return fit(recipe, train, test, out, classes=("angle",), **options).result


def draw(out: Path, path: Path) -> None:
    """Draw the predicted over the true angles of the test digits."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    images, angles = rotated(digits("test", Path()), 1)
    predict = jax.jit(partial(predict_probs, *load_run(out, 1)), compiler_options=compiler_options())
    predicted = np.asarray(predict(images[..., None]))[:, 0]
    figure = Figure(figsize=(4.2, 4.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([-LARGEST, LARGEST], [-LARGEST, LARGEST], color="#e4572e", lw=1)
    axes.scatter(UNIT * angles, UNIT * predicted, s=14, color="#4c78a8", alpha=0.6, lw=0)
    ticks = range(-LARGEST, LARGEST + 1, 30)
    axes.set(
        xlabel="true angle (degrees)", ylabel="predicted angle (degrees)", aspect="equal", xticks=ticks, yticks=ticks
    )
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/tasks/regression"))
    folder = parser.parse_args().out
    row = run(folder).rows[-1]
    error, seconds = UNIT * row["test/loss"] ** 0.5, row["train_seconds"]
    print(f"off by {error:.1f} degrees (root mean square), {seconds:.0f} s of training")
    draw(folder, folder / "angles.png")
    print(f"picture: {folder / 'angles.png'}")


if __name__ == "__main__":
    script.run(main)
