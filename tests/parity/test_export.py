"""ONNX files beside those of PyTorch's exporter."""

import jax
import jax.numpy as jnp
import pytest
import torch
import torchvision

from resnet_jax.inference.export.fold import fold_batch_norm
from resnet_jax.inference.export.onnx_graph import trace
from resnet_jax.models.zoo import MODELS
from resnet_jax.weights.names import torch_name

onnx = pytest.importorskip("onnx")
OTHERS = ("wide_resnet50_2", "resnext50_32x4d", "r3d_18", "mc3_18", "r2plus1d_18")


# Of the exporter that writes the fewest nodes
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["resnet18", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_not_more_nodes_than_pytorch_writes_and_its_names(name, tmp_path):
    video = name.endswith("_18")
    builder = getattr(torchvision.models.video if video else torchvision.models, name)
    theirs = builder(weights=None, num_classes=7).eval()
    shape = (4, 32, 32, 3) if video else (32, 32, 3)
    images = torch.zeros((1, shape[-1], *shape[:-1]))
    torch.onnx.export(theirs, (images,), tmp_path / "torch.onnx", dynamo=False, opset_version=17)
    written = onnx.load(tmp_path / "torch.onnx").graph
    model = MODELS[name].clone(num_classes=7, input_shape=shape)
    images = jnp.zeros((1, *shape))
    variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), jax.eval_shape(model.init, jax.random.key(0), images))
    folded = fold_batch_norm(model, variables, shape)
    axes = (0, images.ndim - 1, *range(1, images.ndim - 1))
    spec = jax.ShapeDtypeStruct(images.shape, images.dtype)
    graph, _ = trace(folded.apply, folded.variables, spec, axes, lambda path: torch_name(model, path))
    assert len(graph.nodes) <= len(written.node)
    shapes = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    constants = {
        graph.constants[key].name: key for node in graph.nodes for key in node.inputs if key in graph.constants
    }
    named = {name: graph.constants[key].value.shape for name, key in constants.items() if name.endswith(".weight")}
    assert named == {name: shapes[name] for name in named}
    assert len(named) == sum(node.op_type in ("Conv", "Gemm") for node in written.node)
