"""Grad-CAM: where in an image a network sees a class (Selvaraju et al. 2017, section 3)."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from resnet_jax.data.augment import normalize
from resnet_jax.errors import InputError, nearest
from resnet_jax.inference.load_model import load_model
from resnet_jax.inference.predict import Prediction, check_files, predict_probs, read_images, top_predictions
from resnet_jax.inference.source import CheckpointChoice, WeightsInfo
from resnet_jax.models.resnet import ResNet
from resnet_jax.runtime.compiler_options import compiler_options
from resnet_jax.runtime.terminal import printable
from resnet_jax.training.network import require_resnet
from resnet_jax.training.setup import Parts, TrainSetup, network_name
from resnet_jax.training.state import TrainState
from resnet_jax.weights.load import Variables


def grad_cam(
    model: ResNet, variables: Variables, images: Array, classes: Array | None = None, stage: int | None = None
) -> Array:
    """Return what in each image speaks for a class: float32 (b, h, w), from 0 to 1.

    The feature map of a stage is weighted, channel by channel, with the mean gradient of the class's logit.

    Args:
        model: a network with a head.
        variables: its parameters and statistics.
        images: (b, h, w, c), normalised; or sequences or video, with their own axes in place of h and w.
        classes: int (b,); None is the most probable class of each image.
        stage: stage of the feature map, from 1; None is the last.

    Reference:
        Selvaraju et al. 2017, "Grad-CAM", equations 1 and 2.

    Example:
        >>> from resnet_jax import create_model
        >>> model, images = create_model("resnet20"), jnp.zeros((2, 32, 32, 3))
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
        >>> jax.eval_shape(partial(grad_cam, model), variables, images).shape
        (2, 32, 32)
    """
    stage = stage or len(model.depths)
    maps = jnp.asarray(model.apply(variables, images, method="features")[stage - 1])

    def scores(maps: Array) -> Array:
        logits = jnp.asarray(model.apply(variables, maps, stage, method="forward_from_stage"))
        chosen = logits.argmax(-1) if classes is None else jnp.asarray(classes)
        return jnp.take_along_axis(logits, chosen[:, None], axis=-1).sum()

    gradient, spatial = jax.grad(scores)(maps), tuple(range(1, maps.ndim - 1))
    for_class = nn.relu((gradient.mean(spatial, keepdims=True) * maps).sum(-1)).astype(jnp.float32)
    for_class = _enlarge(for_class, images.shape[1:-1], model.stages()[stage - 1].total_stride)
    most = for_class.max(spatial, keepdims=True)
    return for_class / jnp.where(most > 0, most, 1)


def _enlarge(maps: Array, shape: Sequence[int], stride: int | tuple[int, ...]) -> Array:
    """Return maps (b, spatial...), enlarged linearly to a shape in pixels.

    Cell i is centred on pixel i * stride, because padding is symmetric. Stretching the map over the image, as is often
    done, would move it by half a stride.
    """
    strides = (stride,) * len(shape) if isinstance(stride, int) else stride
    for axis, (size, apart) in enumerate(zip(shape, strides, strict=True), 1):
        pixels, cells = jnp.arange(size, dtype=maps.dtype), apart * jnp.arange(maps.shape[axis], dtype=maps.dtype)
        maps = jnp.apply_along_axis(partial(jnp.interp, pixels, cells), axis, maps)
    return maps


class Explanation(NamedTuple):
    """Prediction for one image, and where in it one of the classes is seen."""

    prediction: Prediction
    name: str  # of that class
    answer: float  # its probability; of a network for regression, the output
    pixels: np.ndarray  # uint8 (h, w, c), as the network takes the image
    heat: np.ndarray  # float32 (h, w), 0 to 1
    cells: tuple[int, ...]  # (h, w) of the map that it is made of


def explain(
    where: Path | str,
    images: Sequence[Path | str],
    name: str | None = None,
    *,
    stage: int | None = None,
    topk: int = 5,
    weights: WeightsInfo = WeightsInfo(),
    checkpoint: CheckpointChoice = CheckpointChoice(),
    parts: Parts = Parts(),
) -> list[Explanation]:
    """Return the Grad-CAM heat map of a class for each image file, from a run or weights.

    Args:
        where: as in `predict`, like `images`, `topk`, `weights`, `checkpoint` and `parts`.
        images: image files.
        name: name of the class; None is the most probable class of each image.
        stage: stage whose feature map is used, from 1; None is the last.
        topk: number of classes in each prediction.
        weights: model name and preprocessing of a bare weights file.
        checkpoint: which weights of a run to use.
        parts: parts that were passed to the run as values.

    Raises:
        InputError: As `predict`; or the class or stage is unknown.

    Example:
        >>> explain("runs/digits", ["seven.png"])[0].heat.shape  # doctest: +SKIP
        (8, 8)
    """
    paths = [Path(image) for image in images]
    check_files(paths, topk)
    setup, state = load_model(where, weights, checkpoint, devices=1, parts=parts)
    number = None if name is None else _number(setup, name)
    model = require_resnet(setup.model, "explain")
    last = len(model.depths)
    if stage is not None and not 1 <= stage <= last:
        raise InputError(f"--stage is {stage}; {network_name(setup)} has stages 1 to {last}")
    pixels = read_images(setup, paths)
    look = jax.jit(partial(_look, setup, model, state, stage), compiler_options=compiler_options())
    cells = np.ceil(np.array(pixels.shape[1:3]) / model.stages()[(stage or last) - 1].total_stride)
    found = []
    for path, image in zip(paths, pixels, strict=True):
        row, chosen, heat = (np.asarray(x[0]) for x in look(image[None], number))
        said, seen = top_predictions(setup, path, row, topk), setup.dataset.classes[chosen]
        found.append(Explanation(said, seen, float(row[chosen]), image, heat, tuple(map(int, cells))))
    return found


def _look(
    setup: TrainSetup, model: ResNet, state: TrainState, stage: int | None, images: Array, number: Any
) -> tuple[Array, Array, Array]:
    """Return outputs (b, k), the class that is explained (b,), and where it is seen (b, h, w)."""
    rows, data = predict_probs(setup, state, images), setup.recipe.data
    chosen = rows.argmax(-1) if number is None else jnp.full(len(images), number)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return rows, chosen, grad_cam(model, variables, normalize(images, data.mean, data.std), chosen, stage)


def _number(setup: TrainSetup, name: str) -> int:
    classes = setup.dataset.classes
    if name in classes:
        return classes.index(name)
    hint = nearest(name, classes) or f"; it is one of {len(classes):,}, such as {', '.join(classes[:3])}"
    raise InputError(f"unknown class {name!r}{hint}")


def draw_explanations(found: Sequence[Explanation], path: Path | str) -> None:
    """Write a PNG with a row for each image: the network's input, and the same under its heat map.

    Raises:
        InputError: The file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.5 * len(found)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for (left, right), e in zip(figure.subplots(len(found), 2, squeeze=False), found, strict=True):
        left.imshow(e.pixels.squeeze(-1) if e.pixels.shape[-1] == 1 else e.pixels, cmap="gray", vmin=0, vmax=255)
        right.imshow(overlaid(e.pixels, e.heat))
        # A dollar sign is no formula
        how: dict[str, Any] = {"loc": "left", "fontsize": 10, "parse_math": False}
        left.set_title(printable(Path(e.prediction.image).name), **how)
        right.set_title(printable(f"{e.name}  {e.prediction.format(e.answer)}"), fontweight="bold", **how)
        for axes in (left, right):
            axes.set_axis_off()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be written ({error}); name another picture with --out") from error


def overlaid(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return an image, uint8 (h, w, c), in grey under its heat, (h, w) 0 to 1, in colour: float32 (h, w, 3), 0 to 1."""
    from matplotlib import colormaps

    grey = pixels.astype(np.float32).mean(-1, keepdims=True) / 255
    color, opacity = colormaps["inferno"](heat)[..., :3], 0.75 * heat[..., None]
    return ((1 - opacity) * grey + opacity * color).astype(np.float32)
