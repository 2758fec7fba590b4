"""A run that is exported, written once per module; helpers of the folder above."""

import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from untrained import write_run

from resnet_jax.recipe import Model


def _perturbed(state):
    """With statistics that are not at their initial values."""
    draw = np.random.default_rng(0).uniform

    def change(path, leaf):
        # Of quantisation-aware training
        start = {"low": -1.5, "high": 1.5}.get(path[-1].key, leaf)
        return start + draw(0.1, 0.2, leaf.shape).astype(leaf.dtype)

    return state.replace(batch_stats=jax.tree_util.tree_map_with_path(change, state.batch_stats))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return tmp_path_factory.mktemp("written")


@pytest.fixture
def make_run(tiny, written, tmp_path, monkeypatch):
    """A function that puts a run of a small network on images of a shape into an empty folder."""
    monkeypatch.chdir(tmp_path)

    def make(shape=(8, 8, 1), classes=("a", "b", "c"), **fields):
        home = written / "-".join(map(str, (*shape, *fields)))
        if not home.exists():
            model = Model(name="resnet8", fields={"depths": (1, 1), "width": 8})
            write_run(home, replace(tiny, **{"model": model, **fields}), shape, classes, change=_perturbed)
        shutil.copytree(home, "run")
        return Path("run")

    return make


@pytest.fixture
def run(make_run):
    return make_run()
