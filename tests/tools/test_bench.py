"""How fast a step is: what is measured, what is said of it, and what is refused."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from resnet_jax.cli.main import main
from resnet_jax.recipe import Model, to_json
from resnet_jax.tasks.make import make_task
from resnet_jax.tools.bench import MeasureFor, bench_target, measure_step, step
from resnet_jax.tools.bench.compile import cold_and_warm
from resnet_jax.tools.bench.device import matmul_flops, peak_of

QUICK = ["--devices", "1", "--seconds", "5", "--measured-steps", "2"]


@pytest.fixture(autouse=True)
def small_matrices(monkeypatch):
    monkeypatch.setattr("resnet_jax.tools.bench.device._SIDE", 64)


@pytest.mark.parametrize("what", ["train", "eval"])
def test_of_a_recipe(tiny, tmp_path, monkeypatch, capsys, what):
    monkeypatch.chdir(tmp_path)
    Path("recipe.json").write_text(to_json(tiny))
    cache = jax.config.values["jax_compilation_cache_dir"]
    assert main(["bench", what, "recipe.json", *QUICK, "--json", "--csv", "x.csv"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    images = 16 if what == "train" else 10  # so many has the test split
    assert (found["batch"], found["image"], found["steps"]) == (images, "8 x 8 x 1", 2)
    assert found["low_ms"] <= found["step_ms"] <= found["high_ms"]
    assert 0 < found["images_per_second"] * found["flops_per_image"] / found["peak_flops"] == found["mfu"]
    assert 0 <= found["data_wait_fraction"] < 1
    assert found["memory_source"] == "compiler"
    assert 0 < found["memory"] < found["process_memory"]
    assert 0 < found["compile_warm_s"] < found["compile_cold_s"]
    (row,) = csv.DictReader(Path("x.csv").read_text().splitlines())
    assert {name: str(value) for name, value in found.items()} == row
    assert jax.config.values["jax_compilation_cache_dir"] == cache


@pytest.mark.slow
def test_of_a_network_of_ones_own(tiny, tmp_path, monkeypatch, capsys):
    """Its layers are those of flax, which count as well."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("bench_own.py").write_text(
        "from flax import linen as nn\n\n\nclass Net(nn.Module):\n    num_classes: int\n\n    @nn.compact\n"
        "    def __call__(self, x, *, train=False):\n"
        "        return nn.Dense(self.num_classes)(nn.Conv(4, (3, 3))(x).mean((1, 2)))\n"
    )
    Path("recipe.json").write_text(to_json(replace(tiny, model=Model(name="bench_own:Net"))))
    own = ["recipe.json", "--model.name", "bench_own:Net", "--devices", "1"]
    assert main(["bench", "eval", *own, *QUICK[2:], "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["flops_per_image"] == 2 * (8 * 8 * 4 * 9 + 4 * 3)
    assert main(["doctor", *own]) == 0
    assert "bench_own:Net, 55 parameters" in capsys.readouterr().out


@pytest.mark.slow
def test_of_networks_side_by_side(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(step, "model_cost", lambda model, shape: type("cost", (), {"multiply_adds": 10**9}))
    small = ["--batch-size", "4", "--data.image_size", "8", "--profile", "trace"]
    assert main(["bench", "eval", "resnet8", "resnet8", *small, *QUICK]) == 0
    out = capsys.readouterr().out
    assert "eval, 1 x cpu" in out
    assert re.search(r"image +8 x 8 x 3 +8 x 8 x 3 ", out)
    assert "2.000 G" in out  # two FLOPs for a multiply-add
    assert "the peak is of a product of 64 x 64 matrices" in out
    assert not any(len(line) > 100 for line in out.splitlines())
    assert list(Path("trace").rglob("perfetto_trace.json.gz"))


def test_a_batch_that_does_not_fit_is_halved(tiny, tmp_path, monkeypatch):
    opened, said = [], []
    real = step._open

    def open_smaller(subject, *others):
        opened.append(subject.recipe.batch_size)
        if opened[-1] > 4:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return real(subject, *others)

    monkeypatch.setattr(step, "_open", open_smaller)
    subject = bench_target("resnet20")._replace(recipe=tiny, made_up=False)
    found = measure_step(subject, "train", bounds=MeasureFor(5, 2), data_dir=tmp_path, devices=1, log=said.append)
    assert opened == [16, 8, 4]
    assert (found.batch, found.asked) == (4, 16)
    assert said[0] == "resnet20: 16 images per step do not fit into the memory, trying 8"
    assert said[-1] == "resnet20: compiling, then up to 2 steps or 5 s"
    monkeypatch.setattr(step, "_open", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # only for want of memory
        measure_step(subject, "train", bounds=MeasureFor(5, 2), data_dir=tmp_path, devices=1)


def test_peaks_are_published_or_measured():
    def named(kind):
        return type("device", (), {"device_kind": kind, "platform": "gpu"})()

    assert peak_of([named("NVIDIA H200")] * 2, "bfloat16").flops == 2 * 989.4e12
    assert peak_of([named("NVIDIA H100 80GB HBM3")], "float32") == (494.7e12, "published for TF32")
    assert peak_of([named("TPU v5 lite")], "bfloat16").flops == 197e12
    assert peak_of([named("TPU v5")], "bfloat16").flops == 459e12
    eight = peak_of(jax.devices(), "float32")
    assert eight.source == "of a product of 64 x 64 matrices"
    assert matmul_flops(jax.devices()[0], "float32") > 0


def test_the_second_time_comes_from_the_cache():
    hits = []
    jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("cache_hits") else None)
    compiled, cold, warm = cold_and_warm(lambda: jax.jit(lambda x: x * 3 + 1).lower(2.0).compile())
    # Before the call, which may find small programs of its own in the cache of the tests
    assert len(hits) == 1
    jax.monitoring.clear_event_listeners()
    assert compiled(2.0) == 7.0
    assert cold > 0
    assert warm > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bench", "train"], "bench train: name a network, a recipe file or a run"),
        (["bench", "eval", "resnet51"], "unknown model 'resnet51'; nearest: "),
        (["bench", "eval", "resnet20", "nowhere.py"], "nowhere.py: no such recipe"),
        (["bench", "eval", "r3d_18"], "bench: r3d_18 takes no images"),
        (["bench", "train", "resnet20", "--seconds", "0"], "--seconds is 0.0; it must be positive"),
        (["bench", "train", "resnet20", "--measured-steps", "0"], "--measured-steps is 0; it must be positive"),
        (["bench", "train", "resnet20", "--csv", "no/x.csv"], "--csv no/x.csv: no such folder"),
        (["bench", "train", "resnet20", "--batch-size", "5", "--devices", "8"], "8 devices do not divide"),
        (["bench", "train", "resnet20", "--batchsize", "5"], "nearest: --batch-size"),
    ],
)
def test_wrong_use_is_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "loss"), [("unet_resnet18", "pixel_cross_entropy"), ("fcos_resnet50_fpn", "detection")]
)
def test_targets_are_made_up_for_what_a_network_predicts(name, loss):
    recipe = bench_target(name).recipe
    recipe = replace(recipe, data=replace(recipe.data, image_size=(24, 32)))
    assert (recipe.loss.name, recipe.augment.crop_padding) == (loss, 0)
    recipe, (train, held) = step._made_up(recipe)
    task = make_task(recipe.loss)
    task.targets.check(train)
    example = task.targets.cast(train).read(train.size - 1)
    assert example.image.shape == (24, 32, 3)
    if loss == "detection":
        boxes = example.target.boxes[example.target.labels >= 0]
        assert boxes.shape == (8, 4)
        assert (boxes[:, :2] < boxes[:, 2:]).all()
        assert (boxes >= 0).all()
        assert (boxes <= [32, 24, 32, 24]).all()
    assert held.size == 2 * recipe.batch_size


@pytest.mark.slow
@pytest.mark.parametrize("what", ["train", "eval"])
@pytest.mark.parametrize("name", ["retinanet_resnet18_fpn", "unet_resnet18"])
def test_of_networks_of_pixels_and_boxes(name, what, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["--model.fields", '{"width": 4, "depths": [1, 1, 1, 1]}', "--data.image-size", "32", "32"]
    assert main(["bench", what, name, *small, *QUICK, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["image"] == "32 x 32 x 3"
    assert found["images_per_second"] > 0
