"""COCO's metric against pycocotools, and by hand."""

import contextlib
import io

import jax
import numpy as np
import pytest
from boxes import CLASSES, DATA, STATE, Read, Reader, source_of, written_images

from resnet_jax.data.formats.packing import packed
from resnet_jax.data.formats.shards import pack, unpack
from resnet_jax.data.image import Preprocessing
from resnet_jax.data.objects import StoredObjects
from resnet_jax.data.source import RawExample, from_raw
from resnet_jax.input_pipeline.device_input import open_device_split
from resnet_jax.models.detection.nms import Detections
from resnet_jax.models.detection.objects import make_objects
from resnet_jax.parallel.sharding import data_mesh, replicate
from resnet_jax.tasks.coco import NAMES, Found, as_coco, keep_boxes, match_objects, rank
from resnet_jax.tasks.detection import detection
from resnet_jax.tasks.task import select_metrics
from resnet_jax.training.evaluate import evaluate_split, make_eval_step

pytest.importorskip("faster_coco_eval")


def found(images, classes=2, scale=1.0):
    """Return `Found` of images, each (detections [(box, score, label)], objects [(box, label, crowd)])."""
    n, d, m = len(images), max(len(a) for a, _ in images) + 1, max(len(b) for _, b in images) + 1
    one = Found(
        *(np.zeros((n, d, 4), np.float32), np.zeros((n, d), np.float32), np.full((n, d), -1)),
        *(np.zeros((n, m, 4), np.float32), np.full((n, m), -1), np.zeros((n, m), bool), np.zeros((n, m), np.float32)),
        *(np.full(n, scale, np.float32), np.full(n, classes)),
    )
    for i, (detections, objects) in enumerate(images):
        for j, (box, score, label) in enumerate(detections):
            one.boxes[i, j], one.scores[i, j], one.labels[i, j] = box, score, label
        for j, (box, label, crowd) in enumerate(objects):
            one.true_boxes[i, j], one.true_labels[i, j], one.crowd[i, j] = box, label, crowd
            one.area[i, j] = (box[2] - box[0]) * (box[3] - box[1]) / scale**2
    return one


BOX, HALF, AWAY = (0, 0, 40, 40), (0, 0, 40, 20), (100, 100, 140, 140)


def test_by_hand():
    # Found exactly
    assert rank(found([([(BOX, 0.9, 0)], [(BOX, 0, False)])])).numbers["ap"] == pytest.approx(1)
    # An overlap of exactly .5 counts at the first of ten thresholds
    half = rank(found([([(HALF, 0.9, 0)], [(BOX, 0, False)])])).numbers
    assert (half["ap"], half["ap50"], half["ap75"]) == pytest.approx((0.1, 1, 0))
    # A better false detection: precision 1/2 at every recall. One detection an image finds nothing
    false = rank(found([([(AWAY, 0.9, 0), (BOX, 0.8, 0)], [(BOX, 0, False)])])).numbers
    assert (false["ap"], false["ar1"], false["ar10"]) == pytest.approx((0.5, 0, 1))
    # One of two objects: precision 1 up to recall .5, of which there are 51 points of 101
    one_of_two = rank(found([([(BOX, 0.9, 0)], [(BOX, 0, False), (AWAY, 0, False)])])).numbers
    assert (one_of_two["ap"], one_of_two["ar100"]) == pytest.approx((51 / 101, 0.5))
    # What lies in a crowd is no mistake; a class without objects does not count, nor does it for a size
    crowd = rank(found([([(BOX, 0.9, 0), (AWAY, 0.95, 0), (AWAY, 0.5, 1)], [(BOX, 0, False), (AWAY, 0, True)])]))
    assert crowd.numbers["ap"] == pytest.approx(1)
    assert crowd.numbers["ap_small"] is None
    assert np.isnan(crowd.class_ap()[1])
    assert crowd.class_ap()[0] == crowd.class_ap(overlap=0.5)[0] == pytest.approx(1)


