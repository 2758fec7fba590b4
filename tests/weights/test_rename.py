"""Names in a file that are not those of the network: prefixes, heads, transformers' ResNet, shards."""

import json

import chex
import ml_dtypes
import numpy as np
import pytest
from test_load import PRE, SMALL, variables_of

from resnet_jax.errors import InputError
from resnet_jax.models.blocks import Bottleneck
from resnet_jax.weights.load import create_model, load
from resnet_jax.weights.names import to_state_dict
from resnet_jax.weights.tensors import read_tensors, write_tensors

COUNTER = {"n_averaged": np.array(7, np.int64)}
ONE = np.ones(3, np.float32)
PREFIXES = ("module.", "model.", "net.", "backbone.", "encoder.", "model._orig_mod.", "_orig_mod.")
HEADS = ("linear", "classifier", "classifier.1", "head", "last_linear", "fc.1", "fc", "head.fc")


def renamed(model, change):
    return {change(name): tensor for name, tensor in to_state_dict(model, variables_of(model)).items()}


def loaded(tmp_path, model, tensors):
    write_tensors(tmp_path / "x.safetensors", tensors)
    return load(model, str(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_one_prefix_of_all_names_is_left_out(tmp_path, prefix):
    for more in ({}, COUNTER):
        found = loaded(tmp_path, SMALL, renamed(SMALL, lambda name: prefix + name) | more)
        assert found.notes == ()
        chex.assert_trees_all_equal(found.variables, variables_of(SMALL))
    found = create_model("resnet20", depths=(1, 1), width=4, pretrained=str(tmp_path / "x.safetensors"))
    assert found[0].num_classes == 3


@pytest.mark.parametrize("model", [SMALL, PRE], ids=["post", "pre"])
@pytest.mark.parametrize("head", HEADS)
def test_other_names_of_the_head(tmp_path, model, head):
    own = "head.fc." if model is PRE else "fc."
    tensors = renamed(model, lambda name: f"{head}.{name.removeprefix(own)}" if name.startswith(own) else f"net.{name}")
    chex.assert_trees_all_equal(loaded(tmp_path, model, tensors).variables, variables_of(model))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"model.loss.weight": ONE}, "has an unknown parameter 'loss.weight'"),
        ({"loss.weight": ONE}, "has an unknown parameter 'loss.weight'"),
        ({"model.classifier.weight": ONE}, "has an unknown parameter 'classifier.weight'"),
        ({"fc.weight": ONE}, "two tensors are the network's 'fc.weight'; save a file with one of them"),
        ({"scale": np.float32(1)}, "has an unknown parameter 'scale'"),
        ("other.", "has several networks, under 'model.' and 'other.'; save a file with one of them"),
    ],
)
def test_nothing_is_guessed(tmp_path, more, message):
    more = renamed(SMALL, lambda name: more + name) if isinstance(more, str) else more
    with pytest.raises(InputError, match=message):
        loaded(tmp_path, SMALL, renamed(SMALL, lambda name: f"model.{name}") | more)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_of_moco_the_trained_encoder_is_taken(tmp_path, prefix):
    both = renamed(SMALL, lambda name: f"{prefix}encoder_q.{name}")
    both |= {
        f"{prefix}encoder_k.{name}": 0 * tensor for name, tensor in to_state_dict(SMALL, variables_of(SMALL)).items()
    }
    both |= {f"{prefix}queue": ONE, f"{prefix}queue_ptr": np.zeros(1, np.int64)}
    found = loaded(tmp_path, SMALL, both)
    chex.assert_trees_all_equal(found.variables["batch_stats"], variables_of(SMALL)["batch_stats"])
    assert (
        f"left out, as not part of the network: the momentum encoder under '{prefix}encoder_k.' and " in found.notes[1]
    )


PROJECTIONS = {
    "MoCo": ("module.encoder_q.", ("module.encoder_q.fc.weight", "module.encoder_q.fc.bias"), "fc"),
    "MoCo v2": (
        "module.encoder_q.",
        tuple(f"module.encoder_q.fc.{i}.{x}" for i in "02" for x in ("weight", "bias")),
        "fc",
    ),
    "MoCo v3": ("module.base_encoder.", ("module.base_encoder.fc.0.weight", "module.predictor.0.weight"), "fc"),
    "SwAV": (
        "module.",
        ("module.projection_head.0.weight", "module.projection_head.1.running_mean", "module.prototypes.weight"),
        "projection_head",
    ),
    "DINO": ("backbone.", ("head.mlp.0.weight", "head.last_layer.weight_g"), "head.last_layer' and 'head.mlp"),
}


@pytest.mark.parametrize("name", PROJECTIONS)
def test_what_was_trained_behind_the_features_is_left_out(tmp_path, name):
    """The names in the published checkpoints of self-supervised training."""
    prefix, layers, said = PROJECTIONS[name]
    encoder = renamed(SMALL, lambda name: prefix + name)
    tensors = {key: tensor for key, tensor in encoder.items() if ".fc." not in key} | dict.fromkeys(layers, ONE)
    found = loaded(tmp_path, SMALL, tensors)
    chex.assert_trees_all_equal(found.variables["batch_stats"], variables_of(SMALL)["batch_stats"])
    assert "head" not in found.variables["params"]
    assert f"the layers trained after the features, '{said}'" in " ".join(found.notes)
    assert "has no head; one of 3 classes is initialised" in found.notes[0]


