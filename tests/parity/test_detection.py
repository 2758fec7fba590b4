"""Detectors against torchvision's, with random numbers in every parameter, on photographs.

torchvision's compiled operators do not load beside torch's CPU build: its non-maximum suppression is written in Python.
"""

import sys
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torchvision
from flax import traverse_util
from PIL import Image
from scipy.optimize import linear_sum_assignment

from resnet_jax.models.backbone import with_fields
from resnet_jax.models.detection import boxes as ours_boxes
from resnet_jax.models.detection.objects import Objects
from resnet_jax.models.detection.roi_align import roi_align
from resnet_jax.models.zoo import MODELS
from resnet_jax.runtime.compiler_options import compiler_options
from resnet_jax.weights.load import load
from resnet_jax.weights.names import abstract_variables, from_torch, to_state_dict, torch_names
from resnet_jax.weights.tensors import write_tensors

CLASSES = 7
NAMES = ("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn")
DEPTHS = (1, 1, 1, 1)
# Our names of what heads say, and torchvision's
HEADS = {"logits": "cls_logits", "deltas": "bbox_regression", "centredness": "bbox_ctrness"}
MEAN, STD = (np.array(x, np.float32) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


@pytest.fixture(autouse=True)
def _python_nms(monkeypatch):
    def nms(boxes, scores, threshold):
        iou, keep, gone = torchvision.ops.box_iou(boxes, boxes), [], torch.zeros(len(boxes), dtype=torch.bool)
        for i in scores.argsort(descending=True, stable=True).tolist():
            if not gone[i]:
                keep.append(i)
                gone |= iou[i] > threshold
        return torch.tensor(keep, dtype=torch.long)

    monkeypatch.setattr(torchvision.ops.boxes, "nms", nms)
    pooling = sys.modules["torchvision.ops.roi_align"]
    # Not compiled by torch
    monkeypatch.setattr(pooling, "_roi_align", getattr(pooling._roi_align, "__wrapped__", pooling._roi_align))
    plain = pooling._bilinear_interpolate

    def interpolate(maps, numbers, y, x, *masks):
        # The operators take points outside the map as 0, their form in Python does not
        inside = [(at >= -1) & (at <= size) for at, size in zip((y, x), maps.shape[2:], strict=True)]
        inside = inside[0][:, None, :, None, :, None] & inside[1][:, None, None, :, None, :]
        return torch.where(inside, plain(maps, numbers, y, x, *masks), 0)

    monkeypatch.setattr(pooling, "_bilinear_interpolate", interpolate)


def shallow(name):
    """Ours and torchvision's detector with one block a stage; scores spread over all of 0 to 1."""
    build = torchvision.models.detection.__dict__[name]
    network = build(weights=None, weights_backbone=None, num_classes=CLASSES, min_size=1, max_size=10**6)
    for i in range(1, 5):
        layer = network.backbone.body[f"layer{i}"]
        network.backbone.body[f"layer{i}"] = torch.nn.Sequential(layer[0])
    model = with_fields(MODELS[name], depths=DEPTHS, num_classes=CLASSES, input_shape=(64, 64, 3))
    if "v2" not in name:
        freeze(network.backbone.body)
    return model, network


def freeze(module):
    """Put torchvision's frozen normalisation in place of each other one."""
    for name, child in module.named_children():
        if isinstance(child, torch.nn.BatchNorm2d):
            setattr(module, name, torchvision.ops.FrozenBatchNorm2d(child.num_features))
        else:
            freeze(child)


def spread(network, randomize):
    """Random numbers everywhere, and heads under which some anchors of each level are boxes of some class."""
    randomize(network)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if "cls_score" in name and name.endswith("weight"):
                tensor.mul_(3.0)
            if "cls_logits" in name:
                tensor.mul_(3.0) if name.endswith("weight") else tensor.fill_(-4.0)
            if "bbox" in name:
                tensor.mul_(0.3)
            # Otherwise the sums of the pyramid grow from level to level
            if ".fpn." in name and name.endswith("weight"):
                tensor.mul_(0.6)
    return network


def variables_of(model, state):
    names, expected = torch_names(model), traverse_util.flatten_dict(abstract_variables(model))
    assert {name for name in state if not name.endswith("num_batches_tracked")} == set(names.values())
    leaves = {p: from_torch(p, state[name].numpy().copy(), len(expected[p].shape)) for p, name in names.items()}
    assert {p: leaf.shape for p, leaf in leaves.items()} == {p: leaf.shape for p, leaf in expected.items()}
    return traverse_util.unflatten_dict(leaves)


@lru_cache
def photos(folder, count, longest):
    """Photographs as float32 (h, w, 3) from 0 to 1, the longer side `longest`."""
    files = sorted((folder / "hymenoptera" / "val").rglob("*.jpg"))[:count]
    assert len(files) == count
    images = []
    for file in files:
        image = Image.open(file).convert("RGB")
        image.thumbnail((longest, longest))
        images.append(np.asarray(image, np.float32) / 255)
    return images


def canvas_of(images, side):
    """The batch that torchvision's transform makes: normalised, then zeros up to a square that all photos share.

    One size for all, as each size would be compiled on its own.
    """
    batch = np.zeros((len(images), side, side, 3), np.float32)
    for place, image in zip(batch, images, strict=True):
        place[: image.shape[0], : image.shape[1]] = (image - MEAN) / STD
    return batch, np.array([image.shape[:2] for image in images])


def targets_for(images, seed=0):
    """Two to four boxes per image, for torchvision and, padded, for us."""
    random, theirs = np.random.default_rng(seed), []
    shape = len(images), 6
    padded = Objects(np.zeros((*shape, 4), np.float32), np.full(shape, -1), np.zeros(shape, bool), np.zeros(shape))
    for i, image in enumerate(images):
        count, (height, width) = 2 + i % 3, image.shape[:2]
        corners = random.uniform(0, 0.7, (count, 2)) * (width, height)
        sizes = random.uniform(0.1, 0.3, (count, 2)) * (width, height)
        boxes = np.concatenate([corners, corners + sizes], 1).astype(np.float32)
        labels = random.integers(1, CLASSES, count)
        padded.boxes[i, :count], padded.labels[i, :count] = boxes, labels
        theirs.append({"boxes": torch.tensor(boxes), "labels": torch.tensor(labels)})
    return theirs, padded


def torch_images(images):
    return [torch.tensor(image.transpose(2, 0, 1).copy()) for image in images]


def leave_sizes(network, side):
    """Let torchvision pad the photos to a square of this side, and not resize them."""
    network.transform.resize = lambda image, target=None: (image, target)
    network.transform.size_divisible = side


def run_theirs(network, images):
    """Head outputs and anchors of torchvision's detector, and what it detects from these in float64."""
    seen = {}

    def see_heads(module, args, out):
        seen.update(out)
        return {key: tensor.double() for key, tensor in out.items()}

    def see_anchors(module, args, out):
        seen.update(anchors=out)
        return [tensor.double() for tensor in out]

    hooks = [
        network.head.register_forward_hook(see_heads),
        network.anchor_generator.register_forward_hook(see_anchors),
    ]
    with torch.no_grad():
        found = network.eval()(torch_images(images))
    for hook in hooks:
        hook.remove()
    return seen, found


@partial(jax.jit, static_argnums=1, compiler_options=compiler_options())
def detect(outputs, candidates):
    return outputs.detect(candidates=candidates)


@partial(jax.jit, static_argnums=0, compiler_options=compiler_options())
def outputs_and_losses(model, variables, batch, sizes, padded):
    outputs = model.apply(variables, batch, image_sizes=sizes)
    return outputs, outputs.loss_parts(padded)


@partial(jax.jit, static_argnums=0, compiler_options=compiler_options())
def two_stages(model, variables, batch, sizes, padded):
    outputs = model.apply(variables, batch, image_sizes=sizes)
    rngs = {"dropout": jax.random.key(0)}
    drawn = model.apply(variables, batch, image_sizes=sizes, targets=padded, rngs=rngs)
    return outputs, outputs.detect(), drawn, drawn.loss_parts(padded)


def detect_in_double(outputs, heads, candidates):
    """What we detect, in float64, if the heads say what torchvision's do.

    In float32, which of two scores is higher and whether boxes overlap too much would now and then be decided by
    rounding, and with one box all that it suppresses.
    """
    ends = np.cumsum([level.shape[1] for level in outputs.logits])[:-1]
    given = {field: np.split(heads[key].numpy(), ends, 1) for field, key in HEADS.items() if key in heads}
    same = outputs.replace(**{field: tuple(levels) for field, levels in given.items()})
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), same)
        return jax.device_get(detect(exact, candidates))


