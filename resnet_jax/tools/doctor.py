"""Checks before training: devices, data, augmented samples, pretrained weights, free disk space."""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from resnet_jax.data.draw import draw_boxes
from resnet_jax.data.duplicates import duplicates_note
from resnet_jax.data.labels import count_targets
from resnet_jax.data.masks import IGNORE, overlay, palette
from resnet_jax.data.objects import present
from resnet_jax.data.source import Source, default_threads, is_mask, probe_indices, require_readable
from resnet_jax.errors import InputError
from resnet_jax.input_pipeline.device_input import gather_batch
from resnet_jax.input_pipeline.host_input import reader, stream
from resnet_jax.input_pipeline.preprocess import make_preprocess, original_crop
from resnet_jax.input_pipeline.sampler import Batch, batch_indices
from resnet_jax.models.detection.objects import Objects
from resnet_jax.models.summary import summarize
from resnet_jax.recipe import Recipe, check
from resnet_jax.report.sheet import can_show, draw_sheet
from resnet_jax.run_dir.environment import environment
from resnet_jax.runtime.compiler_options import compiler_options
from resnet_jax.tools.known_step import EXPECTED, compute_known_step
from resnet_jax.training.init import random_keys
from resnet_jax.training.make_step import train_size_at
from resnet_jax.training.pretrained import load_pretrained
from resnet_jax.training.setup import TrainSetup, make_setup
from resnet_jax.training.sources import Sources, eval_split, open_sources
from resnet_jax.training.teacher import with_teacher

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


def arithmetic() -> Finding:
    """Return whether a device computes a step with the expected values, in brackets, and the same when repeated."""
    device = jax.local_devices()[0]
    step = compute_known_step(device)
    expected = f"loss {step.loss:.4f} ({EXPECTED[0]:.4f}), gradient norm {step.gradient_norm:.4f} ({EXPECTED[1]:.4f})"
    if not step.is_expected():
        return Finding("known step", f"{expected}: {device.device_kind} computes wrong results, do not train", False)
    again = "the same when repeated" if step.is_same_twice else "not the same when repeated: train with --deterministic"
    return Finding("known step", f"{expected}; {again}", step.is_same_twice)


def directory(out: Path) -> list[Finding]:
    """Return whether a run can be written in a directory, and the free disk space."""
    home = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.exists())
    writable = home.is_dir() and os.access(home, os.W_OK | os.X_OK)
    free = shutil.disk_usage(home).free / 2**30
    return [
        Finding("run directory", f"{out}{'' if writable else ': not writable, choose another --out'}", writable),
        Finding("free disk space", f"{free:.1f} GiB{'' if free > 1 else ': little for checkpoints'}", free > 1),
    ]


def data(sources: Sources, split: str) -> list[Finding]:
    """Return findings on images and classes of the splits, and whether some classes are rare."""
    findings = []
    for name, source in (("train", sources.train), (split, sources.evaluation)):
        target = source.read(0).target
        has_objects = isinstance(target, Objects)
        if is_mask(target):
            findings.append(_pixels(name, source))
            continue
        if not has_objects and np.ndim(target):
            findings.append(Finding(f"{name} images", f"{source.size:,} with {len(source.classes):,} outputs each"))
            continue
        counts, classes = count_targets(source), source.classes
        objects = f" with {counts.sum():,} objects" if has_objects else ""
        least, most = int(np.argmin(counts)), int(np.argmax(counts))
        rare = counts[least] == 0 or counts[most] > 20 * counts[least]
        findings.append(
            Finding(
                f"{name} images",
                f"{source.size:,}{objects} in {len(classes):,} classes, {counts[least]:,} ({classes[least]})"
                f" to {counts[most]:,} ({classes[most]}) per class{': very imbalanced' if rare else ''}",
                not rare,
            )
        )
    notes = [Finding("data", note) for note in sources.notes()]
    return [*findings, *notes, Finding("image size", " x ".join(map(str, sources.dataset.image_shape)))]


