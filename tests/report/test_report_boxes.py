"""Boxes in a report: what is counted, which images are shown, and the page."""

import json
import re
from types import SimpleNamespace
from xml.etree.ElementTree import tostring

import numpy as np
import pytest
from boxes import CLASSES, DATA, STATE, Reader, source_of, written_images
from fabricated import RECIPE, write_run

from resnet_jax.input_pipeline.loading import DataLoading
from resnet_jax.parallel.sharding import data_mesh, replicate
from resnet_jax.report.boxes import best_score, box_predictions, join_boxes, pictures_of
from resnet_jax.report.boxes_page import boxed, precision_pictures, worst_boxes_png
from resnet_jax.report.runs import group_runs, read_runs
from resnet_jax.report.svg import as_svg
from resnet_jax.tasks.detection import detection

pytest.importorskip("faster_coco_eval")
# In the second image one of two objects is found, in the third none; the fourth is empty
BOXES = np.tile(np.array([[[10, 10, 60, 60], [100, 10, 150, 60]]]), (4, 1, 1))
LABELS = np.array([[0, 1], [0, 1], [0, 0], [0, 0]])
GUESSED = np.array([[0, 1], [0, -1], [1, -1], [-1, -1]])
SCORES = np.array([[90, 80], [70, 0], [60, 0], [0, 0]])


@pytest.fixture(scope="module")
def found():
    mesh = data_mesh(1)
    setup = SimpleNamespace(model=Reader(), recipe=SimpleNamespace(data=DATA), mesh=mesh, task=detection(max_objects=3))
    images = written_images(BOXES, SCORES, GUESSED)
    source = source_of(images, BOXES, LABELS, crowd=np.array([[0, 0], [0, 0], [0, 0], [1, 1]], bool))
    return box_predictions(replicate(STATE, mesh), source, setup, DataLoading())


def test_the_worst_images_come_first(found):
    # Three of four detections are right, of six objects; without the wrong one all are
    assert (found.score, found.precision, found.recall) == (pytest.approx(0.7), 1.0, 0.5)
    assert found.worst == (2, 1, 0)
    assert best_score(np.zeros(0), np.zeros(0, bool), 3) == (1.0, 0.0, 0.0)
    (true, caption), (predicted, _) = pictures_of(found)[:2]
    assert caption == "#2 true"
    # The image is 2 x 6 pixels here, and its boxes lie outside
    assert true.shape == predicted.shape == (2, 6, 3)
    assert worst_boxes_png(found).startswith(b"\x89PNG")


def test_the_page(found, tmp_path):
    (variant,) = group_runs(read_runs([write_run(tmp_path / "run", RECIPE, classes=CLASSES)]))
    text = "".join(
        tostring(child, encoding="unicode") for child in boxed(variant, join_boxes([found, found]), several=False)
    )
    assert "4 images of the test split, the mean of 2 networks" in text
    captions = [words for place in found.worst for words in (f"#{place} true", "predicted")]
    assert re.findall("<figcaption>(.*?)</figcaption>", text) == captions
    ap = found.ranked[0].class_ap()
    for value in ap[:2]:
        assert f"<td>{value:.1%}</td>" in text
    assert np.isnan(ap[2])
    first, second = precision_pictures(found)
    assert "overlap 0.5" in first.alt
    drawn = as_svg(second)
    assert any((text.text or "").strip() == "b" for text in drawn.iter("text"))
    assert json.loads(drawn.get("data-plot"))["x"] == "recall (%)"
