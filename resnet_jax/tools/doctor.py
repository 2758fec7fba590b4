"""Checks before training: devices, data, augmented samples, pretrained weights, free disk space."""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from resnet_jax.data.source import Source, default_threads, require_readable
from resnet_jax.errors import InputError
from resnet_jax.input_pipeline.device_input import gather_batch
from resnet_jax.input_pipeline.host_input import reader, stream
from resnet_jax.input_pipeline.preprocess import make_preprocess, original_crop
from resnet_jax.input_pipeline.sampler import Batch, batch_indices
from resnet_jax.models.summary import summarize
from resnet_jax.recipe import Recipe, check
from resnet_jax.report.sheet import can_show, draw_sheet
from resnet_jax.run_dir.environment import environment
from resnet_jax.runtime.compiler_options import compiler_options
from resnet_jax.training.pretrained import load_pretrained
from resnet_jax.training.setup import TrainSetup, make_setup, random_keys, train_size_at
from resnet_jax.training.sources import Sources, eval_split, open_sources

# Samples on the sheet
_SHOWN = 32


class Finding(NamedTuple):
    """One line of the report."""

    what: str
    value: str
    good: bool = True


def machine() -> list[Finding]:
    """Return findings on versions, devices and their memory."""
    known = environment()
    versions = ", ".join(f"{name} {version}" for name, version in known["packages"].items())
    findings = [Finding("python", f"{known['python']} on {known['system']}"), Finding("packages", versions)]
    for device in jax.local_devices():
        stats = device.memory_stats() or {}
        memory = f", {stats['bytes_limit'] / 2**30:.1f} GiB" if "bytes_limit" in stats else ""
        findings.append(Finding(f"device {device.id}", f"{device.platform}, {device.device_kind}{memory}"))
    return findings


def directory(out: Path) -> list[Finding]:
    """Return whether a run can be written in a directory, and the free disk space."""
    home = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.exists())
    writable = home.is_dir() and os.access(home, os.W_OK | os.X_OK)
    free = shutil.disk_usage(home).free / 2**30
    return [
        Finding("runs are written in", f"{out}{'' if writable else ': not writable, choose another --out'}", writable),
        Finding("free disk space", f"{free:.1f} GiB{'' if free > 1 else ': little for checkpoints'}", free > 1),
    ]


def data(sources: Sources, split: str) -> list[Finding]:
    """Return findings on images and classes of the splits, and whether some classes are rare."""
    findings = []
    for name, source in (("train", sources.train), (split, sources.evaluation)):
        if np.ndim(source.read(0).target):
            findings.append(Finding(f"{name} images", f"{source.size:,} with {len(source.classes):,} outputs each"))
            continue
        counts, classes = class_counts(source), source.classes
        least, most = int(np.argmin(counts)), int(np.argmax(counts))
        rare = counts[least] == 0 or counts[most] > 20 * counts[least]
        findings.append(
            Finding(
                f"{name} images",
                f"{source.size:,} of {len(classes):,} classes, from {counts[least]:,} ({classes[least]})"
                f" to {counts[most]:,} ({classes[most]}){': very imbalanced' if rare else ''}",
                not rare,
            )
        )
    notes = [Finding("data", note) for note in sources.notes()]
    return [*findings, *notes, Finding("image size", " x ".join(map(str, sources.dataset.image_shape)))]


def class_counts(source: Source) -> np.ndarray:
    """Return the number of examples of each class (k,); raise InputError if a label is out of range."""
    labels = source.labels
    if labels is None:
        labels = np.array([source.read(index).target for index in range(source.size)])
    if labels.min() < 0 or labels.max() >= len(source.classes):
        raise InputError(f"label {labels.max()} is out of range; there are {len(source.classes)} classes")
    return np.bincount(labels, minlength=len(source.classes))


def samples(setup: TrainSetup, sources: Sources, path: Path) -> None:
    """Write a picture of the first training images as the network will see them, with their classes."""
    recipe, (_, key) = setup.recipe, random_keys(setup.recipe)
    source, size, data = sources.train, train_size_at(recipe, setup.dataset.train_size, 0), recipe.data
    read = reader(source, original_crop(recipe, source))
    indices = batch_indices(recipe.seed, 0, recipe.batch_size, source.size, recipe.augment.aug_repeats)
    # A whole batch of thousands would take minutes
    indices = indices[:_SHOWN]
    image, target = next(stream(read, lambda _: indices, range(1), threads=default_threads()))
    batch = gather_batch(Batch(image, target, None, indices))
    preprocess = make_preprocess(
        recipe, setup.dataset.train_size, len(setup.dataset.classes), setup.task.targets.to_soft, image_size=size
    )
    seen = jax.jit(preprocess, compiler_options=compiler_options())(key, 0, batch).image
    pixels = np.asarray(seen) * np.array(data.std, np.float32) + np.array(data.mean, np.float32)
    images = np.clip(pixels * 255, 0, 255).round().astype(np.uint8)
    if not can_show(images[0]):
        return
    try:
        draw_sheet(images, [_caption(one, sources.dataset.classes) for one in target]).save(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be written ({error}); name another picture with --samples") from error


def _caption(target: np.ndarray, classes: tuple[str, ...]) -> str:
    return " ".join(f"{number:.3g}" for number in target[:3]) if np.ndim(target) else classes[int(target)]


def examine(
    recipe: Recipe, out: Path, *, data_dir: Path, devices: int | None = None, samples_at: Path = Path("samples.png")
) -> list[Finding]:
    """Return all findings, and write a picture of augmented training images.

    Args:
        recipe: to be trained.
        out: directory for the run.
        data_dir: folder of the data sets.
        devices: number of devices; None is all.
        samples_at: file of the picture.

    Raises:
        InputError: Recipe, data and devices do not fit each other.
    """
    recipe = check(recipe)
    sources = open_sources(recipe, data_dir)
    setup = make_setup(recipe, sources.dataset, devices)
    samples(setup, sources, samples_at)
    split = eval_split(recipe)
    about_data = [*data(sources, split), *unreadable(sources.evaluation, split)]
    return [*machine(), *directory(out), *about_data, network(setup), *weights(setup)]


def unreadable(source: Source, split: str) -> list[Finding]:
    """Return a finding on the images of the evaluation split that cannot be read, which would end a run."""
    try:
        require_readable(source)
    except InputError as error:
        return [Finding(f"{split} images", str(error), False)]
    return []


def network(setup: TrainSetup) -> Finding:
    """Return the network's size and the number of steps."""
    cost = summarize(setup.model, setup.dataset.image_shape)
    parameters, multiply_adds = sum(row.parameters for row in cost), sum(row.multiply_adds for row in cost)
    return Finding(
        "network",
        f"{setup.recipe.model.name}, {parameters:,} parameters, {multiply_adds / 1e9:.3f} G multiply-adds per image;"
        f" {setup.steps:,} steps of {setup.recipe.batch_size}",
    )


def weights(setup: TrainSetup) -> list[Finding]:
    """Return whether the pretrained weights that the recipe names, if any, can be loaded and fit."""
    try:
        loaded = load_pretrained(setup)
    except InputError as error:
        return [Finding("starts from", str(error), False)]
    return [Finding("starts from", "; ".join((str(loaded.file), *loaded.notes)))] if loaded else []
