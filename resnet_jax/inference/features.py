"""What features are good for: nearest neighbours, and classifiers that take seconds, by scikit-learn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from resnet_jax.errors import InputError, first_line
from resnet_jax.inference.images import as_items
from resnet_jax.inference.load_model import load_model, weights_digest
from resnet_jax.inference.rows import Row, names_path
from resnet_jax.inference.source import CheckpointChoice, WeightsInfo
from resnet_jax.inference.stream import features_of, map_images
from resnet_jax.runtime.safe_files import read_regular
from resnet_jax.runtime.strict_json import parse_json
from resnet_jax.training.setup import Parts

Method = Literal["knn", "few-shot", "linear"]
# Of votes by exp(similarity / temperature)
_TEMPERATURE = 0.07
# Inverse strengths of the penalty of the linear probe, and penalties of few-shot classifiers
_STRENGTHS = tuple(10.0**power for power in range(-4, 3))
_PENALTY = 1000.0


class Features(NamedTuple):
    """Features of images, read from a file."""

    values: np.ndarray
    """float32 (n, c)."""
    names: tuple[str, ...]
    labels: tuple[str | None, ...]
    header: Row
    """What they are of: weights, their digest, stage, preprocessing."""


def read_features(file: Path | str) -> Features:
    """Return the features that `embed` wrote to a file, .npy or .parquet, of all readable images.

    Raises:
        InputError: The file is missing, damaged, or not features.

    Example:
        >>> read_features("digits.npy").values.shape  # doctest: +SKIP
        (1437, 64)
    """
    file = Path(file)
    try:
        values, rows, header = _read_parquet(file) if file.suffix == ".parquet" else _read_npy(file)
        if header["what"] != "features" or len(values) != len(rows) or values.dtype != np.float32:
            raise ValueError("its rows do not describe features")
        kept = [place for place, row in enumerate(rows) if not row["error"]]
        values = values.reshape(len(values), -1)
        values = values if len(kept) == len(rows) else values[kept]
        names = tuple(str(rows[place]["image"]) for place in kept)
        return Features(values, names, tuple(rows[place]["label"] for place in kept), header)
    except FileNotFoundError as error:
        raise InputError(f"{error.filename}: no such file; `resnet-jax embed` writes features") from error
    except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError) as error:
        raise InputError(f"{file}: not features that `resnet-jax embed` wrote ({first_line(error)})") from error


def _read_npy(file: Path) -> tuple[np.ndarray, list[Row], Row]:
    lines = [parse_json(line) for line in read_regular(names_path(file)).splitlines()]
    # Mapped, so that they need not fit into memory; objects are never unpickled
    return np.load(file, mmap_mode="r", allow_pickle=False), lines[1:], lines[0]


def _read_parquet(file: Path) -> tuple[np.ndarray, list[Row], Row]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(f"{file}: needs pyarrow; pip install pyarrow") from error
    table = parquet.read_table(file)
    header = parse_json((table.schema.metadata or {})[b"resnet_jax"])
    column = table.column("features").combine_chunks()
    values = column.values.to_numpy(zero_copy_only=False).reshape(len(table), -1)
    return values, table.drop_columns(["features"]).to_pylist(), header


class Neighbour(NamedTuple):
    """An image near another."""

    image: str
    label: str | None
    similarity: float
    """Cosine of the angle between the features, -1 to 1."""


def neighbours(
    where: Path | str,
    images: Sequence[Path | str],
    features: Path | str,
    k: int = 5,
    *,
    weights: WeightsInfo = WeightsInfo(),
    checkpoint: CheckpointChoice = CheckpointChoice(),
    parts: Parts = Parts(),
) -> list[list[Neighbour]]:
    """Return the `k` nearest embedded images of each query image, by cosine similarity of their features.

    Args:
        where: the run or weights that computed the features.
        images: image files to look up.
        features: file that `embed` wrote.
        k: number of neighbours.
        weights: model name and preprocessing of a bare weights file.
        checkpoint: which weights of a run to use.
        parts: parts that were passed to the run as values.

    Raises:
        InputError: A file cannot be read, or the features come from other weights.

    Example:
        >>> neighbours("runs/digits", ["seven.png"], "digits.npy")[0][0].label  # doctest: +SKIP
        '7'
    """
    if k < 1:
        raise InputError(f"-k is {k}; it must be positive")
    known = read_features(features)
    setup, state = load_model(where, weights, checkpoint, parts=parts, headless=True)
    if known.header["sha256"] != weights_digest(state):
        raise InputError(f"{features}: features of {known.header['weights']}, whose weights are not those of {where}")
    function, found = features_of(setup, known.header["stage"], known.header["pool"]), []
    for answer in map_images(setup, function, state, as_items(images)):
        if answer.values is None:
            raise InputError(answer.error)
        found.append(answer.values.ravel())
    return [
        [Neighbour(known.names[i], known.labels[i], float(near)) for i, near in zip(*row, strict=True)]
        for row in zip(*nearest(known.values, np.stack(found), k), strict=True)
    ]


def nearest(values: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of `values` (n, c) nearest to each of `queries` (m, c), (m, k), and the cosines, falling.

    Example:
        >>> rows, cosines = nearest(np.eye(3), np.array([[1.0, 2.0, 0.0]]), 2)
        >>> rows.tolist(), cosines.round(3).tolist()
        ([[1, 0]], [[0.894, 0.447]])
    """
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=min(k, len(values)), metric="cosine", algorithm="brute").fit(values)
    distances, rows = index.kneighbors(queries)
    return rows, 1 - distances


