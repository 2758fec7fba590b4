"""Training on arrays in memory."""

import io
from dataclasses import replace

import chex
import numpy as np
import pytest
from rich.console import Console

from resnet_jax.data.arrays import sources_from_arrays
from resnet_jax.data.datasets import open_split
from resnet_jax.data.source import to_arrays
from resnet_jax.errors import InputError
from resnet_jax.inference.evaluate import evaluate
from resnet_jax.inference.load_run import load_run
from resnet_jax.recipe import Augment, Data, Loss, Model
from resnet_jax.report.fit import fit
from resnet_jax.run_dir.files import read_dataset_info
from resnet_jax.training.options import RunOptions
from resnet_jax.training.run import train

ONE = RunOptions(devices=1)
QUIET = {"options": ONE, "console": Console(quiet=True)}


@pytest.mark.parametrize("validation", [pytest.param(0, marks=pytest.mark.slow), 8])
def test_arrays_train_what_their_data_set_trains(tiny, tmp_path, validation):
    recipe = replace(tiny, data=Data(name="tiny", num_validation=validation))
    arrays = [to_arrays(open_split("tiny", split, tmp_path)) for split in ("train", "test")]
    by_name = train(recipe, tmp_path / "name", **QUIET)
    by_arrays = fit(recipe, *arrays, tmp_path / "arrays", **QUIET)
    chex.assert_trees_all_equal(by_name.state, by_arrays.state)
    assert by_arrays.rows[-1]["step"] == 12
    assert read_dataset_info(tmp_path / "arrays").classes == ("0", "1", "2")


def test_it_goes_on_with_the_same_arrays_only(tiny, tmp_path):
    train, test = (to_arrays(open_split("tiny", split, tmp_path)) for split in ("train", "test"))
    stopping = QUIET | {"options": replace(ONE, stop_at=3)}
    assert fit(tiny, train, test, tmp_path / "run", classes=("x", "y", "z"), **stopping).step == 3
    shorter = train[0][:-1], train[1][:-1]
    with pytest.raises(
        InputError, match="its data had train_size 40, now 39; restore the data or choose another --out"
    ):
        fit(tiny, shorter, test, tmp_path / "run", classes=("x", "y", "z"), **QUIET)
    with pytest.raises(InputError, match="its data had classes"):
        fit(tiny, train, test, tmp_path / "run", **QUIET)
    assert fit(tiny, train, test, tmp_path / "run", classes=("x", "y", "z"), **QUIET).step == 12
    with pytest.raises(InputError, match="this run was trained on arrays in memory"):
        evaluate(tmp_path / "run")


def test_arrays_that_do_not_fit(tiny, tmp_path):
    images, labels = np.zeros((6, 8, 8), np.uint8), np.arange(6) % 3
    for bad, message in (
        ((images - 2.0, labels), "train images are float64 of -2 to -2; give pixels of 0 to 1 or 0 to 255"),
        ((images, labels[:5]), "train labels have shape .5,. for 6 images"),
        ((images, labels - 1), "train labels: label -1"),
    ):
        with pytest.raises(InputError, match=message):
            fit(tiny, bad, (images, labels), tmp_path / "run", **QUIET)
    for field, value in {"image_size": 16, "crop_pct": 0.5, "interpolation": "bicubic"}.items():
        recipe = replace(tiny, data=Data(name="tiny", **{field: value}))
        with pytest.raises(
            InputError, match=f"data.{field} is {value}; all images of a pair of arrays have the same size"
        ):
            fit(recipe, (images, labels), (images, labels), tmp_path / "run", **QUIET)
    assert not (tmp_path / "run").exists()


def outputs(size, kind):
    """Images, and labels that say of each of two halves how light it is."""
    random = np.random.default_rng(size)
    levels = random.integers(0, 2, (size, 2))
    images = np.repeat(40 + 140 * levels[:, None, :], 4, axis=2).repeat(8, axis=1) + random.integers(
        0, 30, (size, 8, 8)
    )
    labels = {"multilabel": levels, "mse": levels - 0.5}[kind]
    return images.astype(np.uint8), labels


@pytest.mark.parametrize(("kind", "gib"), [pytest.param("multilabel", 2.0, marks=pytest.mark.slow), ("mse", 0.0)])
def test_several_outputs_an_image(tiny, tmp_path, kind, gib):
    """On the devices, and read ahead by threads; with two stages, for it has to learn."""
    train, test = outputs(64, kind), outputs(16, kind)
    two_stages = Model(name="resnet8", fields={"depths": (1, 1), "width": 4})
    recipe = replace(tiny, model=two_stages, loss=Loss(name=kind), augment=Augment(crop_padding=0), steps=40)
    options = QUIET | {"options": replace(ONE, device_cache_gib=gib, num_threads=1)}
    result = fit(recipe, train, test, tmp_path / "run", classes=("left", "right"), **options)
    first, last = result.rows[0], result.rows[-1]
    assert last["test/loss"] < 0.5 * first["test/loss"]
    assert ("test/mae" in last) == (kind == "mse")
    assert any("accuracy" in name or "errors" in name for name in last) == (kind == "multilabel")
    assert read_dataset_info(tmp_path / "run").classes == ("left", "right")
    assert result.state.params["head"]["bias"].shape == (2,)