def test_of_moco_v3_the_trained_encoder_is_taken(tmp_path):
    weights = to_state_dict(SMALL, variables_of(SMALL))
    both = {f"module.base_encoder.{name}": tensor for name, tensor in weights.items() if "fc." not in name}
    both |= {f"module.momentum_encoder.{name}": 0 * tensor for name, tensor in weights.items()}
    found = loaded(tmp_path, SMALL, both)
    chex.assert_trees_all_equal(found.variables["batch_stats"], variables_of(SMALL)["batch_stats"])
    assert "the momentum encoder under 'module.momentum_encoder.'" in found.notes[1]


def test_what_was_found_is_said(tmp_path):
    tensors = renamed(SMALL, lambda name: f"model.{name}") | COUNTER
    del tensors["model.bn1.bias"]
    with pytest.raises(
        InputError, match=r"has no parameter .* others \(names begin with 'model\.'\); is it for another"
    ):
        loaded(tmp_path, SMALL, tensors)


TRANSFORMERS = {
    "conv1": "resnet.embedder.embedder.convolution",
    "bn1": "resnet.embedder.embedder.normalization",
    "layer1.0.conv1": "resnet.encoder.stages.0.layers.0.layer.0.convolution",
    "layer1.0.bn2": "resnet.encoder.stages.0.layers.0.layer.1.normalization",
    "layer1.0.conv3": "resnet.encoder.stages.0.layers.0.layer.2.convolution",
    "layer2.0.downsample.0": "resnet.encoder.stages.1.layers.0.shortcut.convolution",
    "layer2.0.downsample.1": "resnet.encoder.stages.1.layers.0.shortcut.normalization",
    "fc": "classifier.1",
}


def to_transformers(name):
    """The name in transformers' ResNetForImageClassification."""
    *module, leaf = name.split(".")
    if module[0] in ("conv1", "bn1", "fc"):
        return f"{TRANSFORMERS[module[0]]}.{leaf}"
    stage, block, layer = int(module[0][-1]) - 1, module[1], module[2]
    norm = "normalization" if layer.startswith("bn") or module[3:] == ["1"] else "convolution"
    inside = "shortcut" if layer == "downsample" else f"layer.{int(layer[-1]) - 1}"
    return f"resnet.encoder.stages.{stage}.layers.{block}.{inside}.{norm}.{leaf}"


def test_the_names_of_transformers(tmp_path):
    model = SMALL.clone(block=Bottleneck)
    for ours, theirs in TRANSFORMERS.items():
        assert to_transformers(f"{ours}.weight") == f"{theirs}.weight"
    for change in (to_transformers, lambda name: to_transformers(name).removeprefix("resnet.")):
        chex.assert_trees_all_equal(loaded(tmp_path, model, renamed(model, change)).variables, variables_of(model))


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_shards_of_an_index(tmp_path, name):
    tensors = to_state_dict(SMALL, variables_of(SMALL))
    parts = {f"model-0000{i}-of-00002.safetensors": dict(list(tensors.items())[i::2]) for i in (0, 1)}
    for file, part in parts.items():
        write_tensors(tmp_path / file, part)
    places = {tensor: file for file, part in parts.items() for tensor in part}
    index = tmp_path / name
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    for where in (tmp_path, index):
        chex.assert_trees_all_equal(load(SMALL, str(where)).variables, variables_of(SMALL))
    file = min(parts)
    first = next(iter(parts[file]))
    for wrong, message in (
        ({**places, first: max(parts)}, f"shard '{file}' and the index differ in '{first}'"),
        ({**places, "more": file}, f"shard '{file}' and the index differ in 'more'"),
        ({first: "gone.safetensors"}, "shard 'gone.safetensors': no such file"),
        ({first: "../x"}, "a shard that is not the name of a file beside it"),
        ({first: ""}, "a shard that is not the name of a file beside it"),
        ({first: "x" * 300}, "a shard that is not the name of a file beside it"),
        ({first: 1}, "a shard that is not the name of a file beside it"),
        ({first: name}, "neither a safetensors nor"),
        ([], "no index of weights"),
    ):
        index.write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(InputError, match=message):
            read_tensors(index)
    for text in ("{}", '{"weight_map": ' + "[" * 100_000):
        index.write_text(text)
        with pytest.raises(InputError, match="no index of weights"):
            read_tensors(index)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_floats_are_widened_with_a_note(tmp_path, dtype):
    narrow = {name: tensor.astype(dtype) for name, tensor in to_state_dict(SMALL, variables_of(SMALL)).items()}
    found = loaded(tmp_path, SMALL, narrow)
    assert found.notes == (f"{tmp_path}/x.safetensors: weights in {np.dtype(dtype)} are read as float32",)
    kernel = found.variables["params"]["head"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, narrow["fc.weight"].astype(np.float32).T)
