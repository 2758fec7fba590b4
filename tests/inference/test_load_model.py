"""Opening weights for prediction."""

import json

import numpy as np
import pytest

from resnet_jax.errors import InputError
from resnet_jax.inference.load_model import load_model
from resnet_jax.weights.tensors import write_tensors


def test_what_a_config_says_and_is_not_understood_is_refused(tmp_path):
    write_tensors(tmp_path / "model.safetensors", {"fc.bias": np.zeros(10, np.float32)})
    preprocessing = {"input_size": [3, 224, 224], "crop_pct": 1.0, "interpolation": "bilinear", "crop_mode": "squash"}
    config = {
        "architecture": "resnet50",
        "num_classes": 10,
        "model_args": {"aa_layer": "blurpool"},
        "pretrained_cfg": preprocessing | {"mean": [0.5] * 3, "std": [0.5] * 3},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    message = "config.json says aa_layer 'blurpool' and crop_mode 'squash', which is not understood; take other weights"
    with pytest.raises(InputError, match=message):
        load_model(str(tmp_path))
