"""torchvision's names of the layers outside a backbone: of segmentation networks and detectors."""

import re

from resnet_jax.models.backbone import BackboneModel
from resnet_jax.models.detection.dense import DenseDetector
from resnet_jax.models.detection.faster_rcnn import FasterRCNN
from resnet_jax.models.detection.fcos import FCOS
from resnet_jax.models.segmentation import FCN, DeepLabV3

_FCN = {
    "decoder/conv": "classifier.0",
    "decoder/norm": "classifier.1",
    "head": "classifier.4",
    "aux/decoder/conv": "aux_classifier.0",
    "aux/decoder/norm": "aux_classifier.1",
    "aux/head": "aux_classifier.4",
}
_ASPP = {
    f"aspp{i + 1}/{layer}": f"classifier.0.convs.{i}.{j}" for i in range(4) for j, layer in enumerate(("conv", "norm"))
}
_SEGMENTATION: dict[type[BackboneModel], dict[str, str]] = {
    FCN: _FCN,
    DeepLabV3: {
        **_FCN,
        **_ASPP,
        "aspp_pool/conv": "classifier.0.convs.4.1",
        "aspp_pool/norm": "classifier.0.convs.4.2",
        "project/conv": "classifier.0.project.0",
        "project/norm": "classifier.0.project.1",
        "decoder/conv": "classifier.1",
        "decoder/norm": "classifier.2",
    },
}
_HEADS = {
    "head": "head.classification_head.cls_logits",
    "box_head": "head.regression_head.bbox_reg",
    "centre_head": "head.regression_head.bbox_ctrness",
}
_TOWERS = {"class_tower": "head.classification_head.conv", "box_tower": "head.regression_head.conv"}
_FASTER_RCNN = {
    "rpn/score": "rpn.head.cls_logits",
    "rpn/box": "rpn.head.bbox_pred",
    "box/fc6": "roi_heads.box_head.fc6",
    "box/fc7": "roi_heads.box_head.fc7",
    "box/head/score": "roi_heads.box_predictor.cls_score",
    "box/head/box": "roi_heads.box_predictor.bbox_pred",
}
_CONVOLUTION = re.compile(r"(rpn|box)/(conv|norm)(\d+)")
_PYRAMID = re.compile(r"fpn/(lateral|output)(\d+)(_norm)?")
_TOWER = re.compile(r"(class_tower|box_tower)/(conv|norm)(\d+)")


def in_torchvision(model: BackboneModel) -> bool:
    """Return whether torchvision has names for the layers of a network outside its backbone."""
    return type(model) in _SEGMENTATION or isinstance(model, DenseDetector | FasterRCNN)


def body(model: BackboneModel) -> str:
    """Return torchvision's name of the backbone."""
    return "backbone" if type(model) in _SEGMENTATION else "backbone.body"


def outside_name(model: BackboneModel, layer: str) -> str | None:
    """Return torchvision's name of a layer outside the backbone, or None if it has none."""
    if type(model) in _SEGMENTATION:
        return _SEGMENTATION[type(model)].get(layer)
    if match := _PYRAMID.fullmatch(layer):
        blocks = "inner_blocks" if match[1] == "lateral" else "layer_blocks"
        return f"backbone.fpn.{blocks}.{int(match[2]) - 1}.{int(match[3] is not None)}"
    if layer in ("fpn/p6", "fpn/p7"):
        return f"backbone.fpn.extra_blocks.{layer.removeprefix('fpn/')}"
    if isinstance(model, FasterRCNN):
        return _faster_rcnn_name(model, layer)
    if not isinstance(model, DenseDetector):
        return None
    if match := _TOWER.fullmatch(layer):
        place, norm = int(match[3]) - 1, match[2] == "norm"
        # A flat sequence of convolution, normalisation and activation, or one sequence for each
        return f"{_TOWERS[match[1]]}.{3 * place + norm if isinstance(model, FCOS) else f'{place}.{norm:d}'}"
    return _HEADS.get(layer)


def _faster_rcnn_name(model: FasterRCNN, layer: str) -> str | None:
    if match := _CONVOLUTION.fullmatch(layer):
        home = "rpn.head.conv" if match[1] == "rpn" else "roi_heads.box_head"
        return f"{home}.{int(match[3]) - 1}.{int(match[2] == 'norm')}"
    # In one sequence with the four convolutions and the flattening before it
    if layer == "box/fc6" and model.conv_head:
        return "roi_heads.box_head.5"
    return _FASTER_RCNN.get(layer)


def modern_name(model: BackboneModel, name: str) -> str:
    """Return the present name of a tensor of torchvision's detectors for that of its older, published files."""
    if type(model) in _SEGMENTATION:
        return name
    name = re.sub(r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1", name)
    name = re.sub(r"(inner_blocks|layer_blocks)\.(\d+)\.(weight|bias)$", r"\1.\2.0.\3", name)
    if isinstance(model, FCOS):
        return name
    head = re.compile(r"(classification_head|regression_head)\.conv\.(\d+)\.(weight|bias)$")
    return head.sub(lambda match: f"{match[1]}.conv.{int(match[2]) // 2}.0.{match[3]}", name)
