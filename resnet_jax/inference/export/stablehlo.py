"""Write a network as StableHLO by `jax.export`, for several platforms in one file, and run one."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from resnet_jax.errors import InputError, first_line
from resnet_jax.inference.export.interface import Interface
from resnet_jax.inference.export.network import Network, exported_function
from resnet_jax.inference.export.onnx_file import require
from resnet_jax.models.cpu_ops import cpu_kernels

PLATFORMS = ("cpu", "cuda", "tpu")


def require_stablehlo() -> None:
    """Raise InputError if a package is missing."""
    require("flatbuffers", "flatbuffers")


def write_stablehlo(network: Network, interface: Interface, description: dict[str, Any]) -> bytes:
    """Return a network as the content of a file that `jax.export.deserialize` reads; the weights are inside."""
    # Deserialised by jax released up to six months after the one that serialised
    description["compatibility"] = f"jax released until six months after jax {jax.__version__}"
    batch = interface.batch_size or jax_export.symbolic_shape("batch")[0]
    images = jax.ShapeDtypeStruct((batch, *network.image_shape), np.uint8 if interface.preprocess else np.float32)
    apply = exported_function(network, interface)
    with cpu_kernels(False):
        exported = jax_export.export(
            jax.jit(lambda images: apply(network.folded.variables, images)), platforms=PLATFORMS
        )(images)
    return bytes(exported.serialize())


def load_stablehlo(content: bytes) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Return a function from images (n, spatial..., c) to the outputs."""
    try:
        exported = jax_export.deserialize(bytearray(content))
    except Exception as error:
        raise InputError(f"not a file of jax.export that this jax reads ({first_line(error)})") from error
    size = exported.in_avals[0].shape[0]

    def run(images: np.ndarray) -> list[np.ndarray]:
        step = size if isinstance(size, int) else len(images)
        found = [jax.tree.leaves(exported.call(images[start : start + step])) for start in range(0, len(images), step)]
        return [np.concatenate([np.asarray(part) for part in each]) for each in zip(*found, strict=True)]

    return run
