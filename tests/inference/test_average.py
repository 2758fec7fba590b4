"""Averages of weights: their parameters, their statistics, which runs a greedy one takes, and what is refused."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from test_convert import perturbed
from untrained import write_run

from resnet_jax.cli.main import main
from resnet_jax.errors import InputError
from resnet_jax.inference.average import _greedy, average
from resnet_jax.inference.evaluate import evaluate
from resnet_jax.inference.load_run import load_run
from resnet_jax.inference.source import WeightsInfo
from resnet_jax.models.layers import Conv
from resnet_jax.recipe import Augment, Model
from resnet_jax.tasks.classification import classification
from resnet_jax.training.sources import open_sources
from resnet_jax.weights.tensors import read_tensors


@pytest.fixture
def runs(tiny, tmp_path, monkeypatch):
    """Two runs that nobody trained, of one batch of all images without augmentation."""
    monkeypatch.chdir(tmp_path)
    tiny = replace(tiny, augment=Augment(crop_padding=0), batch_size=40)
    for seed in range(2):
        write_run(tmp_path / f"run{seed}", replace(tiny, seed=seed), (8, 8, 1), "abc", change=perturbed)
    return tiny, ["run0", "run1"]


def test_the_mean_of_parameters_under_statistics_of_the_training_images(runs, tmp_path):
    recipe, names = runs
    done = average(names, "soup.safetensors", devices=1)
    tensors = read_tensors(tmp_path / "soup.safetensors")
    states = [load_run(name, 1)[1] for name in names]
    for path in ("stem/conv/kernel", "head/bias"):
        leaves = [state.params for state in states]
        for part in path.split("/"):
            leaves = [leaf[part] for leaf in leaves]
        np.testing.assert_allclose(tensors[f"params/{path}"], np.mean(leaves, 0), rtol=1e-6)
    source = open_sources(recipe, tmp_path).train
    pixels = np.stack([source.read(index).image for index in range(source.size)]).astype(np.float32)
    kernel = {"params": {"kernel": tensors["params/stem/conv/kernel"]}}
    maps = np.asarray(jax.jit(Conv(4).apply)(kernel, (pixels / 255 - 0.5) / 0.5))
    np.testing.assert_allclose(tensors["batch_stats/stem/norm/mean"], maps.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(tensors["batch_stats/stem/norm/var"], maps.var((0, 1, 2), ddof=1), rtol=1e-4)
    # The file is evaluated without flags but that for the data
    found = evaluate("soup.safetensors", weights=WeightsInfo(data="tiny"), devices=1)
    assert found.values["accuracy"] == done.score
    assert done.chosen == ("run0", "run1")
    assert list(done.scores) == names


def test_a_greedy_average_leaves_out_what_makes_it_worse():
    blends = {("b", "c"): 0.4, ("b", "a"): 0.6, ("b", "a", "d"): 0.6}
    tried = []

    def blend(chosen):
        tried.append(tuple(chosen))
        return {"of": chosen}, blends[tuple(chosen)]

    scores = {"a": 0.3, "b": 0.5, "c": 0.4, "d": 0.2}
    chosen, (variables, score) = _greedy(classification(), {name: {} for name in scores}, scores, blend)
    assert tried == [("b", "c"), ("b", "a"), ("b", "a", "d")]
    assert chosen == ("b", "a", "d")
    assert (variables, score) == ({"of": ("b", "a", "d")}, 0.6)


def test_the_command_line(runs, capsys):
    assert main(["average", "run0", "run1", "--out", "soup.safetensors", "--devices", "1"]) == 0
    *each, last = capsys.readouterr().out.splitlines()
    assert [line.split(" ")[0] for line in each] == ["run0:", "run1:"]
    assert last.startswith("soup.safetensors: average of 2 runs, test accuracy ")


def test_what_cannot_be_averaged(runs, tmp_path, capsys):
    recipe, names = runs
    wide = replace(recipe, model=Model(name="resnet8", fields={"depths": (1,), "width": 8}))
    write_run(tmp_path / "wide", wide, (8, 8, 1), "abc")
    write_run(tmp_path / "named", recipe, (8, 8, 1), "xyz")
    for where, message in (
        (["run0", "wide"], "wide: cannot be averaged with run0, they differ in model.fields "),
        (["run0", "named"], "named: cannot be averaged with run0, they differ in its classes or images"),
        (["run0"], "two or more different runs"),
        (["run0", "run0"], "two or more different runs"),
        (["run0", "nothing"], "nothing: not a run directory"),
    ):
        with pytest.raises(InputError, match=message):
            average(where, "soup.safetensors", devices=1)
    with pytest.raises(InputError, match="--greedy must not choose on the test split"):
        average(names, "soup.safetensors", greedy=True, devices=1)
    assert main(["average", *names, "--out", "soup.npz"]) == 2
    assert "must end in .safetensors" in capsys.readouterr().err
    assert not list(tmp_path.glob("soup*"))
