"""Grad-CAM: its formula where it can be written down, the pixels that a map speaks of, and the command."""

import json
import os
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import QUICKLY
from PIL import Image
from untrained import write_run

from resnet_jax.cli.main import main
from resnet_jax.inference.explain import Explanation, draw_explanations, explain, grad_cam
from resnet_jax.inference.predict import Prediction, predict
from resnet_jax.models.blocks import Bottleneck, PreActBasicBlock
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.stems import CifarStem, PreActCifarStem
from resnet_jax.models.zoo import MODELS
from resnet_jax.recipe import Augment, Data, Loss, Model, Recipe
from resnet_jax.runtime.compiler_options import compiler_options


def network(**fields):
    return ResNet((1, 1), **{"stem": CifarStem, "width": 4, "num_classes": 3, **fields})


def drawn(model, x):
    """Random parameters and statistics; of a head large enough to say something."""
    random = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key in ("var", "scale"):
            return random.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return random.normal(scale=0.3, size=leaf.shape).astype(np.float32)

    return jax.tree.map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0), x))


def images(*shape):
    return jax.random.normal(jax.random.key(1), shape)


def jitted(function):
    return jax.jit(function, compiler_options=compiler_options() | QUICKLY)


BLOCKS = [{}, {"block": Bottleneck}, {"block": PreActBasicBlock, "stem": PreActCifarStem}]


@pytest.mark.parametrize("fields", BLOCKS, ids=["basic", "bottleneck", "preactivation"])
def test_of_a_mean_and_a_linear_head_it_is_the_map_of_class_activations(fields):
    """CAM (Zhou et al. 2016), by hand: maps times the weights of the head, ReLU, and stretched from cell to cell."""
    model, x, classes = network(**fields), images(3, 8, 8, 2), jnp.array([2, 0, 1])
    v = drawn(model, x)
    heat = np.asarray(jitted(lambda v: grad_cam(model, v, x, classes))(v))
    maps = np.asarray(jitted(partial(model.apply, method="features"))(v, x)[-1])
    weights = np.asarray(v["params"]["head"]["kernel"])[:, classes]
    cam = np.maximum(np.einsum("bhwc,cb->bhw", maps, weights), 0)
    assert (cam.max((1, 2)) > 0).all()
    cam = cam / cam.max((1, 2), keepdims=True)
    np.testing.assert_allclose(heat[:, ::2, ::2], cam, atol=1e-5)  # a cell for every second pixel
    np.testing.assert_allclose(heat[:, 1:-2:2, ::2], (cam[:, 1:] + cam[:, :-1]) / 2, atol=1e-5)
    np.testing.assert_array_equal(heat[:, -1], heat[:, -2])  # nothing lies beyond the last cell


@pytest.mark.parametrize("stage", [1, 2])
def test_an_earlier_stage_is_weighted_by_the_slope_of_the_logit(stage):
    """Equation 1 by finite differences: what the logit gains by a little more of a channel everywhere."""
    with jax.enable_x64(True):
        model, x = network(), np.asarray(images(1, 8, 8, 2), np.float64)
        v = jax.tree.map(lambda leaf: leaf.astype(np.float64), drawn(model, x))
        maps = np.asarray(jitted(lambda v: model.apply(v, x, method="features")[stage - 1])(v))
        cells, step = maps.shape[1] * maps.shape[2], 1e-6
        ones = np.eye(maps.shape[-1])[:, None, None, None]
        more = np.concatenate([maps + s * step * one for one in ones for s in (1, -1)])
        logits = np.asarray(jitted(lambda v: model.apply(v, more, stage, method="forward_from_stage"))(v))
        slopes = (logits[::2] - logits[1::2]) / (2 * step * cells)
        expected = np.moveaxis(np.maximum(maps[0] @ slopes, 0), -1, 0)
        heat = jitted(lambda v: grad_cam(model, v, np.repeat(x, 3, axis=0), jnp.arange(3), stage))(v)
        heat = np.asarray(heat)[:, ::stage, ::stage]
    assert expected.any((1, 2)).sum() >= 2
    for one, by_hand in zip(heat, expected, strict=True):
        np.testing.assert_allclose(one, by_hand / (by_hand.max() or 1), atol=1e-4)


