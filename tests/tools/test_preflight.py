"""Steps compiled for TPUs that are not there. Without libtpu (the extra "preflight") a part of this is skipped."""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from conftest import ROOT
from jax.experimental import topologies

from resnet_jax.cli.main import main
from resnet_jax.cli.preflight import table_of
from resnet_jax.errors import InputError, MachineError
from resnet_jax.models.summary import model_cost
from resnet_jax.recipe import Augment, Data, Loss, Model, Recipe, to_json
from resnet_jax.run_dir.files import DatasetInfo
from resnet_jax.tools import preflight as module
from resnet_jax.tools import topology as topology_module
from resnet_jax.tools.chips import CHIPS, link_seconds, slice_of
from resnet_jax.tools.hlo import Collective
from resnet_jax.tools.preflight import Report, data_of, preflight, require_divided
from resnet_jax.tools.topology import describe, target_config
from resnet_jax.training.network import build_network

needs_cuda_plugin = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None, reason="jax's CUDA plugin is not installed"
)
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")

FITS = Report("v5e:2x4", 8, 1024, "", 61.0, 16 * 2**30, arguments=3 * 2**30, temporaries=2**30, code=2**27, flops=24e9,
              multiply_adds=4_089_184_256, bytes_accessed=400e6, memory_traffic=200e6,
              collectives={"all-reduce": Collective(2, 10**8, 0)}, compute_seconds=0.01, memory_seconds=0.04,
              link_seconds=0.002)  # fmt: skip
REFUSED = Report("v4:2x2x1", 4, 1024, "RESOURCE_EXHAUSTED: used 40.1G of 31.7G", 50.0, 32 * 2**30)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "v5litepod-8",
            "unknown topology 'v5litepod-8'; known: v4:2x2x4, v5e:2x4, v5p:2x2x4, v6e:2x4,"
            " a100:8, h100:8, h200:8, b200:8 and other shapes",
        ),
        ("", "unknown topology ''"),
        ("v5e:3x3", "unknown shape '3x3' of v5e; known: 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"),
        ("v4:2x2", "unknown shape '2x2' of v4; known: 2x2x1, 2x2x2"),
        ("v5e", "unknown shape '' of v5e; known"),
        ("h200:16", "unknown shape '16' of h200; known: 1, 2, 4, 8"),
    ],
)
def test_unknown_slices(name, message):
    with pytest.raises(InputError, match=re.escape(message)):
        slice_of(name)


def test_known_slices():
    assert slice_of("v5p:2x2x4") == (CHIPS["v5p"], (2, 2, 4))
    assert slice_of("h200:8") == (CHIPS["h200"], (8,))


def test_a_batch_that_the_chips_do_not_divide():
    require_divided(1024, 8, "v5e:2x4")
    with pytest.raises(
        InputError, match="batch_size is 100, which the 8 chips of v5e:2x4 do not divide; nearest: 96 and 104"
    ):
        require_divided(100, 8, "v5e:2x4")
    with pytest.raises(InputError, match="nearest: 8$"):
        require_divided(6, 8, "v5e:2x4")


