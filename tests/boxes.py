"""A detector without parameters: it reads boxes from the pixels of an image, which are made for it."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from resnet_jax.data.source import Example, Source
from resnet_jax.models.detection.nms import Detections
from resnet_jax.models.detection.objects import make_objects
from resnet_jax.recipe import Data
from resnet_jax.training.state import TrainState

CLASSES = ("a", "b", "c")
# Pixels as they are
DATA = Data(mean=(0.0,), std=(1 / 255,))
STATE = TrainState(jnp.int32(0), {}, {}, (), {})


class Read(NamedTuple):
    """Outputs of a detector, which are its detections."""

    found: Detections
    num_classes: int

    def detect(self):
        return self.found

    def losses(self, targets):
        return jnp.zeros(len(targets.labels)), jnp.ones(len(targets.labels))


class Reader(nn.Module):
    """A detector that reads a box, its score and its label from each row of an image."""

    @nn.compact
    def __call__(self, x, *, train=False):
        return Read(Detections(x[..., :4, 0], x[..., 4, 0] / 100, x[..., 5, 0].astype(jnp.int32) - 1), 3)


def written_images(boxes, scores, labels):
    """Images (n, d, 6, 1) from which `Reader` reads these boxes (n, d, 4), scores in percent and labels (n, d)."""
    columns = np.concatenate([boxes, scores[..., None], labels[..., None] + 1], -1)
    return columns[..., None].astype(np.uint8)


def source_of(images, boxes, labels, crowd=None):
    """Images whose objects have these boxes (n, m, 4) and labels (n, m)."""
    crowd = np.zeros(labels.shape, bool) if crowd is None else crowd
    return Source(len(images), CLASSES, lambda n: Example(images[n], make_objects(boxes[n], labels[n], crowd[n])))
