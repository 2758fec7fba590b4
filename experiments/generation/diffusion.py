"""Digits from noise: a residual U-Net as a denoising diffusion model (Ho et al. 2020), judged by a classifier.

    python experiments/generation/diffusion.py

It trains the model and, on the same images, the default recipe as a classifier; draws samples; and prints how many of
them the classifier recognises, how they spread over the classes, their Frechet distance in its features (Heusel et al.
2017), and how near they are to the training images. An interrupted command resumes. CIFAR-10 takes a classifier of
your own, a run or a file that `convert` wrote (not measured):

    python experiments/generation/diffusion.py --data cifar10 --data-dir FOLDER --classifier runs/resnet20

Measured with the first command: n = 1, seed 0, 60 epochs, 360 images in each row. The classifier gets 2 of the 360 test
images wrong. Recognised are images to whose class it gives a probability of 90 %; the last column is the median
distance to the nearest training image, the root mean square over pixels from 0 to 255.

                                recognised    entropy of classes    Frechet distance    nearest
    samples                     81.7 %        2.28                  6.8                 40.1
    test images                 98.6 %        2.27                  3.5                 33.2
    Gaussian of the pixels      67.5 %        1.74                  57.9                51.7

Samples look like digits, some on a grey ground, are further from the training images than the test images are, and
spread over the classes as these do (ln 10 is 2.30). Training took 37 min on two CPU cores that mostly did other work; a
run of ten epochs processed 373 images per second, at which 60 epochs take 4 min.
"""

from argparse import Namespace
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.nn.initializers import Initializer, ones, zeros
from jax.typing import DTypeLike

from experiments import script
from resnet_jax import (
    InputError,
    Parts,
    Recipe,
    Task,
    classification,
    compiler_options,
    embed_each,
    predict_each,
    train,
)
from resnet_jax.data.datasets import open_split
from resnet_jax.data.source import to_arrays
from resnet_jax.inference.load_model import load_model
from resnet_jax.models.blocks import PreActBasicBlock
from resnet_jax.models.norm import group_norm
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.segmentation import UNet
from resnet_jax.models.stems import PreActCifarStem
from resnet_jax.recipe import Augment, Data, Optimizer, Schedule
from resnet_jax.report.sheet import draw_sheet
from resnet_jax.tasks.metrics import loss_metric
from resnet_jax.training.options import RunOptions, default_data_dir

_backbone = partial(ResNet, block=PreActBasicBlock, stem=PreActCifarStem, act=nn.silu, num_classes=0)
UNETS = {
    "digits": UNet(_backbone((2, 2), width=48), decoder_width=48),
    "cifar10": UNet(_backbone((2, 2, 2, 2), width=128), decoder_width=128),
}
_cosine, _plain = Schedule(name="cosine", warmup=2), Augment(crop_padding=0)
RECIPES = {
    "digits": Recipe(
        data=Data(name="digits", mean=(0.5,), std=(0.5,)),
        augment=_plain,
        optimizer=Optimizer(name="adamw", lr=2e-3, weight_decay=0.0),
        schedule=_cosine,
        batch_size=64,
        epochs=60,
        ema_decay=0.995,
    ),
    "cifar10": Recipe(
        data=Data(name="cifar10", mean=(0.5,) * 3, std=(0.5,) * 3),
        augment=replace(_plain, hflip=True),
        optimizer=Optimizer(name="adamw", lr=2e-4, weight_decay=0.0),
        schedule=_cosine,
        batch_size=128,
        epochs=500,
        ema_decay=0.9999,
    ),
}
# Noise levels at which every image of the test split is evaluated
_LEVELS = 8
# Above this probability an image counts as recognised
_CONFIDENT = 0.9
# Samples that are drawn at once
_BATCH = 120


class TimeNorm(nn.Module):
    """Group normalisation whose scale and shift depend on the time (Dhariwal and Nichol 2021, section 3.1)."""

    use_running_average: bool
    embedding: Array
    """(b, features)."""
    dtype: DTypeLike | None = None
    scale_init: Initializer = ones

    @nn.compact
    def __call__(self, x: Array) -> Array:
        fields = {"use_running_average": self.use_running_average, "use_scale": False, "use_bias": False}
        y = group_norm(**fields, num_groups=8, dtype=self.dtype, name="norm")(x)
        both = nn.Dense(2 * x.shape[-1], kernel_init=zeros, name="time")(self.embedding)
        scale, shift = jnp.split(both.reshape(len(x), *(1,) * (x.ndim - 2), -1), 2, -1)
        return y * (1 + scale) + shift


def levels(time: Array) -> tuple[Array, Array]:
    """Return the weights of image and noise at times from 0, an image, to 1, noise (Nichol and Dhariwal 2021)."""
    return jnp.cos(jnp.pi / 2 * time), jnp.sin(jnp.pi / 2 * time)


