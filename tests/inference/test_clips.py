"""Runs on video files: trained on random clips, resumed, measured over several clips, predicted and reported."""

from dataclasses import replace

import numpy as np
import pytest
from runs import curve, quietly

from resnet_jax.cli.main import main
from resnet_jax.data.image import Preprocessing
from resnet_jax.data.source import from_arrays
from resnet_jax.data.video import decode_clips, uniform_starts
from resnet_jax.errors import InputError
from resnet_jax.inference.evaluate import evaluate
from resnet_jax.inference.load_model import load_model
from resnet_jax.inference.predict import predict, predict_probs
from resnet_jax.inference.source import WeightsInfo
from resnet_jax.inference.validate import evaluate_several
from resnet_jax.recipe import Augment, Data, Model, Optimizer, Recipe, Schedule, check
from resnet_jax.report.make import make_report
from resnet_jax.report.sheet import as_pixels
from resnet_jax.training.run import train

av = pytest.importorskip("av")

FRAMES, SIDE = 4, 16
OPTIONS = {"eval_every": 20, "checkpoint_every": 20, "max_corrupt_fraction": 0.1}


def write(path, darkening, start=0):
    """A square that moves to the right while it becomes darker or lighter, 24 frames at 24 per second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "10"})
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for place in range(24):
            image = np.zeros((32, 32, 3), np.uint8)
            image[8:24, (start + place) % 16 :][:, :16] = 240 - 9 * place if darkening else 24 + 9 * place
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    home = tmp_path_factory.mktemp("video")
    for split in ("train", "test"):
        for name in ("darker", "lighter"):
            for place in range(8):
                write(home / split / name / f"{place}.mp4", name == "darker", place)
    (home / "train" / "darker" / "8.mp4").write_bytes(b"no video")
    recipe = Recipe(
        model=Model(
            name="r2plus1d_18", fields={"depths": (1, 1), "width": 4, "stem": "R2Plus1DStem"}, norm_momentum=0.5
        ),
        data=Data(name=f"folder:{home}", frames=FRAMES, frame_rate=6, image_size=SIDE),
        augment=Augment(crop_padding=1, hflip=True),
        optimizer=Optimizer(lr=0.1),
        schedule=Schedule(warmup=0),
        batch_size=8,
        epochs=None,
        steps=40,
    )
    _, said = quietly(recipe, home / "run", **OPTIONS)
    return home, recipe, said


def test_clips_are_told_apart_and_a_bad_file_is_replaced_and_counted(run):
    home, _, said = run
    row = curve(home / "run")[-1]
    assert (row["test/accuracy"], row["test/count"]) == (1, 16)
    assert "darker/8.mp4: not a video that can be read" in said


@pytest.mark.slow
def test_threads_and_a_stop_change_nothing(run):
    home, recipe, _ = run
    quietly(recipe, home / "threads", **OPTIONS, num_threads=0, stop_at=20)
    quietly(recipe, home / "threads", **OPTIONS, num_threads=3)
    assert curve(home / "threads") == curve(home / "run")


def test_probabilities_of_clips_and_their_mirror_images_are_averaged(run):
    home, _, _ = run
    setup, state = load_model(home / "run", devices=1)
    clips = [
        decode_clips(home / "test" / name / f"{place}.mp4", setup.recipe.data, uniform_starts(3))
        for name in ("darker", "lighter")
        for place in range(8)
    ]
    views = np.stack([np.concatenate([clip, clip[:, :, :, ::-1]]) for clip in clips])
    probs = predict_probs(setup, state, views.reshape(-1, *views.shape[2:])).reshape(16, 6, 2).mean(1)
    loss = -np.log(np.asarray(probs)[np.arange(16), np.repeat([0, 1], 8)]).mean()
    found = evaluate(home / "run", clips=3, views=2, devices=1)
    np.testing.assert_allclose(found.values["loss"], loss, rtol=1e-5)
    assert found.values["count"] == 16
    # Clips alone, by predict
    probs = predict_probs(setup, state, clips[0]).mean(0)
    first = predict(home / "run", [home / "test" / "darker" / "0.mp4"], clips=3)[0]
    by_name = dict(zip(first.classes, first.probabilities, strict=True))
    np.testing.assert_allclose([by_name["darker"], by_name["lighter"]], probs, rtol=1e-5)


def test_the_command_line(run, tmp_path, capsys):
    home, _, _ = run
    assert main(["predict", str(home / "run"), str(home / "test" / "lighter" / "3.mp4"), "--topk", "1"]) == 0
    assert "lighter" in capsys.readouterr().out
    assert main(["evaluate", str(home / "run"), "--clips", "2", "--devices", "1"]) == 0
    assert "16 examples, 2 clips: " in capsys.readouterr().out
    bad = tmp_path / "b.mp4"
    bad.write_bytes((home / "test" / "lighter" / "3.mp4").read_bytes()[:500])
    for words, message in (
        (["predict", str(home / "run"), str(bad)], "b.mp4: not a video that can be read"),
        (["predict", str(home / "run"), str(bad), "--clips", "0"], "--clips is 0; it must be positive"),
        (["evaluate", str(home / "run"), "--clips", "-1"], "--clips is -1; it must be positive"),
        (["evaluate", str(home / "run"), "--views", "5"], "--views 5 crops images; of video take --views 2"),
    ):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1


def test_a_table_keeps_clips_apart(run, tmp_path):
    home, _, _ = run
    for clips in (1, 2, 2):
        done = evaluate_several([str(home / "run")], "test", tmp_path / "a.csv", clips=clips, devices=1)
    assert done == []
    rows = (tmp_path / "a.csv").read_text().splitlines()
    assert [row.split(",")[15] for row in rows] == ["views", "1", "1 of 2 clips"]


def test_a_report_shows_frames_of_mistakes(run):
    home, _, _ = run
    one, other = home / "test" / "darker" / "0.mp4", home / "test" / "lighter" / "0.mp4"
    one.rename(home / "x"), other.rename(one), (home / "x").rename(other)
    page = make_report([home / "run"], home / "report", devices=1).page.read_text()
    assert page.count("predicted lighter, true darker") == 1
    video = np.arange(8, dtype=np.uint8)[:, None, None, None] + np.zeros((8, 2, 3, 3), np.uint8)
    strip = as_pixels(video)
    assert (strip.shape, strip[0, ::3, 0].tolist()) == ((2, 12, 3), [0, 2, 4, 7])


def test_a_bare_file_of_weights_knows_its_clips_by_flags(run, tmp_path):
    home, _, _ = run
    assert main(["convert", str(home / "run"), str(tmp_path / "a.safetensors"), "--to", "flax"]) == 0
    setup, _ = load_model(tmp_path / "a.safetensors", WeightsInfo(frames=6, image_size=24), devices=1)
    assert setup.dataset.image_shape == (6, 24, 24, 3)
    assert (setup.recipe.data.frames, setup.recipe.data.frame_rate) == (6, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 4}, "data.frames is 4; that needs data.frame_rate, such as 15"),
        ({"frames": 4, "frame_rate": 15}, "data.frames is 4; that needs data.image_size"),
        ({"frame_rate": 15}, "data.frame_rate is 15; that needs data.frames, such as 16"),
        (
            {"frames": 4, "frame_rate": 15, "image_size": 8, "seconds": 1.0, "sample_rate": 8000},
            "data.seconds is 1, of sounds",
        ),
    ],
)
def test_fields_that_do_not_fit(change, message):
    with pytest.raises(InputError, match=message):
        check(replace(Recipe(), data=Data(**change)))


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (Augment(crop_padding=0, alternating_hflip=True), "augment.alternating_hflip is True, for images"),
        (Augment(crop_padding=0, erase_prob=0.5), "augment.erase_prob is 0.5, for images; the data are video"),
    ],
)
def test_what_would_change_frames_one_by_one_is_refused(run, tmp_path, augment, message):
    videos = from_arrays(np.zeros((8, 2, 8, 8, 3), np.uint8), np.arange(8) % 2, ("a", "b"))
    with pytest.raises(InputError, match=message):
        train(replace(run[1], data=Data(name="arrays"), augment=augment), tmp_path / "a", data=(videos, videos))


def test_published_weights_say_their_clips():
    from resnet_jax.weights.entries import WEIGHTS

    for name in ("r3d_18", "mc3_18", "r2plus1d_18"):
        entry = WEIGHTS[f"{name}.tv_kinetics400"]
        assert (len(entry.class_names), entry.class_names[0]) == (400, "abseiling")
        known = entry.preprocessing
        assert (known.frames, known.frame_rate, known.image_size, known.crop_pct) == (16, 15, 112, 112 / 128)
        assert isinstance(known, Preprocessing)


def test_clips_need_files(run, tmp_path):
    videos = from_arrays(np.zeros((8, FRAMES, SIDE, SIDE, 3), np.uint8), np.arange(8) % 2, ("darker", "lighter"))
    with pytest.raises(InputError, match=r"^--clips: \S+ has no video files; leave it out$"):
        evaluate(run[0] / "run", data=videos, clips=2, devices=1)
