"""Networks on the maps of a backbone: shapes, weights of classifiers, and what recipes set in them."""

from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.nn.initializers import zeros

from resnet_jax.cli.main import main
from resnet_jax.errors import InputError
from resnet_jax.inference.convert import convert_weights
from resnet_jax.models.backbone import backbone_of, resize_linear, with_fields
from resnet_jax.models.layers import Conv
from resnet_jax.models.norm import BatchNorm
from resnet_jax.models.summary import model_cost
from resnet_jax.models.zoo import MODELS
from resnet_jax.optim.masks import frozen_mask, rate_factors
from resnet_jax.recipe import Loss, Model, Optimizer, Recipe
from resnet_jax.run_dir.files import DatasetInfo
from resnet_jax.training.init import init_train_state
from resnet_jax.training.network import build_network, require_resnet
from resnet_jax.training.setup import make_setup, microbatch_unit
from resnet_jax.weights.load import create_model, load
from resnet_jax.weights.names import abstract_variables, to_state_dict
from resnet_jax.weights.tensors import write_tensors

TINY = {"depths": (1, 1), "width": 4}


def small(name, **fields):
    """A network of two stages for images of 16x16 pixels."""
    fields = {"num_classes": 3, "input_shape": (16, 16, 3), "output_stride": None, **TINY, **fields}
    return with_fields(MODELS[name], **fields)


def random_variables(model, seed=0):
    random = np.random.default_rng(seed)
    shapes = abstract_variables(model)
    return jax.tree.map(lambda leaf: random.uniform(0.5, 1.5, leaf.shape).astype(np.float32), shapes)


def write(path, variables, model=None):
    flat = traverse_util.flatten_dict(variables, sep="/")
    write_tensors(Path(path), to_state_dict(model, variables) if model else flat)
    return str(path)


@pytest.mark.parametrize(
    ("backbone", "shape"),
    [
        ("resnet18_1d", (50, 1)),
        ("resnet50d", (65, 34, 3)),
        ("resnet18v2", (31, 1, 3)),
        ("resnet20", (9, 12, 1)),
        ("r3d_18", (5, 9, 17, 3)),
    ],
)
def test_a_decoder_on_any_backbone_has_the_shape_of_its_input(backbone, shape):
    model = create_model("unet_resnet18", backbone=MODELS[backbone], depths=(1, 1, 1), width=8, num_classes=4)
    assert len(model.input_shape) == len(shape)
    x = jnp.zeros((2, *shape))
    logits = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), x.astype(jnp.bfloat16))[0])
    assert (logits.shape, logits.dtype) == ((2, *shape[:-1], 4), jnp.float32)


def test_the_costs_are_of_all_layers():
    """Counted without the later blocks of a stage, they are those of what is drawn."""
    model = small("deeplabv3_resnet50", depths=(3, 2, 3))
    drawn = with_fields(model, conv=lambda features, kernel_init, **rest: Conv(features, kernel_init=zeros, **rest))
    params = jax.eval_shape(drawn.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    assert model_cost(model).parameters == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_enlarging_interpolates_between_centres():
    ramp = jnp.arange(4.0).reshape(1, 4, 1)
    np.testing.assert_allclose(resize_linear(ramp, (8,))[0, 1:-1, 0], 0.25 + 0.5 * np.arange(6), atol=1e-6)


def test_parameters_outside_the_backbone_are_the_head():
    params = abstract_variables(small("fcn_resnet50"))["params"]
    factors = rate_factors(params, Optimizer(layer_decay=0.5, head_lr_mult=10.0))
    rates = {top: set(jax.tree.leaves(tree)) for top, tree in factors.items() if top != "backbone"}
    assert rates == {"decoder": {10.0}, "head": {10.0}, "aux": {10.0}}
    inside = {top: set(jax.tree.leaves(tree)) for top, tree in factors["backbone"].items()}
    assert inside == {"stage2_block1": {0.5}, "stage1_block1": {0.25}, "stem": {0.125}}
    frozen = frozen_mask(params, ("backbone",))
    assert {top for top, tree in frozen.items() if all(jax.tree.leaves(tree))} == {"backbone"}


def test_recipes_set_fields_of_the_network_and_of_its_backbone():
    fields = {"backbone": "resnet20", "depths": (1, 2), "decoder_width": 8, "block": "Bottleneck"}
    network = build_network(Model(name="unet_resnet18", fields=fields, norm_group_size=2, dtype="bfloat16"), 5)
    assert (network.num_classes, network.decoder_width, network.input_shape) == (5, 8, (32, 32, 3))
    backbone = backbone_of(network)
    assert (backbone.depths, backbone.num_classes, backbone.dtype) == ((1, 2), 0, jnp.bfloat16)
    assert (backbone.norm.func, backbone.norm.keywords["group"]) == (BatchNorm, 2)
    assert build_network(Model(name="fcn_resnet50", fields={"aux_head": False}), 2).aux_head is False


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decoder_widht": 8}, "UNet has no field 'decoder_widht'; nearest: decoder_width"),
        ({"decoder_width": 0}, "decoder_width is 0; it must be a positive integer"),
        ({"backbone": "unet_resnet18"}, "backbone is 'unet_resnet18'; take one of resnet18"),
        ({"head_dropout": 0.1}, "set model.head_dropout instead"),
    ],
)
def test_wrong_fields_are_refused_in_one_line(fields, message):
    with pytest.raises(InputError, match=message):
        build_network(Model(name="unet_resnet18", fields=fields), 2)


