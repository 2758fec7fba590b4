"""Pack any data set into shards, which a run reads several times faster than single files.

The images and the settings alone decide the bytes of the shards; threads and interruptions do not. A shard is written
under another name, read back and decoded, and only then renamed and recorded: a shard with its final name is complete.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from resnet_jax.data.datasets import open_split, takes_preprocessing
from resnet_jax.data.formats.packing import LONGEST, packed
from resnet_jax.data.formats.shards import (
    MANIFEST,
    MAX_SHARDS,
    UNFINISHED,
    Shard,
    ShardIndex,
    close_readers,
    pack,
    read_index,
    read_record,
    write_index,
    write_records,
    written_to,
)
from resnet_jax.data.image import Preprocessing
from resnet_jax.data.masks import IGNORE
from resnet_jax.data.selection import Selection
from resnet_jax.data.source import MissingSplitError, RawExample, Source, decode_example, default_threads, source_digest
from resnet_jax.errors import InputError
from resnet_jax.models.detection.objects import Objects
from resnet_jax.runtime.checksum import file_sha256, sha256_of
from resnet_jax.runtime.directory_lock import directory_lock
from resnet_jax.runtime.terminal import Terminal

# Examples per shard, if the number of shards is not given
_EXAMPLES = 8192

# Takes the number of images that are done
Bump = Callable[[int], None]


class Packing(NamedTuple):
    """Settings of packing."""

    size: int = 256
    """Largest number of pixels of the shorter side."""
    quality: int = 92
    """JPEG quality."""
    shards: int | None = None
    """Number of shards of a split; None is one for every 8,192 images."""
    skip_corrupt: bool = False
    """Leave out images that cannot be read, and list them in dataset.json."""
    test_split: str | None = None
    """Folder or TFDS split that becomes the test split, as in `open_split`."""


class _Plan(NamedTuple):
    """A shard to write, with these examples of a split."""

    split: str
    file: str
    examples: range


def prepare_data(
    name: str,
    out: Path,
    packing: Packing = Packing(),
    *,
    data_dir: Path = Path("data"),
    num_threads: int | None = None,
    console: Console | None = None,
) -> ShardIndex:
    """Pack the splits of a data set into a folder for `array_record:OUT`; resume an interrupted call.

    Args:
        name: the data set, as in `open_split`.
        out: the folder to write.
        packing: settings that decide the bytes.
        data_dir: folder of the data sets.
        num_threads: number of threads; None is one per core.
        console: where progress is shown; None is standard output.

    Raises:
        InputError: An image is damaged, or `out` holds other files or is being written.
        MachineError: The disk is full.
    """
    _check(packing, num_threads)
    sources = _open(name, data_dir, packing)
    with directory_lock(out, "is packing there"):
        return _pack_into(out, name, packing, sources, num_threads or default_threads(), console or Terminal())


def _pack_into(
    out: Path, name: str, packing: Packing, sources: dict[str, Source], threads: int, console: Console
) -> ShardIndex:
    plans = [plan for split, source in sources.items() for plan in _plans(split, source.size, packing.shards)]
    manifest = _start(out, _settings(name, packing, sources), sources["train"].classes, list(sources))
    shards = {shard.file: shard for of_split in manifest.splits.values() for shard in of_split}
    for note in dict.fromkeys(note for source in sources.values() for note in source.notes):
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    bar = _progress(console, sum(source.size for source in sources.values()))
    with bar as bump, _threads(threads) as pool:
        for plan in plans:
            if plan.file in shards and _is_whole(out, shards[plan.file]):
                bump(len(plan.examples))
                continue
            # dataset.json would claim that the folder is complete
            if (out / MANIFEST).is_file():
                os.replace(out / MANIFEST, out / UNFINISHED)
            shards[plan.file] = _write(out, plan, sources[plan.split], packing, pool, bump)
            manifest = _with(manifest, plans, shards)
            write_index(out / UNFINISHED, manifest)
    return _finish(name, out, manifest)


def _finish(name: str, out: Path, manifest: ShardIndex) -> ShardIndex:
    for split, shards in manifest.splits.items():
        if not sum(shard.examples for shard in shards):
            raise InputError(f"{name}: no image of the {split} split can be read; repair or remove them")
    write_index(out / MANIFEST, manifest)
    (out / UNFINISHED).unlink(missing_ok=True)
    return manifest


def _check(packing: Packing, num_threads: int | None) -> None:
    for flag, value, least, most in (
        ("size", packing.size, 1, LONGEST),
        ("quality", packing.quality, 1, 100),
        ("shards", 1 if packing.shards is None else packing.shards, 1, MAX_SHARDS),
        ("num-threads", 1 if num_threads is None else num_threads, 1, 1024),
    ):
        if not least <= value <= most:
            raise InputError(f"--{flag} is {value}; it must be {least} to {most:,}")


def _open(name: str, data_dir: Path, packing: Packing) -> dict[str, Source]:
    """Open the splits that exist; without a test split, test images can be held out later."""
    # The size only allows images of different sizes here
    size = packing.size if takes_preprocessing(name) else None
    preprocessing = Preprocessing(image_size=size)
    sources = {"train": open_split(name, "train", data_dir, preprocessing=preprocessing)}
    try:
        sources["test"] = open_split(name, "test", data_dir, Selection(), preprocessing, packing.test_split)
    except MissingSplitError:
        return sources
    if sources["test"].classes != sources["train"].classes:
        raise InputError(f"{name}: the splits have different classes; make them agree")
    return sources


def _plans(split: str, size: int, shards: int | None) -> list[_Plan]:
    count = min(shards or min(MAX_SHARDS, -(-size // _EXAMPLES)), size)
    bounds = [size * number // count for number in range(count + 1)]
    files = [f"{split}-{number:05}-of-{count:05}.array_record" for number in range(count)]
    return [_Plan(split, file, range(*bounds[number : number + 2])) for number, file in enumerate(files)]


def _settings(name: str, packing: Packing, sources: dict[str, Source]) -> dict[str, Any]:
    """Return all that decides the bytes of the shards."""
    digests = {split: sha256_of([source.classes, source_digest(source)]) for split, source in sources.items()}
    return {"source": name, **packing._asdict(), "digests": digests}


def _start(out: Path, settings: dict[str, Any], classes: tuple[str, ...], splits: list[str]) -> ShardIndex:
    """Return the index to resume with; raise InputError if the folder holds anything else."""
    for path in (out / MANIFEST, out / UNFINISHED):
        if path.is_file():
            manifest = read_index(path)
            was = manifest.settings
            changed = [f"{key} {was.get(key)} -> {value}" for key, value in settings.items() if was.get(key) != value]
            # Otherwise nothing was packed before another command was given
            if changed and any(manifest.splits.values()):
                what = "other images" if changed[0].startswith("digests") else changed[0]
                raise InputError(f"{out}: holds shards with other settings ({what}); remove it or choose another DEST")
            return ShardIndex(settings, classes, dict.fromkeys(splits, ())) if changed else manifest
    if out.exists() and (
        not out.is_dir() or any(path.name not in (f"{UNFINISHED}.tmp", "lock") for path in out.iterdir())
    ):
        raise InputError(f"{out}: exists and holds no shards; choose another DEST")
    manifest = ShardIndex(settings, classes, dict.fromkeys(splits, ()))
    with written_to(out):
        out.mkdir(parents=True, exist_ok=True)
    write_index(out / UNFINISHED, manifest)
    return manifest


def _with(manifest: ShardIndex, plans: list[_Plan], shards: dict[str, Shard]) -> ShardIndex:
    """Return the index with these shards, in the order of their examples."""
    done = {
        split: tuple(shards[plan.file] for plan in plans if plan.split == split and plan.file in shards)
        for split in manifest.splits
    }
    return manifest._replace(splits=done)


def _is_whole(out: Path, shard: Shard) -> bool:
    path = out / shard.file
    return path.is_file() and path.stat().st_size == shard.bytes and file_sha256(path) == shard.sha256


def _write(out: Path, plan: _Plan, source: Source, packing: Packing, pool: ThreadPoolExecutor, bump: Bump) -> Shard:
    """Write a shard, read it back and rename it."""
    skipped: list[tuple[str, str]] = []

    def records() -> Iterator[bytes]:
        for done in pool.map(partial(_record, source, packing), plan.examples):
            bump(1)
            if isinstance(done, bytes):
                yield done
            else:
                skipped.append(done)

    path = out / f"{plan.file}.tmp"
    write_records(path, records())
    count = len(plan.examples) - len(skipped)
    shard = Shard(path.name, count, path.stat().st_size, file_sha256(path), -1, tuple(skipped))
    labels = list(pool.map(partial(_verify, out, shard, len(source.classes)), range(count)))
    close_readers()
    with written_to(out / plan.file):
        os.replace(path, out / plan.file)
    return shard._replace(file=plan.file, last_label=max(labels, default=-1))


def _record(source: Source, packing: Packing, index: int) -> bytes | tuple[str, str]:
    """Return the record of an example, or name and fault of a skipped one."""
    name, where = "", f"example {index}"
    try:
        item = source.raw(index) if source.raw else RawExample(*source.read(index), name="", where=where)
        name, where = item.name or where, item.where
        return pack(packed(item, packing.size, packing.quality))
    except InputError as error:
        if packing.skip_corrupt:
            return name or where, str(error).removeprefix(f"{where}: ")
        raise InputError(
            f"{error}; repair or remove it, or leave such images out with --on-corrupt-image skip"
        ) from error


def _verify(out: Path, shard: Shard, classes: int, position: int) -> int:
    """Read a record as a run will, and return its label, or the largest in its target; -1 if it has none."""
    item = read_record(out, shard, position, classes, indexed=False)
    target = decode_example(item).target
    labels = np.asarray(target.labels if isinstance(target, Objects) else target, int)
    label = int(labels[labels != IGNORE].max(initial=-1)) if labels.ndim else int(labels)
    if label >= classes:
        raise InputError(f"{item.where}: label {label}, expected 0 to {classes - 1}")
    return label


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a thread pool that cancels pending work if an error ends the block."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _progress(console: Console, total: int) -> Iterator[Bump]:
    """Show a progress bar over all images, on a terminal."""
    columns = (
        TextColumn("images"),
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[speed]} images/s"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True, expand=True) as bar:
        task = bar.add_task("prepare", total=total, speed="-")

        def bump(count: int) -> None:
            bar.update(task, advance=count, speed=f"{bar.tasks[task].speed or 0:,.0f}")

        yield bump
