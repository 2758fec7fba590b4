"""Runs on sound and on text: trained, opened again, predicted and reported, and what they do not take."""

from dataclasses import replace

import numpy as np
import pytest
from runs import quietly

from resnet_jax.cli.main import main
from resnet_jax.data.source import from_arrays
from resnet_jax.data.text import encode_text
from resnet_jax.errors import InputError
from resnet_jax.inference.export.export import export
from resnet_jax.inference.export.network import normalize
from resnet_jax.inference.predict import predict
from resnet_jax.recipe import Augment, Data, Model, Optimizer, Recipe, Schedule, check
from resnet_jax.report.make import make_report
from resnet_jax.report.sheet import as_pixels

soundfile = pytest.importorskip("soundfile")

FIELDS = {"depths": (1,), "width": 4}
short = Recipe(
    augment=Augment(crop_padding=0),
    optimizer=Optimizer(lr=0.1),
    schedule=Schedule(warmup=0),
    batch_size=8,
    epochs=None,
    steps=12,
)


def tone(hertz, phase=0.0):
    return 0.3 * np.sin(2 * np.pi * hertz * np.arange(2000) / 4000 + phase)


@pytest.fixture(scope="module")
def sound_run(tmp_path_factory):
    """Tones of 300 and 1,200 Hz at 4 kHz, as files."""
    home = tmp_path_factory.mktemp("sound")
    for split in ("train", "test"):
        for name, hertz in (("high", 1200), ("low", 300)):
            (home / split / name).mkdir(parents=True)
            for place in range(8):
                soundfile.write(home / split / name / f"{place}.wav", tone(hertz, place), 4000)
    model = Model(
        name="log_mel_resnet18", fields={**FIELDS, "n_fft": 128, "hop_length": 64, "n_mels": 16, "time_mask": 3}
    )
    data = Data(name=f"folder:{home}", sample_rate=4000, seconds=0.5, mean=(0.0,), std=(1.0,))
    recipe = replace(short, model=model, data=data, augment=replace(short.augment, time_shift=0.1))
    return home, quietly(recipe, home / "run", eval_every=12)[0].rows


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    home = tmp_path_factory.mktemp("text")
    texts = [f"{word} {place}" for place in range(8) for word in ("awful", "lovely")]
    data = from_arrays(np.stack([encode_text(one, 32) for one in texts]), np.arange(16) % 2, ("bad", "good"))
    model = Model(name="vdcnn9", fields={**FIELDS, "pool": "avg"}, norm_momentum=0.5)
    recipe = replace(short, model=model, data=Data(name="arrays"), steps=40)
    quietly(recipe, home / "run", data=(data, data), eval_every=40)
    return home / "run"


def test_tones_are_told_apart_and_predicted_from_files_of_another_rate(sound_run, tmp_path, capsys):
    home, rows = sound_run
    assert rows[-1]["test/accuracy"] == 1
    soundfile.write(tmp_path / "a.wav", np.repeat(tone(300), 4), 16000)
    assert main(["predict", str(home / "run"), str(tmp_path / "a.wav"), "--topk", "1"]) == 0
    assert "low" in capsys.readouterr().out
    (tmp_path / "b.wav").write_text("no sound")
    assert main(["predict", str(home / "run"), str(tmp_path / "b.wav")]) == 2
    said = capsys.readouterr().err
    assert "b.wav: not a sound file that can be read" in said
    assert said.count("\n") == 1
    with pytest.raises(InputError, match="takes files, no --text"):
        predict(home / "run", [], text=["hello"])


def test_a_report_plays_sounds_and_shows_their_spectrograms(sound_run):
    home, _ = sound_run
    # Files that changed places are mistakes
    high, low = home / "test" / "high" / "0.wav", home / "test" / "low" / "0.wav"
    high.rename(home / "x"), low.rename(high), (home / "x").rename(low)
    page = make_report([home / "run"], home / "report", devices=1).page.read_text()
    assert page.count('<audio src="data:audio/wav;base64,UklGR') == 2
    assert page.count("predicted low, true high") == 1
    assert (home / "report" / "mistakes.png").is_file()


def test_a_spectrogram_has_its_low_tones_below():
    pixels = as_pixels((tone(300)[:, None] * 32767).astype(np.int16), 4000)
    assert pixels.shape == (40, 51, 1)
    assert pixels[20:].sum() > 2 * pixels[:20].sum()
    assert as_pixels(np.zeros((10, 1), np.int16), None) is None


def test_text_is_predicted(text_run, capsys):
    assert main(["predict", str(text_run), "--text", "Awful 3", "lovely 1", "--topk", "1"]) == 0
    said = capsys.readouterr().out
    assert said.index("bad") < said.index("good")
    with pytest.raises(InputError, match="takes text: --text"):
        predict(text_run, [text_run / "recipe.json"])
    with pytest.raises(InputError, match="--text needs one or more texts"):
        predict(text_run, [], text=[""])


def test_exports_refuse_text_and_uint8_samples(sound_run, text_run, tmp_path):
    with pytest.raises(InputError, match=r"^\S+run: takes sound, and --preprocess scales uint8 pixels; leave it out$"):
        export(sound_run[0] / "run", tmp_path / "a.stablehlo", preprocess=True)
    with pytest.raises(InputError, match=r"^\S+run: takes text, which cannot be exported yet; .*$"):
        export(text_run, tmp_path / "a.stablehlo")
    assert not list(tmp_path.iterdir())
    np.testing.assert_array_equal(normalize(np.array([[[-16384]]], np.int16), (0.25,), (0.5,)), [[[-1.5]]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": Data(seconds=1.0)}, "data.seconds is 1; that needs data.sample_rate"),
        ({"data": Data(seconds=1.0, sample_rate=8000, image_size=8)}, "have no image_size"),
    ],
)
def test_fields_that_do_not_fit(change, message):
    with pytest.raises(InputError, match=message):
        check(replace(short, **change))


def test_a_log_mel_network_needs_a_rate_and_images_are_not_shifted_in_time(tmp_path):
    sounds = from_arrays(np.zeros((8, 100, 1), np.int16), np.arange(8) % 2, ("a", "b"))
    model = Model(name="log_mel_resnet18", fields=FIELDS)
    with pytest.raises(InputError, match="it needs data.sample_rate"):
        quietly(replace(short, model=model), tmp_path / "a", data=(sounds, sounds))
    shifted = replace(short, model=Model(name="resnet8"), augment=Augment(time_shift=0.1))
    with pytest.raises(InputError, match=r"augment.time_shift is 0.1, for sound; the data are images: set it to 0.0"):
        quietly(shifted, tmp_path / "b")