def test_what_is_for_classifiers_says_so():
    with pytest.raises(InputError, match="explain is for classifiers; this network is a UNet on a ResNet"):
        require_resnet(MODELS["unet_resnet18"], "explain")


@pytest.mark.parametrize(
    ("name", "loss", "message"),
    [
        ("unet_resnet18", "cross_entropy", "predicts pixels, and .* set loss.name to pixel_cross_entropy or dice"),
        ("resnet18", "pixel_cross_entropy", "predicts images, and .* take a network such as unet_resnet18"),
        ("retinanet_resnet18_fpn", "pixel_cross_entropy", "predicts boxes, and .* set loss.name to detection"),
    ],
)
def test_outputs_must_be_what_the_loss_is_for(name, loss, message):
    wrong = Recipe(model=Model(name=name), loss=Loss(name=loss), batch_size=4)
    with pytest.raises(InputError, match=message):
        make_setup(wrong, DatasetInfo(("a", "b", "c"), (16, 16, 3), train_size=8, data_dir=""), 1)


def recipe(name, **model):
    fields = {**TINY, "output_stride": None, **model.pop("fields", {})}
    model = Model(name=name, fields=fields, **model)
    return Recipe(model=model, loss=Loss(name="pixel_cross_entropy"), batch_size=4, epochs=None, steps=4)


def test_a_classifier_fills_the_backbone_and_the_rest_is_drawn(tmp_path):
    classifier = create_model("resnet18", **TINY, num_classes=7)
    variables = random_variables(classifier)
    file = write(tmp_path / "resnet.safetensors", variables, classifier)
    dataset = DatasetInfo(("a", "b", "c"), (16, 16, 3), train_size=8, data_dir="")
    setup = make_setup(recipe("unet_resnet18", pretrained=file, norm_group_size=2), dataset, 1)
    assert microbatch_unit(setup) == 2
    loaded = load(setup.model, file)
    assert loaded.notes == (f"{file}: fills the backbone; the other layers of the UNet are initialised",)
    del variables["params"]["head"]
    state = init_train_state(setup, loaded.variables)
    chex.assert_trees_all_equal(jax.device_get(state.params["backbone"]), variables["params"])
    chex.assert_trees_all_equal(jax.device_get(state.batch_stats["backbone"]), variables["batch_stats"])
    assert state.params["decoder1"]["conv1"]["kernel"].std() > 0.01


def test_weights_of_another_such_network_fill_the_backbone(tmp_path):
    fcn = small("fcn_resnet50")
    variables = random_variables(fcn)
    loaded = load(small("unet_resnet50"), write(tmp_path / "own.safetensors", variables))
    chex.assert_trees_all_equal(jax.device_get(loaded.variables["params"]["backbone"]), variables["params"]["backbone"])
    assert "fills the backbone" in loaded.notes[0]
    file = write(tmp_path / "torch.safetensors", variables, fcn)
    with pytest.raises(InputError, match="has an unknown parameter 'aux_classifier"):
        load(small("unet_resnet50"), file)


@pytest.mark.parametrize("style", ["torchvision", "flax"])
def test_another_number_of_classes_replaces_the_predictors(style, tmp_path):
    model = small("deeplabv3_resnet50")
    variables = random_variables(model)
    file = write(tmp_path / "w.safetensors", variables, model if style == "torchvision" else None)
    assert load(model, file).notes == ()
    chex.assert_trees_all_equal(load(model, file).variables, variables)
    (note,) = (loaded := load(model.clone(num_classes=5), file)).notes
    assert note == f"{file}: its head for 3 classes is dropped; a new one for 5 is initialised"
    assert set(loaded.variables["params"]["aux"]) == {"decoder"}
    (note,) = (loaded := load(model.clone(aux_head=False), file)).notes
    assert note == f"{file}: its auxiliary head is dropped"
    assert "aux" not in loaded.variables["params"]
    without = {collection: {**tree} for collection, tree in variables.items()}
    for tree in without.values():
        del tree["aux"]
    file = write(tmp_path / "w.safetensors", without, model if style == "torchvision" else None)
    (note,) = load(model, file).notes
    assert note == f"{file}: has no auxiliary head; one is initialised"


def test_create_model_draws_what_a_file_does_not_have(tmp_path):
    classifier = create_model("resnet18", **TINY, num_classes=7, input_shape=(16, 16, 1))
    file = write(tmp_path / "resnet.safetensors", random_variables(classifier), classifier)
    model, variables = create_model("unet_resnet18", pretrained=file, num_classes=2, **TINY)
    assert model.input_shape == (224, 224, 1)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, abstract_variables(model))
    x = jnp.zeros((1, 10, 12, 1))
    assert jax.eval_shape(model.apply, variables, x).shape == (1, 10, 12, 2)


def test_torchvision_has_no_such_decoder(tmp_path):
    file = write(tmp_path / "unet.safetensors", random_variables(MODELS["unet_resnet18"]))
    with pytest.raises(InputError, match="unet_resnet18: torchvision has no such layers; use --to flax"):
        convert_weights(file, tmp_path / "out.safetensors", "torchvision", model="unet_resnet18")
    assert convert_weights(file, tmp_path / "out.safetensors", "flax", model="unet_resnet18").classes == 21


@pytest.mark.parametrize("name", ["unet_resnet18", "deeplabv3_resnet101"])
def test_summary_and_list_know_them(name, capsys):
    assert main(["summary", name, "--size", "33", "--classes", "2"]) == 0
    out = capsys.readouterr().out
    assert "backbone/stem/conv" in out
    assert main(["list", name]) == 0
    assert f"{model_cost(MODELS[name]).parameters:,}" in capsys.readouterr().out
