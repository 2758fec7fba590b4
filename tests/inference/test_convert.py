"""Weights out of a run, and in again."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from untrained import write_run

from resnet_jax.cli.main import main
from resnet_jax.errors import InputError
from resnet_jax.inference.convert import convert_weights
from resnet_jax.inference.load_run import load_run
from resnet_jax.inference.predict import predict
from resnet_jax.models.zoo import MODELS
from resnet_jax.recipe import Loss, Model
from resnet_jax.weights.tensors import read_tensor_file, read_tensors, write_tensors


def perturbed(state):
    """With statistics and biases that are not at their initial values."""
    draw = np.random.default_rng(0).uniform
    noisy = jax.tree.map(lambda leaf: leaf + draw(0.1, 0.2, leaf.shape).astype(leaf.dtype), state.batch_stats)
    params = jax.tree.map(lambda leaf: leaf + draw(0.0, 0.1, leaf.shape).astype(leaf.dtype), state.params)
    return state.replace(params=params, batch_stats=noisy)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def run(tiny, trained):
    """A run of a published network: a file of weights has no fields of its own."""
    if not trained.exists():
        write_run(trained, replace(tiny, model=Model(name="resnet8")), (8, 8, 1), "abc", change=perturbed)
    return trained


@pytest.mark.parametrize("to", ["torchvision", "timm", "flax"])
def test_out_of_a_run_and_in_again(run, tmp_path, to, capsys):
    out = tmp_path / "tiny.safetensors"
    assert main(["convert", str(run), str(out), "--to", to]) == 0
    assert f"resnet8, {len(read_tensors(out))} tensors, 3 classes, names of {to}" in capsys.readouterr().out
    _, state = load_run(run, devices=1)
    name = "params/head/bias" if to == "flax" else "fc.bias"
    np.testing.assert_array_equal(read_tensors(out)[name], state.params["head"]["bias"])
    again = tmp_path / "again.safetensors"
    done = convert_weights(str(out), again, "flax", model="resnet8")
    assert (done.model, done.classes) == ("resnet8", 3)
    convert_weights(str(run), tmp_path / "straight.safetensors", "flax")
    for key, value in read_tensors(tmp_path / "straight.safetensors").items():
        np.testing.assert_array_equal(read_tensors(again)[key], value)


def test_weights_predict_as_their_run_does(run, tmp_path, monkeypatch, capsys):
    image, weights = str(tmp_path / "x.png"), str(tmp_path / "w.safetensors")
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(image)
    monkeypatch.chdir(tmp_path)
    convert_weights(str(run), tmp_path / "w.safetensors", "torchvision")
    assert main(["predict", str(run), image, "--json"]) == 0
    of_run = json.loads(capsys.readouterr().out)
    bare = bare_copy(weights)
    flags = ["--model", "resnet8", "--image-size", "8", "--mean", "0.5", "--std", "0.5"]
    for words in ([weights], [weights, "--model", "resnet8"], [bare, *flags]):
        assert main(["predict", words[0], image, "--json", *words[1:]]) == 0
        of_weights = json.loads(capsys.readouterr().out)
        answers = [rows[0]["predictions"] for rows in (of_run, of_weights)]
        np.testing.assert_allclose(*([p["probability"] for p in answer] for answer in answers), rtol=1e-5)
        if words[0] == weights:
            assert [p["class"] for p in answers[0]] == [p["class"] for p in answers[1]]
    # And so does what is converted again
    assert main(["convert", weights, "again.safetensors", "--to", "flax"]) == 0
    capsys.readouterr()
    assert main(["predict", "again.safetensors", image, "--json"]) == 0
    np.testing.assert_array_equal(json.loads(capsys.readouterr().out)[0]["predictions"], of_run[0]["predictions"])


def bare_copy(weights):
    """The file without its metadata."""
    bare = str(weights).replace(".safetensors", "-bare.safetensors")
    write_tensors(Path(bare), read_tensors(Path(weights)))
    return bare


def test_a_file_whose_preprocessing_is_not_known_still_says_its_network(run, tmp_path, capsys):
    path = tmp_path / "w.safetensors"
    convert_weights(str(run), path, "timm")
    convert_weights(bare_copy(path), path, "flax", model="resnet8")
    convert_weights(str(path), path, "timm")
    assert read_tensor_file(path).metadata["model"] == "resnet8"
    assert main(["evaluate", str(path), "--data", "digits"]) == 2
    assert "its preprocessing is not known; give --mean" in capsys.readouterr().err
    tensors = {f"model.{name}": tensor for name, tensor in read_tensors(path).items()}
    write_tensors(path, tensors)
    assert main(["evaluate", str(path), "--data", "digits", "--model", "resnet14", "--mean", "0", "--std", "1"]) == 2
    assert "has no head, and so no classes (names begin with 'model.'); is it for" in capsys.readouterr().err


def test_the_network_and_the_task_of_a_run_are_in_the_file(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fields = {"depths": (1, 1), "width": 4, "act": "silu"}
    recipe = replace(tiny, model=Model(name="resnet8", fields=fields, shortcut="B"), loss=Loss(name="mse"))
    write_run(Path("run"), recipe, (6, 10, 1), ("down", "up"), change=perturbed)
    Image.fromarray(np.arange(60, dtype=np.uint8).reshape(6, 10)).save("x.png")
    convert_weights("run", Path("w.safetensors"), "timm")
    of_run, of_weights = predict("run", ["x.png"]), predict("w.safetensors", ["x.png"])
    assert of_weights[0].measure == "output"
    assert of_weights[0].classes == ("down", "up")
    np.testing.assert_allclose(of_weights[0].probabilities, of_run[0].probabilities, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": "{"}, "metadata are damaged (its recipe: not JSON"),
        ({"recipe": "[" * 100_000}, "metadata are damaged (its recipe: nested too deeply)"),
        ({"classes": "[1, 2, 3]"}, "its classes are no names"),
        ({"classes": '["a"]'}, "its head has 3 classes, and its metadata 1"),
        ({"image_shape": "[8, 8]"}, "the data are sequences"),
        ({"image_shape": "[8, 0, 1]"}, "its image shape is no list of numbers from 1"),
        ({"image_shape": "[1000000000, 1000000000, 1]"}, "too large for its tensors"),
        ({"depths": [1000000000]}, "too large for its tensors"),
        ({"depths": "many"}, "too large for its tensors"),
        ({"groups": -1}, "model.fields: groups is -1"),
        ({"name": "os:system"}, "its preprocessing is not known"),
    ],
)
def test_metadata_of_a_stranger_are_one_line(run, tmp_path, change, message, capsys):
    path = tmp_path / "w.safetensors"
    convert_weights(str(run), path, "timm")
    found = read_tensor_file(path)
    recipe = {name: value for name, value in json.loads(found.metadata["recipe"]).items() if name != "sha256"}
    fields = {name: value for name, value in change.items() if name not in (*found.metadata, "name")}
    recipe["model"] |= {"fields": fields} | ({"name": change["name"]} if "name" in change else {})
    write_tensors(path, found.tensors, found.metadata | {"recipe": json.dumps(recipe)} | (change if not fields else {}))
    assert main(["predict", str(path), str(path)]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert message in err


@pytest.mark.parametrize(
    ("name", "to", "message"),
    [
        ("resnet50d", "torchvision", "resnet50d: torchvision has no such layers; use --to timm or --to flax"),
        ("resnet50v2", "torchvision", "use --to timm or --to flax"),
        ("r3d_18", "timm", "r3d_18: timm has no such layers; use --to torchvision or --to flax"),
        ("resnet9", "timm", "use --to flax"),
    ],
)
def test_layers_that_the_other_library_lacks(run, tmp_path, monkeypatch, name, to, message):
    setup, state = load_run(run, devices=1)
    other = setup._replace(model=MODELS[name], recipe=replace(setup.recipe, model=Model(name=name)))
    monkeypatch.setattr("resnet_jax.inference.convert.load_model", lambda *args, **options: (other, state))
    with pytest.raises(InputError, match="has no such layers") as info:
        convert_weights(str(run), tmp_path / "x.safetensors", to)
    assert str(info.value).startswith(f"{name}: {to} has no such layers; use ")
    assert str(info.value).endswith(message)
    assert not (tmp_path / "x.safetensors").exists()


def test_wrong_use(run, tmp_path, capsys):
    weights = tmp_path / "w.safetensors"
    convert_weights(str(run), weights, "torchvision")
    weights = bare_copy(weights)
    for words, message in (
        (["convert", str(run), "out.pth", "--to", "timm"], "its name must end in .safetensors"),
        (
            ["convert", str(weights), "out.safetensors", "--to", "timm"],
            "does not say which network it is; name it with --model",
        ),
        (["convert", "nowhere", "out.safetensors", "--to", "timm"], "nowhere: no such run or weights"),
        (["convert", str(weights), "out.safetensors", "--to", "flax", "--model", "resnet20"], "is it for another"),
        (["evaluate", str(weights), "--model", "resnet8", "--mean", "0", "--std", "1"], "name a data set with --data"),
        (["evaluate", str(weights), "--model", "resnet8", "--data", "digits"], "its preprocessing is not known"),
        (["evaluate", str(weights), "--data", "digits"], "does not say which network"),
        (["evaluate", str(weights), "--model", "resnt8"], "unknown model 'resnt8'; nearest: resnet8"),
        (["evaluate", str(run), "--data", "digits"], "leave --data out"),
        (
            ["evaluate", str(weights), "--model", "resnet8", "--data", "digits", "--mean", "0", "--std", "1"],
            "is for 3 classes and 1 channels, digits has 10 and 1",
        ),
    ):
        assert main(words) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1


def test_paths_may_be_text(run, tmp_path):
    """And a path may stand for text."""
    out = str(tmp_path / "text.safetensors")
    assert convert_weights(str(run), out, "flax") == convert_weights(Path(run), Path(out), "flax")
    with pytest.raises(InputError, match="must end in .safetensors"):
        convert_weights(str(run), "out.txt", "flax")
