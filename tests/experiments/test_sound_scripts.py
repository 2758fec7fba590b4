"""The experiments on speech and text: their splits are what they say, and each runs at a reduced size."""

import io
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.errors import InputError
from resnet_jax.training.options import RunOptions

soundfile = pytest.importorskip("soundfile")
RANDOM = np.random.default_rng(0)


def wav(samples, rate):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV")
    return file.getvalue()


@pytest.fixture
def digits(script):
    return script("speech", "spoken_digits.py")


@pytest.fixture
def archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "small.zip", "w") as opened:
        for speaker in ("anna", "ben"):
            for digit in range(10):
                tone = 0.3 * np.sin(2 * np.pi * 300 * (digit + 1) * np.arange(3000) / 8000)
                for number in (0, 4, 5, 6):
                    sound = tone + RANDOM.normal(0, 0.03, 3000)
                    opened.writestr(f"{digit}_{speaker}_{number}.wav", wav(sound, 8000))
        opened.writestr("README.md", "no recording")
    return tmp_path / "small.zip"


def test_recordings_and_their_splits(digits, archive):
    recordings = digits.read(archive)
    assert recordings.sound.shape == (80, 6400, 1)
    train, test = recordings.split(recordings.number < 5)
    assert (train.size, test.size) == (40, 40)
    assert sorted(test.labels) == sorted(list(range(10)) * 4)
    archive.write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"small.zip: cannot be read"):
        digits.read(archive)


def test_both_splits_are_run_for_every_method(digits, archive, tmp_path, monkeypatch):
    monkeypatch.setattr(digits, "_accuracy", lambda one, out, data: data[1].size / 100 + one.seed)
    monkeypatch.setattr(digits, "SPECTROGRAM", digits.SPECTROGRAM | {"n_mels": 16})
    found = digits.accuracies(digits.read(archive), tmp_path, range(2))
    for name in digits.RECIPES:
        assert found["official"][name] == [0.4, 1.4]
        assert found["speaker"][name] == [0.4, 0.4]
    # Each digit is a tone
    assert [found[split][digits.BASELINE] for split in ("official", "speaker")] == [[1.0], [1.0, 1.0]]
    digits.draw(found, digits.read(archive), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").is_file()


def test_commands_in_the_layout_of_their_archive(script, tmp_path, capsys):
    words = script("speech", "speech_commands.py")
    for word in ("no", "yes"):
        (tmp_path / "data" / word).mkdir(parents=True)
        for place in range(6):
            (tmp_path / "data" / word / f"{place}.wav").write_bytes(wav(RANDOM.normal(0, 0.1, 9000), 16000))
    (tmp_path / "data" / words.NOISE).mkdir()
    (tmp_path / "data" / words.NOISE / "hum.wav").write_bytes(wav(RANDOM.normal(0, 0.1, 20000), 16000))
    (tmp_path / "data" / "validation_list.txt").write_text("no/0.wav\n")
    (tmp_path / "data" / "testing_list.txt").write_text("no/1.wav\nyes/1.wav\n")
    model = replace(words.recipe.model, fields={"depths": (1,), "width": 4, "n_mels": 16})
    one = replace(words.recipe, model=model, batch_size=4, schedule=replace(words.recipe.schedule, warmup=0), epochs=1)
    row = words.run(tmp_path / "data", tmp_path / "run", one, options=RunOptions(stop_at=2, eval_every=2, devices=1))
    assert row["test/count"] == 2
    capsys.readouterr()


def test_noise_is_as_loud_as_drawn_and_leaves_every_fifth_sound(script):
    words = script("speech", "speech_commands.py")
    sound, noise = (np.round(RANDOM.normal(0, 1000, (count, 1))).astype(np.int16) for count in (4000, 9000))
    keys = jax.random.split(jax.random.key(0), 200)
    mixed = jax.vmap(lambda key: words.add_noise(noise, key, jnp.asarray(sound), 0)[0])(keys)
    added = np.asarray(mixed, np.float64) - sound
    decibels = 10 * np.log10(np.square(sound.astype(float)).mean() / np.maximum(np.square(added).mean((1, 2)), 1e-9))
    clean = decibels > 60
    assert 20 < clean.sum() < 60
    assert -1 < decibels[~clean].min() < 3
    assert 27 < decibels[~clean].max() < 31


def test_sentences_are_split_by_class_and_never_shared(script, tmp_path):
    polarity = script("text", "polarity.py")
    for kind in ("neg", "pos"):
        (tmp_path / f"rt-polarity.{kind}").write_text("".join(f"{kind} caf\xe9 {n}\n" for n in range(30)), "latin-1")
    sentences, labels = polarity.read(tmp_path)
    assert sentences[0] == "neg caf\xe9 0"
    known, held = polarity.split(labels)
    few, same = polarity.split(labels, 0.5)
    assert (len(known), len(held), labels[held].sum(), labels[known].sum()) == (54, 6, 3, 27)
    assert not set(known) & set(held)
    assert set(few) < set(known)
    assert (len(few), labels[few].sum()) == (27, 13) or (len(few), labels[few].sum()) == (28, 14)
    np.testing.assert_array_equal(same, held)
    assert polarity.baseline(sentences, labels) == 1
    train, test = polarity.sources(sentences, labels)
    assert (train.size, test.size, train.read(0).image.shape) == (54, 6, (polarity.LENGTH, 1))
    with pytest.raises(InputError, match=r"rt-polarity.neg: cannot be read"):
        polarity.read(tmp_path / "missing")


def test_words_are_dropped_whole(script):
    polarity = script("text", "polarity.py")
    text = "a film of rare and quiet beauty that nobody saw"
    tokens = jnp.asarray(polarity.encode_text(text, 64))
    keys = jax.random.split(jax.random.key(0), 50)
    found = [bytes(np.asarray(polarity.drop_words(key, tokens, 1)[0])[:, 0].tolist()) for key in keys]
    assert all(len(one.rstrip(b"\0")) == len(text) for one in found)
    left = [one.rstrip(b"\0").decode().split() for one in found]
    assert all(set(words) <= set(text.split()) for words in left)
    assert 0.7 < np.mean([len(words) for words in left]) / len(text.split()) < 0.9


def test_each_method_learns_from_each_fraction(script, tmp_path, monkeypatch):
    polarity = script("text", "polarity.py")
    sentences = [f"{word} {n}" for word in ("bad", "good") for n in range(40)]

    def fake(one, out, *, data, **_):
        return SimpleNamespace(rows=[{"test/accuracy": one.epochs * data[0].size}])

    monkeypatch.setattr(polarity, "train", fake)
    found = polarity.accuracies(sentences, np.repeat([0, 1], 40), tmp_path, range(2))
    assert list(found) == [0.25, 0.5, 1.0]
    for methods in found.values():
        assert methods[polarity.BASELINE] == [1.0]
        # As many examples are seen from each fraction
        assert methods[polarity.VDCNN] == pytest.approx([5 * 72] * 2)
        assert methods[polarity.BLOCK] == pytest.approx([20 * 72] * 2)
    polarity.draw(found, 72, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").is_file()
