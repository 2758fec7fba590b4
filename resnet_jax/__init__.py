"""Residual networks in JAX and Flax: the recipe is the mathematics, the hardware is only the speed.

Names are imported when they are first used, so that `import resnet_jax` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet_jax.backend import compiler_options as compiler_options
    from resnet_jax.conversion import convert_weights as convert_weights
    from resnet_jax.data.datasets import DATASETS as DATASETS
    from resnet_jax.data.source import Source as Source
    from resnet_jax.errors import InputError as InputError
    from resnet_jax.evaluation import evaluate_run as evaluate_run
    from resnet_jax.explain import explain_images as explain_images
    from resnet_jax.explain import grad_cam as grad_cam
    from resnet_jax.fitting import fit as fit
    from resnet_jax.model.blocks import BasicBlock as BasicBlock
    from resnet_jax.model.blocks import Bottleneck as Bottleneck
    from resnet_jax.model.fpn import FPN as FPN
    from resnet_jax.model.layers import SqueezeExcite as SqueezeExcite
    from resnet_jax.model.norm import BatchNorm as BatchNorm
    from resnet_jax.model.resnet import ResNet as ResNet
    from resnet_jax.model.shortcuts import SHORTCUTS as SHORTCUTS
    from resnet_jax.model.zoo import MODELS as MODELS
    from resnet_jax.predict import predict_images as predict_images
    from resnet_jax.recipe import Recipe as Recipe
    from resnet_jax.recipe import load_recipe as load_recipe
    from resnet_jax.report import make_report as make_report
    from resnet_jax.summary import summarize as summarize
    from resnet_jax.train.checkpoint import load_run as load_run
    from resnet_jax.train.run import train_recipe as train_recipe
    from resnet_jax.train.seeds import train_seeds as train_seeds
    from resnet_jax.train.state import TrainState as TrainState
    from resnet_jax.train.step import eval_step as eval_step
    from resnet_jax.train.step import train_step as train_step
    from resnet_jax.weights.entries import WEIGHTS as WEIGHTS
    from resnet_jax.weights.like import Like as Like
    from resnet_jax.weights.load import create as create

_HOMES = {
    "BasicBlock": "model.blocks",
    "BatchNorm": "model.norm",
    "Bottleneck": "model.blocks",
    "DATASETS": "data.datasets",
    "FPN": "model.fpn",
    "InputError": "errors",
    "Like": "weights.like",
    "MODELS": "model.zoo",
    "Recipe": "recipe",
    "ResNet": "model.resnet",
    "SHORTCUTS": "model.shortcuts",
    "Source": "data.source",
    "SqueezeExcite": "model.layers",
    "TrainState": "train.state",
    "WEIGHTS": "weights.entries",
    "compiler_options": "backend",
    "convert_weights": "conversion",
    "create": "weights.load",
    "eval_step": "train.step",
    "evaluate_run": "evaluation",
    "explain_images": "explain",
    "fit": "fitting",
    "grad_cam": "explain",
    "load_recipe": "recipe",
    "load_run": "train.checkpoint",
    "make_report": "report",
    "predict_images": "predict",
    "summarize": "summary",
    "train_recipe": "train.run",
    "train_seeds": "train.seeds",
    "train_step": "train.step",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
