"""The BCCD experiment: its baseline is what it says, and its recipe fits its data."""

import numpy as np
import pytest

from resnet_jax.data.source import Example, Source
from resnet_jax.models.detection.objects import make_objects
from resnet_jax.recipe import check


def test_likely_boxes_see_no_image(script):
    """Two classes in four images: one box always there, one in half of them, both on the grid."""
    bccd = script("detection", "bccd.py")
    always, sometimes = [0, 0, 8, 6], [20, 10, 30, 20]
    targets = [make_objects([always, sometimes], [0, 1]), make_objects([always], [0])] * 2
    source = Source(4, ("a", "b"), lambda index: Example(np.zeros((30, 40, 3), np.uint8), targets[index]))
    boxes, scores, labels = bccd.prior_boxes(source)
    assert scores[0] == 1
    assert (boxes[0].tolist(), labels[0]) == (always, 0)
    best = np.flatnonzero(labels == 1)[0]
    assert (boxes[best].tolist(), scores[best]) == (sometimes, 0.5)
    assert (np.diff(scores) <= 0).all()


@pytest.mark.slow
def test_the_recipe_holds_all_boxes(script, real_data):
    bccd = script("detection", "bccd.py")
    recipe = check(bccd.recipe)
    numbers = bccd.baseline(recipe, real_data)
    assert 0.01 < numbers["ap50"] < 0.2
