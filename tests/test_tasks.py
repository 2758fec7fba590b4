"""The examples in experiments/tasks: their data are what they say, and two steps of each are taken."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from resnet_jax.data.datasets import digits
from resnet_jax.data.source import subset, to_arrays
from resnet_jax.model.zoo import MODELS
from resnet_jax.train.directory import read_dataset
from resnet_jax.train.habits import Habits
from resnet_jax.weights.names import to_state_dict
from resnet_jax.weights.tensors import write_tensors


def few(split, count, folder):
    return subset(digits(split, folder), np.arange(count))


EXPECTED = {  # shape of an example, and names of classes or outputs
    "sequences": ((64, 1), tuple("0123456789")),
    "video": ((8, 12, 12, 1), ("up", "up right", "right", "down right", "down", "down left", "left", "up left")),
    "regression": ((16, 16, 1), ("angle",)),
    "multilabel": ((16, 16, 1), tuple("0123456789")),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_two_steps(name, script, tmp_path, monkeypatch):
    """With the first 70 training and 20 test digits, and a network of two blocks."""
    task = script("tasks", f"{name}.py")
    network = task.recipe.model.name
    monkeypatch.setitem(MODELS, network, MODELS[network].clone(depths=(1, 1)))
    monkeypatch.setattr(task, "digits", lambda split, folder: few(split, 70 if split == "train" else 20, folder))
    if name == "multilabel":
        monkeypatch.setattr(task, "PICTURES", {"train": 80, "test": 20})
    result = task.run(tmp_path / "run", habits=Habits(stop_at=2, evaluate_every=2), devices=1)
    line, dataset = result.lines[-1], read_dataset(tmp_path / "run")
    assert (dataset.image_shape, dataset.classes) == EXPECTED[name]
    assert result.step == 2 < result.steps
    assert 0 < line["test_loss"] < 100
    assert ("test_accuracy" in line) == (name != "regression")
    if name == "regression":
        task.draw(tmp_path / "run", tmp_path / "angles.png")
        with Image.open(tmp_path / "angles.png") as picture:
            assert picture.width == picture.height


def test_a_video_moves_as_its_label_says(script, tmp_path):
    video = script("tasks", "video.py")
    videos, labels = video.moving(few("test", 40, tmp_path), 0)
    assert (videos.shape, videos.dtype) == ((40, 8, 12, 12), np.uint8)
    assert set(labels) == set(range(8))
    for frames, label in zip(videos, labels, strict=True):
        down, right = list(video.DIRECTIONS.values())[label]
        np.testing.assert_array_equal(np.roll(frames[:-1], (down, right), (1, 2)), frames[1:])


def test_a_digit_is_turned_by_its_label(script, tmp_path):
    """Turned back by the angle, it is the upright one again, but for what both interpolations blur."""
    regression = script("tasks", "regression.py")
    source = few("test", 10, tmp_path)
    images, angles = regression.turned(source, 0)
    assert angles.dtype == np.float32
    assert 1 < np.abs(angles).max() <= 2
    for image, angle, original in zip(images, angles, to_arrays(source)[0], strict=True):
        upright = np.asarray(Image.fromarray(original[..., 0]).resize((16, 16), Image.Resampling.BILINEAR), float)

        def off(by, image=image, upright=upright):
            back = Image.fromarray(image).rotate(by, Image.Resampling.BILINEAR)
            return np.abs(np.asarray(back, float) - upright)[4:12, 4:12].mean()

        assert off(-30 * angle) < 40
        assert abs(angle) < 0.5 or off(-30 * angle) < off(30 * angle)


def test_the_labels_of_a_picture_are_the_digits_in_it(script, tmp_path):
    multilabel = script("tasks", "multilabel.py")
    source = few("test", 30, tmp_path)
    images, labels = to_arrays(source)
    known = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    seen, there = multilabel.pictures(source, 50, 0)
    for picture, answer in zip(seen, there, strict=True):
        corners = [np.ascontiguousarray(picture[a : a + 8, b : b + 8]) for a in (0, 8) for b in (0, 8)]
        inside = [known[c.tobytes()] for c in corners if c.any()]
        assert 1 <= len(inside) <= 3
        assert set(inside) == set(np.flatnonzero(answer))


def test_the_pyramid_of_a_photo(script, tmp_path, monkeypatch, capsys):
    detection = script("tasks", "detection_features.py")
    model = MODELS["resnet20"].clone(depths=(1, 1, 1))
    monkeypatch.setitem(MODELS, "small", model)
    random, file, out = np.random.default_rng(0), tmp_path / "w.safetensors", tmp_path / "pyramid.png"
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    weights = jax.tree.map(lambda leaf: random.uniform(0, 1, leaf.shape).astype(np.float32), shapes)
    write_tensors(file, to_state_dict(model, weights))
    photo = random.integers(0, 256, (32, 48, 3), np.uint8)
    levels = detection.pyramid(photo, str(file), "small")
    assert [level.shape for level in levels] == [(32, 48, 64), (16, 24, 64), (8, 12, 64)]
    for level in levels:
        shown = detection.colors(level)
        assert shown.shape == (*level.shape[:2], 3)
        assert (shown.min(), shown.max()) == (0, 1)
    words = ["detection_features.py", "--weights", str(file), "--model", "small"]
    monkeypatch.setattr(sys, "argv", [*words, "--size", "32", "--out", str(out)])
    detection.main()
    assert capsys.readouterr().out == f"picture: {out}\n"
    with Image.open(out) as picture:
        assert picture.width > 3 * picture.height
