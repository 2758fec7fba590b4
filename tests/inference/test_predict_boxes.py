"""Boxes of images of any size: in their own pixels, drawn, and as COCO's JSON."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from untrained import write_run

from resnet_jax.cli.main import main
from resnet_jax.data.image import Preprocessing
from resnet_jax.inference.boxes import Boxes, coco_results, predict_boxes
from resnet_jax.inference.predict import predict
from resnet_jax.models.detection.nms import Detections
from resnet_jax.recipe import Augment, Data, Loss, Model, Recipe
from resnet_jax.weights.entries import coco_classes

RECIPE = Recipe(
    model=Model(
        name="retinanet_resnet18_fpn",
        fields={"depths": (1, 1, 1, 1), "width": 4, "pyramid_width": 8, "head_depth": 1},
    ),
    loss=Loss(name="detection"),
    data=Data(name="coco:pets", image_size=(32, 48)),
    augment=Augment(crop_padding=0),
)


@pytest.mark.parametrize(("shape", "canvas"), [((60, 120), (30, 40)), ((120, 60), (40, 30)), ((30, 40), (30, 40))])
def test_boxes_are_in_pixels_of_the_image(shape, canvas):
    image = np.full((*shape, 3), 200, np.uint8)
    scale = min(side / length for side, length in zip(canvas, shape, strict=True))

    def detect(images, sizes):
        """One box around what is no padding, and others of lower scores."""
        assert images.shape == (1, *canvas, 3)
        tall, wide = sizes[0].astype(int)
        assert (tall, wide) == tuple(round(scale * side) for side in shape)
        assert (images[0, :tall, :wide] == 200).all()
        assert (images[0, tall:] == 128).all()
        assert (images[0, :, wide:] == 128).all()
        boxes = np.array([[[0, 0, wide, tall], [0, 0, wide / 2, tall / 2], [0, 0, 1, 1], [0, 0, 0, 0]]], np.float32)
        return Detections(boxes, np.array([[0.9, 0.6, 0.3, 0]], np.float32), np.array([[1, 0, 1, -1]]))

    found = predict_boxes(detect, image, (30, 40), Preprocessing(mean=(0.5,)), 0.5)
    height, width = shape
    np.testing.assert_allclose(found.boxes, [[0, 0, width, height], [0, 0, width / 2, height / 2]])
    assert found.labels.tolist() == [1, 0]


def test_results_have_the_numbers_of_coco():
    one = Boxes(np.array([[1, 2, 4, 8]], np.float32), np.array([0.5], np.float32), np.array([1]))
    (row,) = coco_results(["000000000139"], [one], ["cat", "zebra"])
    assert row == {"image_id": 139, "category_id": coco_classes().index("zebra"), "bbox": [1, 2, 3, 6], "score": 0.5}
    assert coco_classes()[18] == "dog"
    (row,) = coco_results(["photo_1"], [one], ["cat", "platelet"])
    assert (row["image_id"], row["category_id"]) == ("photo_1", 2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A network whose bias makes every anchor a box of some class."""

    def spread(state):
        params = state.params
        bias = params["head"]["bias"] + 4 + np.arange(len(params["head"]["bias"])) / 100
        return state.replace(params={**params, "head": {**params["head"], "bias": bias}})

    return write_run(tmp_path_factory.mktemp("runs") / "run", RECIPE, (32, 48, 3), ("cat", "dog"), change=spread)


def test_predict_draws_prints_and_writes_boxes(run, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    files = [str(tmp_path / f"{name}.png") for name in ("7", "photo")]
    for file in files:
        Image.fromarray(pixels).save(file)
    out, coco = tmp_path / "out", tmp_path / "results.json"
    words = ["predict", str(run), *files, "--out", str(out), "--score", "0.1"]
    assert main([*words, "--coco", str(coco), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["predictions"] == rows[1]["predictions"] != []
    assert {row["class"] for row in rows[0]["predictions"]} == {"cat", "dog"}
    first = rows[0]["predictions"][0]
    assert first["score"] == max(row["score"] for row in rows[0]["predictions"])
    assert rows[0]["files"] == [str(out / "7_boxes.png")]
    drawn = np.asarray(Image.open(out / "7_boxes.png"))
    assert drawn.shape == pixels.shape
    assert (drawn != pixels).any()
    results = json.loads(coco.read_text())
    assert [row["image_id"] for row in results] == [7] * (len(results) // 2) + ["photo"] * (len(results) // 2)
    left, top, right, bottom = first["box"]
    np.testing.assert_allclose(results[0]["bbox"], [left, top, right - left, bottom - top], atol=0.01)
    assert main([*words, "--class-agnostic"]) == 0
    assert "box: x1, y1, x2, y2" in capsys.readouterr().out
    agnostic = predict(run, [Path(files[0])], score=0.1, class_agnostic=True)[0]
    assert 0 < len(agnostic.classes) < len(rows[0]["predictions"])
    assert agnostic.files == ()
    assert main([*words, "--score", "2"]) == 2
    assert "--score is 2; it must be at least 0 and at most 1" in capsys.readouterr().err
    assert main(["predict", str(run), files[0], "--out", str(tmp_path / "table.csv")]) == 2
    assert "the network predicts boxes; name a folder" in capsys.readouterr().err
