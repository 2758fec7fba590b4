"""Real photos through the preprocessing and a network of timm and of ours."""

from functools import partial

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageOps

from resnet_jax.inference.images import as_items
from resnet_jax.inference.load_model import load_model
from resnet_jax.inference.predict import predict_probs
from resnet_jax.inference.source import WeightsInfo
from resnet_jax.inference.stream import map_images
from resnet_jax.weights.tensors import write_tensors


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet10t.c3_in1k", "resnet18.tv_in1k"])
def test_answers_on_122_photos(real_data, tmp_path, randomize, name):
    theirs = randomize(timm.create_model(name))
    write_tensors(tmp_path / "x.safetensors", {key: tensor.numpy() for key, tensor in theirs.state_dict().items()})
    transform = timm.data.create_transform(**timm.data.resolve_data_config(theirs.pretrained_cfg))
    files = [file for file in sorted((real_data / "imagenet_jpegs").rglob("*")) if file.is_file()]
    assert len(files) == 122
    setup, state = load_model(tmp_path / "x.safetensors", WeightsInfo(model=name), devices=1)
    answers = list(map_images(setup, partial(predict_probs, setup), state, as_items(files), batch_size=32))
    ours = np.log(np.stack([answer.values for answer in answers]))
    with torch.no_grad():
        pixels = [transform(ImageOps.exif_transpose(Image.open(file)).convert("RGB")) for file in files]
        logits = [theirs(torch.stack(pixels[start : start + 32])) for start in range(0, 122, 32)]
        expected = torch.cat(logits).log_softmax(-1).numpy()
    np.testing.assert_array_equal(ours.argmax(1), expected.argmax(1))
    # Of probabilities, so where both are not vanishing
    seen = expected > -20
    np.testing.assert_allclose(ours[seen], expected[seen], rtol=1e-3, atol=1e-3 * np.abs(expected[seen]).max())
