"""Pre-activation ResNet-164 on CIFAR-10: 5.46 % error (He et al. 2016, table 3).

    resnet-jax train experiments/cifar10/resnet164v2.py --data-dir FOLDER

Trained like ResNet-110 of He et al. 2015 (appendix of the paper); only the differences from resnet110 are given. The
learning rate rises linearly to 0.1 in the first 400 steps, while the paper has 0.01 for 400 steps and notes that these
blocks do not need it.
"""

from dataclasses import replace
from pathlib import Path

from resnet_jax.recipe import Model, load_recipe

recipe = replace(
    load_recipe(Path(__file__).with_name("resnet110.py")),
    model=Model(
        name="resnet164v2",
        norm_group_size=64,  # of two GPUs, 64 images each
        zero_init_residual=False,
        dtype="float32",
    ),
)