def _pixels(name: str, source: Source) -> Finding:
    """Return how often each class is in the masks of some images, and how many pixels have no label."""
    classes, counts = source.classes, np.zeros(256, np.int64)
    for index in probe_indices(source.size):
        with suppress(InputError):
            counts += np.bincount(source.read(int(index)).target.ravel(), minlength=256)
    fractions = counts / max(int(counts.sum()), 1)
    least, most = int(np.argmin(counts[: len(classes)])), int(np.argmax(counts[: len(classes)]))
    return Finding(
        f"{name} images",
        f"{source.size:,} with masks of {len(classes):,} classes, from {fractions[least]:.2%} ({classes[least]}) to"
        f" {fractions[most]:.2%} ({classes[most]}) of the pixels, {fractions[IGNORE]:.2%} without label"
        f"{': one class is in none of the sampled masks' if not counts[least] else ''}",
        bool(counts[least]),
    )


def samples(setup: TrainSetup, sources: Sources, path: Path) -> None:
    """Write a picture of the first training images as the network will see them, with their classes."""
    recipe, (_, key) = setup.recipe, random_keys(setup.recipe)
    source, size, data = sources.train, train_size_at(recipe, setup.dataset.train_size, 0), recipe.data
    read = reader(source, original_crop(recipe, source))
    indices = batch_indices(recipe.seed, 0, recipe.batch_size, source.size, recipe.augment.aug_repeats, source.draws)
    # A whole batch of thousands would take minutes
    indices = indices[:_SHOWN]
    image, target = next(stream(read, lambda _: indices, range(1), threads=default_threads()))
    batch = gather_batch(Batch(image, target, None, indices))
    preprocess = make_preprocess(
        recipe,
        setup.dataset.train_size,
        len(setup.dataset.classes),
        setup.task.targets.to_soft,
        image_size=size,
        fill=setup.task.targets.fill,
    )
    seen, moved = jax.jit(lambda *args: preprocess(*args)[:2], compiler_options=compiler_options())(key, 0, batch)
    pixels = np.asarray(seen) * np.array(data.std, np.float32) + np.array(data.mean, np.float32)
    images = np.clip(pixels * 255, 0, 255).round().astype(np.uint8)
    if not can_show(images[0]):
        return
    classes = sources.dataset.classes
    targets = [jax.tree.map(lambda leaf, row=row: np.asarray(leaf[row]), moved) for row in range(len(images))]
    drawn = [_drawn(*pair, classes) for pair in zip(images, targets, strict=True)]
    shown = targets if isinstance(target, Objects) else target
    try:
        draw_sheet(drawn, [_caption(one, classes) for one in shown]).save(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be written ({error}); name another picture with --samples") from error


def _drawn(image: np.ndarray, target: Any, classes: tuple[str, ...]) -> np.ndarray:
    """Return an image with its target over it, if that lies in places."""
    if isinstance(target, Objects):
        found = present(target)
        names = [classes[label] for label in found.labels]
        return draw_boxes(image, found.boxes, found.labels, names, len(classes))
    is_classes = is_mask(target) and target.dtype == np.uint8
    return overlay(image, target, palette(len(classes))) if is_classes else image


def _caption(target: Any, classes: tuple[str, ...]) -> str:
    if isinstance(target, Objects):
        counts = np.bincount(present(target).labels, minlength=len(classes))
        return ", ".join(f"{count} {name}" for count, name in zip(counts, classes, strict=True) if count) or "no object"
    if np.ndim(target) >= 2:
        labels = target[target != IGNORE]
        return "largest: " + classes[int(np.bincount(labels).argmax())] if labels.size else "no label"
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
    about_data = [*data(sources, split), *unreadable(sources.evaluation, split), *in_both(sources, split)]
    return [*machine(), arithmetic(), *directory(out), *about_data, network(setup), *weights(setup), *teacher(setup)]


def unreadable(source: Source, split: str) -> list[Finding]:
    """Return a finding on the images of the evaluation split that cannot be read, which would end a run."""
    try:
        require_readable(source)
    except InputError as error:
        return [Finding(f"{split} images", str(error), False)]
    return []


def in_both(sources: Sources, split: str) -> list[Finding]:
    """Return a finding on the images that are in both splits, if there are any."""
    note = duplicates_note(sources.train, sources.evaluation, split)
    return [Finding(f"{split} images", note, False)] if note else []


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


def teacher(setup: TrainSetup) -> list[Finding]:
    """Return whether the teacher that the recipe names, if any, can be loaded and fits."""
    try:
        found = with_teacher(setup).teacher
    except InputError as error:
        return [Finding("learns from", str(error), False)]
    return [Finding("learns from", "; ".join((str(setup.recipe.distill.teacher), *found.notes)))] if found else []