def theirs_losses(network, images, targets):
    network.train()
    # Statistics of the running averages, as in the run that is compared
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    with torch.no_grad():
        return {name: float(value) for name, value in network(torch_images(images), targets).items()}


def assert_same_detections(ours, theirs, tolerance=1e-3):
    for i, found in enumerate(theirs):
        count = len(found["scores"])
        labels, wanted = np.asarray(ours.labels[i]), {key: tensor.numpy() for key, tensor in found.items()}
        assert count == (labels >= 0).sum()
        assert (labels[count:] == -1).all()
        np.testing.assert_allclose(ours.scores[i][:count], wanted["scores"], atol=1e-5)
        # Boxes of equal scores may be in another order, and some are there twice
        away = np.abs(wanted["boxes"][:, None] - np.asarray(ours.boxes[i])[None, :count]).max(-1)
        away += 1e6 * (wanted["labels"][:, None] != labels[None, :count])
        away += 1e6 * (np.abs(wanted["scores"][:, None] - ours.scores[i][None, :count]) > 1e-5)
        assert away[linear_sum_assignment(away)].max(initial=0) < tolerance


def compare(name, randomize, images, side, candidates=1000):
    model, network = shallow(name)
    spread(network, randomize)
    leave_sizes(network, side)
    state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    variables = variables_of(model, state)
    batch, sizes = canvas_of(images, side)
    targets, padded = targets_for(images)
    outputs, parts = jax.device_get(outputs_and_losses(model, variables, batch, sizes, padded))
    network.topk_candidates = candidates
    seen, found = run_theirs(network, images)
    for anchors in seen["anchors"]:
        np.testing.assert_array_equal(np.concatenate([level[0] for level in outputs.anchors]), anchors.numpy())
    for field, key in HEADS.items():
        if key not in seen:
            continue
        theirs = seen[key].numpy()
        np.testing.assert_allclose(
            np.concatenate(getattr(outputs, field), 1), theirs, atol=1e-4 * max(1, theirs.std()), err_msg=key
        )
    numbers = [len(one["scores"]) for one in found]
    assert min(numbers) > 20, "head weights under which hardly any box is found compare nothing"
    assert_same_detections(detect_in_double(outputs, seen, candidates), found, tolerance=1e-6)
    theirs = theirs_losses(network, images, targets)
    if name.startswith("fcos"):
        parts, counts = parts
        parts = {key: value.sum() / max(1, counts.sum()) for key, value in parts.items()}
    assert set(parts) == set(theirs)
    for key, value in parts.items():
        np.testing.assert_allclose(np.mean(value), theirs[key], rtol=1e-5, err_msg=key)
    return model, network, variables


