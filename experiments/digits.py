"""Scanned digits, bundled: a residual network from start to end in half a minute on a laptop.

    resnet-jax train experiments/digits.py        or, this being the default recipe, resnet-jax train

ResNet-20 (He et al. 2015, section 4.2) on 1,437 images of 8x8 pixels; another 360 are the test split.
"""

from resnet_jax.recipe import Augment, Data, Model, Optimizer, Recipe, Schedule

recipe = Recipe(
    model=Model(name="resnet20"),
    data=Data(name="digits", mean=(0.5,), std=(0.5,)),
    augment=Augment(crop_padding=1, hflip=False),  # a mirrored 2 is not a 2
    optimizer=Optimizer(lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, weight_decay_mask="all"),
    schedule=Schedule(name="cosine", warmup=3),
    batch_size=64,
    epochs=30,
)
