"""The experiment on video: its synthetic videos move as their labels say, and it runs at a reduced size."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data.video import decode_clips
from resnet_jax.recipe import Data, check
from resnet_jax.run_dir.files import read_dataset_info

pytest.importorskip("av")


class Draws:
    """Motion that begins at frame 2, in the middle of a photo, at its own size."""

    def integers(self, low, high, size=None):
        return 2 if size is None else np.zeros(size, int)

    def uniform(self, low, high):
        return (low + high) / 2 if high > 2 else low


@pytest.fixture
def camera(script):
    return script("video", "camera.py")


def test_a_motion_is_within_its_video(camera):
    behind = camera.moments(np.random.default_rng(0))
    assert (len(behind), behind[0], behind[-1]) == (camera.LENGTH, 0, camera.MOVING)
    assert set(np.diff(behind)) == {0, 1}


@pytest.mark.parametrize(
    ("name", "down", "right"),
    [("pan right", 0, 1), ("pan left", 0, -1), ("pan down", 1, 0), ("pan up", -1, 0)],
)
def test_a_camera_pans_as_its_label_says(camera, name, down, right):
    rows, columns = np.mgrid[:200, :240]
    photo = Image.fromarray(np.stack([columns, rows, 0 * rows], -1).astype(np.uint8))
    frames = camera.film_photo(photo, camera.CAMERA[name], Draws()).astype(int)
    moved = (frames[-1] - frames[0])[10:-10, 10:-10]
    way = 1.5 * camera.MOVING
    np.testing.assert_allclose(moved[..., 0], right * way, atol=1)
    np.testing.assert_allclose(moved[..., 1], down * way, atol=1)


def test_a_digit_moves_as_its_label_says(camera):
    image = np.zeros((8, 8), np.uint8)
    image[0, 0] = 255
    frames = camera.film_digit(image, camera.DIRECTIONS["090 degrees"], Draws())
    places = [np.unravel_index(frame[..., 0].argmax(), frame.shape[:2]) for frame in (frames[0], frames[12])]
    assert places[1][0] - places[0][0] == 10
    assert places[1][1] == places[0][1]


@pytest.mark.slow
def test_both_tasks_at_a_reduced_size(camera, tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    for name in (*camera.PHOTOS["train"], *camera.PHOTOS["test"]):
        Image.fromarray(random.integers(0, 256, (160, 170, 3), np.uint8)).save(tmp_path / name)
    camera.write_digits(tmp_path / "digits", 16)
    camera.write_photos(tmp_path / "photos", tmp_path, 2, 1)
    small = replace(
        camera.recipe, batch_size=16, model=replace(camera.recipe.model, fields={"depths": (1,), "width": 4})
    )
    monkeypatch.setattr(camera, "recipe", small)
    data = [replace(small.data, name=f"folder:{tmp_path / name}") for name in ("digits", "photos")]
    first, second = (replace(small, data=one, epochs=2) for one in data)
    assert check(first) == first
    found = camera.accuracies(tmp_path, ("mc3_18",), (3,), first, second)
    assert list(found) == [("mc3_18", "scratch"), ("mc3_18", "fine-tuned")]
    assert all(0 <= value <= 1 for rows in found.values() for value in rows[0])
    assert read_dataset_info(tmp_path / "mc3_18_3" / "fine-tuned").image_shape == (8, 16, 16, 3)
    camera.draw(found, tmp_path / "photos", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").is_file()
    (file, *_) = (tmp_path / "photos" / "test" / "pan up").iterdir()
    assert decode_clips(file, Data(frames=48, frame_rate=24, image_size=48), (0.0,)).shape == (1, 48, 48, 48, 3)
