"""Predict the classes of image files, of their pixels, or of boxes in them; and of sound files, videos and text."""

import inspect
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from resnet_jax.data.audio import decode_audio
from resnet_jax.data.augment import normalize
from resnet_jax.data.draw import draw_boxes
from resnet_jax.data.image import decode, preprocessing_of
from resnet_jax.data.masks import encode_mask
from resnet_jax.data.resize import resize_crop_as
from resnet_jax.data.text import encode_text
from resnet_jax.data.video import decode_clips, uniform_starts
from resnet_jax.errors import InputError
from resnet_jax.inference.boxes import Detect, coco_results, predict_boxes
from resnet_jax.inference.dense import DensePredict, mask_files, predict_mask, write_mask
from resnet_jax.inference.load_model import load_model
from resnet_jax.inference.output_files import output_files, write_files
from resnet_jax.inference.source import CheckpointChoice, WeightsInfo
from resnet_jax.models.backbone import takes_text
from resnet_jax.models.detection.nms import Detections
from resnet_jax.runtime.compiler_options import compiler_options
from resnet_jax.training.executables import keep
from resnet_jax.training.setup import Parts, TrainSetup, network_name, program_identity
from resnet_jax.training.state import TrainState

# Images per call of the network
_BATCH = 64


class Prediction(NamedTuple):
    """Prediction for one image: the likeliest classes, the outputs in order, or the class of each box; best first."""

    image: Path | str
    """Its file; or a text."""
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    """Probabilities of the classes, or outputs of a regression."""
    measure: str = "probability"
    """Or "output", "fraction" of the pixels, or "score": what the numbers are."""
    mask: np.ndarray | None = None
    """Class of each pixel, uint8 (h, w), if the network predicts one."""
    boxes: np.ndarray | None = None
    """Box of each class, float32 (n, 4): x1, y1, x2, y2 in pixels, if the network predicts boxes."""
    files: tuple[Path, ...] = ()
    """Files that were written: the mask, and the image with its colours; or the image with its boxes."""

    def format(self, number: float) -> str:
        """Return one of the numbers as people read it."""
        return f"{number:.4g}" if self.measure == "output" else f"{number:.2%}"


def predict(
    where: Path | str,
    images: Sequence[Path | str],
    topk: int = 5,
    *,
    weights: WeightsInfo = WeightsInfo(),
    checkpoint: CheckpointChoice = CheckpointChoice(),
    parts: Parts = Parts(),
    out: Path | str | None = None,
    overlap: float = 0.25,
    score: float = 0.5,
    class_agnostic: bool = False,
    coco: Path | str | None = None,
    text: Sequence[str] = (),
    clips: int = 1,
) -> list[Prediction]:
    """Return the `topk` classes of each image, sound, video or text, by a run or published weights.

    An image is resized to cover the size of the training images, and centre-cropped. If the network
    predicts a class for each pixel, the whole image is predicted, by windows if it is larger than the training images,
    and the classes are those of most pixels. If it predicts boxes, the whole image is fitted into a canvas of that
    size, and the classes are those of all boxes.

    Args:
        where: a run directory, a weights file, "hf:OWNER/NAME" or a published name.
        images: image, sound or video files.
        topk: number of classes per image.
        weights: model name and preprocessing of a bare weights file.
        checkpoint: which weights of a run to use.
        parts: parts that were passed to the run as values.
        out: folder in which masks are written, as PNG with a palette, and over their images, or images with their
            boxes; None writes none.
        overlap: fraction of overlap of neighbouring windows, 0 to less than 1.
        score: minimum score of a box.
        class_agnostic: suppress overlapping boxes even if their classes differ.
        coco: file in which boxes are written as COCO's result JSON.
        text: texts instead of files.
        clips: number of clips of each video to average over, spread evenly; 1 is the middle one.

    Raises:
        InputError: Run, weights or an image cannot be read; nothing was computed.

    Example:
        >>> predict("runs/digits", ["seven.png"], topk=1)[0].classes  # doctest: +SKIP
        ('7',)
    """
    paths = [Path(image) for image in images]
    check_files(paths, topk, text)
    if not 0 <= overlap < 1:
        raise InputError(f"--overlap is {overlap:g}; it must be at least 0 and less than 1")
    if not 0 <= score <= 1:
        raise InputError(f"--score is {score:g}; it must be at least 0 and at most 1")
    setup, state = load_model(where, weights, checkpoint, devices=1, parts=parts)
    if clips < 1 or (clips > 1 and not setup.recipe.data.frames):
        raise InputError(f"--clips is {clips}; {'it must be positive' if clips < 1 else 'the network takes no video'}")
    if setup.task.answers == "boxes":
        detect = jax.jit(partial(detect_boxes, setup, class_agnostic), compiler_options=compiler_options())
        kept = keep(detect, setup.mesh, program_identity(setup, "boxes", class_agnostic))
        return _predict_boxes(setup, partial(kept, state), paths, score, out, coco)
    function = jax.jit(partial(predict_probs, setup), compiler_options=compiler_options())
    probs = partial(keep(function, setup.mesh, program_identity(setup, "predict")), state)
    if setup.task.answers == "dense":
        return _predict_masks(setup, lambda windows: np.asarray(probs(windows)), paths, topk, out, overlap)
    pixels = _read_inputs(setup, paths, text, clips)
    chunks = [pixels[start : start + _BATCH] for start in range(0, len(pixels), _BATCH)]
    rows = np.concatenate([np.asarray(probs(chunk)) for chunk in chunks])
    rows = rows.reshape(-1, clips, *rows.shape[1:]).mean(1)
    names: list[Path | str] = [*text] or [*paths]
    return [top_predictions(setup, name, row, topk) for name, row in zip(names, rows, strict=True)]