def test_time_on_the_links():
    """A corner of 2x4 has two of a v5e's four links, 50 GB/s each; of 16x16, where both axes are rings, all four."""
    reduced, gathered = {"all-reduce": Collective(2, 10**8, 0)}, {"all-gather": Collective(1, 10**8, 0)}
    assert link_seconds(reduced, "v5e:2x4") == pytest.approx(2 * 7 / 8 * 1e8 / 100e9)
    assert link_seconds(gathered, "v5e:2x4") == pytest.approx(7 / 8 * 1e8 / 100e9)
    assert link_seconds({"reduce-scatter": Collective(1, 10**8 // 8, 0)}, "v5e:2x4") == link_seconds(
        gathered, "v5e:2x4"
    )
    assert link_seconds(reduced, "v5e:16x16") == pytest.approx(2 * 255 / 256 * 1e8 / 200e9)
    assert link_seconds(reduced, "v5p:2x2x1") == pytest.approx(2 * 3 / 4 * 1e8 / 200e9)
    assert link_seconds(reduced, "v5e:1x1") == 0
    # All links of a GPU lead to the switches that join all GPUs
    assert link_seconds(reduced, "h200:8") == pytest.approx(2 * 7 / 8 * 1e8 / 450e9)
    assert link_seconds(reduced, "h200:2") == pytest.approx(1e8 / 450e9)
    assert link_seconds(reduced, "h200:1") == 0


def test_a_gpu_counts_its_kernels_and_the_table_shows_them():
    gpu = FITS._replace(topology="h200:8", bytes_accessed=0.0, kernels={"fusions": 1114, "cuDNN": 158})
    rows = [list(column.cells) for column in table_of([gpu], "").columns]
    cells = dict(zip(*rows, strict=True))
    assert (cells["fusions per step"], cells["cuDNN per step"]) == ("1,114", "158")
    assert "bytes accessed per image" not in cells


def test_the_roofline():
    assert (FITS.bound, FITS.images_per_second) == ("memory bandwidth", 128 / 0.04)
    quick = FITS._replace(memory_seconds=0.005)
    assert (quick.bound, quick.images_per_second) == ("compute", 128 / 0.01)


def test_data_that_are_at_hand(tiny, tmp_path):
    dataset, note = data_of(tiny, tmp_path)
    assert (dataset.image_shape, len(dataset.classes), dataset.train_size, note) == ((8, 8, 1), 3, 40, "")


def test_data_that_are_not(tiny, tmp_path):
    original = Augment(random_resized_crop=True, rrc_from="original", train_crop_size=176)
    absent = dataclasses.replace(
        tiny, model=Model(name="resnet50"), data=Data(name="folder:imagenet", image_size=224), augment=original
    )
    dataset, note = data_of(absent, tmp_path)
    assert (dataset.image_shape, len(dataset.classes)) == ((176, 176, 3), 1000)
    assert note.startswith("assuming images of 176 x 176 x 3 and 1,000 classes; without the data: ")
    resized, _ = data_of(dataclasses.replace(absent, augment=Augment()), tmp_path)
    assert resized.image_shape == (224, 224, 3)
    unsized = dataclasses.replace(absent, augment=Augment(), data=Data(name="cifar10"))
    assert data_of(unsized, tmp_path)[0].image_shape == (224, 224, 3)  # of the network
    given, note = data_of(absent, tmp_path, 96, 10)
    assert (given.image_shape, len(given.classes), note) == (
        (96, 96, 3),
        10,
        "assuming images of 96 x 96 x 3 and 10 classes",
    )
    gone = dataclasses.replace(absent, data=Data(name="folder:gone"), augment=Augment(crop_padding=0))
    for name, size, shape in (
        ("resnet18_1d", None, (1024, 1)),
        ("resnet18_1d", 64, (64, 1)),
        ("r3d_18", None, (16, 112, 112, 3)),
        ("r3d_18", 32, (16, 32, 32, 3)),
    ):
        assert data_of(dataclasses.replace(gone, model=Model(name=name)), tmp_path, size)[0].image_shape == shape
    own = dataclasses.replace(gone, model=Model(name="package.module:network"))
    with pytest.raises(InputError, match="package.module:network: has no published shape; without the data: .*; give"):
        data_of(own, tmp_path)
    assert data_of(own, tmp_path, 64, 10)[0].image_shape == (64, 64, 3)
    with pytest.raises(InputError, match="unknown data set 'cifra10'; nearest: cifar10"):
        data_of(dataclasses.replace(tiny, data=Data(name="cifra10")), tmp_path)


def test_without_libtpu(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r"libtpu is not installed; it comes with: pip install 'jax\[tpu\]'"):
        describe("v5e:2x4")
    wanted = re.escape(f"comes with: pip install jax-cuda12-plugin=={jax.__version__}")
    with pytest.raises(MachineError, match=wanted):
        describe("h200:8")


def test_a_plugin_of_another_version(monkeypatch, capfd):
    def refuse(*_, **__):
        os.write(2, b"could not find drivers")
        raise RuntimeError("Mismatched PJRT plugin\nlong story")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(topologies, "get_topology_desc", refuse)
    with pytest.raises(MachineError, match=r"cannot describe 8 x NVIDIA H200 \(Mismatched PJRT plugin\); see whether"):
        describe("h200:8")
    assert capfd.readouterr().err == ""


def test_a_target_says_what_was_published():
    text = target_config(CHIPS["b200"])
    for fact in ("core_count: 148", "device_memory_size: 191514411008", "major: 10", "memory_bandwidth: 7672000000000"):
        assert fact in text


def test_a_libtpu_that_does_not_answer(monkeypatch):
    for name in ("TPU_SKIP_MDS_QUERY", "TPU_LOG_DIR"):
        monkeypatch.setenv(name, "set before")
    end = threading.Event()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(topologies, "get_topology_desc", lambda *_, **__: end.wait(60))
    monkeypatch.setattr(topology_module, "_PATIENCE", 0.05)
    monkeypatch.setattr(topology_module, "_quiet", lambda: None)
    with pytest.raises(MachineError, match=r"libtpu has not described v5e:2x4 within 0\.05 s; see whether another"):
        describe("v5e:2x4")
    end.set()

    def refuse(*_, **__):
        raise RuntimeError("INVALID_ARGUMENT: no such layout\nlong story")

    monkeypatch.setattr(topologies, "get_topology_desc", refuse)
    with pytest.raises(
        MachineError, match=r"libtpu cannot describe v5e:2x4 \(INVALID_ARGUMENT: no such layout\); take"
    ):
        describe("v5e:2x4")


@pytest.fixture
def written(tiny, tmp_path, monkeypatch):
    """A recipe file in the current directory, and compilers that answer at once."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.json").write_text(to_json(tiny))
    answers = {"v5e:2x4": FITS, "v4:2x2x1": REFUSED}
    monkeypatch.setattr(module, "preflight", lambda recipe, dataset, topology, **_: answers[topology])


def test_the_table(written, capsys):
    assert main(["preflight", "recipe.json", "--topology", "v5e:2x4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    cells = dict(re.split(r" {2,}", line.strip(), maxsplit=1) for line in lines if "  " in line.strip())
    assert cells["fits"] == "yes, 26% of 16 GiB"
    assert cells["FLOPs per image"] == "24.000 G"
    assert cells["6 x its multiply-adds"] == "24.535 G"
    assert cells["bytes in HBM per image"] == "200.0 MB"
    assert cells["all-reduce per step"] == "2, 100.0 MB"
    assert cells["of these, asynchronous"] == "0"
    assert cells["roofline, per step"] == "40.00 ms"
    assert cells["roofline, images/s per chip"] == "3,200"
    assert cells["bound by"] == "memory bandwidth"


def test_what_does_not_fit_ends_with_1(written, capsys):
    assert main(["preflight", "recipe.json", "--topology", "v5e:2x4", "v4:2x2x1"]) == 1
    out, err = capsys.readouterr()
    assert re.search(r"fits +yes, 26% of 16 GiB +no", out)
    assert "does not fit, v4:2x2x1: RESOURCE_EXHAUSTED: used 40.1G of 31.7G; take a smaller --batch-size" in err
    assert err.count("\n") == 1


def test_json(written, capsys):
    assert main(["preflight", "recipe.json", "--topology", "v5e:2x4", "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["fits"] is True
    assert report["images_per_second"] == 3200
    assert report["collectives"] == {"all-reduce": {"count": 2, "bytes": 10**8, "asynchronous": 0}}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name the chips, --topology v5e:2x4 or h200:8"),
        (["--topology", "v5e:2x4", "v9:1"], "unknown topology 'v9:1'"),
        (["--topology", "v5e:2x4", "--param-sharding", "all"], "--param-sharding"),
    ],
)
def test_wrong_use_is_one_line(written, capsys, words, message):
    assert main(["preflight", "recipe.json", *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.fixture
def small(tiny):
    """Sixteen images for groups of four, and their data."""
    recipe = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, norm_group_size=4, dtype="bfloat16"))
    return recipe, DatasetInfo(("a", "b", "c"), (8, 8, 1), 40, "")


def test_a_batch_that_cannot_be_split_so(small):
    with pytest.raises(
        InputError, match="--grad-accum-steps is 3; the batch of 16, in groups of 4, on devices: 4, can be split into 1"
    ):
        preflight(*small, "v5e:2x2", grad_accum_steps=3)


@pytest.mark.parametrize("shape", [(8, 8, 1), (16, 1), (4, 8, 8, 1)], ids=["images", "sequences", "video"])
def test_the_step_that_is_compiled_is_the_one_of_training(small, monkeypatch, shape):
    """On devices of this CPU, for want of libtpu: everything but the compiler is the same."""
    recipe, dataset = small
    monkeypatch.setattr(module, "describe", lambda topology: jax.devices("cpu")[:4])
    if len(shape) != 3:
        fields = {"depths": (1,), "width": 4, "stem": "CifarStem"}
        name = {2: "resnet18_1d", 4: "r3d_18"}[len(shape)]
        recipe = dataclasses.replace(
            recipe, model=Model(name=name, fields=fields), augment=Augment(crop_padding=0), loss=Loss(name="multilabel")
        )
    sharding = "sharded" if len(shape) == 3 else "replicated"
    report = preflight(recipe, dataclasses.replace(dataset, image_shape=shape), "v5e:2x2", param_sharding=sharding)
    assert (report.chips, report.batch, report.refusal) == (4, 16, "")
    assert "all-reduce" in report.collectives
    assert report.multiply_adds == model_cost(build_network(recipe.model, 3), shape).multiply_adds > 0
    assert report.flops > 2 * report.multiply_adds
    assert report.arguments > 16 * np.prod(shape) / 4
    assert report.images_per_second > 0


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "chips"), [("v4:2x2x1", 4), ("v5e:1x1", 1), ("v5e:2x4", 8), ("v5p:2x2x2", 8), ("v6e:2x2", 4)]
)
def test_a_device_is_a_chip(name, chips):
    assert len(describe(name)) == chips
    assert jax.default_backend() == "cpu"
    assert float(jax.numpy.ones(3).sum()) == 3


@needs_libtpu
def test_a_small_step(small):
    recipe, dataset = small
    report = preflight(recipe, dataset, "v5e:2x2")
    assert (report.chips, report.batch, report.refusal) == (4, 16, "")
    assert set(report.collectives) == {"all-reduce"}
    assert report.flops == pytest.approx(6 * report.multiply_adds, rel=0.3)
    assert 0 < report.memory_traffic < report.bytes_accessed
    assert report.arguments > 0
    assert report.code > 0


@needs_libtpu
def test_parts_of_a_batch_cost_as_much_as_the_whole(small):
    recipe, dataset = small
    recipe = dataclasses.replace(recipe, batch_size=64, loss=Loss(label_smoothing=0.1))
    whole, parts = (preflight(recipe, dataset, "v5e:2x2", grad_accum_steps=count) for count in (1, 4))
    assert parts.flops == pytest.approx(whole.flops, rel=0.1)


@needs_libtpu
def test_what_does_not_fit(small):
    recipe, dataset = small
    recipe = dataclasses.replace(recipe, batch_size=64)
    report = preflight(recipe, dataclasses.replace(dataset, image_shape=(8192, 8192, 1)), "v5e:2x2")
    assert "memory" in report.refusal
    assert report.images_per_second == 0


@needs_libtpu
def test_two_at_once_and_in_silence(tmp_path):
    """As programs of their own, which find no settings of the tests, and where JAX has looked for devices already."""
    code = """import jax, time
jax.config.update("jax_platforms", "cpu")
assert jax.devices()[0].platform == "cpu"
from resnet_jax.tools.preflight import describe
print(len(describe("v5e:2x4")))
time.sleep(3)
assert jax.default_backend() == "cpu"
"""
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "TPU_", "ALLOW_"))}
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=bare, stdout=-1, stderr=-1, text=True)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=120) for process in started] == [("8\n", "")] * 2


@needs_cuda_plugin
@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 8])
def test_a_small_step_on_gpus(small, count):
    recipe, dataset = small
    recipe = dataclasses.replace(recipe, batch_size=4 * count)
    report = preflight(recipe, dataset, f"h200:{count}")
    assert (report.chips, report.batch, report.refusal) == (count, 4 * count, "")
    assert report.collectives.keys() == ({"all-reduce"} if count > 1 else set())
    assert sum(each.count for each in report.collectives.values()) <= 2
    # Forward, and for each convolution gradients of its kernel and, but for the first, of its map
    assert report.kernels["cuDNN"] > 0
    assert report.kernels["fusions"] > 0
    assert report.flops == pytest.approx(6 * report.multiply_adds, rel=0.3)
    assert report.memory_traffic > 0


@needs_libtpu
@pytest.mark.slow
def test_resnet50(tmp_path, capsys):
    recipe = str(ROOT / "experiments" / "benchmarks" / "preflight.py")
    assert main(["preflight", recipe, "--topology", "v5e:2x4", "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["fits"]
    assert report["flops"] == pytest.approx(6 * 4.089e9, rel=0.03)
    assert report["collectives"]["all-reduce"]["count"] <= 3
    assert 2 * 25.5e6 < report["collectives"]["all-reduce"]["bytes"] < 4.1 * 25.6e6
    assert report["bound"] == "memory bandwidth"


DETECTOR = {"depths": (1, 1, 1, 1), "width": 8, "pyramid_width": 32}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet_resnet18_fpn", "fasterrcnn_resnet50_fpn"])
@pytest.mark.parametrize(
    "chip", [pytest.param("v5e:1x1", marks=needs_libtpu), pytest.param("h200:1", marks=needs_cuda_plugin)]
)
def test_a_detector_compiles(name, chip):
    """Matching, drawing, top-k, suppression and features of boxes, with all their gradients."""
    recipe = Recipe(
        model=Model(name=name, fields=DETECTOR),
        loss=Loss(name="detection", max_objects=4),
        augment=Augment(crop_padding=0),
        batch_size=2,
    )
    report = preflight(recipe, DatasetInfo(("a", "b"), (64, 64, 3), 40, ""), chip)
    assert (report.chips, report.batch, report.refusal) == (1, 2, "")
    assert report.temporaries > 0
    assert report.memory_traffic > 0
    assert report.flops > 2 * report.multiply_adds > 0


def test_a_network_is_named_alone(monkeypatch, capsys):
    """Of its published shape and classes, with the loss of what it predicts."""
    taken = []
    monkeypatch.setattr(module, "preflight", lambda recipe, dataset, *_, **__: taken.append((recipe, dataset)) or FITS)
    for name in ("retinanet_resnet50_fpn", "unet_resnet18", "resnet20"):
        assert main(["preflight", name, "--topology", "v5e:2x4", "--batch-size", "64"]) == 0
    shapes = [(r.loss.name, r.batch_size, d.image_shape, len(d.classes)) for r, d in taken]
    assert shapes == [
        ("detection", 64, (800, 800, 3), 91),
        ("pixel_cross_entropy", 64, (224, 224, 3), 21),
        ("cross_entropy", 64, (32, 32, 3), 10),
    ]
    assert "assuming images of 800 x 800 x 3 and 91 classes" in capsys.readouterr().out
