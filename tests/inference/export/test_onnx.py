"""Every network as an ONNX graph: the same outputs, with PyTorch's names and not more nodes than PyTorch has."""

from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from resnet_jax.errors import InputError
from resnet_jax.inference.export.check import compare
from resnet_jax.inference.export.fold import fold_batch_norm
from resnet_jax.inference.export.interface import Interface
from resnet_jax.inference.export.network import Network, reference
from resnet_jax.inference.export.onnx_file import load_onnx, write_onnx
from resnet_jax.models.backbone import backbone_of, takes_text, with_fields
from resnet_jax.models.detection.dense import DenseDetector
from resnet_jax.models.detection.faster_rcnn import FasterRCNN
from resnet_jax.models.detection.nms import Detections, select
from resnet_jax.models.detection.roi_align import roi_align
from resnet_jax.models.layers import ACTS, blur_pool
from resnet_jax.models.zoo import MODELS
from resnet_jax.recipe import Augment, Data, Model, Recipe
from resnet_jax.run_dir.files import DatasetInfo
from resnet_jax.tasks.classification import classification
from resnet_jax.training.setup import Parts, make_setup

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def small(model):
    """The network with few blocks and channels, for small inputs."""
    backbone = backbone_of(model)
    depths = (min(backbone.depths[0], 2), *(1 for _ in backbone.depths[1:]))
    shape = {2: (40, 1), 3: (40, 40, 3), 4: (4, 20, 20, 3)}[len(model.input_shape)]
    return with_fields(model, depths=depths, width=min(backbone.width, 32), num_classes=7, input_shape=shape)


def drawn(rng, name, shape):
    """Values like those of a trained network, none of them at its initial value."""
    if name == "kernel":
        return (rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1]))).astype(np.float32)
    low = {"scale": 0.5, "var": 0.5}.get(name, -0.2)
    return rng.uniform(low, low + 0.4, shape).astype(np.float32)


def network_of(model):
    shape = model.input_shape
    recipe = Recipe(
        model=Model(name="resnet8"), data=Data(name="", mean=(0.5,), std=(0.5,)), augment=Augment(crop_padding=0)
    )
    dataset = DatasetInfo(tuple("abcdefg"), shape, 1, "")
    setup = make_setup(recipe, dataset, 1, parts=Parts(model=model, task=classification()))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))
    variables = jax.tree_util.tree_map_with_path(lambda path, leaf: drawn(rng, path[-1].key, leaf.shape), shapes)
    return Network(setup, model, variables, fold_batch_norm(model, variables, shape))


def exported(model, **interface):
    network = network_of(model)
    content = write_onnx(network, Interface(**interface), {"network": "small"})
    pixels = np.random.default_rng(0).integers(0, 256, (2, *model.input_shape), np.uint8)
    images = ((pixels / 255 - 0.5) / 0.5).astype(np.float32)
    found = load_onnx(content)(pixels if interface.get("preprocess") else images)
    return content, compare(found, reference(network, Interface(**interface), pixels))


# Of random ones many scores are 1, and rounding ranks them: test_formats has smaller ones
DETECTORS = {name for name, model in MODELS.items() if isinstance(model, DenseDetector | FasterRCNN)}
FAMILIES = (
    "resnet20",
    "resnet18v2",
    "seresnext26d_32x4d",
    "resnetblur18",
    "ecaresnet26t",
    "resnetaa50",
    "resnetv2_50x1_bit",
    "mobilenet_v2",
    "r3d_18",
    "r2plus1d_18",
    "unet_resnet18",
    "deeplabv3_resnet50",
)


def slowly(name):
    """Those that take seconds are tested with the slow tests, but for a decoder."""
    quick = name in ("resnet20", "resnet18v2", "resnetblur18", "mobilenet_v2", "unet_resnet18")
    return pytest.param(name, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize("name", [slowly(name) for name in FAMILIES])
def test_a_network_of_each_family(name):
    _, difference = exported(small(MODELS[name]))
    assert difference.relative < 1e-5
    assert difference.same == 2


# Many networks are identical once they are small: one name for each that differs
DISTINCT = {small(model): name for name, model in MODELS.items() if name not in DETECTORS and not takes_text(model)}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*DISTINCT.values()} - {DISTINCT[small(MODELS[name])] for name in FAMILIES}))
def test_every_network(name):
    _, difference = exported(small(MODELS[name]))
    assert difference.relative < 1e-4
    assert difference.same == 2