def test_one_number_an_image_is_one_output():
    images = np.zeros((6, 8, 8), np.uint8)
    for labels in (np.linspace(0, 1, 6), np.linspace(0, 1, 6)[:, None]):
        source, _ = sources_from_arrays((images, labels), (images, labels))
        assert source.classes == ("0",)
        stacked = to_arrays(source)[1]
        assert (stacked.shape, stacked.dtype) == ((6, 1), np.float32)
        np.testing.assert_allclose(stacked[:, 0], np.linspace(0, 1, 6), rtol=1e-6)


def test_classes_stay_integers():
    images = np.zeros((6, 8, 8), np.uint8)
    for labels in (np.arange(6), np.arange(6)[:, None], np.arange(6, dtype=np.uint8)):
        source, _ = sources_from_arrays((images, labels), (images, labels))
        stacked = to_arrays(source)[1]
        assert (stacked.tolist(), stacked.dtype) == ([0, 1, 2, 3, 4, 5], np.int32)


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (np.zeros((6, 2)), ("a",), "train labels have 2 outputs each, expected 1"),
        (np.full((6, 2), np.nan), None, "train labels: that of example 0 is nan; give finite numbers"),
        (np.zeros((6, 2, 2)), None, "train labels have shape .6, 2, 2. for 6 images"),
        (np.zeros((6, 0)), None, "train labels have shape .6, 0. for 6 images"),
        (np.array(list("abcdef")), None, "train labels are <U1; give integers from 0"),
        (np.zeros(6, int), None, "test labels are float64; give integers from 0, as the train labels are, or numbers"),
    ],
)
def test_outputs_that_do_not_fit(labels, classes, message):
    images = np.zeros((6, 8, 8), np.uint8)
    with pytest.raises(InputError, match=message):
        sources_from_arrays((images, labels), (images, np.zeros((6, 2))), classes)


def test_a_loss_that_does_not_fit_the_labels(tiny, tmp_path):
    arrays = outputs(20, "multilabel")
    with pytest.raises(InputError, match="the task is classification; the targets are 2 numbers"):
        fit(tiny, arrays, arrays, tmp_path / "run", **QUIET)
    integers = arrays[0], arrays[1][:, 0]
    with pytest.raises(InputError, match="the task is several labels per image; the targets are classes"):
        fit(replace(tiny, loss=Loss(name="multilabel")), integers, integers, tmp_path / "run", **QUIET)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("shape", "channels", "gib"),
    [
        ((9,), (2,), 0.0),
        pytest.param((4, 8, 6), (), 2.0, marks=pytest.mark.slow),
        pytest.param((9,), (), 2.0, marks=pytest.mark.slow),
        pytest.param((4, 8, 6), (2,), 0.0, marks=pytest.mark.slow),
    ],
)
def test_sequences_and_video(tiny, tmp_path, shape, channels, gib):
    """Trained, read again from the directory, and measured once more: on the devices, and read ahead by threads."""
    name = {1: "resnet18_1d", 3: "r3d_18"}[len(shape)]
    network = Model(name=name, fields={"depths": (1,), "width": 4, "stem": "CifarStem"})
    labels = np.arange(40) % 3
    images = np.random.default_rng(0).integers(0, 60, (40, *shape, *channels)) + 80 * labels.reshape(
        40, *(1,) * len(shape + channels)
    )
    recipe = replace(tiny, model=network, augment=Augment(crop_padding=0), steps=30)
    arrays = images.astype(np.uint8), labels
    options = QUIET | {"options": replace(ONE, device_cache_gib=gib, num_threads=1)}
    result = fit(recipe, arrays, arrays, tmp_path / "run", **options)
    assert result.rows[-1]["test/accuracy"] == 1
    setup, state = load_run(tmp_path / "run", 1)
    assert setup.dataset.image_shape == (*shape, *(channels or (1,)))
    chex.assert_trees_all_equal(state, result.state)


def test_a_kind_of_data_that_the_network_or_an_augmentation_is_not_for(tiny, tmp_path):
    line = replace(tiny, model=Model(name="resnet18_1d"), augment=Augment(crop_padding=0))
    labels = np.arange(6) % 3
    sequences, images = (np.zeros((6, 8), np.uint8), labels), (np.zeros((6, 8, 8, 1), np.uint8), labels)
    with pytest.raises(InputError, match=r"train images have shape .6, 8, 8, 1.; give .n, l. or .n, l, c., none of"):
        fit(line, images, images, tmp_path / "run", **QUIET)
    with pytest.raises(InputError, match=r"train images have shape .6, 8.; give .n, t, h, w. or .n, t, h, w, c., none"):
        fit(replace(tiny, model=Model(name="r3d_18")), sequences, sequences, tmp_path / "run", **QUIET)
    with pytest.raises(InputError, match="model.name is resnet18_1d, for sequences; the data are images"):
        train(replace(line, data=Data(name="tiny")), tmp_path / "run", **QUIET)
    for augment, message in (
        (Augment(), "augment.crop_padding is 1, for images; the data are sequences: set it to 0"),
        (
            Augment(crop_padding=0, hflip=True),
            "augment.hflip is True, for images; the data are sequences: set it to False",
        ),
        (Augment(crop_padding=0, mixup_alpha=0.2), "augment.mixup_alpha is 0.2, for images"),
    ):
        with pytest.raises(InputError, match=message):
            fit(replace(line, augment=augment), sequences, sequences, tmp_path / "run", **QUIET)
    assert not (tmp_path / "run").exists()