def _predict_boxes(
    setup: TrainSetup,
    detect: Detect,
    images: Sequence[Path],
    score: float,
    out: Path | str | None,
    coco: Path | str | None,
) -> list[Prediction]:
    (*canvas, channels), classes = require_images(setup), setup.dataset.classes
    files = [()] * len(images) if out is None else output_files(images, Path(out), ("_boxes.png",))
    decoded = [decode(path, channels) for path in images]
    size, preprocessing = (canvas[0], canvas[1]), preprocessing_of(setup.recipe.data)
    found = [predict_boxes(detect, image, size, preprocessing, score) for image in decoded]
    predictions = []
    for path, image, (boxes, scores, labels), names in zip(images, decoded, found, files, strict=True):
        named = tuple(classes[label] for label in labels)
        captions = [f"{name} {number:.2f}" for name, number in zip(named, scores, strict=True)]
        drawn = draw_boxes(image, boxes, labels, captions, len(classes)) if names else image
        write_files({name: encode_mask(drawn) for name in names})
        predictions.append(Prediction(path, named, tuple(map(float, scores)), "score", boxes=boxes, files=names))
    if coco is not None:
        rows = coco_results([path.stem for path in images], found, classes)
        write_files({Path(coco): json.dumps(rows).encode()})
    return predictions


def _predict_masks(
    setup: TrainSetup, probs: DensePredict, images: Sequence[Path], topk: int, out: Path | str | None, overlap: float
) -> list[Prediction]:
    (*window, channels), classes = require_images(setup), setup.dataset.classes
    files = [()] * len(images) if out is None else mask_files(images, Path(out))
    decoded = [decode(path, channels) for path in images]
    predictions = []
    for path, image, names in zip(images, decoded, files, strict=True):
        mask = predict_mask(probs, image, (window[0], window[1]), setup.recipe.data, overlap)
        if names:
            write_mask(names, image, mask, len(classes))
        counts = np.bincount(mask.ravel(), minlength=len(classes))
        order = [place for place in np.argsort(-counts, kind="stable")[:topk] if counts[place]]
        found, fractions = tuple(classes[place] for place in order), tuple(float(counts[p] / mask.size) for p in order)
        predictions.append(Prediction(path, found, fractions, "fraction", mask, files=names))
    return predictions


