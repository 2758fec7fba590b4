"""resnet-jax embed, neighbours and probe."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from resnet_jax.cli.parse import options_and_weights, parse
from resnet_jax.cli.tables import plain_table
from resnet_jax.runtime.terminal import show
from resnet_jax.training.options import default_data_dir


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """Weights, images and features."""

    source: Positional[str]
    """Run directory, weights file, hf:OWNER/NAME or published name; weights without a head work too."""
    images: Positional[tuple[Path, ...]]
    """Image files, folders, tables (.csv, column path) or data sets."""
    out: Path = Path("features.npy")
    """File to write: .npy, with the names of the images in a .jsonl beside it, or .parquet."""
    stage: int | None = None
    """Stage whose feature map is used, from 1; None is the last."""
    pool: bool = True
    """Pool the map as the network does before its head; --no-pool keeps the map."""
    split: Literal["train", "validation", "test"] = "test"
    """Split of a data set."""
    data_dir: Path = field(default_factory=default_data_dir)
    """Folder of the data sets."""
    batch_size: int = 64
    """Images per call of the network."""


def embed(words: list[str]) -> int:
    """Write the features of images: embed RUN|WEIGHTS IMAGE|FOLDER|DATA... [--out features.npy]"""
    options, weights, checkpoint = options_and_weights(EmbedOptions, words, "embed", embed.__doc__)
    from resnet_jax.inference.bulk import embed_to

    done = embed_to(
        options.source,
        options.images,
        options.out,
        options.stage,
        pool=options.pool,
        split=options.split,
        data_dir=options.data_dir,
        batch_size=options.batch_size,
        weights=weights,
        checkpoint=checkpoint,
    )
    show(done.format())
    return 0


@dataclass(frozen=True, kw_only=True)
class NeighboursOptions:
    """Weights, query images and the features to search."""

    source: Positional[str]
    """Run or weights that computed the features."""
    images: Positional[tuple[Path, ...]]
    """Image files."""
    features: Path = Path("features.npy")
    """File that `resnet-jax embed` wrote."""
    k: int = 5
    """Number of neighbours per image."""


def neighbours(words: list[str]) -> int:
    """Find the nearest of embedded images: neighbours RUN|WEIGHTS IMAGE... [--features features.npy]"""
    options, weights, checkpoint = options_and_weights(NeighboursOptions, words, "neighbours", neighbours.__doc__)
    from resnet_jax.inference.features import neighbours as find_neighbours

    found = find_neighbours(
        options.source, options.images, options.features, options.k, weights=weights, checkpoint=checkpoint
    )
    table = plain_table("image", "neighbour", "label", "cosine")
    for image, near in zip(options.images, found, strict=True):
        for place, each in enumerate(near):
            table.add_row(str(image) if place == 0 else "", each.image, each.label or "", f"{each.similarity:.4f}")
    show(table)
    return 0


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """Features and classifiers."""

    train: Positional[Path]
    """Labelled training features, written by `resnet-jax embed`."""
    test: Positional[Path]
    """Labelled test features."""
    methods: tuple[Literal["knn", "few-shot", "linear"], ...] = ("knn", "few-shot", "linear")
    """Classifiers: nearest neighbours, few-shot ridge regression, logistic regression."""
    k: int = 20
    """Number of neighbours that vote."""
    shots: tuple[int, ...] = (1, 5, 10)
    """Numbers of examples per class for few-shot."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds that choose the few-shot examples."""


def probe(words: list[str]) -> int:
    """Train classifiers on features, in seconds: probe TRAIN.npy TEST.npy [--methods knn few-shot linear]"""
    options = parse(ProbeOptions, words, prog="resnet-jax probe", description=probe.__doc__ or "")
    from resnet_jax.inference.features import probe as probe_features
    from resnet_jax.inference.features import read_features

    found = probe_features(
        read_features(options.train),
        read_features(options.test),
        options.methods,
        k=options.k,
        shots=options.shots,
        seeds=options.seeds,
    )
    table = plain_table("classifier", "accuracy", "test images")
    for each in found:
        deviation = f" ± {100 * each.std:.2f}" if each.std else ""
        table.add_row(each.method, f"{each.accuracy:.2%}{deviation}", f"{each.images:,}")
    show(table)
    return 0
