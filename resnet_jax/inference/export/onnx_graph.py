"""Translate a traced network to a graph of ONNX operators, and merge operators as PyTorch's exporter does."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax import Array, lax
from jax.extend import core

from resnet_jax.errors import InputError, first_line
from resnet_jax.inference.export.graph import Const, Graph, Node, Operand, Tensor
from resnet_jax.inference.export.operators import COMPOSITES, JITTED, OPERATORS
from resnet_jax.models.quantize import FakeQuant, fake_quantize, fake_quantize_kernel
from resnet_jax.weights.load import Variables

# Equations that stand for the equations of a jaxpr, and the parameter that holds it
_INLINED = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "composite": "jaxpr",
}


def trace(
    apply: Callable[[Variables, Array], Any],
    variables: Variables,
    images: jax.ShapeDtypeStruct,
    axes: tuple[int, ...],
    names: Callable[[tuple[str, ...]], str],
) -> tuple[Graph, list[str]]:
    """Return the graph of a function of variables and images, and the names of its outputs.

    Args:
        apply: the function.
        variables: become constants.
        images: shape and dtype; the batch may be a symbol.
        axes: how the images are stored, such as (0, 3, 1, 2).
        names: path of a variable to the name of its constant.
    """
    with nn.intercept_methods(_as_composite):
        jaxpr = jax.make_jaxpr(apply)(variables, images)
    leaves, _ = jax.tree_util.tree_flatten_with_path(variables)
    operands: list[Operand] = [
        Const(np.asarray(leaf), leaf.shape, names(tuple(str(key.key) for key in path))) for path, leaf in leaves
    ]
    graph = Graph(batch=images.shape[0])
    found = _evaluate(graph, jaxpr, [*operands, Tensor("images", axes, tuple(images.shape))], "")
    outputs = [graph.arrange(graph.full(x), tuple(range(len(x.shape)))) for x in found]
    _merge(graph, outputs)
    return graph, outputs


def _as_composite(
    call: Any, args: tuple[Any, ...], kwargs: dict[str, Any], context: nn.module.InterceptorContext
) -> Any:
    """Keep a group normalisation and a rounding to 8 bits as one operation each."""
    module = context.module
    if isinstance(module, FakeQuant) and context.method_name == "__call__":
        ranges = module.variables["batch_stats"]
        x = lax.composite(fake_quantize, "fake_quantize")(args[0], ranges["low"], ranges["high"])
        return x, lax.composite(fake_quantize_kernel, "fake_quantize_kernel")(args[1])
    whole = isinstance(module, nn.GroupNorm) and context.method_name == "__call__" and module.num_groups is not None
    if not (whole and module.use_bias and module.use_scale):
        return call(*args, **kwargs)
    params, x = module.variables["params"], args[0]

    def plain(x: Array, scale: Array, bias: Array, **attributes: Any) -> Array:
        shape, spatial = x.shape, tuple(range(1, x.ndim - 1))
        grouped = x.reshape(*shape[:-1], module.num_groups, -1)
        mean = grouped.mean((*spatial, -1), keepdims=True)
        var = lax.square(grouped - mean).mean((*spatial, -1), keepdims=True)
        normal = ((grouped - mean) * lax.rsqrt(var + module.epsilon)).reshape(shape)
        each = (1,) * (x.ndim - 1) + (-1,)
        return normal * scale.reshape(each) + bias.reshape(each)

    attributes = {"groups": module.num_groups, "epsilon": module.epsilon}
    return lax.composite(plain, "group_norm")(x, params["scale"], params["bias"], **attributes)


def _evaluate(graph: Graph, jaxpr: Any, operands: Sequence[Operand], layer: str) -> list[Operand]:
    """Add the operators of a jaxpr and return its results."""
    closed = jaxpr if hasattr(jaxpr, "consts") else core.ClosedJaxpr(jaxpr, ())
    known: dict[Any, Operand] = {}
    for var, const in zip(closed.jaxpr.constvars, closed.consts, strict=True):
        known[var] = Const(np.asarray(const), np.shape(const))
    known |= zip(closed.jaxpr.invars, operands, strict=True)

    def operand(atom: Any) -> Operand:
        if isinstance(atom, core.Literal):
            aval: Any = atom.aval
            return Const(np.asarray(atom.val, aval.dtype), ())
        return known[atom]

    for eqn in closed.jaxpr.eqns:
        graph.layer = _layer(str(eqn.source_info.name_stack)) or layer
        results = _translate(graph, eqn, [operand(atom) for atom in eqn.invars])
        known |= zip(eqn.outvars, results, strict=True)
    return [operand(atom) for atom in closed.jaxpr.outvars]


def _layer(stack: str) -> str:
    """Return the modules of a stack of names without the network and its methods: "stage1_block1/conv1"."""
    return "/".join(part for part in stack.split("/")[1:] if "." not in part and "(" not in part)


def _translate(graph: Graph, eqn: Any, operands: list[Operand]) -> list[Operand]:
    name, layer = eqn.primitive.name, graph.layer
    sizes = [size for var in eqn.outvars for size in var.aval.shape]
    if name == "composite" and eqn.params["name"] in COMPOSITES:
        return [COMPOSITES[eqn.params["name"]](graph, eqn, *operands)]
    if all(isinstance(x, Const) for x in operands) and all(isinstance(size, int) for size in sizes):
        return _computed(graph, eqn, operands)  # type: ignore[arg-type]
    if eqn.params.get("name") in JITTED and name in ("jit", "pjit"):
        found = JITTED[eqn.params["name"]](graph, eqn, *operands)
        if found is not None:
            return [found]
    if name in _INLINED:
        return _evaluate(graph, eqn.params[_INLINED[name]], operands, layer)
    if name not in OPERATORS:
        raise graph.unsupported(name)
    results = OPERATORS[name](graph, eqn, *operands)
    return results if isinstance(results, list) else [results]


def _computed(graph: Graph, eqn: Any, operands: Sequence[Const]) -> list[Operand]:
    """Return the results of an equation on constants; what comes from one parameter keeps its name."""
    named = {x.name for x in operands if x.name}
    name = named.pop() if len(named) == 1 else ""
    try:
        values = [np.broadcast_to(x.value, x.shape) for x in operands]
        results = eqn.primitive.bind(*map(jax.numpy.asarray, values), **eqn.params)
    except Exception as error:
        raise InputError(f"{graph.unsupported(eqn.primitive.name)} ({first_line(error)})") from error
    results = results if eqn.primitive.multiple_results else [results]
    return [Const(np.asarray(result), np.shape(result), name) for result in results]


def _merge(graph: Graph, outputs: list[str]) -> None:
    """Merge biases into convolutions, sums and divisions into means, and scales with biases; drop unused nodes."""
    makers = {node.output: node for node in graph.nodes}
    uses = Counter(name for node in graph.nodes for name in node.inputs) + Counter(outputs)
    renamed: dict[str, str] = {}
    kept: list[Node] = []
    for node in graph.nodes:
        node.inputs = [renamed.get(name, name) for name in node.inputs]
        other = [name for name in node.inputs if name not in graph.constants]
        value = [graph.constants[name] for name in node.inputs if name in graph.constants]
        before = makers.get(other[0]) if len(other) == len(value) == 1 else None
        if before and uses[before.output] == 1 and _absorb(graph, before, node, value[0]):
            renamed[node.output] = before.output
            uses[before.output] = uses[node.output]
        else:
            kept.append(node)
    outputs[:] = [renamed.get(name, name) for name in outputs]
    graph.nodes = _live(kept, outputs)


def _absorb(graph: Graph, before: Node, node: Node, value: Const) -> bool:
    """Let a node also do what the next one does with a constant; return whether that was possible."""
    scale, sizes = graph.constants.get(before.inputs[-1]), value.value.shape
    per_channel = len(sizes) > 1 and max(sizes) == sizes[1] == value.value.size
    biasless = before.op in ("Conv", "Gemm") and len(before.inputs) == 2
    if node.op == "Add" and biasless and per_channel and value.value.size == before.features:
        before.inputs.append(graph.constant(value.value.reshape(-1), value.name))
        return True
    if node.op == "Squeeze" and before.op == "Conv" and before.pixel:
        # A head: first the squeeze, then a product of matrices
        x, kernel, *bias = before.inputs
        weight = graph.constants[kernel]
        matrix = graph.constant(weight.value.reshape(weight.value.shape[:2]), weight.name)
        node.op, node.inputs, node.attributes = "Gemm", [before.output, matrix, *bias], {"transB": 1}
        before.op, before.inputs, before.attributes = "Squeeze", [x, graph.ints(value.value)], {}
        return False
    if node.op == "Div" and before.op == "ReduceSum" and value.value.size == 1 and before.count == value.value.item():
        before.op = "ReduceMean"
        if before.pixel:
            before.op, before.inputs, before.attributes = "GlobalAveragePool", before.inputs[:1], {}
        return True
    if node.op == "Add" and before.op == "Mul" and per_channel and len(sizes) > 2 and value.value.size > 1:
        scale = next((graph.constants[name] for name in before.inputs if name in graph.constants), None)
        if scale is None or scale.value.shape != sizes:
            return False
        x = next(name for name in before.inputs if name not in graph.constants)
        zeros, ones = np.zeros(value.value.size, np.float32), np.ones(value.value.size, np.float32)
        each = ((scale.value.reshape(-1), scale.name), (value.value.reshape(-1), value.name), (zeros, ""), (ones, ""))
        before.op, before.attributes = "BatchNormalization", {"epsilon": 0.0}
        before.inputs = [x, *(graph.constant(*pair) for pair in each)]
        return True
    return False


def _live(nodes: list[Node], outputs: Sequence[str]) -> list[Node]:
    needed, live = set(outputs), []
    for node in reversed(nodes):
        if node.output in needed:
            needed |= set(node.inputs)
            live.append(node)
    return live[::-1]
