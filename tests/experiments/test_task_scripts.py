"""The examples in experiments/tasks: their data are what they say, and each trains for two steps."""

import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from resnet_jax.data.datasets import digits
from resnet_jax.data.source import subset, to_arrays
from resnet_jax.models.zoo import MODELS
from resnet_jax.recipe import check
from resnet_jax.run_dir.files import read_dataset_info
from resnet_jax.training.options import RunOptions
from resnet_jax.weights.names import to_state_dict
from resnet_jax.weights.tensors import write_tensors


def few(split, count, folder):
    return subset(digits(split, folder), np.arange(count))


# Shape of an example, and names of classes or outputs
EXPECTED = {
    "sequences": ((64, 1), tuple("0123456789")),
    "video": ((8, 12, 12, 1), ("up", "up right", "right", "down right", "down", "down left", "left", "up left")),
    "regression": ((16, 16, 1), ("angle",)),
    "multilabel": ((16, 16, 1), tuple("0123456789")),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in ("video", "multilabel"))) for n in EXPECTED]
)
def test_two_steps(name, script, tmp_path, monkeypatch):
    """On the first 70 training and 20 test digits, with a network of one block."""
    task = script("tasks", f"{name}.py")
    model = task.recipe.model
    assert check(task.recipe) == task.recipe
    fields = {**dict(model.fields), "depths": (1,), "width": 4}
    monkeypatch.setattr(task, "recipe", replace(task.recipe, model=replace(model, fields=fields), batch_size=16))
    monkeypatch.setattr(task, "digits", lambda split, folder: few(split, 70 if split == "train" else 20, folder))
    if name == "multilabel":
        monkeypatch.setattr(task, "PICTURES", {"train": 80, "test": 20})
    result = task.run(tmp_path / "run", options=RunOptions(stop_at=2, eval_every=2, devices=1))
    row, dataset = result.rows[-1], read_dataset_info(tmp_path / "run")
    assert (dataset.image_shape, dataset.classes) == EXPECTED[name]
    assert result.step == 2 < result.steps
    assert 0 < row["test/loss"] < 100
    assert ("test/accuracy" in row) == (name != "regression")
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


def test_a_digit_is_rotated_by_its_label(script, tmp_path):
    """Rotated back by the angle, it is the upright one again, except for the blur of both interpolations."""
    regression = script("tasks", "regression.py")
    source = few("test", 10, tmp_path)
    images, angles = regression.rotated(source, 0)
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
    for picture, label in zip(*multilabel.pictures(source, 50, 0), strict=True):
        corners = [np.ascontiguousarray(picture[a : a + 8, b : b + 8]) for a in (0, 8) for b in (0, 8)]
        inside = [known[c.tobytes()] for c in corners if c.any()]
        assert 1 <= len(inside) <= 3
        assert set(inside) == set(np.flatnonzero(label))


def test_the_pyramid_of_a_photo(script, tmp_path, monkeypatch, capsys):
    detection, model = script("tasks", "detection_features.py"), MODELS["resnet8"]
    random, file, out = np.random.default_rng(0), tmp_path / "w.safetensors", tmp_path / "pyramid.png"
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    weights = jax.tree.map(lambda leaf: random.uniform(0, 1, leaf.shape).astype(np.float32), shapes)
    write_tensors(file, to_state_dict(model, weights))
    photo = random.integers(0, 256, (32, 48, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    draw, drawn = detection.draw, []
    monkeypatch.setattr(detection, "draw", lambda *arguments: drawn.append(arguments) or draw(*arguments))
    words = ["detection_features.py", str(tmp_path / "photo.png"), "--weights", str(file), "--model", "resnet8"]
    monkeypatch.setattr(sys, "argv", [*words, "--size", "32", "--out", str(out)])
    detection.main()
    assert capsys.readouterr().out == f"picture: {out}\n"
    ((shown, levels, _),) = drawn
    np.testing.assert_array_equal(shown, photo)
    assert [level.shape for level in levels] == [(32, 48, 64), (16, 24, 64), (8, 12, 64)]
    for level in levels:
        colors = detection.colors(level)
        assert colors.shape == (*level.shape[:2], 3)
        assert (colors.min(), colors.max()) == (0, 1)
    with Image.open(out) as picture:
        assert picture.width > 3 * picture.height
