"""Weights that a run starts from: of another run."""

from dataclasses import replace

import chex
import jax
import numpy as np
import pytest
from conftest import TINY

from resnet_jax.errors import InputError
from resnet_jax.inference.load_run import load_run
from resnet_jax.recipe import Model
from resnet_jax.run_dir.files import read_dataset_info
from resnet_jax.training.pretrained import load_pretrained
from resnet_jax.training.setup import make_setup
from resnet_jax.weights.load import create_model


def test_a_run_can_be_what_a_run_starts_from(tiny, tiny_run):
    run, _ = tiny_run
    setup, state = load_run(run, 1)
    named = replace(setup.recipe, model=replace(setup.recipe.model, pretrained=str(run)))
    loaded = load_pretrained(make_setup(named, setup.dataset, 1))
    assert loaded.notes == ()
    chex.assert_trees_all_equal(
        jax.tree.map(np.asarray, loaded.variables),
        jax.tree.map(np.asarray, {"params": state.params, "batch_stats": state.batch_stats}),
    )
    assert loaded.file.read_bytes()
    # Of other classes: all but the head
    more = replace(setup.dataset, classes=tuple("abcde"))
    loaded = load_pretrained(make_setup(named, more, 1))
    assert loaded.notes == (f"{run}: its head of 3 classes is left out; one of 5 is initialised",)
    assert "head" not in loaded.variables["params"]
    other = replace(tiny, model=replace(TINY, pretrained=str(run)))
    with pytest.raises(InputError, match="run: has an unknown parameter .*; is it of another network"):
        load_pretrained(make_setup(other, read_dataset_info(run), 1))
    with pytest.raises(InputError, match="run: a run and no weights; `resnet-jax convert run OUT.safetensors`"):
        create_model("resnet8", pretrained=str(run))


def test_a_run_without_a_checkpoint_is_one_line(tiny, tmp_path, tiny_run):
    run, _ = tiny_run
    dataset = read_dataset_info(run)
    (run / "checkpoints").rename(tmp_path / "away")
    named = replace(tiny, model=Model(name="resnet8", pretrained=str(run)))
    with pytest.raises(InputError, match="run: no checkpoint yet"):
        load_pretrained(make_setup(named, dataset, 1))
