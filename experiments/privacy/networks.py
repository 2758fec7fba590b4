"""Networks whose images do not see each other: group normalisation and weight standardisation (De et al. 2022)."""

from functools import partial

from flax import linen as nn
from jax import Array

from resnet_jax import create_model
from resnet_jax.models.layers import StandardizedConv
from resnet_jax.models.norm import group_norm

# Of the digits
small = create_model("resnet8", width=8, norm=partial(group_norm, num_groups=4), conv=StandardizedConv)
# De et al. 2022, section 3.1
wrn_16_4 = create_model("wrn_16_4", norm=partial(group_norm, num_groups=16), conv=StandardizedConv)


class Linear(nn.Module):
    """Logistic regression on pixels, which starts at zero."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros)(x.reshape(len(x), -1))