def slowly(name):
    """The others are made of the same functions, and compared less often."""
    return pytest.param(name, marks=pytest.mark.slow if name != "retinanet_resnet50_fpn" else ())


@pytest.mark.parametrize("name", [slowly(name) for name in NAMES])
def test_anchors_heads_boxes_and_losses(name, randomize, real_data):
    # Of few candidates, as most of the time goes into code that is not optimised
    model, network, variables = compare(name, randomize, photos(real_data, 2, 160), 160, candidates=200)
    # There and back, by names of today
    back = {key: torch.tensor(value) for key, value in to_state_dict(model, variables).items()}
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    randomize(network, seed=1)
    network.load_state_dict(back, strict=True)
    for key, tensor in network.state_dict().items():
        assert key.endswith("num_batches_tracked") or torch.equal(tensor, before[key]), key


def test_pooled_boxes_equal_torchvisions():
    """Boxes are all over an image of 32 pixels, some without area, at its edges or beyond them."""
    random = np.random.default_rng(0)
    values = random.standard_normal((8, 8, 3), np.float32)
    boxes = np.sort(random.uniform(0, 32, (50, 2, 2)), 1).reshape(-1, 4).astype(np.float32)
    boxes[:10, 2:] = 32
    boxes[5:15, :2] = boxes[5:15, 2:]
    boxes[15:20, 2] = boxes[15:20, 0] + 1
    boxes[20:25, :2] -= 20
    pool = sys.modules["torchvision.ops.roi_align"]._roi_align
    rois = torch.tensor(np.concatenate([np.zeros((50, 1), np.float32), boxes], 1))
    theirs = pool(torch.tensor(values).permute(2, 0, 1)[None], rois, 0.25, 7, 7, 2, False)
    ours = jax.jit(roi_align)([jnp.asarray(values)], boxes)
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1).numpy(), atol=1e-5)


