"""Two images in one: mixup and CutMix of a batch.

Example i is mixed with its neighbour i ^ 1, so that the two are always on one device and in one part of the batch. The
amount is drawn once per batch, as in the papers and in the "batch" mode of timm and torchvision.
"""

import jax
import jax.numpy as jnp
from jax import Array

from resnet_jax.data.augment.erase import box_mask


def swap_pairs(values: Array) -> Array:
    """Exchange neighbours in (b, ...), b even: entry i becomes that of i ^ 1."""
    pairs = values.reshape(values.shape[0] // 2, 2, *values.shape[1:])
    return pairs[:, ::-1].reshape(values.shape)


def mixup_weights(key: Array, height: int, width: int, alpha: float) -> tuple[Array, Array]:
    """Return the weight of each pixel (h, w) and the fraction () of the image: one draw for both.

    The draw is from Beta(alpha, alpha), float32 in 0 to 1 (Zhang et al. 2018, section 2).
    """
    share = jax.random.beta(key, alpha, alpha, dtype=float)
    return jnp.broadcast_to(share, (height, width)), share


def cutmix_weights(key: Array, height: int, width: int, alpha: float) -> tuple[Array, Array]:
    """Return the weight of each pixel (h, w), 0 in a box, and the fraction () of pixels outside the box.

    The box has the shape of the image and a relative area of 1 - Beta(alpha, alpha). It is cut at the border before the
    fraction is counted. Both are float32 in 0 to 1 (Yun et al. 2019, section 3.1).
    """
    area_key, place_key = jax.random.split(key)
    side = 0.5 * jnp.sqrt(1 - jax.random.beta(area_key, alpha, alpha, dtype=float))
    sizes = jnp.array([height, width], jnp.int32)
    half = (side * sizes).astype(jnp.int32)
    centre = jax.random.randint(place_key, (2,), 0, sizes)
    box = box_mask(height, width, centre - half, centre + half)
    return jnp.where(box, 0.0, 1.0).astype(float), 1 - box.sum() / (height * width)


def mix_pairs(images: Array, targets: Array, weights: Array, share: Array) -> tuple[Array, Array]:
    """Mix float images (b, h, w, c) and targets (b, k) in pairs, by `weights` (h, w) and `share` ()."""
    weight = weights[None, :, :, None]
    return images * weight + swap_pairs(images) * (1 - weight), targets * share + swap_pairs(targets) * (1 - share)


def mixup(key: Array, images: Array, targets: Array, alpha: float) -> tuple[Array, Array]:
    """Apply mixup to float images (b, h, w, c) and float32 targets (b, k), b even (Zhang et al. 2018)."""
    return mix_pairs(images, targets, *mixup_weights(key, images.shape[1], images.shape[2], alpha))


def cutmix(key: Array, images: Array, targets: Array, alpha: float) -> tuple[Array, Array]:
    """Apply CutMix to float images (b, h, w, c) and float32 targets (b, k), b even (Yun et al. 2019)."""
    return mix_pairs(images, targets, *cutmix_weights(key, images.shape[1], images.shape[2], alpha))


def mix(
    key: Array,
    images: Array,
    targets: Array,
    *,
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
    probability: float = 1.0,
    mix_switch_prob: float = 0.5,
) -> tuple[Array, Array]:
    """Apply mixup or CutMix to a batch, or neither.

    Args:
        key: of the batch.
        images: float (b, h, w, c), b even.
        targets: float32 (b, k).
        mixup_alpha: parameter of its Beta distribution; 0 is no mixup.
        cutmix_alpha: likewise.
        probability: of mixing the batch at all.
        mix_switch_prob: probability of CutMix instead of mixup, if both are enabled.
    """
    height, width = images.shape[1:3]
    coin_key, choice_key, mixup_key, cutmix_key = jax.random.split(key, 4)
    weights, share = jnp.ones((height, width), float), jnp.ones((), float)
    if mixup_alpha:
        weights, share = mixup_weights(mixup_key, height, width, mixup_alpha)
    if cutmix_alpha:
        cut = jax.random.bernoulli(choice_key, mix_switch_prob) if mixup_alpha else jnp.bool_(True)
        cut_weights, cut_share = cutmix_weights(cutmix_key, height, width, cutmix_alpha)
        weights, share = jnp.where(cut, cut_weights, weights), jnp.where(cut, cut_share, share)
    wanted = jax.random.bernoulli(coin_key, probability)
    return mix_pairs(images, targets, jnp.where(wanted, weights, 1.0), jnp.where(wanted, share, 1.0))
