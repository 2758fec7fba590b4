"""A student: what it learns from, and that its teacher is the same one all along."""

import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import curve, quietly
from untrained import write_run

from resnet_jax.cli.main import main
from resnet_jax.errors import InputError
from resnet_jax.inference.convert import convert_weights
from resnet_jax.inference.evaluate import evaluate
from resnet_jax.input_pipeline.device_input import gather_batch, open_device_split, training_batches
from resnet_jax.input_pipeline.preprocess import make_preprocess
from resnet_jax.recipe import Data, Distill, Loss, check, to_json
from resnet_jax.run_dir.environment import read_environments
from resnet_jax.run_dir.files import DatasetInfo
from resnet_jax.tasks.losses import cross_entropy, distillation
from resnet_jax.training.init import init_train_state, random_keys
from resnet_jax.training.make_step import make_train_step, step_constants
from resnet_jax.training.options import RunOptions
from resnet_jax.training.seeds import train_seeds
from resnet_jax.training.setup import make_setup
from resnet_jax.training.sources import open_sources
from resnet_jax.training.teacher import load_teacher, with_teacher

CLASSES = ("a", "b", "c")


@pytest.fixture
def teacher(tiny, tmp_path):
    """A network that nobody trained, under another mean and std, whose answers differ from image to image."""

    def decided(state):
        return state.replace(params=state.params | {"head": jax.tree.map(lambda x: 30 * x, state.params["head"])})

    recipe = replace(tiny, data=replace(tiny.data, mean=(0.3,), std=(0.2,)))
    return write_run(tmp_path / "teacher", recipe, (8, 8, 1), CLASSES, change=decided)


@pytest.fixture
def student(tiny, teacher):
    mixed = replace(tiny.augment, mixup_alpha=1.0)
    return replace(tiny, augment=mixed, distill=Distill(teacher=str(teacher), temperature=2.0, weight=0.3))


def test_the_teacher_sees_the_crop_and_mixup_of_the_student(student, tmp_path):
    sources = open_sources(student, tmp_path)
    setup = with_teacher(make_setup(student, sources.dataset, 1))
    state, split = init_train_state(setup), open_device_split(sources.train, setup.mesh)
    inputs = next(training_batches(split, student, range(1)))
    preprocess = make_preprocess(student, 40, 3, setup.task.targets.to_soft)
    batch = jax.jit(preprocess)(random_keys(student)[1], jnp.int32(0), gather_batch(inputs))
    variables = {"params": state.params, "batch_stats": state.batch_stats}

    @jax.jit
    def by_hand(image, target):
        ours, _ = setup.model.apply(variables, image, train=True, mutable=["batch_stats"])
        theirs = setup.teacher.model.apply(setup.teacher.variables, (image * 0.5 + 0.5 - 0.3) / 0.2)
        distances = distillation(ours, theirs, temperature=2.0)
        return 0.7 * cross_entropy(ours, target).sum() + 0.3 * distances.sum(), theirs

    expected, theirs = by_hand(batch.image, batch.target)
    assert float(theirs.std(0).max()) > 0.1
    before = jax.tree.map(np.array, setup.teacher.variables)
    after, sums = make_train_step(setup)(state, inputs, *step_constants(setup))
    np.testing.assert_allclose(sums["loss"], expected, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, before, setup.teacher.variables)
    assert jax.tree.structure(after) == jax.tree.structure(init_train_state(make_setup(student, sources.dataset, 1)))


def test_a_student_resumes_on_the_same_bits_and_under_no_other_teacher(student, teacher, tmp_path):
    quietly(student, tmp_path / "whole")
    quietly(student, tmp_path / "cut", stop_at=5)
    home = teacher.rename(tmp_path / "away")
    # To use a student takes no teacher
    assert evaluate(tmp_path / "cut", devices=1).step == 5
    with pytest.raises(InputError, match="distill.teacher: .*teacher: no such run or weights"):
        quietly(student, tmp_path / "cut")
    write_run(teacher, replace(student, distill=Distill(), seed=3), (8, 8, 1), CLASSES)
    with pytest.raises(InputError, match="cut: distill.teacher .*teacher has changed since the run started"):
        quietly(student, tmp_path / "cut")
    shutil.rmtree(teacher)
    home.rename(teacher)
    quietly(student, tmp_path / "cut")
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    (start, *_) = read_environments(tmp_path / "cut")
    assert len(start["teacher"]["sha256"]) == 64
    shutil.rmtree(teacher)
    _, said = quietly(student, tmp_path / "cut")
    assert "already finished" in said


