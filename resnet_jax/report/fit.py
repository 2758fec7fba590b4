"""Train on arrays in memory, and look at the result, as in a notebook."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from numpy.typing import ArrayLike

from resnet_jax.data.arrays import sources_from_arrays
from resnet_jax.data.convert_arrays import to_classes, to_uint8
from resnet_jax.data.datasets import refuse_resizing
from resnet_jax.data.image import preprocessing_of
from resnet_jax.data.selection import select
from resnet_jax.data.source import Source
from resnet_jax.errors import InputError
from resnet_jax.inference.predict import predict_probs
from resnet_jax.models.backbone import Network
from resnet_jax.models.zoo import MODELS
from resnet_jax.recipe import Recipe
from resnet_jax.report.curves import draw_curves
from resnet_jax.run_dir.files import read_dataset_info, read_recipe
from resnet_jax.runtime.compiler_options import compiler_options
from resnet_jax.tasks.make import make_task
from resnet_jax.training.run import train
from resnet_jax.training.run_state import TrainResult
from resnet_jax.training.setup import Parts, TrainSetup, make_setup
from resnet_jax.training.sources import eval_split, selection_of
from resnet_jax.training.state import TrainState, with_ema_params

Arrays = tuple[ArrayLike, ArrayLike]
# Images per call of the network
_BATCH = 256


class Picture(NamedTuple):
    """A PNG that notebooks show."""

    png: bytes

    def _repr_png_(self) -> bytes:
        return self.png

    def __repr__(self) -> str:
        return f"Picture(<{len(self.png):,} bytes>)"


@dataclass(frozen=True, repr=False)
class Fitted:
    """A trained network with its curves; `out` is an ordinary run directory."""

    out: Path
    result: TrainResult
    evaluation: Source
    """Split that it was evaluated on."""
    parts: Parts = Parts()
    channels_first: bool = False

    @property
    def state(self) -> TrainState:
        """The last state."""
        return self.result.state

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl."""
        return self.result.rows

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.result.step

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes or outputs."""
        return self.evaluation.classes

    @property
    def metrics(self) -> dict[str, Any]:
        """The last values on the evaluation split by name, of the EMA if there is one; empty before the first row."""
        row = self.rows[-1] if self.rows else {}
        split = self.result.split
        prefix = f"ema/{split}/" if f"ema/{split}/loss" in row else f"{split}/"
        return {key.removeprefix(prefix): value for key, value in row.items() if key.startswith(prefix)}

    @property
    def history(self) -> dict[str, list[Any]]:
        """Values of all rows by key, as `pandas.DataFrame` takes them; None where a row has none."""
        keys = dict.fromkeys(key for row in self.rows for key in row)
        return {key: [row.get(key) for row in self.rows] for key in keys}

    def predict(self, images: ArrayLike) -> np.ndarray:
        """Return probabilities or outputs (n, k) float32 of images, in the form that `fit` was given."""
        (pixels,), _ = to_uint8([("", images)], channels_first=self.channels_first)
        setup = self._setup()
        shape = setup.dataset.image_shape
        pixels = pixels[..., None] if pixels.ndim == len(shape) else pixels
        if pixels.shape[1:] != shape or pixels.dtype != np.uint8:
            raise InputError(f"images have shape {pixels.shape}; the network was trained on (n, {str(shape)[1:]}")
        probs = jax.jit(partial(predict_probs, setup), compiler_options=compiler_options())
        state, found = with_ema_params(self.state), []
        for start in range(0, len(pixels), _BATCH):
            chunk = pixels[start : start + _BATCH]
            # Of one size, so that one program serves all
            padded = np.pad(chunk, [(0, min(_BATCH, len(pixels)) - len(chunk)), *((0, 0) for _ in shape)])
            found.append(np.asarray(probs(state, padded), np.float32)[: len(chunk)])
        return np.concatenate(found) if found else np.zeros((0, len(self.classes)), np.float32)

    def confusion_matrix(self) -> np.ndarray:
        """Return counts (k, k) on the evaluation split; rows are true classes, columns predicted ones."""
        if self._setup().task.answers != "ranked":
            raise InputError("a confusion matrix is for one class per image; look at .metrics")
        examples = [self.evaluation.read(index) for index in range(self.evaluation.size)]
        images = np.stack([example.image for example in examples])
        predicted = replace(self, channels_first=False).predict(images).argmax(1)
        counts = np.zeros((len(self.classes),) * 2, np.int64)
        np.add.at(counts, (np.array([int(example.target) for example in examples]), predicted), 1)
        return counts

    def show(self) -> Picture:
        """Return the curves as a picture, which a notebook shows; also in OUT/curves.png."""
        path = self.out / "curves.png"
        draw_curves(self.rows, self.out.name, path)
        return Picture(path.read_bytes())

    def _setup(self) -> TrainSetup:
        return make_setup(read_recipe(self.out), read_dataset_info(self.out), 1, parts=self.parts)

    def __repr__(self) -> str:
        values = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        return f"Fitted({str(self.out)!r}, step {self.step} of {self.result.steps}, {self.result.split}: {values})"


def fit(
    recipe: Recipe,
    train_data: Arrays,
    test_data: Arrays | None,
    out: Path | str,
    *,
    classes: tuple[str, ...] | None = None,
    validation: float | None = None,
    channels_first: bool = False,
    model: nn.Module | None = None,
    **options: Any,
) -> Fitted:
    """Train a recipe on (images, targets) in memory, as `train` does on a data set.

    Arrays may be anything that NumPy can convert: lists, data frames, torch tensors. How pixels and labels are
    interpreted is printed.

    Args:
        recipe: its `data.name` becomes "arrays"; mean and std are for pixels in 0 to 1. Arrays are not resized.
        train_data: images (n, h, w) or (n, h, w, c), uint8, integers of 0 to 255, or floats of 0 to 1 or 0 to 255; and
            targets: classes, integers from 0 (n,), names (n,) or one-hot rows (n, k); or numbers (n, k), of which
            floats may be (n,). For a network of sequences images are (n, l) or (n, l, c), for one of video
            (n, t, h, w) or (n, t, h, w, c).
        test_data: likewise, of the same size; None with `validation`.
        out: the run directory.
        classes: names of classes or outputs; None is their numbers, or the sorted names among the labels.
        validation: fraction of the training images to hold out and evaluate on instead of the test split.
        channels_first: whether images are (n, c, h, w), as in torch.
        model: as for `train`.
        **options: the other arguments of `train`.

    Raises:
        InputError: The arrays do not fit each other or the recipe.

    Example:
        >>> fitted = fit(Recipe(), (x_train, y_train), (x_test, y_test), "runs/arrays")  # doctest: +SKIP
        >>> fitted.metrics["accuracy"], fitted.predict(x_test[:3]).argmax(1)  # doctest: +SKIP
    """
    refuse_resizing("a pair of arrays", preprocessing_of(recipe.data))
    network = MODELS.get(recipe.model.name) if model is None else model
    spatial = len(network.input_shape) - 1 if isinstance(network, Network) else 2
    splits = [("train", train_data)] + ([] if test_data is None else [("test", test_data)])
    images, notes = to_uint8([(name, data[0]) for name, data in splits], channels_first=channels_first)
    labels: list[Any] = [data[1] for _, data in splits]
    task = options.get("task") or make_task(recipe.loss)
    if task.answers == "ranked":
        named = [(name, data[1]) for name, data in splits]
        labels, classes, more = to_classes(named, classes)
        notes += more
    recipe = replace(recipe, data=replace(recipe.data, name="arrays"))
    if validation is not None:
        recipe = _holding_out(recipe, validation, len(images[0]))
    if test_data is None and not recipe.data.holds_out:
        raise InputError("there is no test data to evaluate on; give it, or validation=0.1")
    pairs = list(zip(images, labels, strict=True))
    train_split, test_split = sources_from_arrays(pairs[0], pairs[-1], classes, spatial=spatial)
    data = train_split._replace(notes=notes), test_split
    result = train(recipe, out, data=data, model=model, **options)
    names = ("optimizer", "schedule", "transform", "task")
    parts = Parts(model=model, **{name: options.get(name) for name in names})
    held = select(data[eval_split(recipe) == "test"], eval_split(recipe), selection_of(recipe.data), "arrays")
    return Fitted(Path(out).expanduser(), result, held, parts, channels_first)


def _holding_out(recipe: Recipe, fraction: float, size: int) -> Recipe:
    count = round(fraction * size) if 0 < fraction < 1 else 0
    if not 0 < count < size:
        raise InputError(f"validation is {fraction}; give a fraction that leaves images on both sides, such as 0.1")
    return replace(recipe, data=replace(recipe.data, num_validation=count))
