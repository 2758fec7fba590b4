"""Neighbours and classifiers on features, against their formulas in NumPy."""

import json

import numpy as np
import pytest
from PIL import Image
from untrained import write_run

from resnet_jax.cli.main import main
from resnet_jax.errors import InputError
from resnet_jax.inference.bulk import embed_to
from resnet_jax.inference.features import Features, draw_shots, nearest, neighbours, probe, read_features
from resnet_jax.recipe import Augment, Data, Model, Recipe

RNG = np.random.default_rng(0)
# Four classes, two of which lie near each other
CENTRES = np.array([[3, 0, 0, 0, 0], [2, 2, 0, 0, 0], [0, 0, 3, 0, 0], [0, 0, 0, 2, 2]], np.float32)


def features(count):
    labels = np.arange(count) % 4
    values = (CENTRES[labels] + RNG.normal(size=(count, 5)) * 1.2).astype(np.float32)
    return Features(values, tuple(map(str, range(count))), tuple("abcd"[n] for n in labels), {"sha256": ""})


TRAIN, TEST = features(80), features(200)


def directions(values):
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def accuracy(votes):
    """Of votes (n, 4) for the classes in order."""
    return float(np.mean([name == "abcd"[n] for name, n in zip(TEST.labels, votes.argmax(1), strict=True)]))


def test_the_nearest_by_the_cosine():
    cosines = directions(TEST.values) @ directions(TRAIN.values).T
    rows, found = nearest(TRAIN.values, TEST.values, 3)
    np.testing.assert_array_equal(rows, np.argsort(-cosines, axis=1)[:, :3])
    np.testing.assert_allclose(found, np.take_along_axis(cosines, rows, 1), rtol=1e-5)


def test_neighbours_vote_by_their_similarity():
    cosines = directions(TEST.values) @ directions(TRAIN.values).T
    near = np.argsort(-cosines, axis=1)[:, :7]
    votes = np.zeros((200, 4))
    for row, places in enumerate(near):
        for place in places:
            votes[row, place % 4] += np.exp(cosines[row, place] / 0.07)
    (found,) = probe(TRAIN, TEST, ["knn"], k=7)
    assert found.accuracy == accuracy(votes)
    assert 0.6 < found.accuracy < 1


def test_few_shots_are_a_ridge_regression_in_closed_form():
    labels, scores = np.array(TRAIN.labels), []
    for seed in (0, 1, 2):
        rows = draw_shots(labels, 5, seed)
        x, y = TRAIN.values[rows].astype(np.float64), 2.0 * (labels[rows][:, None] == np.array(list("abcd"))) - 1
        mean, std = x.mean(0), x.std(0)
        x = (x - mean) / std
        # The intercept is not punished
        weights = np.linalg.solve(x.T @ x + 1000 * np.eye(5), x.T @ (y - y.mean(0)))
        scores.append(accuracy((TEST.values - mean) / std @ weights + y.mean(0)))
    (found,) = probe(TRAIN, TEST, ["few-shot"], shots=[5], seeds=[0, 1, 2])
    assert found.method == "5-shot"
    np.testing.assert_allclose((found.accuracy, found.std), (np.mean(scores), np.std(scores, ddof=1)))


def test_shots_are_drawn_from_each_class_and_by_the_seed():
    labels = np.array(TRAIN.labels)
    rows = draw_shots(labels, 3, 0)
    assert sorted(labels[rows]) == sorted("abcd" * 3)
    assert len(set(rows)) == 12
    assert list(rows) == list(draw_shots(labels, 3, 0)) != list(draw_shots(labels, 3, 1))


def test_a_linear_probe_is_better_than_one_neighbour():
    one, linear = probe(TRAIN, TEST, ["knn", "linear"], k=1)
    assert linear.accuracy > one.accuracy
    assert linear.images == 200


@pytest.mark.parametrize(
    ("train", "options", "message"),
    [
        (TRAIN._replace(labels=(None,) * 80), {}, "features without labels; embed a data set"),
        (TRAIN._replace(header={"sha256": "x"}), {}, "come from different weights or stages; embed both with the same"),
        (TRAIN, {"shots": [21], "methods": ["few-shot"]}, "--shots 21: the rarest class has 20 training images"),
    ],
)
def test_what_cannot_be_probed_is_refused(train, options, message):
    with pytest.raises(InputError, match=message):
        probe(train, TEST, **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    data = Data(name="digits", mean=(0.5,), std=(0.25,))
    recipe = Recipe(model=Model(name="resnet8", fields={"width": 4}), data=data, augment=Augment(crop_padding=0))
    return write_run(tmp_path_factory.mktemp("runs") / "run", recipe, (8, 8, 1), tuple("0123456789"))


def test_from_the_command_line(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for ending in ("npy", "parquet"):
        assert main(["embed", str(run), "digits", "--out", f"test.{ending}"]) == 0
    assert "test.npy: 360 images, " in capsys.readouterr().out
    (npy, rows), table = (lambda f: (f.values, f))(read_features("test.npy")), read_features("test.parquet")
    np.testing.assert_array_equal(npy, table.values)
    assert rows.labels == table.labels
    assert main(["probe", "test.npy", "test.parquet", "--methods", "knn", "--k", "1"]) == 0
    # Each is its own nearest neighbour
    assert "knn, k 1     100.00%    360" in capsys.readouterr().out
    from resnet_jax.data.datasets import digits

    Image.fromarray(digits("test", tmp_path).read(7).image[..., 0]).save("seven.png")
    assert main(["neighbours", str(run), "seven.png", "--features", "test.npy", "--k", "2"]) == 0
    first = capsys.readouterr().out.splitlines()[3]
    assert first.split()[:2] == ["seven.png", "test/7"]
    assert first.split()[-1] == "1.0000"


def test_files_that_are_not_features_are_one_line(run, tmp_path):
    out = tmp_path / "x.npy"
    embed_to(run, ["digits"], out)
    lines = (tmp_path / "x.jsonl").read_text().splitlines()
    other = json.dumps(json.loads(lines[0]) | {"sha256": "0" * 64})
    for change, message in (
        (lines[:-1], r"x\.npy: not features that `resnet-jax embed` wrote \(its rows do not describe features\)"),
        (["[]", *lines[1:]], r"x\.npy: not features"),
        (["{", *lines[1:]], r"x\.npy: not features"),
        ([other, *lines[1:]], "whose weights are not those of"),
    ):
        (tmp_path / "x.jsonl").write_text("\n".join(change) + "\n")
        with pytest.raises(InputError, match=message):
            neighbours(run, ["a.png"], out)
    with pytest.raises(InputError, match=r"no\.jsonl: no such file; `resnet-jax embed` writes features"):
        read_features(tmp_path / "no.npy")
