"""resnet-jax prepare."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from resnet_jax.cli.parse import parse
from resnet_jax.runtime.terminal import show
from resnet_jax.training.options import default_data_dir


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Data set to pack, and the format of its files."""

    source: Positional[str]
    """Data set, such as folder:PATH, tfds:NAME or cifar10; `resnet-jax list` shows all."""
    dest: Positional[Path]
    """Folder to write; unfinished packing is resumed."""
    size: int = 256
    """Maximum pixels of the shorter side; larger images are scaled down."""
    quality: int = 92
    """JPEG quality, 1 to 100."""
    shards: int | Literal["auto"] = "auto"
    """Files per split; auto is one per 8,192 images."""
    data_dir: Path | None = None
    """Folder of the data sets; None is $RESNET_JAX_DATA, or data/."""
    download: bool = False
    """Download the data set unless it is there: cifar10, cifar100, imagenette, flowers102 or oxford_iiit_pet."""
    num_threads: int | None = None
    """Number of threads; None is one per core. It does not change the files."""
    on_corrupt_image: Literal["fail", "skip"] = "fail"
    """Action if an image cannot be read: stop, or leave it out and list it in dataset.json."""
    test_split: str | None = None
    """Folder or TFDS split that becomes the test split, such as val; None is the first of test, val, valid and
    validation that has the classes of the training images."""


def prepare(words: list[str]) -> int:
    """Pack a data set for fast reading: prepare SOURCE DEST [--size 256]"""
    options = parse(PrepareOptions, words, prog="resnet-jax prepare", description=prepare.__doc__ or "")
    from resnet_jax.data.formats.published import fetch
    from resnet_jax.data.prepare import Packing, prepare_data

    if options.download:
        fetch(options.source, options.data_dir or default_data_dir(), show)
    start = time.perf_counter()
    shards = None if options.shards == "auto" else options.shards
    index = prepare_data(
        options.source,
        options.dest,
        Packing(options.size, options.quality, shards, options.on_corrupt_image == "skip", options.test_split),
        data_dir=options.data_dir or default_data_dir(),
        num_threads=options.num_threads,
    )
    seconds = time.perf_counter() - start
    for split, files in index.splits.items():
        examples, size = sum(shard.examples for shard in files), sum(shard.bytes for shard in files)
        skipped = sum(len(shard.skipped) for shard in files)
        left = f", {skipped:,} left out (see dataset.json)" if skipped else ""
        show(f"{split}: {examples:,} images, {size / 1e6:,.1f} MB in {len(files)} file{'s' * (len(files) > 1)}{left}")
    show(f"{options.dest}: every image read back, {seconds:.1f} s; train with --data.name array_record:{options.dest}")
    return 0
