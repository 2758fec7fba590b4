"""Log-mel spectrograms against scipy, SpecAugment, time shift, and networks on both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy.signal import stft

from resnet_jax.data.augment.sound import time_shift
from resnet_jax.models.backbone import with_fields
from resnet_jax.models.log_mel import LogMel, log_mel, mel_filters, spec_augment

NOISE = np.random.default_rng(0).normal(0, 0.1, 4000).astype(np.float32)


@pytest.mark.parametrize(("rate", "n_fft", "hop", "mels"), [(16000, 512, 160, 64), (8000, 256, 128, 40)])
def test_the_power_is_that_of_scipy(rate, n_fft, hop, mels):
    found = np.asarray(log_mel(jnp.asarray(NOISE[None, :, None]), rate, n_fft, hop, mels))[0, :, :, 0]
    _, _, expected = stft(NOISE, nperseg=n_fft, noverlap=n_fft - hop, boundary="zeros", padded=True, scaling="spectrum")
    # scipy divides by the sum of the window
    power = np.abs(expected * n_fft / 2).T[: len(found)] ** 2
    np.testing.assert_allclose(found, 10 * np.log10(power @ mel_filters(rate, n_fft, mels)), atol=1e-3)
    assert found.shape == (1 + 4000 // hop, mels)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_it_is_librosas():
    """Slow: its import compiles for half a minute."""
    librosa = pytest.importorskip("librosa")
    for rate, n_fft, hop, mels in ((16000, 512, 160, 64), (8000, 256, 128, 40)):
        # With silence around it, which is cut at 80 dB
        sound = np.pad(NOISE, 3000)
        power = librosa.feature.melspectrogram(y=sound, sr=rate, n_fft=n_fft, hop_length=hop, n_mels=mels)
        found = log_mel(jnp.asarray(sound[None, :, None]), rate, n_fft, hop, mels)[0, :, :, 0]
        np.testing.assert_allclose(found, librosa.power_to_db(power).T, atol=1e-4)


def test_filters_are_triangles_of_area_one_each():
    filters = mel_filters(16000, 4096, 20)
    np.testing.assert_allclose(filters.sum(0) * 16000 / 4096, 1, atol=0.01)
    assert (np.diff(np.sign(np.diff(filters, axis=0)), axis=0) < 0).any(0).all()


def test_masks_are_bands_up_to_their_width():
    ones = jnp.ones((50, 40, 1))
    masked = jax.vmap(lambda key: spec_augment(key, ones, 10, 4))(jax.random.split(jax.random.key(0), 200))[..., 0]
    frames, filters = (np.asarray(masked == 0).all(axis).sum(1) for axis in (2, 1))
    assert (frames.max(), filters.max()) <= (20, 8)
    assert frames.max() > 10
    assert filters.max() > 4
    rows, columns = np.asarray(masked[0] == 0).all(1), np.asarray(masked[0] == 0).all(0)
    np.testing.assert_array_equal(np.asarray(masked[0] == 0), rows[:, None] | columns)


def test_a_shift_moves_every_sample_and_leaves_silence():
    sound = jnp.arange(1, 101, dtype=jnp.int16)[:, None]
    moved = [np.asarray(time_shift(key, sound, 0.1))[:, 0] for key in jax.random.split(jax.random.key(1), 50)]
    shifts = {int(one[50]) - 51 for one in moved}
    assert min(shifts) >= -10
    assert max(shifts) <= 10
    assert len(shifts) > 10
    for one in moved:
        kept = one[one > 0]
        np.testing.assert_array_equal(np.diff(kept), 1)
        assert len(kept) == 100 - abs(int(one[50]) - 51)


@pytest.fixture(scope="module")
def model():
    return with_fields(LogMel(num_classes=3, time_mask=5, freq_mask=8), depths=(1,), width=4, n_mels=16)


def test_a_network_hears_no_volume(model):
    """Spectrograms are standardised: twice as loud is the same."""
    sounds = jnp.asarray(NOISE.reshape(2, 2000, 1))
    variables = jax.jit(model.init)(jax.random.key(0), sounds)
    apply = jax.jit(model.apply)
    np.testing.assert_allclose(apply(variables, sounds), apply(variables, 2 * sounds), atol=1e-4)


def test_masks_depend_on_the_row_and_not_on_the_batch(model):
    sounds = jnp.asarray(NOISE.reshape(4, 1000, 1))
    variables = jax.jit(model.init)(jax.random.key(0), sounds)
    captured = []

    def spectrograms(part, rows):
        def record(call, args, kwargs, context):
            if context.module.name == "backbone" and context.method_name == "__call__":
                captured.append(args[0])
            return call(*args, **kwargs)

        with nn.intercept_methods(record):
            rngs = {"dropout": jax.random.key(7)}
            model.apply(variables, part, train=True, rows=rows, rngs=rngs, mutable=["batch_stats"])
        return captured[-1]

    whole = spectrograms(sounds, jnp.arange(4))
    half = spectrograms(sounds[2:], jnp.arange(2, 4))
    np.testing.assert_array_equal(np.asarray(whole[2:]) == 0, np.asarray(half) == 0)
    # What is not masked is a product of matrices, which some processors sum in another order for half of the rows
    np.testing.assert_allclose(whole[2:], half, atol=1e-5)
    assert (np.asarray(whole) == 0).any()