def test_the_pool_of_a_network_of_text_is_refused_by_its_operation():
    with pytest.raises(InputError, match="^the network: ONNX export does not know the operation top_k .*; .*$"):
        exported(small(MODELS["vdcnn9"]))


class Chosen(NamedTuple):
    found: Detections

    def detect(self):
        return self.found


class Chooser(nn.Module):
    """A detector that reads 300 boxes, labels and scores from the pixels; many overlap, and scores have ties."""

    class_agnostic: bool
    input_shape = (300, 7, 1)

    @nn.compact
    def __call__(self, x, *, train=False):
        levels = x[..., 0] * self.param("scale", nn.initializers.ones, (1, 1, 1))
        corner, size = 10 * levels[..., :2], 12 + 10 * levels[..., 2:4]
        boxes = jnp.concatenate([corner, corner + size], -1)
        # A third of them are padding
        scores = jnp.where(levels[..., 4] > -0.3, jnp.round(5 + 4 * levels[..., 5]) / 10, -jnp.inf)
        labels = jnp.round(2 + 2 * levels[..., 6]).astype(jnp.int32)
        choose = lambda *image: select(*image, 0.4, 40, class_agnostic=self.class_agnostic)  # noqa: E731
        return Chosen(jax.vmap(choose)(boxes, scores, labels))


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_the_same_boxes_are_chosen(class_agnostic):
    content, difference = exported(Chooser(class_agnostic))
    assert difference.relative < 1e-6
    assert difference.same == 2
    pixels = np.random.default_rng(0).integers(0, 256, (2, 300, 7, 1), np.uint8)
    boxes, labels, scores = load_onnx(content)(((pixels / 255 - 0.5) / 0.5).astype(np.float32))
    assert boxes.shape == (2, 40, 4)
    # Of 200 some are suppressed; by others of their label alone, so that more remain than can be returned
    assert ((labels >= 0).sum(1) < 40).all() == class_agnostic
    assert (np.diff(scores) <= 0).all()


class Pooled(nn.Module):
    """A second stage that reads 40 boxes from the pixels: on three of four levels, some without area or at the edge."""

    input_shape = (64, 64, 8)

    @nn.compact
    def __call__(self, x, *, train=False):
        x = x * self.param("scale", nn.initializers.ones, (1, 1, 1, 1))
        maps = [x[..., :2], x[:, :32, :32, 2:4], x[:, :16, :16, 4:6], x[:, :8, :8, 6:]]
        corners = 128 + 128 * x.reshape(x.shape[0], -1, 4)[:, :40]
        boxes = jnp.concatenate([corners[..., :2] / 3, corners[..., :2] / 3 + corners[..., 2:]], -1)
        boxes = jnp.minimum(jnp.where(corners[..., :1] > 200, 16 * boxes, boxes), 256)
        return jax.vmap(roi_align)(maps, boxes).reshape(x.shape[0], -1)


def test_boxes_are_pooled_alike():
    content, difference = exported(Pooled())
    assert difference.relative < 1e-5
    assert Counter(node.op_type for node in onnx.load_from_string(content).graph.node)["RoiAlign"] == 4


def every_act(x):
    return sum((act(x) for act in ACTS.values()), start=jnp.zeros_like(x)) / len(ACTS)


@pytest.mark.parametrize(
    "fields",
    [
        {"output_stride": 8},
        {"output_stride": 8, "antialias": blur_pool},
        {"act": every_act},
        {"num_classes": 0},
    ],
    ids=lambda fields: "-".join(fields),
)
def test_fields_of_a_network(fields):
    _, difference = exported(
        small(MODELS["resnet18d"]).clone(depths=(1, 1, 1, 1), width=8, **{"num_classes": 7, **fields})
    )
    assert difference.relative < 1e-5
