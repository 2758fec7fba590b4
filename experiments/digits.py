"""Scanned digits, on board: a residual network from nothing to its end in half a minute on a laptop.

    resnet-jax train experiments/digits.py        or, this being the default recipe, resnet-jax train

ResNet-20 (He et al. 2015, section 4.2) on 1,437 images of 8x8 pixels; 360 are left out to test.
"""

from resnet_jax.recipe import Augment, Data, Model, Optimizer, Recipe, Schedule

recipe = Recipe(
    model=Model(name="resnet20"),
    data=Data(name="digits", mean=(0.5,), std=(0.5,)),
    augment=Augment(pad=1, flip=False),  # a mirrored 2 is no 2
    optimizer=Optimizer(lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, decay_scope="all"),
    schedule=Schedule(name="cosine", warmup=3),
    batch_size=64,
    epochs=30,
)
