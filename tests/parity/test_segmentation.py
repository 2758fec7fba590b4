"""Segmentation networks against torchvision's, with random numbers in every parameter, at odd sizes."""

import jax
import numpy as np
import pytest
import torch
import torchvision
from flax import traverse_util

from parity.test_networks import assert_near, channels_first, channels_last, variables_of
from resnet_jax.inference.convert import convert_weights
from resnet_jax.models.backbone import with_fields
from resnet_jax.models.zoo import MODELS
from resnet_jax.runtime.compiler_options import compiler_options
from resnet_jax.weights.load import load
from resnet_jax.weights.tensors import read_tensor_file, write_tensors

CLASSES = 5
DEPTHS = {"fcn_resnet50": (1, 1, 2, 2), "deeplabv3_resnet50": (1, 1, 2, 2)}


def shallow(name):
    """Ours and torchvision's network with fewer blocks."""
    layers = list(DEPTHS[name])
    network = torchvision.models.segmentation.__dict__[name](
        weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=True
    )
    backbone = torchvision.models.resnet.ResNet(
        torchvision.models.resnet.Bottleneck, layers, replace_stride_with_dilation=[False, True, True]
    )
    keep = {f"layer{i + 1}": backbone.__dict__["_modules"][f"layer{i + 1}"] for i in range(4)}
    for key, module in keep.items():
        network.backbone[key] = module
    return with_fields(MODELS[name], depths=DEPTHS[name], num_classes=CLASSES), network


@pytest.mark.parametrize("name", DEPTHS)
def test_logits_and_weights_there_and_back(name, randomize, tmp_path):
    model, network = shallow(name)
    randomize(network)
    state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    variables = variables_of(model, state)
    x = np.random.default_rng(0).normal(size=(2, 65, 97, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = network(channels_first(x))
    ours = jax.jit(model.apply, compiler_options=compiler_options())(variables, x)
    assert set(ours) == {"out", "aux"}
    for key, logits in ours.items():
        assert logits.dtype == np.float32
        assert_near(np.asarray(logits), channels_last(theirs[key]), key)
    # Through a file and `convert`, as a user does it
    write_tensors(tmp_path / "own.safetensors", {key: tensor.numpy() for key, tensor in state.items()})
    loaded = load(model, str(tmp_path / "own.safetensors"))
    assert loaded.notes == ()
    for path, leaf in traverse_util.flatten_dict(variables).items():
        np.testing.assert_array_equal(traverse_util.flatten_dict(loaded.variables)[path], leaf)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_resnet50"])
def test_the_whole_network_converts_to_torchvision_and_back(name, randomize, tmp_path):
    network = torchvision.models.segmentation.__dict__[name](weights=None, weights_backbone=None, aux_loss=True)
    randomize(network)
    state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    torch.save(state, tmp_path / "theirs.pth")
    convert_weights(tmp_path / "theirs.pth", tmp_path / "ours.safetensors", "torchvision", model=name)
    back = read_tensor_file(tmp_path / "ours.safetensors").tensors
    randomize(network, seed=1)
    network.load_state_dict({key: torch.tensor(np.asarray(value)) for key, value in back.items()}, strict=True)
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[key]), key