def test_nothing_to_find_is_zero():
    assert rank(found([([], []), ([(BOX, 0.9, 0)], [])])).numbers["ap"] == 0
    assert rank(found([([], [(BOX, 0, False)])])).numbers["ap"] == 0


def test_sizes_are_those_of_the_image():
    # 40 x 40 on a canvas of twice the scale is 20 x 20 in the image, which is small
    numbers = rank(found([([(BOX, 0.9, 0)], [(BOX, 0, False)])], scale=2)).numbers
    assert (numbers["ap_small"], numbers["ap_medium"]) == (pytest.approx(1), None)


@pytest.mark.parametrize("size", [(24, 32), (48, 64), (96, 128), (50, 50)])
@pytest.mark.parametrize("prepared", [False, True])
def test_sizes_are_those_of_the_file_whatever_the_canvas_is(size, prepared):
    """An object of 1,024 pixels is small and medium, as pycocotools has it, and a false detection counts if it is."""
    objects = make_objects([[4, 8, 36, 40], [40, 0, 54, 10]], [0, 1], area=[1024, 140])
    raw = RawExample(np.zeros((48, 64, 3), np.uint8), StoredObjects(objects, "there"), "", "there")
    if prepared:
        raw = unpack(pack(packed(raw, 36, 90)), "there")
    source = from_raw(1, CLASSES, lambda _: raw, Preprocessing(image_size=size, crop_mode="border"))
    target = detection(max_objects=3).targets.cast(source).read(0).target
    # Both are found, and of each class there is a better false detection: 14 x 10 and 31 x 31 in the file
    boxes = target.boxes[[0, 1, 1, 0]][None]
    boxes[0, 3, 2:] -= target.scale
    guessed = Detections(boxes, np.array([[0.5, 0.5, 0.9, 0.9]]), np.array([[0, 1, 0, 1]]))
    batch = jax.tree.map(lambda leaf: np.asarray(leaf)[None], target)
    numbers = rank(jax.device_get(keep_boxes(Read(guessed, 3), batch, np.ones(1, bool)))).numbers
    sizes = [numbers[name] for name in ("ap", "ap_small", "ap_medium", "ap_large")]
    assert sizes == pytest.approx([0.5, 0.5, 1, None])


def generated(n=500, classes=7, seed=0):
    """Return images with up to 8 objects and 110 detections: many near objects, scores with ties, crowds, a class
    without objects and one without detections, images without either, and some with more than count."""
    rng = np.random.default_rng(seed)
    m, d = 8, 110
    sides = np.exp(rng.uniform(np.log(8), np.log(200), (n, m, 2)))
    corner = rng.uniform(0, 400, (n, m, 2))
    true = np.concatenate([corner, corner + sides], -1).astype(np.float32)
    labels = rng.integers(0, classes - 1, (n, m))
    labels[rng.random((n, m)) < 0.4] = -1
    labels[:20] = -1
    source = rng.integers(0, m, (n, d))
    boxes = np.take_along_axis(true, source[..., None], 1) + rng.normal(0, 6, (n, d, 4)).astype(np.float32)
    boxes = np.concatenate([np.minimum(boxes[..., :2], boxes[..., 2:]), np.maximum(boxes[..., :2], boxes[..., 2:])], -1)
    others = rng.integers(1, classes, (n, d))
    guessed = np.where(rng.random((n, d)) < 0.7, np.take_along_axis(labels, source, 1), others)
    guessed[guessed == 0] = -1
    guessed[rng.random((n, d)) < rng.uniform(0.6, 1, (n, 1))] = -1
    guessed[10:30] = -1
    guessed[30:33] = 1
    scores = np.round(rng.random((n, d)), 2).astype(np.float32)
    area = (sides.prod(-1) * rng.uniform(0.5, 1, (n, m))).astype(np.float32)
    crowd = rng.random((n, m)) < 0.1
    return Found(boxes, scores, guessed, true, labels, crowd, area, np.ones(n, np.float32), np.full(n, classes))


