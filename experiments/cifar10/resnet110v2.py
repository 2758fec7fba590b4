"""Pre-activation ResNet-110 on CIFAR-10: 6.37 % error (He et al. 2016, table 3).

    resnet-jax train experiments/cifar10/resnet110v2.py --data-dir FOLDER

Trained as ResNet-110 of He et al. 2015 is (appendix of the paper), so as what differs from resnet110. The first 400
steps rise evenly to 0.1, where the paper has 0.01 for 400 steps, and remarks that these blocks do not need it.

Not measured in full: no accelerator was at hand. Shortened to one epoch, a quarter of it warm-up (`--epochs 1
--schedule.warmup 0.25`), on two cores of a shared server: 52.40 % error, one seed, 998 s of training.
"""

from dataclasses import replace
from pathlib import Path

from resnet_jax.recipe import Model, load_recipe

recipe = replace(
    load_recipe(Path(__file__).with_name("resnet110.py")),
    model=Model(
        name="resnet110v2",
        norm_group=64,  # of two GPUs, 64 images each
        zero_init=False,
        dtype="float32",
    ),
)
