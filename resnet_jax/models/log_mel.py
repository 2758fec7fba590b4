"""Networks on the log-mel spectrogram of a sound, computed on the device: sounds (b, l, 1) to logits.

Reference:
    Davis and Mermelstein 1980 (mel scale); Slaney 1998 (its filters, as librosa has them); Park et al. 2019
    (SpecAugment).
"""

from functools import lru_cache, partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax
from jax.nn.initializers import normal

from resnet_jax.models.backbone import BackboneModel

# Least power, and how far below the loudest point a spectrogram reaches in dB, as in librosa
_AMIN, _TOP_DB = 1e-10, 80.0
# Slaney's scale: linear up to this frequency in Hz, then logarithmic
_KNEE, _HZ_PER_MEL, _LOG_STEP = 1000.0, 200.0 / 3, np.log(6.4) / 27


def log_mel(sound: Array, sample_rate: int, n_fft: int = 512, hop_length: int = 160, n_mels: int = 64) -> Array:
    """Return the log-mel spectrogram of sounds, (b, l, 1) of -1 to 1 -> (b, 1 + l // hop_length, n_mels, 1), in dB.

    It is librosa's `power_to_db(melspectrogram(...))` with its defaults: frames centred in zeros, a Hann window, power
    2, Slaney's filters up to half the sample rate. The Fourier transform is a convolution in full precision, which
    every device and file format has.

    Args:
        sound: (b, l, 1).
        sample_rate: Hz.
        n_fft: samples of a frame.
        hop_length: samples from one frame to the next.
        n_mels: number of filters.

    Example:
        >>> log_mel(jnp.ones((2, 1600, 1)), 16_000).shape
        (2, 11, 64, 1)
    """
    tables = _fourier(n_fft), mel_filters(sample_rate, n_fft, n_mels)
    basis, filters = (jnp.asarray(table, sound.dtype) for table in tables)
    padding, layout = [(n_fft // 2, n_fft // 2)], ("NWC", "WIO", "NWC")
    exactly = lax.Precision.HIGHEST
    parts = lax.conv_general_dilated(sound, basis, (hop_length,), padding, dimension_numbers=layout, precision=exactly)
    power = jnp.square(parts[..., : n_fft // 2 + 1]) + jnp.square(parts[..., n_fft // 2 + 1 :])
    decibels = jnp.log(jnp.maximum(jnp.matmul(power, filters, precision=exactly), _AMIN)) * (10 / np.log(10))
    return jnp.maximum(decibels, decibels.max((1, 2), keepdims=True) - _TOP_DB)[..., None]


@lru_cache(maxsize=8)
def _fourier(n_fft: int) -> np.ndarray:
    """Return the windowed cosines, then sines, of all frequencies: (n_fft, 1, 2 * (n_fft // 2 + 1))."""
    angles = 2 * np.pi / n_fft * np.outer(np.arange(n_fft), np.arange(n_fft // 2 + 1))
    window = 0.5 - 0.5 * np.cos(2 * np.pi / n_fft * np.arange(n_fft))
    return (np.concatenate([np.cos(angles), np.sin(angles)], 1) * window[:, None])[:, None]


@lru_cache(maxsize=8)
def mel_filters(sample_rate: int, n_fft: int, n_mels: int) -> np.ndarray:
    """Return Slaney's triangles over the frequencies of a Fourier transform, (n_fft // 2 + 1, n_mels), of one area."""
    top = sample_rate / 2
    most = top / _HZ_PER_MEL if top < _KNEE else _KNEE / _HZ_PER_MEL + np.log(top / _KNEE) / _LOG_STEP
    mels = np.linspace(0, most, n_mels + 2)
    logarithmic = _KNEE * np.exp(_LOG_STEP * (mels - _KNEE / _HZ_PER_MEL))
    edges = np.where(mels * _HZ_PER_MEL < _KNEE, mels * _HZ_PER_MEL, logarithmic)
    frequencies = np.linspace(0, top, n_fft // 2 + 1)[:, None]
    rising = (frequencies - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - frequencies) / np.diff(edges)[1:]
    return np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))


def spec_augment(key: Array, spectrogram: Array, time_mask: int, freq_mask: int, num_masks: int = 2) -> Array:
    """Set random bands of a spectrogram (t, f, c) to 0, its mean: `num_masks` in time and as many in frequency.

    Each is 0 to `time_mask` frames, or 0 to `freq_mask` filters, wide (Park et al. 2019, section 2).
    """
    width_key, place_key = jax.random.split(key)
    most = jnp.array([time_mask, freq_mask])
    # (num_masks, 2), in time and in frequency
    widths = jax.random.randint(width_key, (num_masks, 2), 0, most[None] + 1)
    room = jnp.maximum(jnp.array([spectrogram.shape[:2]]) - widths, 0)
    starts = jax.random.randint(place_key, (num_masks, 2), 0, room + 1)
    for axis, size in enumerate(spectrogram.shape[:2]):
        place, first = jnp.arange(size)[:, None], starts[None, :, axis]
        masked = ((place >= first) & (place < first + widths[None, :, axis])).any(1)
        spectrogram = jnp.where(jnp.expand_dims(masked, [1 - axis, 2]), 0, spectrogram)
    return spectrogram


class LogMel(BackboneModel):
    """A ResNet on the log-mel spectrogram of a sound, each spectrogram of mean 0 and standard deviation 1.

    Attributes:
        sample_rate: Hz; a recipe sets `data.sample_rate`.
        n_fft: samples of a frame.
        hop_length: samples from one frame to the next.
        n_mels: number of filters.
        time_mask: most frames that a mask of SpecAugment hides in training; None is none.
        freq_mask: most filters that a mask hides.

    Example:
        >>> model, sounds = LogMel(num_classes=35), jnp.zeros((2, 16000, 1))
        >>> jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), sounds)[0]).shape
        (2, 35)
    """

    input_shape: tuple[int, ...] = (16_000, 1)
    sample_rate: int = 16_000
    n_fft: int = 512
    hop_length: int = 160
    n_mels: int = 64
    time_mask: int | None = None
    freq_mask: int | None = None

    predicts: ClassVar[str] = "images"

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False, rows: Array | None = None) -> Array:
        """Return logits (b, num_classes) float32 of sounds (b, l, 1) of -1 to 1; the rest is as in `ResNet`."""
        x = log_mel(x, self.sample_rate, self.n_fft, self.hop_length, self.n_mels)
        x = x - x.mean((1, 2), keepdims=True)
        x = x / (jnp.sqrt(jnp.square(x).mean((1, 2), keepdims=True)) + 1e-5)
        if train and (self.time_mask or self.freq_mask):
            rows = jnp.arange(x.shape[0]) if rows is None else rows
            keys = jax.vmap(partial(jax.random.fold_in, self.make_rng("dropout")))(rows)
            masked = partial(spec_augment, time_mask=self.time_mask or 0, freq_mask=self.freq_mask or 0)
            x = jax.vmap(masked)(keys, x)
        _, _, drop = self.backbone.builders(train, rows)
        x = drop(self.head_dropout)(self.backbone(x, train=train, rows=rows))
        return nn.Dense(self.num_classes, kernel_init=normal(0.01), name="head")(x)
