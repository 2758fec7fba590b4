"""Several views of an image: mirrored, and crops of the corners beside the centre; of a video, several clips.

Their probabilities are averaged.

Reference:
    Krizhevsky et al. 2012, section 4.1 (ten crops).
"""

from functools import partial
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from resnet_jax.data.image import Preprocessing
from resnet_jax.data.resize import height_and_width, resize_covering
from resnet_jax.data.source import Example, Source, decode_example
from resnet_jax.data.video import decode_clips, uniform_starts
from resnet_jax.errors import InputError

Views = Literal[1, 2, 5, 10]
# Of a class that is not compared, before the softmax: its probability is 0
_NEVER = -1e9


class Viewed(NamedTuple):
    """A network whose logits are the logarithms of the mean probabilities of several views."""

    network: nn.Module
    mirrored: bool
    classes: tuple[int, ...] | None = None
    """Classes that are compared; None is all."""
    axes: int = 3
    """Number of axes of one view: 4 if it is a clip."""

    def apply(self, variables: Any, x: Array, *, train: bool = False) -> Array:
        """Return log probabilities (b, k) of images (b, h, w, c), or of views (b, v, h, w, c); likewise of clips."""
        views = x if x.ndim > 1 + self.axes else x[:, None]
        if self.mirrored:
            views = jnp.concatenate([views, views[..., ::-1, :]], 1)
        b, v = views.shape[:2]
        logits = cast(Array, self.network.apply(variables, views.reshape(b * v, *views.shape[2:]), train=train))
        if self.classes is not None:
            compared = np.isin(np.arange(logits.shape[-1]), self.classes)
            logits = jnp.where(jnp.asarray(compared)[None], logits, _NEVER)
        each = jax.nn.log_softmax(logits).reshape(b, v, -1)
        return jax.nn.logsumexp(each, 1) - jnp.log(jnp.float32(v))


def crops_of(source: Source, preprocessing: Preprocessing, where: str) -> Source:
    """Return a source whose images are five crops, (5, h, w, c): centre, then corners from the top left.

    Raises:
        InputError: The images are not stored at their own size.
    """
    if source.raw is None or preprocessing.image_size is None:
        raise InputError(f"--views: {where} has images of one size, of which there is one crop; take --views 2")
    if preprocessing.crop_mode == "border":
        raise InputError("--views: data.crop_mode is border, which keeps whole images; take --views 2")
    return source._replace(read=partial(_read_crops, source.raw, source.read, preprocessing))


def clips_of(source: Source, preprocessing: Preprocessing, clips: int, where: str) -> Source:
    """Return a source whose images are clips that are spread over a video, (clips, frames, h, w, c).

    Raises:
        InputError: The number is not positive, or the source has no video files.
    """
    if clips < 1:
        raise InputError(f"--clips is {clips}; it must be positive")
    if source.raw is None or preprocessing.frames is None:
        raise InputError(f"--clips: {where} has no video files; leave it out")
    return source._replace(read=partial(_read_clips, source.raw, preprocessing, clips))


def _read_clips(raw: Any, preprocessing: Preprocessing, clips: int, index: int) -> Example:
    item = raw(index)
    return Example(decode_clips(item.content, preprocessing, uniform_starts(clips), item.where), item.target)


def _read_crops(raw: Any, read: Any, preprocessing: Preprocessing, index: int) -> Example:
    item = raw(index)
    height, width = height_and_width(cast(int, preprocessing.image_size))
    image = resize_covering(decode_example(item).image, height, width, preprocessing, item.where)
    rows, columns = image.shape[0] - height, image.shape[1] - width
    corners = [(top, left) for top in (0, rows) for left in (0, columns)]
    places = [(round(rows / 2), round(columns / 2)), *corners]
    return Example(np.stack([image[top : top + height, left : left + width] for top, left in places]), item.target)