class Diffusion(nn.Module):
    """A denoising diffusion model: images (b, h, w, c) to the squared error of each, averaged over pixels, (b,).

    In training, an image has a random time and random noise, from the stream "dropout" and its row in the batch, so
    both are functions of (seed, step, example). Otherwise all images have the same noise at the same times.

    Attributes:
        unet: predicts from a noisy image; its normalisations are given the time.
    """

    unet: UNet = UNETS["digits"]

    @nn.compact
    def denoise(self, x: Array, time: Array) -> Array:
        """Return the velocity of noisy images (b, h, w, c) at times (b,): alpha noise - sigma image."""
        waves = time[:, None] * 2.0 ** jnp.linspace(0, 6, 16)[None] * jnp.pi
        embedding = nn.Dense(128, name="time1")(jnp.concatenate([jnp.sin(waves), jnp.cos(waves)], -1))
        embedding = nn.silu(nn.Dense(128, name="time2")(nn.silu(embedding)))
        backbone = self.unet.backbone.clone(norm=partial(TimeNorm, embedding=embedding))
        return self.unet.clone(backbone=backbone, num_classes=x.shape[-1], parent=self, name="denoiser")(x)

    def __call__(self, x: Array, *, train: bool = False, rows: Array | None = None) -> Array:
        if train:
            rows = jnp.arange(len(x)) if rows is None else rows
            keys = jax.vmap(partial(jax.random.fold_in, self.make_rng("dropout")))(rows)
            time = jax.vmap(jax.random.uniform)(keys)
            noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 1), x.shape[1:]))(keys)
            return self.errors(x, time, noise)
        time = jnp.tile((jnp.arange(_LEVELS) + 0.5) / _LEVELS, len(x))
        noise = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (1, *x.shape[1:])), (len(time), *x.shape[1:]))
        return self.errors(jnp.repeat(x, _LEVELS, 0), time, noise).reshape(-1, _LEVELS).mean(-1)

    def errors(self, x: Array, time: Array, noise: Array) -> Array:
        """Return the mean squared error of each image's velocity (Salimans and Ho 2022, section 4), (b,)."""
        alpha, sigma = levels(time[:, None, None, None])
        found = self.denoise(alpha * x + sigma * noise, time)
        return jnp.square(found - (alpha * noise - sigma * x)).mean((1, 2, 3))


def task() -> Task:
    """Return the task: the outputs of the network are its losses already."""

    def loss(outputs: Array, targets: Array) -> Array:
        return outputs

    return classification()._replace(
        loss=loss,
        metrics={"loss": loss_metric(loss)},
        default_metrics=(),
        train_metrics=(),
        monitor="loss",
        mode="min",
        predict=lambda outputs: outputs,
        answers="numbers",
    )


def sample(model: Diffusion, params: dict[str, Any], keys: Array, *, shape: tuple[int, ...], steps: int) -> Array:
    """Return an image (h, w, c) float32 in -1 to 1 for each key, by DDIM (Song et al. 2021, section 4.1)."""
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)

    def step(x: Array, times: Array) -> tuple[Array, None]:
        (alpha, sigma), (next_alpha, next_sigma) = levels(times[0]), levels(times[1])
        velocity: Any = model.apply({"params": params}, x, jnp.full(len(x), times[0]), method="denoise")
        image = jnp.clip(alpha * x - sigma * velocity, -1, 1)
        return next_alpha * image + next_sigma * (x - alpha * image) / sigma, None

    times = jnp.linspace(1, 0, steps + 1)
    return jax.lax.scan(step, noise, jnp.stack([times[:-1], times[1:]], 1))[0]


