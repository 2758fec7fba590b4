"""ResNet-50 for TPU slices: the recipe of the tables in preflight.md, which has the commands.

The recipe of Goyal et al. 2017 (section 5.1) for 1,024 images per step, in bfloat16, with BatchNorm over groups of 32
images.
"""

from resnet_jax.recipe import Augment, Data, Model, Optimizer, Recipe, Schedule

recipe = Recipe(
    model=Model(name="resnet50", norm_group_size=32, zero_init_residual=True, dtype="bfloat16"),
    data=Data(
        name="folder:imagenet", image_size=224, crop_pct=0.875, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    ),
    augment=Augment(crop_padding=0, hflip=True, random_resized_crop=True, rrc_from="original"),
    optimizer=Optimizer(lr=0.4, weight_decay=1e-4, weight_decay_mask="no_norm"),
    schedule=Schedule(name="steps", warmup=5, warmup_start_factor=0.25, milestones=(30, 60, 80)),
    batch_size=1024,
    epochs=90,
)