@pytest.mark.slow
def test_without_classes_it_is_of_the_likeliest():
    model, x = network(), images(16, 8, 8, 2)
    v = drawn(model, x)
    apply = jitted(model.apply)
    v["params"]["head"]["bias"] -= np.asarray(apply(v, x)).mean(0)
    likeliest = np.asarray(apply(v, x)).argmax(-1)
    assert len(set(likeliest.tolist())) > 1
    of = jitted(lambda v, classes: grad_cam(model, v, x, classes))
    heat = jitted(lambda v: grad_cam(model, v, x))(v)
    np.testing.assert_array_equal(heat, of(v, likeliest))
    assert not np.allclose(heat, of(v, (likeliest + 1) % 3))


@pytest.mark.parametrize("shape", [(9, 13), (1, 1), (11,), (3, 6, 5)])
def test_it_is_as_large_as_the_image_whatever_its_size(shape):
    model, x = network(), images(2, *shape, 3)
    heat = jitted(lambda v: grad_cam(model, v, x))(drawn(model, x))
    assert heat.shape == (2, *shape)
    assert heat.dtype == jnp.float32
    assert float(heat.min()) >= 0
    for one in heat:
        assert float(one.max()) == pytest.approx(1) or not one.any()  # which is where nothing speaks for the class


def test_a_cell_lies_on_the_pixels_that_it_sees():
    """The middle cell of the last map of a ResNet-18, at stride 32, hangs on the pixels around 32 times its number."""
    model, x = MODELS["resnet18"].clone(depths=(1, 1, 1, 1), width=8), images(1, 224, 224, 3)
    v = drawn(model, x)
    middle = 3

    def cell(x):
        return (model.apply(v, x, method="features")[-1][0, middle, middle] ** 2).sum()

    weight = np.square(np.asarray(jitted(jax.grad(cell))(x))).sum((0, 2, 3))
    centre = (weight * np.arange(224)).sum() / weight.sum()
    assert abs(centre - 32 * middle) < 5  # and not 32 * (middle + 1 / 2)


# The command


@pytest.fixture(scope="module")
def certain(tmp_path_factory):
    """A run whose head is large enough to say something."""

    def enlarge(state):
        head = {**state.params["head"], "kernel": 100 * state.params["head"]["kernel"]}
        return state.replace(params={**state.params, "head": head})

    recipe = Recipe(model=Model(name="resnet8", fields={"depths": (1, 1), "width": 4}), data=Data(name="tiny"))
    return write_run(tmp_path_factory.mktemp("certain") / "run", recipe, (8, 8, 1), "abc", change=enlarge)


