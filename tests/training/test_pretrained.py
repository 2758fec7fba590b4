"""Weights that a run starts from: of another run, or with a note on how they were trained."""

import json
from dataclasses import replace

import chex
import jax
import numpy as np
import pytest
from conftest import TINY

from resnet_jax.data.image import Preprocessing
from resnet_jax.errors import InputError
from resnet_jax.inference.load_run import load_run
from resnet_jax.recipe import Augment, Data, Loss, Model, Recipe
from resnet_jax.run_dir.files import DatasetInfo, read_dataset_info
from resnet_jax.training.init import init_train_state
from resnet_jax.training.pretrained import load_pretrained, normalization_notes
from resnet_jax.training.setup import make_setup
from resnet_jax.weights.load import create_model
from resnet_jax.weights.names import abstract_variables, to_state_dict
from resnet_jax.weights.tensors import write_tensors

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_a_run_can_be_what_a_run_starts_from(tiny, tiny_run):
    run, _ = tiny_run
    setup, state = load_run(run, 1)
    named = replace(setup.recipe, model=replace(setup.recipe.model, pretrained=str(run)))
    loaded = load_pretrained(make_setup(named, setup.dataset, 1))
    assert loaded.notes == ()
    brighter = replace(named, data=replace(named.data, mean=(0.3,)))
    (note,) = load_pretrained(make_setup(brighter, setup.dataset, 1)).notes
    assert note == f"{run}: was trained with mean (0.5,), the recipe has data.mean (0.3,)"
    chex.assert_trees_all_equal(
        jax.tree.map(np.asarray, loaded.variables),
        jax.tree.map(np.asarray, {"params": state.params, "batch_stats": state.batch_stats}),
    )
    assert loaded.file.read_bytes()
    # Of other classes: all but the head
    more = replace(setup.dataset, classes=tuple("abcde"))
    loaded = load_pretrained(make_setup(named, more, 1))
    assert loaded.notes == (f"{run}: its head for 3 classes is dropped; a new one for 5 is initialised",)
    assert "head" not in loaded.variables["params"]
    other = replace(tiny, model=replace(TINY, pretrained=str(run)))
    with pytest.raises(InputError, match="run: has an unknown parameter .*; is it for another network"):
        load_pretrained(make_setup(other, read_dataset_info(run), 1))
    with pytest.raises(InputError, match="run: a run, not weights; `resnet-jax convert run OUT.safetensors`"):
        create_model("resnet8", pretrained=str(run))


def test_a_run_without_a_checkpoint_is_one_line(tiny, tmp_path, tiny_run):
    run, _ = tiny_run
    dataset = read_dataset_info(run)
    (run / "checkpoints").rename(tmp_path / "away")
    named = replace(tiny, model=Model(name="resnet8", pretrained=str(run)))
    with pytest.raises(InputError, match="run: no checkpoint yet"):
        load_pretrained(make_setup(named, dataset, 1))


def test_another_mean_or_std_than_that_of_the_weights_is_noted():
    known = Preprocessing(mean=MEAN, std=(0.5, 0.5, 0.5))
    assert normalization_notes("w", known, Data()) == [
        "w: was trained with mean (0.485, 0.456, 0.406), the recipe has data.mean (0.5,)"
    ]
    assert normalization_notes("w", known, Data(mean=(0.4851, 0.4559, 0.406))) == []
    assert len(normalization_notes("w", known, Data(std=STD))) == 2
    assert normalization_notes("w", None, Data()) == normalization_notes("w", Preprocessing(), Data()) == []


def test_the_note_is_one_of_the_weights(tiny, tmp_path):
    recipe = replace(tiny, augment=Augment(crop_padding=0), model=replace(tiny.model, pretrained=str(tmp_path)))
    setup = make_setup(recipe, DatasetInfo(("a", "b", "c"), (8, 8, 3), 40, ""), 1)
    model = setup.model.clone(input_shape=(8, 8, 3))
    variables = jax.tree.map(lambda leaf: jax.numpy.ones(leaf.shape), abstract_variables(model))
    write_tensors(tmp_path / "model.safetensors", to_state_dict(model, variables))
    known = {"input_size": [3, 8, 8], "crop_pct": 1.0, "interpolation": "bilinear", "mean": MEAN, "std": STD}
    config = {"architecture": "resnet8", "num_classes": 3, "pretrained_cfg": known}
    (tmp_path / "config.json").write_text(json.dumps(config))
    mean, std = load_pretrained(setup).notes
    assert "mean (0.485, 0.456, 0.406)" in mean
    assert "std (0.229, 0.224, 0.225), the recipe has data.std (0.5,)" in std


DETECTOR = {"depths": (1, 1), "width": 4}
LAYERS = {"pyramid_width": 8, "head_depth": 1, "extra": "none", "anchor_sizes": ((8, 10),)}


def started_from(path, model):
    """Write random weights of a network under PyTorch's names, and return them and what a detector takes from them."""
    random, shapes = np.random.default_rng(0), abstract_variables(model)
    variables = jax.tree.map(lambda leaf: random.uniform(0.5, 1.5, leaf.shape).astype(np.float32), shapes)
    write_tensors(path, to_state_dict(model, variables))
    recipe = Recipe(
        model=Model(name="retinanet_resnet18_fpn", fields=DETECTOR | LAYERS, pretrained=str(path)),
        augment=Augment(crop_padding=0),
        loss=Loss(name="detection"),
    )
    setup = make_setup(recipe, DatasetInfo(("cat", "dog"), (32, 32, 3), 40, ""), 1)
    return variables, setup, load_pretrained(setup)


def test_a_classifier_is_the_backbone_of_a_detector(tmp_path):
    file = tmp_path / "imagenet.safetensors"
    variables, _, loaded = started_from(file, create_model("resnet18", **DETECTOR))
    assert loaded.notes == (f"{file}: fills the backbone; the other layers of the RetinaNet are initialised",)
    assert loaded.variables["params"].keys() == loaded.variables["batch_stats"].keys() == {"backbone"}
    del variables["params"]["head"]
    filled = {collection: tree["backbone"] for collection, tree in loaded.variables.items()}
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, filled), variables)


def test_weights_of_coco_are_taken_but_for_the_predictor(tmp_path):
    file = tmp_path / "coco.safetensors"
    coco = create_model("retinanet_resnet18_fpn", num_classes=91, **DETECTOR, **LAYERS)
    variables, setup, loaded = started_from(file, coco)
    assert loaded.notes == (f"{file}: its head for 91 classes is dropped; a new one for 2 is initialised",)
    params = jax.device_get(init_train_state(setup, loaded.variables).params)
    head = params.pop("head")
    assert (head["kernel"].shape[-1], variables["params"].pop("head")["bias"].shape) == (6 * 2, (6 * 91,))
    chex.assert_trees_all_equal(params, variables["params"])
    np.testing.assert_allclose(head["bias"], np.log(0.01 / 0.99), rtol=1e-5)
