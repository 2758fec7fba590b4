"""Outputs of an export and of the network, compared by hand."""

import numpy as np
import pytest

from resnet_jax.errors import InputError
from resnet_jax.inference.export.check import compare

LOGITS = np.array([[1.0, 4.0], [3.0, 2.0]], np.float32)
BOXES = np.array([[[0.0, 0.0, 100.0, 50.0]], [[0.0, 0.0, 0.0, 0.0]]], np.float32)
LABELS = np.array([[2], [-1]], np.int32)
SCORES = np.array([[0.5], [0.0]], np.float32)


def test_the_answer_is_the_largest_output():
    assert compare([LOGITS + np.float32([0, -3.5])], [LOGITS]) == (3.5 / 4, 1, 2)


def test_an_output_that_is_not_finite_differs():
    assert compare([LOGITS * np.nan], [LOGITS]).relative == np.inf


def test_the_answer_of_a_detector_is_its_labels():
    changed = compare([BOXES, LABELS + np.int32([[0], [1]]), SCORES], [BOXES, LABELS, SCORES])
    assert (changed.same, changed.total) == (1, 2)


def test_each_output_is_judged_by_its_own_largest_number():
    """Boxes are hundreds of pixels and scores at most 1."""
    found = compare([BOXES, LABELS, SCORES + np.float32(0.01)], [BOXES, LABELS, SCORES])
    assert found.relative == pytest.approx(0.02)
    assert found.same == 2


def test_other_shapes_are_one_line():
    with pytest.raises(InputError, match="shapes"):
        compare([BOXES, LABELS], [BOXES, LABELS, SCORES])