class Probe(NamedTuple):
    """How well a classifier on features does."""

    method: str
    accuracy: float
    """On the test features; the mean over the seeds."""
    std: float
    """Standard deviation (n - 1) over the seeds; 0 for one."""
    images: int
    """Test images."""


def probe(
    train: Features,
    test: Features,
    methods: Sequence[Method] = ("knn", "few-shot", "linear"),
    *,
    k: int = 20,
    shots: Sequence[int] = (1, 5, 10),
    seeds: Sequence[int] = (0, 1, 2),
) -> list[Probe]:
    """Return the accuracy of classifiers trained on features alone.

    Args:
        train: labelled features.
        test: labelled features of the same weights.
        methods: "knn" is a vote of the `k` nearest, weighted by exp(cosine / 0.07); "few-shot" is ridge regression to
            the classes from a few examples of each, in closed form; "linear" is logistic regression on standardised
            features, whose penalty is chosen on a fifth of the training images.
        k: number of neighbours.
        shots: examples per class of "few-shot".
        seeds: seeds that choose these examples.

    Raises:
        InputError: Labels are missing, or the features are of different weights.

    Reference:
        Wu et al. 2018, section 3.4 (votes of neighbours); Kolesnikov et al. 2019, "Revisiting self-supervised
        learning", section 3 (linear probes).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> labels = tuple("ab" * 20)
        >>> values = rng.normal(size=(40, 3)).astype(np.float32) + 9 * np.eye(2, 3, dtype=np.float32)[[0, 1] * 20]
        >>> features = Features(values, labels, labels, {"sha256": ""})
        >>> [round(found.accuracy, 2) for found in probe(features, features, shots=(5,))]
        [1.0, 1.0, 1.0]
    """
    for found in (train, test):
        if not all(found.labels) or not found.labels:
            raise InputError("features without labels; embed a data set, or a table with a column label")
    if train.header["sha256"] != test.header["sha256"] or train.values.shape[1] != test.values.shape[1]:
        raise InputError(
            "the training and test features come from different weights or stages; embed both with the same"
        )
    return [found for method in methods for found in _probes(method, train, test, k, shots, seeds)]


def _probes(
    method: Method, train: Features, test: Features, k: int, shots: Sequence[int], seeds: Sequence[int]
) -> list[Probe]:
    labels = np.array(train.labels)
    if method == "knn":
        k = min(k, len(labels))
        return [_scored(f"knn, k {k}", [(_neighbour_votes(k), slice(None))], train, test)]
    if method == "linear":
        return [_scored("linear", [(_logistic(labels), slice(None))], train, test)]
    fewest = min(np.unique(labels, return_counts=True)[1])
    usable = [shot for shot in shots if 1 <= shot <= fewest]
    if not usable:
        raise InputError(f"--shots {' '.join(map(str, shots))}: the rarest class has {fewest} training images")
    return [
        _scored(f"{shot}-shot", [(_ridge(), draw_shots(labels, shot, seed)) for seed in seeds], train, test)
        for shot in usable
    ]


def draw_shots(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Return the places of `shots` examples of each class, drawn without replacement."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(np.flatnonzero(labels == name))[:shots] for name in np.unique(labels)])


def _scored(name: str, fits: Sequence[tuple[Any, Any]], train: Features, test: Features) -> Probe:
    labels, expected = np.array(train.labels), np.array(test.labels)
    scores = [
        float((model.fit(train.values[rows], labels[rows]).predict(test.values) == expected).mean())
        for model, rows in fits
    ]
    std = float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0
    return Probe(name, float(np.mean(scores)), std, len(expected))


def _neighbour_votes(k: int) -> Any:
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(
        k, weights=lambda far: np.exp((1 - far) / _TEMPERATURE), metric="cosine", algorithm="brute"
    )


def _ridge() -> Any:
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), RidgeClassifier(_PENALTY))


def _logistic(labels: np.ndarray) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedShuffleSplit
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    held = max(len(np.unique(labels)), len(labels) // 5)
    split = StratifiedShuffleSplit(1, test_size=held, random_state=0)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return GridSearchCV(model, {"logisticregression__C": _STRENGTHS}, cv=split)
