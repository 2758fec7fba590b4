"""Folders that timm writes for the hub: network, preprocessing and class names are those of their config.json."""

import jax
import numpy as np
import pytest
import timm
import torch
from conftest import QUICKLY
from PIL import Image

from resnet_jax.data.image import Preprocessing
from resnet_jax.data.resize import resize_to
from resnet_jax.runtime.compiler_options import compiler_options
from resnet_jax.weights.entries import class_names
from resnet_jax.weights.load import create_model
from resnet_jax.weights.locate import locate


@pytest.mark.parametrize("crop_pct", [1.0, 0.7])
@pytest.mark.parametrize("shape", [(40, 20), (13, 50), (24, 32), (7, 9), (33, 47)])
def test_an_image_is_padded_as_timm_does(shape, crop_pct):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    shared = {"crop_pct": crop_pct, "crop_mode": "border", "interpolation": "bicubic", "mean": (0.4, 0.5, 0.6)}
    transform = timm.data.create_transform((3, 24, 32), std=(1, 1, 1), normalize=False, **shared)
    theirs = transform(Image.fromarray(image)).numpy().transpose(1, 2, 0)
    np.testing.assert_array_equal(resize_to(image, Preprocessing(image_size=(24, 32), **shared)), theirs)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", {"act_layer": "silu", "global_pool": "max"}),
        pytest.param("resnet18d", {"act_layer": "hard_swish"}, marks=pytest.mark.slow),
        pytest.param("seresnet18", {"act_layer": "leaky_relu", "global_pool": "max"}, marks=pytest.mark.slow),
        pytest.param("resnet18", {"act_layer": "elu", "drop_path_rate": 0.1}, marks=pytest.mark.slow),
    ],
)
def test_a_network_that_timm_saved_for_the_hub(tmp_path, randomize, name, arguments):
    theirs = randomize(timm.create_model(name, num_classes=3, **arguments))
    config = {"num_classes": 3, "label_names": ["ant", "bee", "cat"]}
    timm.models._hub.save_for_hf(theirs, tmp_path, config, arguments, safe_serialization=True)
    entry = locate(str(tmp_path)).entry
    assert entry.refused == ""
    assert class_names(3, entry) == ("ant", "bee", "cat")
    known = timm.data.resolve_data_config(theirs.pretrained_cfg)
    said = entry.preprocessing
    assert (said.crop_pct, said.interpolation, said.mean, said.std) == tuple(
        known[field] for field in ("crop_pct", "interpolation", "mean", "std")
    )
    ours, variables = create_model(name, pretrained=str(tmp_path))
    x = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    logits = jax.jit(ours.apply, compiler_options=compiler_options() | QUICKLY)(variables, x)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