def test_equals_pycocotools_on_500_images():
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    data = generated()
    ours = rank(data)
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = []
        for table in as_coco(data):
            one = coco.COCO()
            one.dataset = table
            one.createIndex()
            theirs.append(one)
        judge = cocoeval.COCOeval(*theirs, "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    np.testing.assert_allclose([ours.numbers[name] for name in NAMES], judge.stats, rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours.precision, judge.eval["precision"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours.recall, judge.eval["recall"], rtol=0, atol=1e-12)
    # All of what could go wrong is there
    assert min(judge.stats) > 0.01
    assert (ours.precision[..., 6, 0, 2] == -1).all()
    assert (ours.recall[:, 0, 0, 2] == 0).all()


def test_equal_scores_are_ranked_by_image_and_then_by_index():
    wrong, right, there = (AWAY, 0.9, 0), (BOX, 0.9, 0), [(BOX, 0, False)]
    assert rank(found([([wrong, right], there)])).numbers["ap"] == pytest.approx(0.5)
    assert rank(found([([right, wrong], there)])).numbers["ap"] == pytest.approx(1)
    assert rank(found([([wrong], []), ([right], there)])).numbers["ap"] == pytest.approx(0.5)
    assert rank(found([([right], there), ([wrong], [])])).numbers["ap"] == pytest.approx(1)


def test_ties_do_not_depend_on_the_order_of_what_is_padded():
    data = generated(40, seed=1)
    order = np.argsort(-data.scores, 1, kind="stable")
    moved = data._replace(
        boxes=np.take_along_axis(data.boxes, order[..., None], 1),
        scores=np.take_along_axis(data.scores, order, 1),
        labels=np.take_along_axis(data.labels, order, 1),
    )
    assert rank(moved).numbers == rank(data).numbers


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 7), (8, 9)])
def test_evaluation_equals_the_metric_of_all_boxes_at_once(devices, batch_size):
    random = np.random.default_rng(0)
    corner, side = random.integers(0, 60, (2, 30, 6, 2))
    boxes, labels = np.concatenate([corner, corner + side + 1], -1), random.integers(0, 3, (30, 6))
    guessed = np.clip(boxes + random.integers(0, 3, boxes.shape), 0, 255)
    # Few different scores, and one detection in seven is padding
    percent = random.integers(1, 4, (30, 6))
    said = np.where(random.random((30, 6)) < 1 / 7, -1, labels)
    source = source_of(written_images(guessed, percent, said), boxes, labels)
    task, mesh = detection(max_objects=8), data_mesh(devices)
    metrics = select_metrics(task, ("coco", "class_ap"))
    step = make_eval_step(Reader(), DATA, mesh, metrics)
    values = evaluate_split(
        step, metrics, replicate(STATE, mesh), open_device_split(task.targets.cast(source), mesh), batch_size
    )
    everything = Found(
        *(guessed, percent / np.float32(100), said, boxes, labels, np.zeros((30, 6), bool)),
        *((side + 1.0).prod(-1), np.ones(30), np.full(30, 3)),
    )
    whole = rank(everything)
    assert {name: values[name] for name in NAMES} == whole.numbers
    assert [values[f"class_ap.{name}"] for name in "abc"] == whole.class_ap().tolist()
    assert 0.1 < values["ap"] < 0.9
    assert values["count"] == 30


def test_matches_are_those_of_the_metric():
    """The recall of a class at .5 follows from the hits, if no image has more than 100 detections."""
    data = generated(60, seed=2)
    few = (data.labels == 1) & ((data.labels == 1).sum(1, keepdims=True) <= 100)
    data = data._replace(labels=np.where(few, 1, -1))
    hits, counted = match_objects(data)
    objects = ((data.true_labels == 1) & ~data.crowd).sum()
    assert 0 < hits.sum() < objects
    assert not (hits & ~counted).any()
    assert not counted.all()
    np.testing.assert_allclose(rank(data).recall[0, 1, 0, 2], hits.sum() / objects, rtol=1e-12)