@pytest.mark.slow
def test_seeds_share_a_teacher(student, tmp_path):
    alone, _ = quietly(replace(student, seed=1), tmp_path / "alone")
    for layout in ("vmap", "devices"):
        both = train_seeds(student, (0, 1), tmp_path / layout, options=RunOptions(devices=2), seed_layout=layout)
        for a, b in zip(alone.rows, both[1].rows, strict=True):
            np.testing.assert_allclose(a["train/loss"], b["train/loss"], rtol=1e-3 if layout == "vmap" else 0)


def test_a_converted_file_is_the_teacher_that_the_run_is(student, teacher, tmp_path):
    convert_weights(teacher, tmp_path / "t.safetensors", "timm")
    dataset = open_sources(student, tmp_path).dataset
    digests = set()
    for where in (teacher, tmp_path / "t.safetensors"):
        setup = make_setup(replace(student, distill=Distill(teacher=str(where))), dataset, 1)
        digests.add(load_teacher(setup).digest)
    assert len(digests) == 1


def loaded(student, path, image_shape=(8, 8, 1), classes=CLASSES, **distill):
    distill = Distill(**{"teacher": str(path), **distill})
    return load_teacher(make_setup(replace(student, distill=distill), DatasetInfo(classes, image_shape, 40, ""), 1))


def test_a_teacher_that_does_not_fit_is_one_line(student, teacher, tiny, tmp_path):
    with pytest.raises(InputError, match=r"teacher: has 3 classes, tiny 5; take another one"):
        loaded(student, teacher, classes=tuple("abcde"))
    with pytest.raises(InputError, match="has the classes of tiny in another order"):
        loaded(student, teacher, classes=("b", "a", "c"))
    with pytest.raises(InputError, match=r"is for images such as \(8, 8, 1\), tiny has \(8, 8, 3\)"):
        loaded(student, teacher, image_shape=(8, 8, 3))
    with pytest.raises(InputError, match="a run has its own network; leave distill.model out"):
        loaded(student, teacher, model="resnet8")
    numbers = replace(tiny, loss=Loss(name="mse"), data=Data(name="tiny"))
    run = write_run(tmp_path / "numbers", numbers, (8, 8, 1), CLASSES)
    with pytest.raises(InputError, match="was trained with loss.name mse, and not on one class per image"):
        loaded(student, run)
    shutil.copytree(teacher, tmp_path / "own")
    recipe = (tmp_path / "own" / "recipe.json").read_text()
    (tmp_path / "own" / "recipe.json").write_text(
        recipe.replace('"name": "resnet8"', '"name": "a:b"').rsplit('"sha256"')[0].rstrip(" ,\n") + "}"
    )
    with pytest.raises(InputError, match="its network is a:b, of your own, which is not imported"):
        loaded(student, tmp_path / "own")


def test_a_bare_file_needs_the_name_of_its_network(student, real_data):
    file, cifar = real_data / "weights" / "resnet56-4bfd9763.safetensors", tuple(map(str, range(10)))
    with pytest.raises(InputError, match=r"does not say which network it is; name it with distill.model"):
        loaded(student, file, (32, 32, 3), cifar)
    colour = replace(student, data=Data(name="cifar10", mean=(0.5,), std=(0.5,)))
    found = loaded(colour, file, (32, 32, 3), cifar, model="resnet56")
    assert found.model.depths == (9, 9, 9)
    assert found.notes == (f"distill.teacher {file}: its mean and std are unknown; those of the recipe are used",)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"distill": Distill(weight=0.2)}, r"distill.weight is 0.2; that needs distill.teacher"),
        (
            {"distill": Distill(teacher="t"), "loss": Loss(name="mse")},
            "for one class per image, and loss.name is mse",
        ),
        ({"distill": Distill(teacher="t", hard=True, temperature=2.0)}, "distill.hard uses no temperature"),
        ({"distill": Distill(teacher="t", temperature=0.0)}, "distill.temperature is 0.0; it must be positive"),
        ({"distill": Distill(teacher="t", weight=0.0)}, "distill.weight is 0.0; it must be over 0 and at most 1"),
    ],
)
def test_fields_that_contradict_each_other(tiny, fields, message):
    with pytest.raises(InputError, match=message):
        check(replace(tiny, **fields))


def test_the_doctor_looks_for_the_teacher(teacher, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("recipe.json").write_text(to_json(tiny))
    words = ["doctor", "recipe.json", "--devices", "1", "--distill.teacher"]
    assert main([*words, "teacher", "--distill.hard"]) == 0
    assert "learns from" in capsys.readouterr().out
    assert main([*words, "nothing"]) == 0
    assert "nothing: no such run or weights" in capsys.readouterr().out


def test_a_hard_teacher_names_a_class():
    logits, theirs = jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[0.0, 5.0, 4.0]])
    assert float(distillation(logits, theirs, hard=True)[0]) == float(cross_entropy(logits, jnp.array([1]))[0])
    assert float(distillation(theirs, theirs, temperature=3.0)[0]) == pytest.approx(0, abs=1e-6)
