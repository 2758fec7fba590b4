"""What to look at before a training: devices, data, samples as the network will see them, weights, room on the disk."""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from resnet_jax.backend import compiler_options
from resnet_jax.data.batches import Batch, batch_indices
from resnet_jax.data.source import Source
from resnet_jax.data.stream import default_threads, reading, stream
from resnet_jax.errors import InputError
from resnet_jax.recipe import Recipe, check
from resnet_jax.sheet import draw_sheet
from resnet_jax.summary import summarize
from resnet_jax.train.directory import environment
from resnet_jax.train.job import (
    Job,
    Sources,
    held_split,
    load_pretrained,
    open_sources,
    prepare,
    random_keys,
    train_size_at,
)
from resnet_jax.train.preprocess import make_preprocess, original_crop

_SHOWN = 32  # samples on the sheet


class Finding(NamedTuple):
    """One line of the report."""

    what: str
    value: str
    good: bool = True


def machine() -> list[Finding]:
    """Versions, devices and their memory."""
    known = environment()
    versions = ", ".join(f"{name} {version}" for name, version in known["packages"].items())
    findings = [Finding("python", f"{known['python']} on {known['system']}"), Finding("packages", versions)]
    for device in jax.local_devices():
        stats = device.memory_stats() or {}
        memory = f", {stats['bytes_limit'] / 2**30:.1f} GiB" if "bytes_limit" in stats else ""
        findings.append(Finding(f"device {device.id}", f"{device.platform}, {device.device_kind}{memory}"))
    return findings


def directory(out: Path) -> list[Finding]:
    """Whether a run can be written in a directory, and how much room there is."""
    home = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.exists())
    writable = home.is_dir() and os.access(home, os.W_OK | os.X_OK)
    free = shutil.disk_usage(home).free / 2**30
    return [
        Finding("runs are written in", f"{out}{'' if writable else ': not writable, choose another --out'}", writable),
        Finding("room there", f"{free:.1f} GiB{'' if free > 1 else ': little for checkpoints'}", free > 1),
    ]


def data(sources: Sources, split: str) -> list[Finding]:
    """Images and classes of the splits, and whether some classes are rare."""
    findings = []
    for name, source in (("train", sources.train), (split, sources.held)):
        counts = class_counts(source)
        least, most = int(np.argmin(counts)), int(np.argmax(counts))
        rare = counts[least] == 0 or counts[most] > 20 * counts[least]
        classes = source.classes
        findings.append(
            Finding(
                f"{name} images",
                f"{source.size:,} of {len(classes):,} classes, from {counts[least]:,} ({classes[least]})"
                f" to {counts[most]:,} ({classes[most]}){': very uneven' if rare else ''}",
                not rare,
            )
        )
    return [*findings, Finding("image size", " x ".join(map(str, sources.dataset.image_shape)))]


def class_counts(source: Source) -> np.ndarray:
    """Examples of each class (k,); raises InputError for a label that is out of range."""
    labels = source.labels
    if labels is None:
        labels = np.array([source.read(index).label for index in range(source.size)])
    if labels.min() < 0 or labels.max() >= len(source.classes):
        raise InputError(f"label {labels.max()} is out of range; there are {len(source.classes)} classes")
    return np.bincount(labels, minlength=len(source.classes))


def samples(job: Job, sources: Sources, path: Path) -> None:
    """Writes a picture of the first training images as the network will see them, with their classes."""
    recipe, (_, key) = job.recipe, random_keys(job.recipe)
    source, size = sources.train, train_size_at(recipe, job.dataset.train_size, 0)
    read = reading(source, original_crop(recipe, source))
    rows = batch_indices(recipe.seed, 0, recipe.batch_size, source.size, recipe.augment.repeats)
    rows = rows[:_SHOWN]  # the others of a batch of thousands would take minutes
    image, label = next(stream(read, lambda _: rows, range(1), threads=default_threads()))
    batch = Batch(image, label, np.ones(len(rows), bool), rows)
    preprocess = make_preprocess(recipe, job.dataset.train_size, len(job.dataset.classes), size)
    data = job.recipe.data
    seen = jax.jit(preprocess, compiler_options=compiler_options())(key, 0, batch)[0]
    pixels = np.asarray(seen) * np.array(data.std, np.float32) + np.array(data.mean, np.float32)
    images = np.clip(pixels * 255, 0, 255).round().astype(np.uint8)
    names = [sources.dataset.classes[label] for label in np.asarray(batch.label)]
    try:
        draw_sheet(images, names).save(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be written ({error}); name another picture with --samples") from error


def examine(
    recipe: Recipe, out: Path, *, data_dir: Path, devices: int | None = None, samples_at: Path = Path("samples.png")
) -> list[Finding]:
    """Looks at everything, and writes a picture of augmented training images.

    Raises InputError where recipe, data and devices do not fit each other.
    """
    recipe = check(recipe)
    sources = open_sources(recipe, data_dir)
    job = prepare(recipe, sources.dataset, devices)
    samples(job, sources, samples_at)
    return [*machine(), *directory(out), *data(sources, held_split(recipe)), network(job), *weights(job)]


def network(job: Job) -> Finding:
    """What would be trained, and for how long."""
    cost = summarize(job.model, job.dataset.image_shape)
    parameters, multiply_adds = sum(row.parameters for row in cost), sum(row.multiply_adds for row in cost)
    return Finding(
        "network",
        f"{job.recipe.model.name}, {parameters:,} parameters, {multiply_adds / 1e9:.3f} G multiply-adds an image;"
        f" {job.steps:,} steps of {job.recipe.batch_size}",
    )


def weights(job: Job) -> list[Finding]:
    """Whether the weights that a training would start from, if the recipe names some, are to be had and fit."""
    try:
        loaded = load_pretrained(job)
    except InputError as error:
        return [Finding("starts from", str(error), False)]
    return [Finding("starts from", "; ".join((str(loaded.file), *loaded.notes)))] if loaded else []