def made(size):
    """Images of three brightnesses, uint8, and their classes."""
    labels = np.arange(size) % 3
    noise = np.random.default_rng(size).integers(0, 60, (size, 8, 8, 1))
    return (noise + 80 * labels[:, None, None, None]).astype(np.uint8), labels


def test_other_forms_of_the_same_arrays_train_the_same(tiny, tmp_path):
    torch, names = pytest.importorskip("torch"), np.array(["dark", "grey", "light"])
    (x, y), (u, v) = made(40), made(10)
    plain = fit(tiny, (x, y), (u, v), tmp_path / "plain", classes=tuple(names), **QUIET)
    first = lambda a: np.moveaxis(a, -1, 1)  # noqa: E731
    forms = {
        "float": ((x / 255).astype(np.float32), np.eye(3)[y], (u / 255).astype(np.float32), np.eye(3)[v], False),
        "torch": (torch.tensor(first(x) / 255), torch.tensor(y), torch.tensor(first(u) / 255), torch.tensor(v), True),
        "names": (x.astype(float), names[y].astype(object), u.astype(float), list(names[v]), False),
    }
    for name, (a, b, c, d, channels_first) in forms.items():
        classes = None if name == "names" else tuple(names)
        fitted = fit(tiny, (a, b), (c, d), tmp_path / name, classes=classes, channels_first=channels_first, **QUIET)
        chex.assert_trees_all_equal(fitted.state, plain.state)
        assert fitted.classes == tuple(names)
        np.testing.assert_array_equal(fitted.predict(c), plain.predict(u))


def test_what_is_assumed_is_said(tiny, tmp_path):
    (x, y), said = made(40), io.StringIO()
    options = {"options": replace(ONE, stop_at=1), "console": Console(file=said, width=300)}
    fit(tiny, (x / 255, np.array(["a", "b", "c"])[y]), None, tmp_path / "run", validation=0.25, **options)
    assert "float64 pixels are taken to range from 0 to 1, and rounded to 256 levels\n" in said.getvalue()
    assert "labels are names, of 3 classes: a, b, c\n" in said.getvalue()
    assert "30 images" in said.getvalue()


def test_what_the_result_has(tiny, tmp_path):
    (x, y), (u, v) = made(40), made(10)
    fitted = fit(replace(tiny, ema_decay=0.5, steps=20), (x, y), (u, v), tmp_path / "run", **QUIET)
    probs = fitted.predict(u)
    assert probs.shape == (10, 3)
    np.testing.assert_allclose(probs.sum(1), 1, rtol=1e-5)
    counts = fitted.confusion_matrix()
    expected = np.zeros((3, 3), int)
    for true, predicted in zip(v, probs.argmax(1), strict=True):
        expected[true, predicted] += 1
    np.testing.assert_array_equal(counts, expected)
    assert fitted.metrics["accuracy"] == pytest.approx(np.trace(counts) / 10)
    assert fitted.metrics["accuracy"] == fitted.rows[-1]["ema/test/accuracy"]
    history = fitted.history
    assert {len(values) for values in history.values()} == {len(fitted.rows)}
    assert history["step"] == [row["step"] for row in fitted.rows]
    assert fitted.show()._repr_png_().startswith(b"\x89PNG")
    assert repr(fitted).startswith("Fitted(")
    for images, message in ((u[:, :4], "the network was trained on .n, 8, 8, 1."), (u - 5.0, "give pixels of 0 to 1")):
        with pytest.raises(InputError, match=message):
            fitted.predict(images)
    assert fitted.predict(u[:0]).shape == (0, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": None}, "there is no test data to evaluate on; give it, or validation=0.1"),
        ({"validation": 1.0}, "validation is 1.0; give a fraction"),
        ({"validation": 0.001}, "validation is 0.001; give a fraction"),
        ({"test_labels": ["a", "b", "z"]}, "test labels: 'z' is not a class; known: a, b, c"),
        ({"scale": 300.0}, "train images are float64 of .* give pixels of 0 to 1 or 0 to 255"),
    ],
)
def test_arrays_in_other_forms_that_do_not_fit(tiny, tmp_path, change, message):
    x, y = made(6)
    x = x / 255 * change.get("scale", 1.0)
    names = np.array(["a", "b", "c"])[y]
    test = None if "test" in change else (x[:3], change.get("test_labels", names[:3]))
    with pytest.raises(InputError, match=message):
        fit(tiny, (x, names), test, tmp_path / "run", validation=change.get("validation"), **QUIET)
    assert not (tmp_path / "run").exists()
