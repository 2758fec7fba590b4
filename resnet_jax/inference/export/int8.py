"""Quantise an export to 8-bit integers after training, with ranges from calibration images, or to float16.

Weights are quantised per channel, activations per tensor, both statically.

Reference:
    Jacob et al. 2018, "Quantization and training of neural networks", sections 2 and 3.
"""

import io
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.data.datasets import open_split
from resnet_jax.data.formats.folder import is_image
from resnet_jax.data.image import decode, preprocessing_of
from resnet_jax.data.resize import resize_crop_as
from resnet_jax.data.selection import Selection
from resnet_jax.data.source import Source
from resnet_jax.errors import InputError
from resnet_jax.inference.export.litert import INSTALL, SIGNATURE, signature_details
from resnet_jax.inference.export.network import Network
from resnet_jax.inference.export.onnx_file import require
from resnet_jax.run_dir.files import is_run
from resnet_jax.training.sources import selection_of

# Fewer calibration images than this say too little of the ranges
LEAST = 8
# Of images whose activations are compared layer by layer
_COMPARED = 8


def calibration_pixels(network: Network, where: str, calibration: str, data_dir: Path | None, count: int) -> np.ndarray:
    """Return up to `count` images, uint8 (n, spatial..., c), spread over what `calibration` names.

    Args:
        network: says the shape of an image.
        where: the run or weights of the network.
        calibration: a folder of images, "train" for the training split of a run, or a data set.
        data_dir: folder of the data sets.
        count: largest number of images.

    Raises:
        InputError: Fewer than 8 images can be read, or they have another shape.
    """
    if Path(calibration).is_dir():
        found = _images_of_folder(network, Path(calibration), count)
    else:
        found = _images_of_split(network, where, calibration, data_dir, count)
    pixels = list(found)
    if len(pixels) < LEAST:
        raise InputError(f"{calibration}: only {len(pixels)} images can be read; calibration needs {LEAST} or more")
    if wrong := next((image.shape for image in pixels if image.shape != network.image_shape), None):
        raise InputError(f"{calibration}: has images of shape {wrong}, the network takes {network.image_shape}")
    return np.stack(pixels)


def _images_of_folder(network: Network, folder: Path, count: int) -> Iterator[np.ndarray]:
    if len(network.image_shape) != 3:
        raise InputError(f"{folder}: the network takes no images; name a data set")
    height, width, channels = network.image_shape
    preprocessing = preprocessing_of(network.setup.recipe.data)
    paths = sorted(path for path in folder.rglob("*") if is_image(path.name))
    for index in _spread(len(paths), count):
        try:
            yield resize_crop_as(decode(paths[index], channels), height, width, preprocessing, str(paths[index]))
        # Unreadable ones are left out
        except InputError:
            continue


def _images_of_split(
    network: Network, where: str, calibration: str, data_dir: Path | None, count: int
) -> Iterator[np.ndarray]:
    data, dataset = network.setup.recipe.data, network.setup.dataset
    name = data.name if calibration == "train" else calibration
    if not name:
        raise InputError(f"{where}: weights have no training split; --int8 takes a folder or a data set")
    chosen = selection_of(data) if is_run(where) and name == data.name else Selection()
    folder = data_dir or Path(dataset.data_dir or "data")
    source: Source = open_split(name, "train", folder, chosen, preprocessing_of(data), data.test_split)
    return (source.read(int(index)).image for index in _spread(source.size, count))


def _spread(size: int, count: int) -> np.ndarray:
    return np.unique(np.linspace(0, size - 1, min(size, count)).astype(int)) if size else np.arange(0)


def quantize_onnx(content: bytes, images: np.ndarray, keep_float: Sequence[str] = ()) -> bytes:
    """Return an ONNX model with quantised operators in QDQ format, with inputs and outputs as they were.

    Args:
        content: the model.
        images: (n, spatial..., c) as the model takes them.
        keep_float: modules that are not quantised, "stage1_block1/conv1" or "head".
    """
    onnx, quantization = require("onnx", "onnx"), require("onnxruntime.quantization", "onnx onnxruntime")
    model = onnx.load_from_string(content)
    # Its tools for preparing a graph would find nothing to fold or to remove, and warn if they have not run
    model.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    kept = [node.name for node in model.graph.node if _inside(node.name, keep_float)]
    if unknown := [name for name in keep_float if not any(_inside(node, [name]) for node in kept)]:
        raise InputError(f"--keep-float: the network has no layer {unknown[0]!r}; {_known_layers(model)}")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            model,
            out,
            _reader(model, images),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=kept,
        )
        return out.read_bytes()


