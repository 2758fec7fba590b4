"""Write a network as a LiteRT (TensorFlow Lite) file without TensorFlow, and run one."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from resnet_jax.errors import InputError, first_line
from resnet_jax.inference.export.interface import Interface
from resnet_jax.inference.export.network import Network, exported_function, output_names
from resnet_jax.inference.export.onnx_file import require
from resnet_jax.models.cpu_ops import cpu_kernels

# With its dependencies, litert-converter would bring a typing-extensions that is too old for the command line
INSTALL = "--no-deps litert-converter ai-edge-litert litert-quantizer flatbuffers protobuf tqdm lark backports.strenum"
SIGNATURE = "serving_default"


def require_litert() -> None:
    """Raise InputError if a package is missing."""
    require("litert_converter", INSTALL)
    require("ai_edge_litert", INSTALL)


def write_litert(network: Network, interface: Interface, description: dict[str, Any]) -> bytes:
    """Return a network as the content of a .tflite file: "images" (batch, spatial..., c), a batch of one by default."""
    from litert_converter import converter_api_ext as converter
    from litert_converter.mlir import ir, passmanager

    batch = interface.batch_size or 1
    images = jax.ShapeDtypeStruct((batch, *network.image_shape), np.uint8 if interface.preprocess else np.float32)
    apply = exported_function(network, interface)
    with cpu_kernels(False):
        lowered = jax.jit(lambda images: apply(network.folded.variables, images)).lower(images)
    names = output_names(interface, lowered.out_info)
    try:
        with ir.Context() as context:
            converter.prepare_mlir_context(context)
            module = ir.Module.parse(lowered.as_text())
            converter.set_signature(module.operation, SIGNATURE, ["images"], names)
            passes = passmanager.PassManager("builtin.module")
            converter.run_convert_to_tfl_passes(module, passes, converter.ConvertToTFLConfig())
            return bytes(converter.export_flatbuffer_to_bytes(module.operation))
    except Exception as error:
        raise InputError(f"LiteRT cannot express this network ({first_line(error)})") from error


def signature_details(content: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the details of inputs and outputs by name: shape, dtype, and scale and zero point of integers."""
    interpreter = require("ai_edge_litert.interpreter", INSTALL).Interpreter(model_content=content, num_threads=1)
    runner = interpreter.get_signature_runner(SIGNATURE)
    return runner.get_input_details(), runner.get_output_details()


def scales(content: bytes) -> dict[str, Any]:
    """Return scale and zero point of the integers that a quantised model takes and returns, by name."""
    return {
        name: {"dtype": np.dtype(each["dtype"]).name, "scale": float(scale), "zero_point": int(zero)}
        for details in signature_details(content)
        for name, each in details.items()
        for scale, zero in [each["quantization"]]
    }


def load_litert(content: bytes) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Return a function from images (n, spatial..., c) to the outputs; int8 ones are scaled back to numbers."""
    interpreter = require("ai_edge_litert.interpreter", INSTALL).Interpreter(model_content=content, num_threads=1)
    runner = interpreter.get_signature_runner(SIGNATURE)
    ((name, taken),) = runner.get_input_details().items()
    given = runner.get_output_details()
    size = int(taken["shape"][0])

    def run(images: np.ndarray) -> list[np.ndarray]:
        stored = quantized(images, taken)
        try:
            found = [runner(**{name: stored[start : start + size]}) for start in range(0, len(stored), size)]
        except RuntimeError as error:
            raise InputError(f"LiteRT cannot run the network that it wrote ({first_line(error)})") from error
        return [dequantized(np.concatenate([part[key] for part in found]), given[key]) for key in sorted(given)]

    return run


def quantized(values: np.ndarray, details: Any) -> np.ndarray:
    """Return numbers as an int8 input takes them, by its scale and zero point; other inputs take them as they are."""
    scale, zero = details["quantization"]
    if details["dtype"] != np.int8 or not scale:
        return values
    return np.clip(np.round(values / scale + zero), -128, 127).astype(np.int8)


def dequantized(values: np.ndarray, details: Any) -> np.ndarray:
    """Return the numbers that an int8 output stands for; other outputs as they are."""
    scale, zero = details["quantization"]
    return (values.astype(np.float32) - zero) * np.float32(scale) if scale and values.dtype == np.int8 else values
