"""What one looks at before a training."""

import re
from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image

from resnet_jax.cli.main import main
from resnet_jax.data.labels import count_targets
from resnet_jax.data.source import Example, Source, from_arrays
from resnet_jax.errors import InputError
from resnet_jax.input_pipeline.sampler import batch_indices
from resnet_jax.models.detection.objects import make_objects, pad_objects
from resnet_jax.recipe import to_json
from resnet_jax.run_dir.files import DatasetInfo
from resnet_jax.tools import doctor, known_step
from resnet_jax.tools.bench import measure_data, rate
from resnet_jax.tools.doctor import directory, examine, machine
from resnet_jax.tools.known_step import compute_known_step
from resnet_jax.training.setup import make_setup
from resnet_jax.weights.names import abstract_variables, to_state_dict
from resnet_jax.weights.tensors import write_tensors


def test_the_whole_report(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.json").write_text(to_json(tiny))
    assert main(["doctor", "recipe.json", "--devices", "1"]) == 0
    out = capsys.readouterr().out
    assert "40 in 3 classes, 13 (b) to 14 (a) per class" in out
    assert "resnet8, " in out
    assert "12 steps of 16" in out
    assert out.endswith("no problems; look at samples.png before you train\n")
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.json", "samples.png"}


@pytest.mark.slow
def test_a_known_step(monkeypatch):
    device = jax.local_devices()[1]
    with jax.enable_x64(True):
        exact = compute_known_step(device)
    np.testing.assert_allclose((exact.loss, exact.gradient_norm), known_step.EXPECTED, rtol=1e-9)
    assert doctor.arithmetic().good
    noisy = exact._replace(is_same_twice=False)
    for wrong, said in (
        (exact._replace(loss=exact.loss * 1.03), "computes wrong results, do not train"),
        (exact._replace(gradient_norm=float("nan")), "computes wrong results, do not train"),
        (noisy, "not the same when repeated: train with --deterministic"),
    ):
        monkeypatch.setattr(doctor, "compute_known_step", lambda device, wrong=wrong: wrong)
        finding = doctor.arithmetic()
        assert said in finding.value
        assert not finding.good


def test_the_samples_are_the_first_batch_augmented(tiny, tmp_path):
    picture = tmp_path / "s.png"
    examine(tiny, tmp_path, data_dir=tmp_path, devices=1, samples_at=picture)
    with Image.open(picture) as image:
        sheet = np.asarray(image.convert("RGB"))
    assert sheet.shape == (2 * (112 + 18), 8 * 116, 3)  # sixteen images, eight a row
    assert len(np.unique(sheet)) > 50
    again = tmp_path / "again.png"
    examine(tiny, tmp_path, data_dir=tmp_path, devices=1, samples_at=again)
    assert again.read_bytes() == picture.read_bytes()


def test_bad_images_of_the_evaluation_split_are_all_named():
    def read(index):
        if index in (2, 5):
            raise InputError(f"{index}.jpg: damaged")
        return Example(np.zeros((2, 2, 1), np.uint8), 0)

    (finding,) = doctor.unreadable(Source(9, ("a",), read), "validation")
    assert finding == ("validation images", "2.jpg: damaged; 5.jpg: damaged", False)
    assert doctor.unreadable(Source(2, ("a",), read), "test") == []


def test_weights_are_looked_for(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.json").write_text(to_json(replace(tiny, model=replace(tiny.model, pretrained="no.pth"))))
    assert main(["doctor", "recipe.json", "--devices", "1"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"! +starts from +no\.pth: no such", out), out
    assert "1 problem; look" in out


def test_weights_that_fit(tiny, tmp_path):
    job = make_setup(tiny, DatasetInfo(("a", "b", "c"), (16, 16, 3), 40, ""), 1)
    assert doctor.weights(job) == []
    random, file = np.random.default_rng(0), tmp_path / "w.safetensors"
    shapes = abstract_variables(job.model.clone(num_classes=5, input_shape=(16, 16, 3)))
    values = jax.tree.map(lambda leaf: random.uniform(0, 1, leaf.shape).astype(np.float32), shapes)
    write_tensors(file, to_state_dict(job.model, values))
    model = replace(tiny.model, pretrained=str(file))
    (found,) = doctor.weights(job._replace(recipe=replace(tiny, model=model)))
    assert found.good
    assert found.value.startswith(f"{file}; ")
    assert "5 classes" in found.value


@pytest.mark.parametrize(
    ("fields", "repeats", "shown"),
    [({"batch_size": 4096}, 1, 32), ({"batch_size": 72}, 9, 32), ({"batch_size": 9}, 1, 9)],
)
def test_of_a_large_batch_only_what_is_shown_is_read(tiny, tmp_path, monkeypatch, fields, repeats, shown):
    """Whatever divides it: devices, repeats, pairs."""
    rows, read = [], doctor.stream

    def noting(source, indices, batches, **how):
        rows.extend(indices(0))
        return read(source, indices, batches, **how)

    monkeypatch.setattr(doctor, "stream", noting)
    augment = replace(tiny.augment, aug_repeats=repeats, mixup_alpha=0.0 if shown == 9 else 0.2)
    recipe = replace(tiny, augment=augment, **fields)
    examine(recipe, tmp_path, data_dir=tmp_path, devices=1, samples_at=tmp_path / "s.png")
    np.testing.assert_array_equal(rows, batch_indices(0, 0, recipe.batch_size, 40, repeats)[:shown])


def test_findings_that_are_not_good(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert directory(tmp_path / "new" / "run")[0].good
    assert not directory(tmp_path / "file")[0].good
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("usage", (), {"free": 2**20})())
    assert "little for checkpoints" in directory(tmp_path)[1].value
    assert all(finding.value for finding in machine())


def test_labels_are_counted_without_reading():
    def never(index):
        raise AssertionError

    labels = np.array([0, 2, 2])
    assert count_targets(Source(3, ("a", "b", "c"), never, labels)).tolist() == [1, 0, 2]
    read = Source(3, ("a", "b", "c"), lambda index: Example(None, int(labels[index])))
    assert count_targets(read).tolist() == [1, 0, 2]
    with pytest.raises(InputError, match="the labels: label 2, expected 0 to 1"):
        count_targets(Source(3, ("a", "b"), never, labels))


def test_folders_and_arrays_know_their_labels(tmp_path):
    source = from_arrays(np.zeros((4, 2, 2, 1), np.uint8), np.array([0, 1, 1, 0]), "ab")
    assert source.labels.tolist() == [0, 1, 1, 0]


def test_bench_data(tiny, tmp_path, monkeypatch, capsys):
    speeds = measure_data(tiny, data_dir=tmp_path, num_threads=2, seconds=0.05, devices=1)
    assert [speed.stage for speed in speeds] == [
        "read and decode, 1 thread",
        "batches, 2 threads",
        "copy to the devices",
        "augment and normalise there",
    ]
    assert all(speed.images_per_second > 0 for speed in speeds)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.json").write_text(to_json(tiny))
    assert main(["bench", "data", "recipe.json", "--seconds", "0.05", "--devices", "1"]) == 0
    assert "tiny, batches of 16" in capsys.readouterr().out
    for words, message in (
        (["bench"], "name what to measure"),
        (["bench", "speed"], "name what to measure"),
        (["bench", "data", "--seconds", "0"], "--seconds is 0.0; it must be positive"),
        (["doctor", "--samples", "/nonexistent/x.png"], "/nonexistent/x.png: cannot be written"),
    ):
        assert main(words) == 2
        assert message in capsys.readouterr().err


def test_a_rate_is_of_images(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    assert rate(lambda: None, images=8, seconds=3.5) == 8 * 3 / 5


def test_objects_are_counted_drawn_and_named():
    objects = pad_objects(make_objects([[1, 1, 6, 6], [2, 0, 9, 9]], [2, 2]), 4)
    source = Source(3, ("a", "b", "c"), lambda index: Example(np.zeros((10, 10, 3), np.uint8), objects))
    assert count_targets(source).tolist() == [0, 0, 6]
    drawn = doctor._drawn(np.zeros((10, 10, 3), np.uint8), objects, source.classes)
    assert drawn[1, 1].any()
    assert not drawn[9, 0].any()
    assert doctor._caption(objects, source.classes) == "2 c"
    assert doctor._caption(pad_objects(make_objects([], []), 4), source.classes) == "no object"