def compare_two_stages(name, randomize, images, side, proposals):
    build = torchvision.models.detection.__dict__[name]
    network = build(weights=None, weights_backbone=None, num_classes=CLASSES + 1, min_size=1, max_size=10**6)
    for i in range(1, 5):
        network.backbone.body[f"layer{i}"] = torch.nn.Sequential(network.backbone.body[f"layer{i}"][0])
    model = with_fields(MODELS[name], depths=DEPTHS, num_classes=CLASSES, input_shape=(64, 64, 3))
    model = model.clone(proposals=(proposals, proposals))
    network.rpn._pre_nms_top_n = network.rpn._post_nms_top_n = {"training": proposals, "testing": proposals}
    if "v2" not in name:
        freeze(network.backbone.body)
    spread(network, randomize)
    leave_sizes(network, side)
    # Guessed from the largest photo otherwise, which is wrong where the square is much larger
    levels = [torch.empty(1, 1, side // stride, side // stride) for stride in (4, 8, 16, 32)]
    pool = network.roi_heads.box_roi_pool
    pool.scales, pool.map_levels = torchvision.ops.poolers._setup_scales(levels, [(side, side)], 224, 4)
    variables = variables_of(model, network.state_dict())
    (batch, sizes), (targets, padded) = canvas_of(images, side), targets_for(images)
    outputs, detections, drawn, (sums, counts) = two_stages(model, variables, batch, sizes, padded)
    seen = {}
    network.rpn.head.register_forward_hook(lambda module, args, out: seen.update(heads=out))
    network.rpn.anchor_generator.register_forward_hook(lambda module, args, out: seen.update(anchors=out))
    with torch.no_grad():
        found = network.eval()(torch_images(images))
    np.testing.assert_array_equal(outputs.anchors[0], seen["anchors"][0].numpy())
    scores = [x.permute(0, 2, 3, 1).reshape(len(images), -1).numpy() for x in seen["heads"][0]]
    theirs = np.concatenate(scores, 1)
    np.testing.assert_allclose(outputs.objectness, theirs, atol=1e-4 * max(1, theirs.std()))
    assert min(len(one["scores"]) for one in found) > 10
    shifted = [{**one, "labels": one["labels"] - 1} for one in found]
    assert_same_detections(detections, shifted)
    # Which anchors and proposals are drawn is ours; what they cost is compared
    kinds = np.asarray(drawn.sampled)
    network.rpn.fg_bg_sampler = lambda labels: tuple(
        [(torch.tensor(k) & (label == kind)).to(torch.uint8) for k, label in zip(kinds, labels, strict=True)]
        for kind in (1, 0)
    )
    ours = [torch.tensor(np.asarray(p)[np.asarray(real)]) for p, real in zip(drawn.proposals, drawn.real, strict=True)]
    network.roi_heads.add_gt_proposals = lambda proposals, boxes: list(ours)
    network.roi_heads.fg_bg_sampler = lambda labels: (
        [torch.ones_like(label, dtype=torch.uint8) for label in labels],
        [torch.zeros_like(label, dtype=torch.uint8) for label in labels],
    )
    wanted = [{**target, "labels": target["labels"] + 1} for target in targets]
    losses = theirs_losses(network, images, wanted)
    totals = {name: counts[name in ("loss_classifier", "loss_box_reg")].sum() for name in sums}
    for key, value in sums.items():
        np.testing.assert_allclose(value.sum() / totals[key], losses[key], rtol=2e-5, err_msg=key)
    assert (np.asarray(counts[0]) == 256).all()
    return model, network, variables


@pytest.mark.parametrize("name", [slowly("fasterrcnn_resnet50_fpn"), slowly("fasterrcnn_resnet50_fpn_v2")])
def test_two_stages(name, randomize, real_data):
    model, network, variables = compare_two_stages(name, randomize, photos(real_data, 2, 160), 160, proposals=100)
    back = {key: torch.tensor(value) for key, value in to_state_dict(model, variables).items()}
    network.load_state_dict(back, strict=True)


# torchvision's operators in Python take minutes for 1,000 proposals of four photos
@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("fasterrcnn_resnet50_fpn", 20), ("fasterrcnn_resnet50_fpn_v2", 4)])
def test_two_stages_on_more_photos(name, count, randomize, real_data):
    images = photos(real_data, count, 320)
    for start in range(0, count, 4):
        compare_two_stages(name, partial(randomize, seed=start), images[start : start + 4], 320, proposals=100)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [(name, 4 if name.endswith("_v2") else 20) for name in NAMES])
