"""ResNet-50 by procedure A3 of "ResNet strikes back": 78.05 % top-1 accuracy at 224 pixels.

    resnet-jax train experiments/imagenet/strikes_back_a3.py --data.name folder:IMAGENET

Wightman et al. 2021, table 2; only the differences from A2 are given.
"""

from dataclasses import replace
from pathlib import Path

from resnet_jax.recipe import load_recipe

a2 = load_recipe(Path(__file__).with_name("strikes_back_a2.py"))
recipe = replace(
    a2,
    model=replace(a2.model, drop_path=0.0, norm_group_size=512),
    augment=replace(
        a2.augment,
        train_crop_size=160,  # Train res 160
        magnitude=6.0,  # Rand Augment 6 / 0.5
        aug_repeats=1,  # no Repeated Aug
    ),
    optimizer=replace(a2.optimizer, lr=8e-3),  # LR 8e-3
    schedule=replace(a2.schedule, warmup_start_factor=1e-4 / 8e-3, end_factor=1e-6 / 8e-3),
    batch_size=2048,  # Batch size 2048
    epochs=100,  # Epochs 100
)