@pytest.fixture
def run(certain, tmp_path, monkeypatch):
    """A run, and three images, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(certain, "run")
    shutil.copy("run/recipe.json", "recipe.json")
    rng = np.random.default_rng(0)
    for number, name in enumerate("abc"):
        Image.fromarray(rng.integers(50 * number, 50 * number + 100, (8, 8), np.uint8)).save(f"{name}.png")
    return Path("run")


def test_the_command_writes_a_picture_and_says_what_is_in_it(run, capsys):
    assert main(["explain", "run", "a.png", "c.png", "--topk", "2"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "Grad-CAM of the most probable class, 4 x 4 cells: explanation.png"
    assert out.count("%") == 4
    with Image.open("explanation.png") as picture:
        assert picture.height > picture.width  # two rows
    assert main(["explain", "run", "a.png", "--class", "b", "--stage", "1", "--out", "b.png"]) == 0
    assert "Grad-CAM of b, 8 x 8 cells: b.png" in capsys.readouterr().out
    with Image.open("b.png") as picture:
        assert picture.width > picture.height


def test_it_says_what_predict_says(run):
    paths = [Path("a.png"), Path("b.png")]
    found = explain(run, paths, topk=3)
    for explanation, predicted in zip(found, predict(run, paths, topk=3), strict=True):
        assert explanation.prediction.classes == predicted.classes
        np.testing.assert_allclose(explanation.prediction.probabilities, predicted.probabilities, rtol=1e-4)
        assert (explanation.name, explanation.answer) == (predicted.classes[0], explanation.prediction.probabilities[0])
        assert explanation.heat.shape == explanation.pixels.shape[:2] == (8, 8)
    named = explain(str(run), ["a.png", "b.png"], "c")
    assert [e.name for e in named] == ["c", "c"]
    assert named[0].answer < 0.5


def test_wrong_use_is_one_line_and_exit_code_two(run, capsys):
    for words, message in (
        (["nowhere", "a.png"], "nowhere: no such run or weights"),
        (["run", "gone.png"], "gone.png: no such image file"),
        (["run", "recipe.json"], "recipe.json: not an image"),
        (["run", "a.png", "--class", "zebra"], "unknown class 'zebra'; it is one of 3, such as a, b, c"),
        (["run", "a.png", "--class", "cc"], "unknown class 'cc'; nearest: c"),
        (["run", "a.png", "--stage", "3"], "--stage is 3; resnet8 has stages 1 to 2"),
        (["run", "a.png", "--stage", "0"], "--stage is 0; resnet8 has stages 1 to 2"),
        (["run", "a.png", "--topk", "0"], "--topk is 0; it must be positive"),
        (["run"], "no images given"),
        (["hf:nobody/nothing", "gone.png"], "gone.png: no such image file"),  # before the network is asked
        (["run", "a.png", "--out", "no/x.png"], "no/x.png: cannot be written"),
        (
            ["run", "a.png", "--image-size", "3"],
            "a run has its own network, data and preprocessing; leave --image-size",
        ),
    ):
        assert main(["explain", *words]) == 2, words
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
    assert not Path("explanation.png").exists()


def test_a_network_of_sequences_takes_no_image(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = Model(name="resnet18_1d", fields={"depths": (1,), "width": 4, "stem": "CifarStem"})
    write_run(Path("run"), replace(tiny, model=line, augment=Augment(crop_padding=0)), (8, 1), "abc")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("a.png")
    capsys.readouterr()
    for command in ("predict", "explain"):
        assert main([command, "run", "a.png"]) == 2
        message = "resnet-jax: resnet18_1d takes 8 x 1 and no image files; use load_run and model.apply\n"
        assert capsys.readouterr().err == message


@pytest.mark.slow
def test_the_outputs_of_a_regression_are_no_probabilities(tiny, tmp_path, monkeypatch, capsys):
    """And they stand in their own order, whichever is the largest."""
    monkeypatch.chdir(tmp_path)

    def answering(state):
        head = {**state.params["head"], "bias": jnp.array([-30.0, 20.0])}
        return state.replace(params={**state.params, "head": head})

    write_run(Path("run"), replace(tiny, loss=Loss(name="mse")), (8, 8, 1), ("down", "up"), change=answering)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("a.png")
    capsys.readouterr()
    for command in ("predict", "explain"):
        assert main([command, "run", "a.png"]) == 0
        out = capsys.readouterr().out
        assert re.search(r"image +class +output\b", out)
        assert "%" not in out
        assert out.index("down") < out.index("up")
    assert "Grad-CAM of the largest output" in out
    assert main(["predict", "run", "a.png", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert [sorted(each) for each in row["predictions"]] == [["class", "output"]] * 2


def test_names_are_drawn_as_they_are_written(tmp_path):
    """Dollar signs are no formulas, and bytes that are not UTF-8 no error."""
    image = Path(os.fsdecode(b"\xff$^{$.png"))
    prediction = Prediction(image, ("$_{$\x1b",), (0.5,))
    pixels, heat = np.zeros((4, 4, 1), np.uint8), np.zeros((4, 4), np.float32)
    draw_explanations([Explanation(prediction, "$_{$\x1b", 0.5, pixels, heat, (1, 1))], tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
