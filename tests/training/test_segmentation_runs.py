"""Segmentation from the command line, from images to a report; and on any hardware, interrupted or not."""

import json
import sys

import numpy as np
import pytest
from PIL import Image
from runs import curve, killed_and_whole, quietly, two_processes_and_one
from squares import draw, write_splits

from resnet_jax.cli.main import main
from resnet_jax.data.masks import decode_mask
from resnet_jax.errors import InputError
from resnet_jax.inference.evaluate import evaluate
from resnet_jax.inference.predict import predict
from resnet_jax.recipe import Augment, Data, Loss, Model, Optimizer, Recipe, Schedule, to_json
from resnet_jax.report import make_report
from resnet_jax.run_dir.files import read_metrics

SIZE = (16, 24)


def recipe_of(name, **fields):
    """A network of two stages on images of 16x24 pixels."""
    small = {"depths": (1, 1), "width": 4, "decoder_width": 4}
    given = {
        "model": Model(name="unet_resnet18", fields=small, norm_group_size=2),
        "data": Data(name=name, mean=(0.4,), std=(0.3,)),
        "augment": Augment(crop_padding=0, hflip=True, scale_jitter=(0.7, 1.3)),
        "loss": Loss(name="pixel_cross_entropy", class_weights=(0.5, 2.0)),
        "optimizer": Optimizer(name="adamw", lr=0.02, weight_decay=0.0),
        "schedule": Schedule(name="cosine", warmup=0),
        "batch_size": 8,
        "epochs": None,
        "steps": 4,
    }
    return Recipe(**{**given, **fields})


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    return write_splits(tmp_path_factory.mktemp("squares"), 24, 8, SIZE)


@pytest.mark.slow
def test_from_images_and_masks_to_a_report(squares, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["resnet-jax"])
    (tmp_path / "recipe.json").write_text(to_json(recipe_of(f"masks:{squares}", steps=6)))
    assert main(["train", "recipe.json", "--devices", "1", "--eval-every", "3", "--out", "run"]) == 0
    said = capsys.readouterr().out
    assert "train and test loss and miou" in said
    first, row = read_metrics(tmp_path / "run")
    assert row["train/loss"] < first["train/loss"]
    assert row["test/count"] == 8

    assert main(["evaluate", "run", "--metrics", "miou", "class_iou", "--devices", "1"]) == 0
    said = capsys.readouterr().out
    assert "8 examples: loss 0." in said
    found = evaluate("run", metrics=("class_iou",), devices=1).values
    assert np.mean([found["class_iou.around"], found["class_iou.rectangle"]]) == pytest.approx(found["miou"])
    assert f"class iou.rectangle {found['class_iou.rectangle']:.2%}" in said
    assert found["miou"] == pytest.approx(row["test/miou"])

    image, _ = draw(50, (30, 41))
    Image.fromarray(image).save("large.png")
    assert main(["predict", "run", "large.png", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["files"] == ["predictions/large.png", "predictions/large_overlay.png"]
    (prediction,) = predict("run", ["large.png"])
    written = decode_mask(tmp_path / "predictions" / "large.png", "large")
    np.testing.assert_array_equal(written, prediction.mask)
    assert written.shape == (30, 41)
    with Image.open("predictions/large.png") as palette:
        assert palette.mode == "P"
    assert np.asarray(Image.open("predictions/large_overlay.png")).shape == (30, 41, 3)
    assert [row["fraction"] for row in told["predictions"]] == pytest.approx(
        np.sort(np.bincount(written.ravel(), minlength=2) / written.size)[::-1].tolist()
    )

    # Of the size of the training images, the pixels are those that evaluation counts
    files = sorted((squares / "images" / "val").iterdir())
    hits = [p.mask == draw(index, SIZE)[1] for index, p in enumerate(predict("run", files), 24)]
    labelled = [draw(index, SIZE)[1] != 2 for index in range(24, 32)]
    assert np.sum(hits) / np.sum(labelled) == pytest.approx(row["test/pixel_accuracy"])

    made = make_report([tmp_path / "run"], devices=1)
    page = made.page.read_text()
    assert not made.notes
    assert "All labelled pixels of 8 images of the test split." in page
    assert f"{found['class_iou.rectangle']:.1%}" in page
    assert np.asarray(Image.open(made.page.parent / "worst.png")).std() > 20

    assert main(["doctor", "recipe.json", "--devices", "1"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "24 with masks of 2 classes, from" in said
    assert "without label" in said
    # Colours lie over the grey noise
    assert np.ptp(np.asarray(Image.open("samples.png")).astype(int), axis=-1).max() > 60


def test_what_predict_cannot_write_is_refused_before_the_network_is_read(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.fromarray(draw(0)[0]).save(tmp_path / folder / "one.png")
    with pytest.raises(InputError, match=r"--overlap is 1; it must be at least 0 and less than 1"):
        predict("run", [tmp_path / "a" / "one.png"], overlap=1.0)


@pytest.mark.slow
def test_grouped_statistics_make_small_batches_free_of_the_topology(squares, tmp_path):
    """BatchNorm over pairs of images: devices and accumulation change nothing but rounding."""
    recipe = recipe_of(f"masks:{squares}", batch_size=16)
    one, _ = quietly(recipe, tmp_path / "one", eval_every=2)
    other, _ = quietly(recipe, tmp_path / "other", devices=4, grad_accum_steps=2, eval_every=2)
    for plain, split in zip(one.rows, other.rows, strict=True):
        for name in ("train/loss", "test/loss", "test/miou"):
            assert split[name] == pytest.approx(plain[name], rel=2e-5)


@pytest.mark.slow
def test_shards_train_as_files_do_and_a_target_of_dice_too(squares, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", f"masks:{squares}", "packed"]) == 0
    for loss in ("pixel_cross_entropy", "dice"):
        rows = []
        for name in (f"masks:{squares}", "array_record:packed"):
            out = tmp_path / f"{loss}-{name[:5]}"
            quietly(recipe_of(name, loss=Loss(name=loss)), out, eval_every=4)
            rows.append(curve(out))
        assert rows[0] == rows[1]


@pytest.mark.slow
def test_a_run_that_is_killed_ends_as_one_that_is_not(squares, tmp_path):
    killed, whole = killed_and_whole(tmp_path, recipe_of(f"masks:{squares}", steps=200))
    assert killed == whole
    assert len(whole) == 10


@pytest.mark.slow
def test_two_processes_train_as_one(squares, tmp_path):
    two, one = two_processes_and_one(tmp_path, recipe_of(f"masks:{squares}", steps=6))
    for ours, theirs in zip(two, one, strict=True):
        assert ours["test/count"] == theirs["test/count"] == 8
        for name in ("train/loss", "test/loss"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3)