def test_boxes_on_more_photos(name, count, randomize, real_data):
    images = photos(real_data, count, 320)
    for start in range(0, count, 4):
        compare(name, partial(randomize, seed=start), images[start : start + 4], 320)


def test_names_of_the_published_files(randomize, tmp_path):
    """Older files have neither the names nor the counters of today."""
    model, network = shallow("retinanet_resnet50_fpn")
    spread(network, randomize)
    old = {}
    for key, tensor in network.state_dict().items():
        for block in ("inner_blocks", "layer_blocks"):
            for i in range(3):
                key = key.replace(f"{block}.{i}.0.", f"{block}.{i}.")
        for i in range(4):
            key = key.replace(f"head.conv.{i}.0.", f"head.conv.{2 * i}.")
        old[key] = tensor.numpy()
    write_tensors(tmp_path / "old.safetensors", old)
    loaded = load(model, str(tmp_path / "old.safetensors"))
    assert loaded.notes == ()
    expected = variables_of(model, network.state_dict())
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, expected)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_box_coding(weights):
    random = np.random.default_rng(0)
    corners = random.uniform(0, 100, (50, 2)), random.uniform(0, 100, (50, 2))
    boxes, anchors = (np.concatenate([c, c + random.uniform(1, 60, (50, 2))], 1).astype(np.float32) for c in corners)
    coder = torchvision.models.detection._utils.BoxCoder(weights)
    codes = coder.encode_single(torch.tensor(boxes), torch.tensor(anchors)).numpy()
    np.testing.assert_allclose(ours_boxes.encode(jnp.array(boxes), jnp.array(anchors), weights), codes, atol=1e-5)
    wild = (codes * 9).astype(np.float32)
    theirs = coder.decode_single(torch.tensor(wild), torch.tensor(anchors)).numpy()
    np.testing.assert_allclose(ours_boxes.decode(jnp.array(wild), jnp.array(anchors), weights), theirs, rtol=1e-4)
