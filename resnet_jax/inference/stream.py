"""Predict or embed images one after the other: any number of them, in constant memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from resnet_jax.data.augment import normalize
from resnet_jax.data.source import default_threads
from resnet_jax.errors import InputError
from resnet_jax.inference.images import Item, as_items, read_item
from resnet_jax.inference.load_model import load_model
from resnet_jax.inference.predict import Prediction, predict_probs, require_images, top_predictions
from resnet_jax.inference.source import CheckpointChoice, WeightsInfo
from resnet_jax.models.backbone import backbone_of
from resnet_jax.models.resnet import ResNet
from resnet_jax.parallel.sharding import batch_sharding, place
from resnet_jax.runtime.compiler_options import compiler_options
from resnet_jax.training.network import require_published
from resnet_jax.training.setup import Parts, TrainSetup
from resnet_jax.training.state import TrainState

# Batches that may be queued on the devices
_QUEUED = 2
# (state, uint8 (b, h, w, c)) -> (b, ...)
Function = Callable[[Any, Array], Array]


class Answer(NamedTuple):
    """What a network says of an image."""

    item: Item
    values: np.ndarray | None
    """None if the image cannot be read."""
    error: str = ""
    """Why it cannot be read."""


def map_images(
    setup: TrainSetup,
    function: Function,
    state: TrainState,
    items: Iterable[Item],
    batch_size: int = 64,
    num_threads: int | None = None,
) -> Iterator[Answer]:
    """Yield what a function says of each image, in order; threads read ahead, and no more than a few batches are kept.

    Args:
        setup: of the network, with its devices and preprocessing.
        function: of a state and a batch; what it says of an image does not depend on the others.
        state: of the network.
        items: the images.
        batch_size: images per call of the function; rounded up to a multiple of the devices.
        num_threads: threads that read; None is one per core.

    Raises:
        InputError: The network takes no images.
    """
    require_images(setup)
    devices, sharding = setup.mesh.size, batch_sharding(setup.mesh)
    batch_size = -(-batch_size // devices) * devices
    compiled = jax.jit(function, compiler_options=compiler_options())
    queued: deque[tuple[list[Item], list[np.ndarray | str], Array | None]] = deque()
    for batch in _batches(_read_ahead(setup, items, num_threads or default_threads(), 2 * batch_size), batch_size):
        items_read, contents = [item for item, _ in batch], [content for _, content in batch]
        pixels = [content for content in contents if isinstance(content, np.ndarray)]
        # One shape, so that the function is compiled once
        padded = pixels + pixels[-1:] * (batch_size - len(pixels))
        outputs = compiled(state, place(np.stack(padded), sharding)) if pixels else None
        queued.append((items_read, contents, outputs))
        if len(queued) > _QUEUED:
            yield from _answers(*queued.popleft())
    for waiting in queued:
        yield from _answers(*waiting)


def _answers(items: list[Item], contents: list[np.ndarray | str], outputs: Array | None) -> Iterator[Answer]:
    rows = iter(() if outputs is None else np.asarray(outputs))
    for item, content in zip(items, contents, strict=True):
        yield Answer(item, None, content) if isinstance(content, str) else Answer(item, next(rows))


def _read_ahead(
    setup: TrainSetup, items: Iterable[Item], threads: int, ahead: int
) -> Iterator[tuple[Item, np.ndarray | str]]:
    """Yield each item with its pixels, or with why it cannot be read."""

    def read(item: Item) -> np.ndarray | str:
        try:
            return read_item(setup, item)
        except InputError as error:
            return str(error)

    waiting: deque[tuple[Item, Future[np.ndarray | str]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(read, item)))
                if len(waiting) > ahead:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _batches(pairs: Iterable[tuple[Item, Any]], size: int) -> Iterator[list[tuple[Item, Any]]]:
    batch = []
    for pair in pairs:
        batch.append(pair)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def predict_each(
    where: Path | str,
    images: Iterable[Any],
    topk: int = 5,
    *,
    batch_size: int = 64,
    weights: WeightsInfo = WeightsInfo(),
    checkpoint: CheckpointChoice = CheckpointChoice(),
    parts: Parts = Parts(),
) -> Iterator[Prediction]:
    """Yield the `topk` classes of each image of an iterable, in order and in constant memory.

    Args:
        where: a run directory, a weights file, "hf:OWNER/NAME" or a published name.
        images: paths, bytes of image files, arrays uint8 (h, w, c) or Pillow images; may be a generator.
        topk: number of classes per image.
        batch_size: images per call of the network.
        weights: model name and preprocessing of a bare weights file.
        checkpoint: which weights of a run to use.
        parts: parts that were passed to the run as values.

    Raises:
        InputError: Run, weights or an image cannot be read.

    Example:
        >>> [p.classes[0] for p in predict_each("runs/digits", Path("scans").glob("*.png"))]  # doctest: +SKIP
        ['7', '1']
    """
    setup, state = load_model(where, weights, checkpoint, parts=parts)
    for answer in map_images(setup, partial(predict_probs, setup), state, as_items(images), batch_size):
        if answer.values is None:
            raise InputError(answer.error)
        yield top_predictions(setup, Path(answer.item.name), answer.values, topk)


def embed_each(
    where: Path | str,
    images: Iterable[Any],
    stage: int | None = None,
    *,
    pool: bool = True,
    batch_size: int = 64,
    weights: WeightsInfo = WeightsInfo(),
    checkpoint: CheckpointChoice = CheckpointChoice(),
    parts: Parts = Parts(),
) -> Iterator[np.ndarray]:
    """Yield the features of each image of an iterable, in order: float32 (c,) or (h, w, c).

    Args:
        where: as in `predict_each`; weights without a head work too.
        images: as in `predict_each`.
        stage: stage of the network, from 1; None is the last.
        pool: pool the map as the network does before its head.
        batch_size: images per call of the network.
        weights: model name and preprocessing of a bare weights file.
        checkpoint: which weights of a run to use.
        parts: parts that were passed to the run as values.

    Raises:
        InputError: Run, weights or an image cannot be read, or there is no such stage.

    Example:
        >>> np.stack(list(embed_each("runs/digits", ["seven.png"]))).shape  # doctest: +SKIP
        (1, 64)
    """
    setup, state = load_model(where, weights, checkpoint, parts=parts, headless=True)
    for answer in map_images(setup, features_of(setup, stage, pool), state, as_items(images), batch_size):
        if answer.values is None:
            raise InputError(answer.error)
        yield answer.values


def features_of(setup: TrainSetup, stage: int | None, pool: bool) -> Function:
    """Return the function from state and uint8 (b, h, w, c) to features, float32 (b, c) or (b, h, w, c).

    Raises:
        InputError: The network has no such stage, or is one of your own.
    """
    model, data = require_published(setup.model, "embed"), setup.recipe.data
    backbone = backbone_of(model)
    assert backbone is not None
    if stage is not None and not 1 <= stage <= len(backbone.depths):
        raise InputError(f"--stage is {stage}; the network has {len(backbone.depths)} stages")

    def features(state: TrainState, images: Array) -> Array:
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        if not isinstance(model, ResNet):
            variables = {name: tree["backbone"] for name, tree in variables.items()}
        x = normalize(jnp.asarray(images), data.mean, data.std)
        maps: Any = backbone.apply(variables, x, method="features")
        chosen = maps[(stage or len(maps)) - 1].astype(jnp.float32)
        return backbone.pool(chosen) if pool else chosen

    return features
