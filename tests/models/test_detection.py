"""Detectors: choosing, matching and drawing boxes, losses on padded targets, and weights."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from resnet_jax.errors import InputError
from resnet_jax.models.backbone import with_fields
from resnet_jax.models.detection.boxes import decode, decode_distances, encode, encode_distances, pairwise_iou
from resnet_jax.models.detection.matching import match, sample, sample_balanced
from resnet_jax.models.detection.nms import select, suppress
from resnet_jax.models.detection.objects import Objects
from resnet_jax.models.detection.roi_align import box_levels, roi_align
from resnet_jax.models.zoo import MODELS
from resnet_jax.recipe import Model
from resnet_jax.training.network import build_network
from resnet_jax.weights.entries import WEIGHTS
from resnet_jax.weights.load import create_model, load
from resnet_jax.weights.names import abstract_variables, to_state_dict
from resnet_jax.weights.tensors import write_tensors

TINY = {"depths": (1, 1), "width": 4}


def small(name="retinanet_resnet18_fpn", **fields):
    """A detector of one level for images of 32x32 pixels."""
    sizes = {"retinanet": ((8, 10),), "fcos": (8,), "fasterrcnn": (8, 16, 32)}[name.split("_")[0]]
    fields = {"num_classes": 3, "input_shape": (32, 32, 3), "anchor_sizes": sizes, **TINY, **fields}
    model = with_fields(MODELS[name], **fields)
    return model.clone(pyramid_width=32, **({} if name.startswith("faster") else {"head_depth": 1, "extra": "none"}))


def random_boxes(count, seed=0):
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 30, (count, 2))
    return np.concatenate([corners, corners + random.uniform(4, 20, (count, 2))], 1).astype(np.float32)


def greedy(boxes, labels, valid, threshold):
    """What suppression is defined as."""
    iou, keep = np.asarray(pairwise_iou(boxes, boxes)), []
    for i in range(len(boxes)):
        if valid[i] and not any(labels[i] == labels[j] and iou[j, i] > threshold for j in keep):
            keep.append(i)
    return np.isin(np.arange(len(boxes)), keep)


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5])
def test_suppression_is_the_greedy_choice(threshold):
    # Of more than one block
    boxes, random = random_boxes(300), np.random.default_rng(1)
    labels, valid = random.integers(0, 40, 300), random.random(300) > 0.2
    best = greedy(boxes, labels, valid, threshold)
    kept = jax.jit(suppress, static_argnums=(3, 4))(boxes, labels, valid, threshold, None)
    np.testing.assert_array_equal(kept, best)
    assert np.flatnonzero(kept)[-1] > 200
    assert kept.sum() < valid.sum()
    # The blocks after the first are not needed
    few = jax.jit(suppress, static_argnums=(3, 4))(boxes, labels, valid, threshold, 5)
    np.testing.assert_array_equal(few, best & (np.arange(300) < 256))


def test_a_chain_of_overlaps_takes_as_many_rounds_as_it_is_long():
    boxes = np.array([[i, 0, i + 4, 4] for i in range(12)], np.float32)
    kept = suppress(jnp.array(boxes), jnp.zeros(12, int), jnp.ones(12, bool), 0.5)
    assert kept.tolist() == [True, False] * 6


def test_detections_are_padded_and_fall():
    boxes = jnp.array([[0.0, 0, 4, 4], [0, 0, 4, 5], [20, 20, 30, 30]])
    found = select(boxes, jnp.array([0.3, 0.9, -jnp.inf]), jnp.array([1, 1, 2]), 0.5, 4)
    assert found.labels.tolist() == [1, -1, -1, -1]
    np.testing.assert_allclose(found.scores, [0.9, 0, 0, 0])
    np.testing.assert_allclose(found.boxes[0], boxes[1])
    assert not found.boxes[1:].any()


def test_boxes_of_other_classes_are_suppressed_if_asked():
    boxes = jnp.array([[0.0, 0, 4, 4], [0, 0, 4, 5]])
    labels = [
        select(boxes, jnp.array([0.3, 0.9]), jnp.array([1, 2]), 0.5, 2, class_agnostic=agnostic).labels.tolist()
        for agnostic in (False, True)
    ]
    assert labels == [[2, 1], [2, -1]]


def test_coding_there_and_back():
    boxes, anchors = random_boxes(40), random_boxes(40, seed=2)
    weights = (10.0, 10.0, 5.0, 5.0)
    np.testing.assert_allclose(decode(encode(boxes, anchors, weights), anchors, weights), boxes, atol=1e-4)
    np.testing.assert_allclose(decode_distances(encode_distances(boxes, anchors), anchors), boxes, atol=1e-4)


def test_anchors_learn_their_best_box_and_every_box_is_learnt():
    anchors = jnp.array([[0.0, 0, 10, 10], [0, 0, 10, 7], [0, 0, 10, 4.4], [50, 50, 60, 60], [0, 0, 3, 3]])
    boxes = jnp.array([[0.0, 0, 10, 10], [50, 50, 75, 60], [0, 0, 3, 3]])
    real = jnp.array([True, True, False])
    options = {"high": 0.5, "low": 0.4}
    # The fourth overlaps the second box by 0.4 alone, but no anchor does better; the last box is padding
    assert match(anchors, boxes, real, **options, low_quality=True).tolist() == [0, 0, -2, 1, -1]
    assert match(anchors, boxes, real, **options, low_quality=False).tolist() == [0, 0, -2, -2, -1]
    assert match(anchors, boxes, jnp.zeros(3, bool), **options, low_quality=True).tolist() == [-1] * 5


def test_drawing_is_a_function_of_the_key():
    candidates = jnp.arange(50) % 2 == 0
    drawn = sample(jax.random.key(0), candidates, 10)
    assert drawn.sum() == 10
    assert not (drawn & ~candidates).any()
    assert (drawn == sample(jax.random.key(0), candidates, 10)).all()
    assert (drawn != sample(jax.random.key(1), candidates, 10)).any()
    assert (sample(jax.random.key(0), candidates, 99) == candidates).all()
    labels = jnp.array([1, 2, 0, 0, 0, 0, -1, -1])
    foreground, background = sample_balanced(jax.random.key(0), labels, 4, 0.25)
    assert (foreground.sum(), background.sum()) == (1, 3)
    assert not (foreground & (labels <= 0)).any()
    assert not (background & (labels != 0)).any()


def test_features_of_boxes():
    ramp = jnp.arange(16.0)
    maps = [jnp.stack(jnp.meshgrid(ramp, ramp, indexing="ij"), -1), jnp.full((8, 8, 2), 99.0)]
    (found,) = roi_align(maps, jnp.array([[8.0, 16.0, 36.0, 44.0]]))
    # Pixel of the first level i is sampled at its corner, as torchvision's
    np.testing.assert_allclose(found[:, 0, 0], 4 + 0.5 + jnp.arange(7), atol=1e-5)
    np.testing.assert_allclose(found[0, :, 1], 2 + 0.5 + jnp.arange(7), atol=1e-5)
    # Of a box at the edge the last points are outside
    (found,) = roi_align(maps, jnp.array([[62.0, 0.0, 64.0, 64.0]]), 1)
    np.testing.assert_allclose(found[0, 0, 1], 15 / 2, atol=1e-5)
    boxes = jnp.array([[0.0, 0, 10, 10], [0, 0, 223, 223], [0, 0, 224, 224], [0, 0, 900, 900]])
    assert box_levels(boxes, 2, 5).tolist() == [0, 1, 2, 3]


def padded_targets():
    boxes = np.zeros((2, 3, 4), np.float32)
    boxes[0, :2], labels = [[2, 3, 13, 11], [14, 10, 30, 28]], np.array([[2, 0, -1], [-1, -1, -1]])
    return Objects(jnp.array(boxes), jnp.array(labels), jnp.zeros((2, 3), bool), jnp.zeros((2, 3)), jnp.ones(2))


@pytest.mark.parametrize(
    "name",
    [
        "retinanet_resnet18_fpn",
        pytest.param("retinanet_resnet50_fpn_v2", marks=pytest.mark.slow),
        pytest.param("fcos_resnet50_fpn", marks=pytest.mark.slow),
    ],
)
def test_losses_do_not_see_padding_and_have_finite_gradients(name):
    model = small(name)
    x = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    variables = jax.jit(model.init)(jax.random.key(1), x)
    targets = padded_targets()

    def loss(params, targets):
        values, weights = model.apply({**variables, "params": params}, x).losses(targets)
        return values.sum() / weights.sum(), (values, weights)

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, (values, weights)), grads = run(variables["params"], targets)
    assert values.shape == weights.shape == (2,)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert jnp.abs(grads["box_head"]["kernel"]).max() > 0
    wild = jnp.where(targets.labels[..., None] < 0, jnp.array([5.0, 5, 4, 1]), targets.boxes)
    (_, (again, _)), _ = run(variables["params"], targets._replace(boxes=wild))
    np.testing.assert_allclose(again, values, rtol=1e-5)


@pytest.mark.slow
def test_two_stages_draw_by_key_and_row():
    model = small("fasterrcnn_resnet50_fpn", hidden=8, proposals=(40, 30), train_proposals=(40, 30))
    # Of 32 x 32 pixels there are 252 anchors, and all of them would be drawn
    x = jax.random.normal(jax.random.key(0), (2, 48, 48, 3))
    variables, targets = jax.jit(model.init)(jax.random.key(1), x), padded_targets()

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def run(params, x, targets, rows, key):
        variables_ = {**variables, "params": params}
        outputs = model.apply(variables_, x, train=True, rows=rows, targets=targets, rngs={"dropout": key})
        return outputs.losses(targets)[0].sum(), outputs

    key, rows = jax.random.key(2), jnp.arange(2)
    (value, outputs), grads = run(variables["params"], x, targets, rows, key)
    assert jnp.isfinite(value)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert jnp.abs(grads["rpn"]["conv1"]["kernel"]).max() > 0
    # In another place of the batch an image draws the same
    turned = jax.tree.map(lambda leaf: leaf[::-1], (x, targets, rows))
    (_, other), _ = run(variables["params"], *turned, key)
    np.testing.assert_array_equal(other.sampled[::-1], outputs.sampled)
    np.testing.assert_allclose(other.proposals[::-1], outputs.proposals, atol=1e-4)
    (_, other), _ = run(variables["params"], x, targets, rows, jax.random.key(3))
    assert (other.sampled != outputs.sampled).any()
    assert outputs.sampled[0].sum() <= 256


def test_a_larger_canvas_changes_most_near_its_edge():
    """Zeros below are no zeros after the first normalisation, as in torchvision: the canvas is not without effect."""
    model = small()
    x = jax.random.normal(jax.random.key(0), (1, 32, 32, 3))
    variables = jax.jit(model.init)(jax.random.key(1), x)
    apply = jax.jit(model.apply)
    near, far = (apply(variables, jnp.pad(x, ((0, 0), (0, below), (0, 0), (0, 0)))) for below in (0, 32))
    count = near.anchors[0].shape[1]
    np.testing.assert_array_equal(near.anchors[0], far.anchors[0][:, :count])
    change = jnp.abs(near.logits[0] - far.logits[0][:, :count])
    assert 0 < change[:, : count // 4].mean() < change[:, -count // 4 :].mean()


def write(path, variables, model=None):
    flat = traverse_util.flatten_dict(variables, sep="/")
    write_tensors(path, to_state_dict(model, variables) if model else flat)
    return str(path)


def random_variables(model):
    random, shapes = np.random.default_rng(0), abstract_variables(model)
    return jax.tree.map(lambda leaf: random.uniform(0.5, 1.5, leaf.shape).astype(np.float32), shapes)


@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"])
@pytest.mark.parametrize("style", ["torchvision", "flax"])
def test_another_number_of_classes_replaces_the_predictor(name, style, tmp_path):
    model = small(name)
    file = write(tmp_path / "w.safetensors", random_variables(model), model if style == "torchvision" else None)
    assert load(model, file).notes == ()
    (note,) = (loaded := load(model.clone(num_classes=5), file)).notes
    assert note == f"{file}: its head for 3 classes is dropped; a new one for 5 is initialised"
    leaves = traverse_util.flatten_dict(loaded.variables["params"])
    assert not any("head" in path for path in leaves)


@pytest.mark.parametrize("style", ["torchvision", "flax"])
def test_a_classifier_fills_a_frozen_backbone(style, tmp_path):
    classifier = create_model("resnet50", **TINY, num_classes=7)
    variables = random_variables(classifier)
    file = write(tmp_path / "resnet.safetensors", variables, classifier if style == "torchvision" else None)
    loaded = load(small("retinanet_resnet50_fpn"), file)
    assert loaded.notes == (f"{file}: fills the backbone; the other layers of the RetinaNet are initialised",)
    stem = loaded.variables["batch_stats"]["backbone"]["stem"]["norm"]
    np.testing.assert_array_equal(stem["scale"], variables["params"]["stem"]["norm"]["scale"])
    np.testing.assert_array_equal(stem["var"], variables["batch_stats"]["stem"]["norm"]["var"])
    assert "norm" not in loaded.variables["params"]["backbone"]["stem"]


def test_recipes_describe_detectors():
    fields = {"norm": "BatchNorm", "box_loss": "giou", "extra": "none", "head_depth": 2, "anchor_sizes": ((16,), (32,))}
    network = build_network(Model(name="retinanet_resnet50_fpn", fields=fields, norm_group_size=2), 4)
    assert (network.box_loss, network.extra, network.anchor_sizes) == ("giou", "none", ((16,), (32,)))
    assert network.backbone.norm.keywords["group"] == 2
    with pytest.raises(InputError, match="box_loss is 'l2'; take one of l1, giou"):
        build_network(Model(name="retinanet_resnet50_fpn", fields={"box_loss": "l2"}), 4)
    with pytest.raises(InputError, match="retinanet_resnet50_fpn has no BatchNorm"):
        build_network(Model(name="retinanet_resnet50_fpn", norm_group_size=2), 4)


def test_published_weights_say_their_classes():
    for name in ("retinanet_resnet50_fpn", "fasterrcnn_resnet50_fpn"):
        entry = WEIGHTS[f"{name}.tv_coco"]
        assert entry.classes == MODELS[name].num_classes == len(entry.class_names)
        assert entry.fields == (("norm", "FrozenBatchNorm_0"),)
    assert entry.class_names[:2] == ("person", "bicycle")