def _inside(node: str, layers: Sequence[str]) -> bool:
    return any(node.startswith(f"{layer}/") for layer in layers)


def _known_layers(model: Any) -> str:
    layers = [node.name.rpartition("/")[0] for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    return f"it has {', '.join(layers[:3])} and {max(len(layers) - 3, 0)} more"


def _reader(model: Any, images: np.ndarray) -> Any:
    """Return images one by one, as onnxruntime's tools read them."""
    base: Any = require("onnxruntime.quantization", "onnx onnxruntime").CalibrationDataReader
    taken = model.graph.input[0]
    dims = taken.type.tensor_type.shape.dim
    size = dims[0].dim_value or 1
    stored = images if images.dtype == np.uint8 else np.moveaxis(images, -1, 1)
    whole = range(0, len(stored) - len(stored) % size, size)
    batches = iter([{taken.name: np.ascontiguousarray(stored[i : i + size])} for i in whole])

    return type("Reader", (base,), {"get_next": lambda self: next(batches, None)})()


def layer_noise(content: bytes, quantized: bytes, images: np.ndarray) -> dict[str, float]:
    """Return the signal-to-noise ratio, in dB, of each layer of a quantised ONNX model, the worst first."""
    onnx, debug = require("onnx", "onnx"), require("onnxruntime.quantization.qdq_loss_debug", "onnx onnxruntime")
    with tempfile.TemporaryDirectory() as folder:
        activations = []
        for name, each in (("float", content), ("int8", quantized)):
            path, augmented = Path(folder) / f"{name}.onnx", Path(folder) / f"{name}-all.onnx"
            path.write_bytes(each)
            debug.modify_model_output_intermediate_tensors(path, augmented)
            reader = _reader(onnx.load_from_string(each), images[:_COMPARED])
            activations.append(debug.collect_activations(augmented, reader))
        matched = debug.create_activation_matching(activations[1], activations[0])
    found = {
        name: float(debug.compute_signal_to_quantization_noice_ratio(each["float"], each["post_qdq"]))
        for name, each in matched.items()
        if "float" in each and name.endswith(("/Conv", "/Gemm", "/Relu"))
    }
    return dict(sorted(found.items(), key=lambda item: item[1]))


def quantize_litert(content: bytes, images: np.ndarray) -> bytes:
    """Return a LiteRT model with quantised operators; inputs and outputs become int8 too."""
    quantizer = require("litert_quantizer.quantizer", INSTALL)
    recipe = require("litert_quantizer.recipe", INSTALL)
    ((name, taken),) = signature_details(content)[0].items()
    size = int(taken["shape"][0])
    whole = range(0, len(images) - len(images) % size, size)
    with _silent():
        tool = quantizer.Quantizer(bytearray(content))
        tool.load_quantization_recipe(recipe.static_wi8_ai8())
        ranges = tool.calibrate({SIGNATURE: [{name: images[i : i + size]} for i in whole]})
        _widen_zeros(ranges)
        return bytes(tool.quantize(ranges).quantized_model)


def _widen_zeros(ranges: Mapping[str, dict[str, np.ndarray]]) -> None:
    """Give a range to layers that are zero for all images: with the scale that they get LiteRT runs no network."""
    for each in ranges.values():
        if not (each["min"].any() or each["max"].any()):
            each["max"] = np.ones_like(each["max"])


def halve_litert(content: bytes) -> bytes:
    """Return a LiteRT model whose weights are stored as float16; it computes in float32."""
    quantizer, manager = (require(f"litert_quantizer.{name}", INSTALL) for name in ("quantizer", "recipe_manager"))
    recipe = manager.RecipeManager()
    recipe.add_weight_only_config(".*", "*", 16, algorithm_key="float_casting")
    with _silent():
        tool = quantizer.Quantizer(bytearray(content))
        tool.load_quantization_recipe(recipe.get_quantization_recipe())
        return bytes(tool.quantize().quantized_model)


@contextmanager
def _silent() -> Iterator[None]:
    """Keep progress and warnings of the quantiser from the users of the command line."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
