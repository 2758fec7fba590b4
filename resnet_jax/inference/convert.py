"""Convert the weights of a run, a file or the hub to a file that torchvision, timm or flax loads."""

import json
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from flax import traverse_util

from resnet_jax.errors import InputError
from resnet_jax.inference.load_model import load_model
from resnet_jax.inference.source import CheckpointChoice, WeightsInfo
from resnet_jax.models.backbone import BackboneModel, Network
from resnet_jax.models.blocks import PooledBlock
from resnet_jax.models.shortcuts import AverageShortcut
from resnet_jax.models.stems import DeepStem, VideoStem
from resnet_jax.models.summary import has_biases
from resnet_jax.run_dir.files import is_run
from resnet_jax.training.metadata import read_metadata, write_metadata
from resnet_jax.training.network import require_published
from resnet_jax.weights.entries import WEIGHTS, class_names
from resnet_jax.weights.load import Variables, create_model
from resnet_jax.weights.locate import locate
from resnet_jax.weights.names import to_state_dict
from resnet_jax.weights.outside import in_torchvision
from resnet_jax.weights.tensors import read_tensor_file, write_tensors

Style = Literal["torchvision", "timm", "flax"]


class Converted(NamedTuple):
    """What was written."""

    model: str
    tensors: int
    classes: int


def convert_weights(
    source: Path | str,
    out: Path | str,
    to: Style,
    *,
    model: str | None = None,
    cast: bool = False,
    checkpoint: CheckpointChoice = CheckpointChoice(),
) -> Converted:
    """Write the weights of a run or of published weights as a safetensors file.

    Its metadata describe network, classes and preprocessing, if known, so that `predict` needs nothing else.

    Args:
        source: a run directory, a file, "hf:OWNER/NAME" or a published name.
        out: the file, `*.safetensors`.
        to: "torchvision" or "timm", which load it with `strict=True`; "flax" keeps this library's names.
        model: name of the network, if the file does not say it.
        cast: round float64 weights to float32.
        checkpoint: which weights of a run to use; by default its EMA, if it has one.

    Raises:
        InputError: The network is not known, or the other library has no such layers; nothing is written.

    Example:
        >>> convert_weights("runs/digits", Path("digits.safetensors"), "timm")  # doctest: +SKIP
    """
    source, out = str(source), Path(out)
    if out.suffix != ".safetensors":
        raise InputError(f"{out}: the file is in the safetensors format, so its name must end in .safetensors")
    name, network, variables, metadata = _open(source, model, cast, checkpoint)
    _require_layers(name, network, to)
    if to == "flax":
        tensors = {path: np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(variables, sep="/").items()}
    else:
        tensors = to_state_dict(network, variables)
    write_tensors(out, tensors, {"format": "pt", "model": name, **metadata})
    return Converted(name, len(tensors), network.num_classes)


def _open(
    source: str, model: str | None, cast: bool, checkpoint: CheckpointChoice
) -> tuple[str, Network, Variables, dict[str, str]]:
    """Return the name, network, variables and metadata of a source."""
    if is_run(source) or _is_described(source, model):
        weights = WeightsInfo() if is_run(source) else WeightsInfo(model=model)
        setup, state = load_model(source, weights, checkpoint, devices=1, cast=cast)
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        metadata = write_metadata(setup.recipe, setup.dataset)
        return setup.recipe.model.name, require_published(setup.model, "convert"), variables, metadata
    model = model or (read_tensor_file(locate(source).file).metadata or {}).get("model")
    if not model:
        raise InputError(
            f"{source}: does not say which network it is; name it with --model (`resnet-jax list` shows all)"
        )
    network, variables = create_model(model, pretrained=source, cast=cast)
    return model, network, variables, {"classes": json.dumps(class_names(network.num_classes))}


def _is_described(source: str, model: str | None) -> bool:
    """Return whether a published entry, a config.json or its metadata describe the weights."""
    file, entry = locate(source)
    written = read_metadata(read_tensor_file(file))
    return model in WEIGHTS or entry is not None or (written is not None and model in (None, written[0].model.name))


def lacking_layers(network: Network) -> dict[Style, bool]:
    """Return for each library whether it lacks layers of a network."""
    model = network.backbone if isinstance(network, BackboneModel) else network
    foreign = isinstance(network, BackboneModel) and not in_torchvision(network)
    video, pooled = issubclass(model.stem, VideoStem), issubclass(model.block, PooledBlock)
    quantized, biased = model.quantize, has_biases(model)
    later = issubclass(model.stem, DeepStem) or issubclass(model.shortcut, AverageShortcut) or model.block.preactivation
    return {
        "torchvision": bool(
            quantized or biased or foreign or later or pooled or model.gate is not None or model.antialias
        ),
        "timm": quantized or biased or isinstance(network, BackboneModel) or video or pooled,
        "flax": False,
    }


def _require_layers(name: str, network: Network, to: Style) -> None:
    """Raise InputError if a library has no such layers."""
    lacking = lacking_layers(network)
    if lacking[to]:
        quantized = network.backbone.quantize if isinstance(network, BackboneModel) else network.quantize
        others = " or ".join(f"--to {style}" for style, lacks in lacking.items() if not lacks)
        raise InputError(f"{name}: {to} has no such {'ranges of int8' if quantized else 'layers'}; use {others}")
