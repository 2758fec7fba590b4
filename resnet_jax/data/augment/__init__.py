"""Augmentation on the device: pure functions `f(key, image, ...)` of one image (h, w, c).

They work under jit and vmap. Operations on pixels map uint8 to uint8 and compute in integers. The result is that of
Pillow or torchvision, and the same on every device, in every batch and under every compiler.
"""

from resnet_jax.data.augment.batch import ImageOp as ImageOp
from resnet_jax.data.augment.batch import augment as augment
from resnet_jax.data.augment.batch import augment_one as augment_one
from resnet_jax.data.augment.batch import map_images as map_images
from resnet_jax.data.augment.batch import normalize as normalize
from resnet_jax.data.augment.geometry import flip as flip
from resnet_jax.data.augment.geometry import pad_crop as pad_crop
