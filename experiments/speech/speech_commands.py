"""Speech Commands v2, 35 words (Warden 2018): a residual network on log-mel spectrograms.

    python experiments/speech/speech_commands.py FOLDER

FOLDER is the unpacked archive: a folder a word, validation_list.txt and testing_list.txt, which name the official
splits, and _background_noise_, whose recordings are mixed into four of five training examples.

Not measured here: the archive was not available. A test runs it on a small folder of this layout. MLPerf Tiny asks for
90 % of 12 classes (Banbury et al. 2021).
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from experiments import script
from resnet_jax import InputError, train
from resnet_jax.data.audio import decode_audio
from resnet_jax.data.image import Preprocessing, preprocessing_of
from resnet_jax.data.source import RawExample, Source, from_raw
from resnet_jax.recipe import Augment, Data, Model, Optimizer, Recipe, Schedule

RATE = 16_000
NOISE = "_background_noise_"
LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
recipe = Recipe(
    model=Model(
        name="log_mel_resnet18",
        fields={"depths": (2, 2, 2), "width": 32, "n_mels": 40, "time_mask": 20, "freq_mask": 8},
    ),
    data=Data(name="arrays", sample_rate=RATE, seconds=1.0, mean=(0.0,), std=(1.0,)),
    augment=Augment(crop_padding=0, time_shift=0.1),
    optimizer=Optimizer(lr=0.1),
    schedule=Schedule(name="cosine", warmup=1),
    batch_size=256,
    epochs=30,
)


def splits(folder: Path, preprocessing: Preprocessing) -> dict[str, Source]:
    """Return the official splits."""
    try:
        lists = {split: set((folder / file).read_text().split()) for split, file in LISTS.items()}
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}); give the unpacked archive") from error
    words = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name != NOISE)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*.wav") if path.parent.name != NOISE)
    held = lists["validation"] | lists["test"]
    named = {
        **{split: sorted(of) for split, of in lists.items()},
        "train": [file for file in files if file not in held],
    }
    return {split: _source(folder, tuple(words), of, preprocessing) for split, of in named.items()}


def _source(folder: Path, words: tuple[str, ...], files: list[str], preprocessing: Preprocessing) -> Source:
    labels = np.array([words.index(file.partition("/")[0]) for file in files])

    def raw(index: int) -> RawExample:
        return RawExample(folder / files[index], int(labels[index]), files[index], str(folder / files[index]))

    return from_raw(len(files), words, raw, preprocessing, labels)


def background(folder: Path) -> np.ndarray:
    """Return the recordings of noise, one after the other, (n, 1) int16."""
    found = [decode_audio(path, RATE, 60 * RATE) for path in sorted((folder / NOISE).glob("*.wav"))]
    if not found:
        raise InputError(f"{folder / NOISE}: holds no recordings of noise")
    # Each is about a minute, in the middle of silence
    return np.concatenate([sound[slice(*np.flatnonzero(sound)[[0, -1]])] for sound in found])


def add_noise(noise: np.ndarray, key: Array, sound: Array, target: Any) -> tuple[Array, Any]:
    """Add a random second of noise to four of five sounds (l, 1) int16, 0 to 30 dB below them."""
    coin_key, place_key, ratio_key = jax.random.split(key, 3)
    start = jax.random.randint(place_key, (), 0, len(noise) - len(sound) + 1)
    part = jax.lax.dynamic_slice_in_dim(jnp.asarray(noise), start, len(sound)).astype(jnp.float32)
    clean, ratio = sound.astype(jnp.float32), jax.random.uniform(ratio_key, (), maxval=30.0)
    # A power under 1 is silence, in either
    powers = [jnp.maximum(jnp.square(one).mean(), 1) for one in (clean, part)]
    mixed = clean + part * jnp.sqrt(powers[0] / powers[1] * 10 ** (-ratio / 10))
    mixed = jnp.round(jnp.clip(mixed, -32768, 32767)).astype(sound.dtype)
    return jnp.where(jax.random.bernoulli(coin_key, 0.8), mixed, sound), target


def run(folder: Path, out: Path, one: Recipe = recipe, **options: Any) -> dict[str, Any]:
    """Train on the training split and return the last row of metrics, on the test split."""
    found = splits(folder, preprocessing_of(one.data))
    transform: Callable[..., tuple[Array, Any]] = partial(add_noise, background(folder))
    return train(one, out, data=(found["train"], found["test"]), transform=transform, **options).rows[-1]


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/speech_commands"))
    options = parser.parse_args()
    print(f"{run(options.folder, options.out)['test/accuracy']:.2%} of the test words")


if __name__ == "__main__":
    script.run(main)
