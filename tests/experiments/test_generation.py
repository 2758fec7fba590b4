"""The diffusion model: its noise, its sampler, how its samples are judged, and the whole of it at a reduced size."""

import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY
from PIL import Image
from scipy import linalg

from resnet_jax.recipe import Recipe, Schedule
from resnet_jax.training.options import RunOptions

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 1)).astype(np.float32)


@pytest.fixture
def diffusion(script):
    return script("generation", "diffusion.py")


@pytest.fixture
def small(diffusion):
    """A U-Net of two blocks."""
    unet = diffusion.UNETS["digits"]
    return diffusion.Diffusion(unet.clone(backbone=unet.backbone.clone(depths=(1, 1), width=8), decoder_width=8))


def test_noise_is_a_function_of_seed_step_and_example(small, images):
    """Half of a batch has the losses that it has in the whole of it, and another key gives others."""
    variables = small.init(KEY, images)

    @jax.jit
    def losses(x, rows, key):
        return small.apply(variables, x, train=True, rows=rows, rngs={"dropout": key})

    whole = losses(images, jnp.arange(4), KEY)
    halves = [losses(images[at : at + 2], jnp.arange(at, at + 2), KEY) for at in (0, 2)]
    np.testing.assert_allclose(jnp.concatenate(halves), whole, rtol=1e-5)
    assert (jnp.abs(losses(images, jnp.arange(4), jax.random.key(1)) - whole) > 1e-4).all()
    # An evaluation depends neither on the others nor on the place in a batch
    evaluate = jax.jit(lambda x: small.apply(variables, x))
    np.testing.assert_allclose(evaluate(images[::-1])[::-1], evaluate(images), rtol=1e-5)


def test_the_network_is_told_the_time(small, images):
    variables = small.init(KEY, images)
    leaves = jax.tree.leaves(variables["params"])
    # The scales and shifts start at zero
    keys = jax.random.split(KEY, len(leaves))
    drawn = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(jax.tree.structure(variables["params"]), drawn)
    denoise = jax.jit(lambda time: small.apply({"params": params}, images, time, method="denoise"))
    early, late = denoise(jnp.full(4, 0.1)), denoise(jnp.full(4, 0.9))
    assert early.shape == images.shape
    assert float(jnp.abs(early - late).max()) > 1e-3


def test_the_sampler_finds_the_only_image_there_is(diffusion, images):
    """By the velocity that is right if all images are one, from noise that depends on the key of a sample alone."""

    class Exact:
        def apply(self, variables, x, time, method):
            alpha, sigma = diffusion.levels(time[:, None, None, None])
            return alpha * (x - alpha * images[:1]) / sigma - sigma * images[:1]

    sample = jax.jit(lambda keys: diffusion.sample(Exact(), {}, keys, shape=(8, 8, 1), steps=5))
    found = sample(jax.random.split(KEY, 3))
    np.testing.assert_allclose(found, jnp.broadcast_to(images[:1], found.shape), atol=1e-5)


def test_frechet_distance(diffusion):
    """As by the root of a matrix of SciPy, which is of complex numbers."""
    random = np.random.default_rng(0)
    first, second = random.normal(size=(50, 5)), random.normal(size=(40, 5)) @ random.normal(size=(5, 5)) + 1
    covariances = [np.cov(x, rowvar=False) for x in (first, second)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.square(first.mean(0) - second.mean(0)).sum() + np.trace(sum(covariances) - 2 * root)
    assert diffusion.frechet_distance(first, second) == pytest.approx(expected)
    assert diffusion.frechet_distance(first, first) == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
def test_all_of_it_at_a_reduced_size(diffusion, small, tmp_path, monkeypatch, capsys):
    tiny = {"batch_size": 16, "schedule": Schedule(warmup=0), "epochs": None, "steps": 2}
    monkeypatch.setitem(diffusion.UNETS, "digits", small.unet)
    monkeypatch.setitem(diffusion.RECIPES, "digits", replace(diffusion.RECIPES["digits"], **tiny))
    monkeypatch.setattr(diffusion, "Recipe", lambda: replace(Recipe(), model=TINY, **tiny))
    monkeypatch.setattr(sys, "argv", ["diffusion.py", "--samples", "20", "--steps", "2", "--out", str(tmp_path)])
    found = diffusion.compare(diffusion.parse(), RunOptions(eval_every=2, devices=1))
    assert list(found) == ["samples", "test images", "Gaussian of the pixels"]
    for judged in found.values():
        assert 0 <= judged.recognised <= 1
        assert 0 <= judged.entropy <= np.log(10)
        assert judged.distance >= 0
    # Test digits are nearer to training digits than to what two steps have learned
    assert found["test images"].nearest < found["samples"].nearest
    assert "| 20 each |" in capsys.readouterr().out
    with Image.open(tmp_path / "samples.png") as sheet:
        assert sheet.width > sheet.height > 40


def test_cifar_needs_a_classifier(diffusion, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["diffusion.py", "--data", "cifar10"])
    with pytest.raises(diffusion.InputError, match="--data cifar10 needs --classifier, a run trained on it or "):
        diffusion.main()
