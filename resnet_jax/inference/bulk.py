"""Predictions and features of any number of images, written to a file and resumed after an interruption."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from resnet_jax.data.image import preprocessing_of
from resnet_jax.errors import InputError
from resnet_jax.inference.images import Item, as_items, iterate_images, skip_known
from resnet_jax.inference.load_model import load_model, weights_digest
from resnet_jax.inference.predict import predict_probs, top_predictions
from resnet_jax.inference.rows import Row, Rows, append_rows, finish_rows, open_rows, require_writable
from resnet_jax.inference.source import TABLES, CheckpointChoice, WeightsInfo
from resnet_jax.inference.stream import Answer, Function, features_of, map_images
from resnet_jax.runtime.terminal import log_to_stderr
from resnet_jax.training.setup import Parts, TrainSetup
from resnet_jax.training.state import TrainState

# Rows between two writes, and seconds between two lines of progress
_WRITTEN, _SECONDS = 64, 10.0


class Written(NamedTuple):
    """What was written."""

    out: Path
    images: int
    """Rows of the file."""
    resumed: int
    """Those that an earlier process had written."""
    unreadable: int
    """Images that this process could not read; their rows say why."""
    images_per_second: float

    def format(self) -> str:
        """Return what people want to know, in one line."""
        unreadable = f", {self.unreadable:,} of them unreadable (see column error)" if self.unreadable else ""
        before = f", {self.resumed:,} of them in an earlier run" if self.resumed else ""
        return f"{self.out}: {self.images:,} images{before}{unreadable}, {self.images_per_second:,.0f} images/s"


def predict_to(
    where: Path | str,
    images: Sequence[str | Path] | Iterable[object],
    out: Path | str,
    topk: int = 5,
    *,
    split: str = "test",
    data_dir: Path | str = "data",
    batch_size: int = 64,
    weights: WeightsInfo = WeightsInfo(),
    checkpoint: CheckpointChoice = CheckpointChoice(),
    parts: Parts = Parts(),
) -> Written:
    """Write the `topk` classes of images as a table, in constant memory; call it again to resume.

    A row has image, label if it is known, class_1, probability_1, class_2 ... and an error if the image cannot be read.

    Args:
        where: a run directory, a weights file, "hf:OWNER/NAME" or a published name.
        images: words as in `iterate_images`; or an iterable as in `predict_each`, which yields the same again.
        out: the file: .csv, .jsonl or .parquet. Until it is complete, rows are in OUT.part.
        topk: number of classes per image.
        split: of a data set.
        data_dir: folder of the data sets.
        batch_size: images per call of the network.
        weights: model name and preprocessing of a bare weights file.
        checkpoint: which weights of a run to use.
        parts: parts that were passed to the run as values.

    Raises:
        InputError: Something cannot be read, the file exists, or OUT.part belongs to another call.

    Example:
        >>> predict_to("runs/digits", ["scans"], "scans.csv").images  # doctest: +SKIP
        1797
    """
    out = Path(out)
    require_writable(out, TABLES)
    if topk < 1:
        raise InputError(f"--topk is {topk}; it must be positive")
    setup, state = load_model(where, weights, checkpoint, data_dir=Path(data_dir), parts=parts)
    if setup.task.answers in ("dense", "boxes"):
        pictures = "masks" if setup.task.answers == "dense" else "boxes"
        raise InputError(f"{out}: the network predicts {pictures}; name a folder for the pictures as --out")
    classes = setup.dataset.classes
    numbers = setup.task.answers == "numbers"
    columns = [f"output_{name}" for name in classes] if numbers else _columns(min(topk, len(classes)))

    def row(answer: Answer) -> Row:
        cells: list[object] = [None] * len(columns)
        if answer.values is not None:
            found = top_predictions(setup, Path(answer.item.name), answer.values, len(classes) if numbers else topk)
            pairs = zip(found.classes, found.probabilities, strict=True)
            cells = list(found.probabilities) if numbers else [cell for pair in pairs for cell in pair]
        return _row(answer, dict(zip(columns, cells, strict=True)))

    header = {"what": "predictions", "topk": topk} | _described(where, setup, state, images, split)
    items = _items(setup, images, split, data_dir)
    return _write(setup, partial(predict_probs, setup), state, items, out, header, row, (0,), batch_size)


def embed_to(
    where: Path | str,
    images: Sequence[str | Path] | Iterable[object],
    out: Path | str,
    stage: int | None = None,
    *,
    pool: bool = True,
    split: str = "test",
    data_dir: Path | str = "data",
    batch_size: int = 64,
    weights: WeightsInfo = WeightsInfo(),
    checkpoint: CheckpointChoice = CheckpointChoice(),
    parts: Parts = Parts(),
) -> Written:
    """Write the features of images, in constant memory; call it again to resume.

    Args:
        where: as in `predict_to`; weights without a head work too.
        images: as in `predict_to`.
        out: features.npy, float32 (n, c) or (n, h, w, c), with features.jsonl beside it, one row per image; or a
            .parquet table with both. Features of an image that cannot be read are NaN.
        stage: stage of the network, from 1; None is the last.
        pool: pool the map as the network does before its head.
        split: of a data set.
        data_dir: folder of the data sets.
        batch_size: images per call of the network.
        weights: model name and preprocessing of a bare weights file.
        checkpoint: which weights of a run to use.
        parts: parts that were passed to the run as values.

    Raises:
        InputError: As `predict_to`, or there is no such stage.

    Example:
        >>> embed_to("resnet50.a1_in1k", ["photos"], "photos.npy").images  # doctest: +SKIP
        122
    """
    out = Path(out)
    require_writable(out, (".npy", ".parquet"))
    setup, state = load_model(where, weights, checkpoint, data_dir=Path(data_dir), parts=parts, headless=True)
    function = features_of(setup, stage, pool)
    one = jax.ShapeDtypeStruct((1, *setup.dataset.image_shape), np.uint8)
    shape = jax.eval_shape(function, state, one).shape[1:]
    header = {"what": "features", "stage": stage, "pool": pool} | _described(where, setup, state, images, split)
    items = _items(setup, images, split, data_dir)
    return _write(setup, function, state, items, out, header, lambda answer: _row(answer, {}), shape, batch_size)


def _columns(topk: int) -> list[str]:
    return [f"{name}_{place}" for place in range(1, topk + 1) for name in ("class", "probability")]


def _row(answer: Answer, cells: Row) -> Row:
    return {"image": answer.item.name, "label": answer.item.label, **cells, "error": answer.error or None}


def _described(where: Path | str, setup: TrainSetup, state: TrainState, images: object, split: str) -> Row:
    """Return what else decides the rows: another of these, and they are other rows."""
    words = [str(image) for image in images] if isinstance(images, (list, tuple)) else "an iterable"
    known = preprocessing_of(setup.recipe.data).known()
    return {
        "weights": str(where),
        "sha256": weights_digest(state),
        "images": words,
        "split": split,
        "preprocessing": known,
    }


def _items(setup: TrainSetup, images: Iterable[object], split: str, data_dir: Path | str) -> Iterator[Item]:
    if isinstance(images, (list, tuple)) and all(isinstance(image, (str, Path)) for image in images):
        size = preprocessing_of(setup.recipe.data)
        return iterate_images(list(map(str, images)), split=split, data_dir=Path(data_dir), size=size)
    return as_items(images)


def _write(
    setup: TrainSetup,
    function: Function,
    state: TrainState,
    items: Iterator[Item],
    out: Path,
    header: Row,
    row: Callable[[Answer], Row],
    shape: tuple[int, ...],
    batch_size: int,
) -> Written:
    """Write a row for each image behind those that are there, and the file when all are."""
    with open_rows(out, header, shape) as rows:
        last = rows.last["image"] if rows.last else None
        answers = map_images(setup, function, state, skip_known(items, rows.known, last, out), batch_size)
        if rows.known:
            log_to_stderr(f"{out}: resumed at image {rows.known:,}")
        new, unreadable, rate = _append_all(rows, answers, row)
        if not rows.known + new:
            raise InputError(f"{out}: no images given")
        finish_rows(rows)
    return Written(out, rows.known + new, rows.known, unreadable, rate)


def _append_all(rows: Rows, answers: Iterator[Answer], row: Callable[[Answer], Row]) -> tuple[int, int, float]:
    """Append a row for each answer; return how many there are, how many are of unreadable images, and images/s."""
    missing = np.full(rows.shape, np.nan, np.float32)
    new, unreadable = 0, 0
    said = start = time.perf_counter()
    while some := list(islice(answers, _WRITTEN)):
        values = [missing if answer.values is None else answer.values for answer in some]
        append_rows(rows, map(row, some), values if missing.size else ())
        new, unreadable = new + len(some), unreadable + sum(answer.values is None for answer in some)
        if time.perf_counter() - said > _SECONDS:
            said = time.perf_counter()
            log_to_stderr(f"{rows.out}: {rows.known + new:,} images, {new / (said - start):,.0f} images/s")
    return new, unreadable, new / max(time.perf_counter() - start, 1e-9)
