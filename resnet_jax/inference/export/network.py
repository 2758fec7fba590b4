"""A trained network as it is exported: folded, in float32, with what it was trained on."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from resnet_jax.errors import InputError
from resnet_jax.inference.export.fold import Folded, fold_batch_norm
from resnet_jax.inference.export.interface import Interface
from resnet_jax.inference.load_model import load_model
from resnet_jax.inference.source import CheckpointChoice, WeightsInfo
from resnet_jax.models.backbone import BackboneModel, backbone_of, with_fields
from resnet_jax.models.resnet import ResNet
from resnet_jax.runtime.compiler_options import compiler_options
from resnet_jax.training.setup import Parts, TrainSetup
from resnet_jax.weights.load import Variables
from resnet_jax.weights.names import torch_name

# Of random pixels, as of the examples of a check
_SEED = 0


class Network(NamedTuple):
    """A network to export."""

    setup: TrainSetup
    model: nn.Module
    variables: Variables
    """As trained."""
    folded: Folded
    """The same function, which is exported."""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of an image, (spatial..., c)."""
        return self.setup.dataset.image_shape

    def constant_name(self, path: tuple[str, ...]) -> str:
        """Return PyTorch's name of a parameter, or ours if PyTorch has none."""
        try:
            # A folded bias is named after its convolution
            return torch_name(self.model, path) if isinstance(self.model, BackboneModel | ResNet) else "/".join(path)
        except InputError:
            return "/".join(path)


def open_network(
    where: Path | str,
    weights: WeightsInfo = WeightsInfo(),
    checkpoint: CheckpointChoice = CheckpointChoice(),
    *,
    data_dir: Path = Path("data"),
    parts: Parts = Parts(),
) -> Network:
    """Open a run or weights for export, as `load_model` does."""
    setup, state = load_model(where, weights, checkpoint, data_dir=data_dir, devices=1, parts=parts)
    shape, model = setup.dataset.image_shape, setup.model
    if isinstance(model, BackboneModel | ResNet):
        model = with_fields(model, dtype=jnp.float32, input_shape=shape)
    variables = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
    return Network(setup, model, variables, fold_batch_norm(model, variables, shape))


def exported_function(network: Network, interface: Interface) -> Callable[[Variables, Array], Any]:
    """Return the function (variables, images) -> outputs that an export contains."""
    data = network.setup.recipe.data

    def apply(variables: Variables, images: Array) -> Any:
        if interface.preprocess:
            mean, std = (np.broadcast_to(each, images.shape[-1:]) for each in (data.mean, data.std))
            shape = (1,) * (images.ndim - 1) + (-1,)
            scale, shift = (jnp.asarray(each, jnp.float32).reshape(shape) for each in (1 / (255 * std), -mean / std))
            images = images.astype(jnp.float32) * scale + shift
        return _results(network, interface, network.folded.apply(variables, images))

    return apply


def reference(network: Network, interface: Interface, pixels: np.ndarray) -> list[np.ndarray]:
    """Return the outputs of the network as it was trained for uint8 pixels (n, spatial..., c)."""

    def apply(variables: Variables, images: Array) -> Any:
        return _results(network, interface, network.model.apply(variables, images, train=False))

    outputs = jax.jit(apply, compiler_options=compiler_options())(network.variables, normalized(network, pixels))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(outputs)]


def _results(network: Network, interface: Interface, outputs: Any) -> Any:
    """Return what an export makes of the outputs of a network: the boxes of a detector, and no auxiliary head."""
    if hasattr(outputs, "detect"):
        return outputs.detect()._asdict()
    main = outputs["out"] if isinstance(outputs, dict) and set(outputs) == {"out", "aux"} else outputs
    return network.setup.task.predict(main) if interface.outputs == "probabilities" else main


def normalized(network: Network, pixels: np.ndarray) -> np.ndarray:
    """Return uint8 pixels (n, spatial..., c) as the network takes them, float32."""
    data = network.setup.recipe.data
    return normalize(pixels, data.mean, data.std)


def normalize(pixels: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Return uint8 pixels (n, spatial..., c) in 0 to 1, less `mean`, divided by `std`: float32.

    Sound, int16, is likewise in -1 to 1.
    """
    largest = 32768 if pixels.dtype == np.int16 else 255
    return ((pixels / largest - np.asarray(mean)) / np.asarray(std)).astype(np.float32)


def random_pixels(shape: tuple[int, ...], count: int) -> np.ndarray:
    """Return the same random images on every machine, uint8 (count, spatial..., c)."""
    return np.random.default_rng(_SEED).integers(0, 256, (count, *shape), np.uint8)


def is_quantized(model: nn.Module) -> bool:
    """Return whether a network was trained with 8 bits, and so has ranges."""
    return bool(getattr(backbone_of(model), "quantize", False))


def output_names(interface: Interface, outputs: Any) -> list[str]:
    """Return the name of each leaf of the outputs: that in a dict, such as the boxes of a detector, or a number."""
    count = len(jax.tree.leaves(outputs))
    if isinstance(outputs, dict) and len(outputs) == count:
        return sorted(outputs)
    return [interface.outputs] if count == 1 else [f"output_{number}" for number in range(count)]
