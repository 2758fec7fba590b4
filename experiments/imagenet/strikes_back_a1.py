"""ResNet-50 by procedure A1 of "ResNet strikes back": 80.38 % top-1 accuracy (the weights `resnet50.a1_in1k`).

    resnet-jax train experiments/imagenet/strikes_back_a1.py --data.name folder:IMAGENET

Wightman et al. 2021, table 2; only the differences from A2 are given. Departure, beside those of A2: targets of mixed
images stay soft, since a threshold after label smoothing would undo the smoothing; the paper has 1 minus the smoothing.
"""

from dataclasses import replace
from pathlib import Path

from resnet_jax.recipe import load_recipe

a2 = load_recipe(Path(__file__).with_name("strikes_back_a2.py"))
recipe = replace(
    a2,
    augment=replace(a2.augment, mixup_alpha=0.2),  # Mixup alpha 0.2
    loss=replace(a2.loss, label_smoothing=0.1, bce_target_thresh=None),  # Label smoothing 0.1
    optimizer=replace(a2.optimizer, weight_decay=0.01),  # Weight decay 0.01
    epochs=600,  # Epochs 600
)
