"""The benchmark scripts run."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image


@pytest.fixture
def photos(tmp_path):
    """Three photos."""
    pixels, folder = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8), tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return folder


def test_readers_of_photos(script, photos, tmp_path, monkeypatch):
    """The first batch of each reader but torch's, which starts processes."""
    data = script("benchmarks", "data.py")
    monkeypatch.setattr(data, "BATCH", 4)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find_spec(name))
    readers = data.readers(*data.sources(photos, tmp_path))
    assert {
        "resnet_jax, 1 threads",
        "resnet_jax, packed at 256 pixels, 2 threads",
        "Pillow in a loop",
    } <= readers.keys()
    for read, workers in readers.values():
        batch = next(iter(read([*photos.glob("*.jpg")] * 2, workers)))
        images = batch if isinstance(batch, np.ndarray) else batch[0]
        assert (images.shape, images.dtype) == ((4, 224, 224, 3), np.uint8)


def test_a_batch_passes_eight_functions_to_the_loss(script):
    passed = script("benchmarks", "house.py").functions_to_the_loss()
    assert passed[-1] == "tasks/losses.py: cross_entropy"
    assert len(passed) <= 8, passed


@pytest.mark.slow
def test_reading_photos(photos):
    """The whole script, with torch if it is installed."""
    script = ROOT / "experiments" / "benchmarks" / "data.py"
    done = subprocess.run(
        [sys.executable, script, photos, "--repeats", "1"], capture_output=True, text=True, check=True
    )
    assert "| resnet_jax, packed at 256 pixels, 2 threads |" in done.stdout
