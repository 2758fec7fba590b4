"""Write a network as an ONNX model, and run one."""

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from resnet_jax.errors import InputError, first_line
from resnet_jax.inference.export.graph import Graph, channels_first
from resnet_jax.inference.export.interface import Interface
from resnet_jax.inference.export.network import Network, exported_function, output_names
from resnet_jax.inference.export.onnx_graph import trace

# Those that onnxruntime 1.20 and later read; the newest `onnx` would write newer ones
OPSET, IR_VERSION = 21, 10
# Name, stored shape and dtype of an input or output
_Value = tuple[str, tuple[Any, ...], Any]


def require(module: str, packages: str) -> Any:
    """Import an optional module; raise InputError with what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{module} is missing; `pip install {packages}`") from error


def require_onnx() -> None:
    """Raise InputError if a package is missing."""
    require("onnx", "onnx onnxruntime")
    require("onnxruntime", "onnx onnxruntime")


def write_onnx(network: Network, interface: Interface, description: Mapping[str, Any]) -> bytes:
    """Return a network as the content of an ONNX file.

    The input is "images": float32 with the channels after the batch, as in PyTorch, or uint8 with the channels last.
    """
    onnx = require("onnx", "onnx onnxruntime")
    rank = len(network.image_shape) + 1
    axes = tuple(range(rank)) if interface.preprocess else tuple(axis or 0 for axis in channels_first(rank))
    batch = interface.batch_size or jax_export.symbolic_shape("batch")[0]
    dtype = np.dtype(np.uint8 if interface.preprocess else np.float32)
    images = jax.ShapeDtypeStruct((batch, *network.image_shape), dtype)
    apply, variables = exported_function(network, interface), network.folded.variables
    graph, outputs = trace(apply, variables, images, axes, network.constant_name)
    outcome = jax.eval_shape(apply, variables, images)
    results = jax.tree.leaves(outcome)
    names = output_names(interface, outcome)
    named = [(name, result.shape, result.dtype) for name, result in zip(names, results, strict=True)]
    metadata = {name: value if isinstance(value, str) else json.dumps(value) for name, value in description.items()}
    stored = tuple(images.shape[axis] for axis in axes)
    return _serialize(onnx, graph, dict(zip(outputs, names, strict=True)), [("images", stored, dtype)], named, metadata)


def _serialize(
    onnx: Any,
    graph: Graph,
    names: Mapping[str, str],
    inputs: Sequence[_Value],
    outputs: Sequence[_Value],
    metadata: Mapping[str, str],
) -> bytes:
    """Return a model as a file has it; `names` are those of the results in the graph."""
    helper, dtype_of = onnx.helper, onnx.helper.np_dtype_to_tensor_dtype
    shown, counts, nodes = _constant_names(graph) | dict(names), dict[str, int](), []
    for node in graph.nodes:
        name = f"{node.layer}/{node.op}" if node.layer else node.op
        counts[name] = counts.get(name, 0) + 1
        name = name if counts[name] == 1 else f"{name}_{counts[name]}"
        shown.setdefault(node.output, name)
        attributes = {k: dtype_of(v) if isinstance(v, np.dtype) else v for k, v in node.attributes.items()}
        arguments = [shown.get(value, value) for value in node.inputs]
        results = [*(f"{name}_unused{place}" for place in range(node.unused)), shown[node.output]]
        nodes.append(helper.make_node(node.op, arguments, results, name=name, **attributes))
    used = [name for node in graph.nodes for name in node.inputs if name in graph.constants]
    values = {shown[key]: graph.constants[key].value for key in used}
    constants = [onnx.numpy_helper.from_array(value, name) for name, value in values.items()]
    described = [
        [
            helper.make_tensor_value_info(
                name, dtype_of(np.dtype(dtype)), [size if isinstance(size, int) else "batch" for size in shape]
            )
            for name, shape, dtype in every
        ]
        for every in (inputs, outputs)
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "resnet_jax", *described, constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="resnet_jax",
    )
    helper.set_model_props(model, dict(metadata))
    try:
        onnx.checker.check_model(model)
        return bytes(model.SerializeToString())
    # Of protobuf, whose messages end at 2 GiB
    except ValueError as error:
        raise InputError(f"the network is too large for one ONNX file ({first_line(error)}); use StableHLO") from error


def _constant_names(graph: Graph) -> dict[str, str]:
    """Return a name for each constant that is used; equal constants share one."""
    shown: dict[str, str] = {}
    known: dict[tuple[Any, ...], str] = {}
    for node in graph.nodes:
        for key in node.inputs:
            if key not in graph.constants or key in shown:
                continue
            value, _, name = graph.constants[key]
            content = (name, str(value.dtype), value.shape, value.tobytes())
            if content not in known:
                first = name or f"constant_{len(known)}"
                known[content] = first if first not in known.values() else f"{first}_{len(known)}"
            shown[key] = known[content]
    return shown


def load_onnx(content: bytes) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Return a function from images (n, spatial..., c), uint8 or float32 as the file takes them, to its outputs.

    It runs on one thread, so that it can be timed and compared.
    """
    runtime = require("onnxruntime", "onnx onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()

    def run(images: np.ndarray) -> list[np.ndarray]:
        stored = images if taken.type == "tensor(uint8)" else np.moveaxis(images, -1, 1)
        size = taken.shape[0] if isinstance(taken.shape[0], int) else len(images)
        parts = [np.ascontiguousarray(stored[start : start + size]) for start in range(0, len(stored), size)]
        found = [session.run(None, {taken.name: part}) for part in parts]
        return [np.concatenate(each) for each in zip(*found, strict=True)]

    return run
