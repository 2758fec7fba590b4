"""Sound files: every kind of WAV, other rates and lengths, folders of them, and what is wrong with them."""

import io

import numpy as np
import pytest

from resnet_jax.data.audio import decode_audio
from resnet_jax.data.datasets import open_split
from resnet_jax.data.formats.folder import image_folder
from resnet_jax.data.image import Preprocessing
from resnet_jax.data.source import to_arrays
from resnet_jax.errors import InputError

soundfile = pytest.importorskip("soundfile")

TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)).astype(np.float32)


def wav(samples, rate=8000, subtype="PCM_16"):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, subtype=subtype, format="WAV")
    return file.getvalue()


@pytest.mark.parametrize(
    ("subtype", "levels"), [("PCM_U8", 256), ("PCM_16", 2), ("PCM_24", 2), ("PCM_32", 2), ("FLOAT", 2), ("DOUBLE", 2)]
)
def test_every_width_of_samples(subtype, levels):
    sound = decode_audio(wav(TONE, subtype=subtype), 8000, 8000)
    assert (sound.dtype, sound.shape) == (np.int16, (8000, 1))
    assert np.abs(sound[:, 0] - TONE * 32768).max() <= levels


def test_stereo_is_the_mean_of_its_channels():
    both = np.stack([TONE, -TONE / 2], 1)
    np.testing.assert_allclose(decode_audio(wav(both), 8000, 8000)[:, 0], TONE / 4 * 32768, atol=2)


@pytest.mark.parametrize("rate", [16000, 44100])
def test_another_rate_is_resampled(rate):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    sound = decode_audio(wav(tone, rate), 8000, 8000)[:, 0] / 32768
    np.testing.assert_allclose(sound[200:-200], TONE[200:-200], atol=2e-3)


def test_the_middle_is_kept_and_silence_surrounds_it():
    whole = decode_audio(wav(TONE), 8000, 8000)
    np.testing.assert_array_equal(decode_audio(wav(TONE), 8000, 1000), whole[3500:4500])
    longer = decode_audio(wav(TONE), 8000, 9001)
    np.testing.assert_array_equal(longer[500:8500], whole)
    assert not longer[:500].any()
    assert not longer[8500:].any()


def test_a_sound_that_is_louder_than_possible_is_clipped():
    assert decode_audio(wav(3 * TONE, subtype="FLOAT"), 8000, 8000).max() == 32767


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a sound file that can be read"),
        (b"RIFF\0\0\0\0WAVEfmt nonsense", "not a sound file that can be read"),
        (wav(TONE[:0]), "has no samples"),
        (wav(TONE, 100), "100 samples per second; give 1,000 to 768,000"),
        (wav(np.full(9, np.nan, np.float32), subtype="FLOAT"), "samples that are not finite"),
    ],
)
def test_what_is_no_sound_is_one_line(content, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        decode_audio(content, 8000, 800, "a.wav")
    assert str(caught.value).startswith("a.wav: ")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no such sound file"):
        decode_audio(tmp_path / "missing.wav", 8000, 800)


def test_a_folder_of_sounds(tmp_path):
    for split in ("train", "test"):
        for place, name in enumerate(("high", "low")):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "one.wav").write_bytes(wav(TONE / (1 + place)))
            (tmp_path / split / name / "cover.jpg").write_bytes(b"")
    name, sound = f"folder:{tmp_path}", Preprocessing(sample_rate=8000, seconds=0.5)
    source = open_split(name, "train", tmp_path, preprocessing=sound)
    sounds, labels = to_arrays(source)
    assert (sounds.dtype, sounds.shape, labels.tolist()) == (np.int16, (2, 4000, 1), [0, 1])
    assert source.notes == (f"{tmp_path}/train: skipped 2 files that are not examples of a class: 2 .jpg",)
    for path in tmp_path.rglob("*.jpg"):
        path.unlink()
    with pytest.raises(InputError, match=r"high: holds sounds; set data.seconds and data.sample_rate"):
        image_folder("train", tmp_path, str(tmp_path))
    with pytest.raises(InputError, match=r"all images of digits have the same size; leave data.seconds out"):
        open_split("digits", "train", tmp_path, preprocessing=sound)