def check_files(images: Sequence[Path], topk: int, text: Sequence[str] = ()) -> None:
    """Raise InputError for what is wrong before any weights are fetched."""
    if topk < 1:
        raise InputError(f"--topk is {topk}; it must be positive")
    if text and (images or not all(text)):
        raise InputError("--text needs one or more texts, and no files")
    if not images and not text:
        raise InputError("no images given; name at least one file")
    for path in images:
        if path.is_dir():
            raise InputError(f"{path}: is a folder; name the images in it, such as {path}/*.jpg, or --out FILE.csv")
        if not path.is_file():
            raise InputError(f"{path}: no such image file")


def require_images(setup: TrainSetup) -> tuple[int, int, int]:
    """Return the shape (h, w, c) of the images that a network takes; raise InputError if it takes none."""
    shape = setup.dataset.image_shape
    if len(shape) != 3:
        taken = " x ".join(map(str, shape))
        raise InputError(f"{network_name(setup)} takes {taken} and no image files; use load_run and model.apply")
    return shape


def _read_inputs(setup: TrainSetup, paths: Sequence[Path], text: Sequence[str], clips: int) -> np.ndarray:
    """Return images, sounds, clips or texts as a network takes them; raise InputError if it takes others."""
    shape, rate = setup.dataset.image_shape, setup.recipe.data.sample_rate
    if bool(text) != takes_text(setup.model):
        raise InputError(f"{network_name(setup)} takes {'files, no' if text else 'text:'} --text")
    if text:
        return np.stack([encode_text(one, shape[0]) for one in text])
    if len(shape) == 2 and rate:
        return np.stack([decode_audio(path, rate, shape[0]) for path in paths])
    if setup.recipe.data.frames:
        preprocessing = preprocessing_of(setup.recipe.data)
        return np.concatenate([decode_clips(path, preprocessing, uniform_starts(clips)) for path in paths])
    return read_images(setup, paths)


def read_images(setup: TrainSetup, images: Sequence[Path]) -> np.ndarray:
    """Return image files as a network takes them, uint8 (n, h, w, c); raise InputError if it takes no images."""
    (height, width, channels), preprocessing = require_images(setup), preprocessing_of(setup.recipe.data)
    return np.stack(
        [resize_crop_as(decode(path, channels), height, width, preprocessing, str(path)) for path in images]
    )


def predict_probs(setup: TrainSetup, state: TrainState, images: Array) -> Array:
    """Return what a network says of uint8 (b, h, w, c): probabilities or outputs, float32 (b, k) or (b, h, w, k)."""
    data, variables = setup.recipe.data, {"params": state.params, "batch_stats": state.batch_stats}
    outputs = setup.model.apply(variables, normalize(jnp.asarray(images), data.mean, data.std), train=False)
    return setup.task.predict(outputs)


def detect_boxes(
    setup: TrainSetup, class_agnostic: bool, state: TrainState, images: Array, image_sizes: Array
) -> Detections:
    """Return the detections of a network in uint8 images (b, h, w, c), that fill `image_sizes` (b, 2) of them."""
    data, variables = setup.recipe.data, {"params": state.params, "batch_stats": state.batch_stats}
    takes = "image_sizes" in inspect.signature(type(setup.model).__call__).parameters
    sizes: dict[str, Any] = {"image_sizes": image_sizes} if takes else {}
    x = normalize(jnp.asarray(images), data.mean, data.std)
    outputs: Any = setup.model.apply(variables, x, train=False, **sizes)
    found: Detections = outputs.detect(class_agnostic=True) if class_agnostic else setup.task.predict(outputs)
    return found


def top_predictions(setup: TrainSetup, image: Path | str, probs: np.ndarray, topk: int) -> Prediction:
    """Return the `topk` of the probabilities (k,) of an image with their names; numbers stay in order."""
    if probs.ndim != 1:
        shape = " x ".join(map(str, probs.shape))
        raise InputError(
            f"{image}: the network predicts {shape} values, not one per class; use load_run and model.apply"
        )
    numbers = setup.task.answers == "numbers"
    order = (np.arange(len(probs)) if numbers else np.argsort(-probs, kind="stable"))[:topk]
    names, values = tuple(setup.dataset.classes[i] for i in order), tuple(float(probs[i]) for i in order)
    return Prediction(image, names, values, "output" if numbers else "probability")
