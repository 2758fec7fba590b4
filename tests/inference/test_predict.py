"""Predictions as people read them."""

from pathlib import Path

import numpy as np
import pytest

from resnet_jax.errors import InputError
from resnet_jax.inference.predict import check_files, top_predictions
from resnet_jax.tasks.classification import classification
from resnet_jax.tasks.task import select_metrics


def test_outputs_for_each_pixel_are_no_list_of_classes():
    with pytest.raises(
        InputError, match="^a.png: the network predicts 8 x 8 x 3 values, not one per class; use load_run"
    ):
        top_predictions(None, Path("a.png"), np.zeros((8, 8, 3)), 5)


def test_a_folder_is_not_an_image(tmp_path):
    with pytest.raises(InputError, match=rf"^{tmp_path}: is a folder; name the images in it, such as {tmp_path}/"):
        check_files([tmp_path], 5)


def test_an_unknown_metric_is_answered_with_those_there_are():
    with pytest.raises(InputError, match="unknown metric 'top_5'; --metrics takes loss, accuracy, top5, "):
        select_metrics(classification(), ("top_5",))