def draw_samples(run: Path, model: Diffusion, count: int, steps: int, seed: int = 0) -> np.ndarray:
    """Return samples (n, h, w, c) uint8 of a run; the noise of each is a function of (seed, its number)."""
    setup, state = load_model(run, devices=1, parts=Parts(model=model, task=task()))
    drawing = partial(sample, model, shape=setup.dataset.image_shape, steps=steps)
    draw = jax.jit(drawing, compiler_options=compiler_options())
    places = jnp.arange(-(-count // _BATCH) * _BATCH)
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(places)
    drawn = [np.asarray(draw(state.params, keys[at : at + _BATCH])) for at in range(0, len(keys), _BATCH)]
    return np.round((np.concatenate(drawn)[:count] + 1) * 127.5).astype(np.uint8)


def frechet_distance(features: np.ndarray, others: np.ndarray) -> float:
    """Return the Frechet distance of two Gaussians with the mean and covariance of (n, d) and (m, d).

    Example:
        >>> round(frechet_distance(np.array([[0.0], [2.0]]), np.array([[3.0], [5.0]])), 6)
        9.0
    """
    first, second = (np.cov(x, rowvar=False).reshape(x.shape[1], -1) for x in (features, others))
    means = features.mean(0) - others.mean(0)
    values, vectors = np.linalg.eigh(first)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    product = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum()
    return float(means @ means + np.trace(first) + np.trace(second) - 2 * product)


class Judged(NamedTuple):
    """What a classifier says of a set of images."""

    recognised: float
    """Fraction whose class has a probability of at least 0.9."""
    entropy: float
    """Entropy of the distribution of their classes in nats; ln 10 = 2.30 if all are as frequent."""
    distance: float
    """Frechet distance of their features to those of the training images."""
    nearest: float
    """Median distance to the nearest training image: root mean square over its pixels, of 0 to 255."""


def judge(sets: dict[str, np.ndarray], training: np.ndarray, classifier: Path) -> dict[str, Judged]:
    """Compare sets of as many images each, (n, h, w, c) uint8, with training images (m, h, w, c) uint8."""
    images = np.concatenate(list(sets.values()))
    answers = list(predict_each(classifier, images, topk=1))
    features = np.stack(list(embed_each(classifier, np.concatenate([images, training]))))
    flat, found = training.reshape(len(training), -1).astype(np.float32), {}
    for number, (name, some) in enumerate(sets.items()):
        here = slice(number * len(some), (number + 1) * len(some))
        _, counts = np.unique([answer.classes[0] for answer in answers[here]], return_counts=True)
        fractions = counts / len(some)
        found[name] = Judged(
            recognised=float(np.mean([answer.probabilities[0] >= _CONFIDENT for answer in answers[here]])),
            entropy=float(-(fractions * np.log(fractions)).sum()),
            distance=frechet_distance(features[here], features[len(images) :]),
            nearest=float(np.median([np.square(flat - image.ravel()).mean(1).min() ** 0.5 for image in some])),
        )
    return found


def gaussian(training: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Return images (n, h, w, c) uint8 of the Gaussian with the mean and covariance of the training pixels."""
    flat = training.reshape(len(training), -1).astype(np.float64)
    drawn = np.random.default_rng(seed).multivariate_normal(flat.mean(0), np.cov(flat, rowvar=False), count)
    return np.round(np.clip(drawn, 0, 255)).astype(np.uint8).reshape(count, *training.shape[1:])


def compare(options: Namespace, how: RunOptions) -> dict[str, Judged]:
    """Train, draw samples and a sheet of them, and print and return what the classifier says, also of real images."""
    model, run = Diffusion(UNETS[options.data]), options.out / options.data
    recipe = replace(RECIPES[options.data], epochs=options.epochs or RECIPES[options.data].epochs)
    row = train(recipe, run, model=model, task=task(), options=how).rows[-1]
    classifier = options.classifier or options.out / "classifier"
    if not options.classifier:
        train(Recipe(), classifier, options=how)
    (training, _), (test, _) = (
        to_arrays(open_split(options.data, split, options.data_dir)) for split in ("train", "test")
    )
    samples = draw_samples(run, model, options.samples, options.steps)
    draw_sheet(list(samples[:100]), [""] * len(samples[:100]), columns=20, side=40).save(options.out / "samples.png")
    # Of one number, because the distance depends on it
    count = min(len(samples), len(test))
    sets = {"samples": samples, "test images": test, "Gaussian of the pixels": gaussian(training, count)}
    found = judge({name: images[:count] for name, images in sets.items()}, training, classifier)
    print(f"| {count} each | recognised | entropy of classes | Frechet distance | to the nearest training image |")
    print("|---|--:|--:|--:|--:|")
    for name, each in found.items():
        print(f"| {name} | {each.recognised:.1%} | {each.entropy:.2f} | {each.distance:.2f} | {each.nearest:.1f} |")
    print(f"{row['train_seconds']:.0f} s of training; picture: {options.out / 'samples.png'}")
    return found


def parse() -> Namespace:
    parser = script.parser(__doc__)
    parser.add_argument("--data", choices=RECIPES, default="digits")
    parser.add_argument("--data-dir", type=Path, default=default_data_dir(), help="folder of CIFAR-10")
    parser.add_argument("--classifier", type=Path, help="a run or a converted file; for the digits, one is trained")
    parser.add_argument("--epochs", type=script.positive, help="60 for the digits, 500 for CIFAR-10")
    parser.add_argument("--samples", type=script.positive, default=360)
    parser.add_argument("--steps", type=script.positive, default=50, help="denoising steps of a sample")
    parser.add_argument("--out", type=Path, default=Path("runs/generation"))
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.data != "digits" and not options.classifier:
        raise InputError(f"--data {options.data} needs --classifier, a run trained on it or a file that convert wrote")
    compare(options, RunOptions(data_dir=options.data_dir, eval_every=920))


if __name__ == "__main__":
    script.run(main)
