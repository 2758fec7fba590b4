"""ResNet-50 on ImageNet in batches of 8,192: 23.74 % error +- 0.09, and 23.60 +- 0.12 in batches of 256.

    resnet-jax train experiments/imagenet/goyal2017.py --data.name folder:IMAGENET

Goyal et al. 2017, sections 2, 4 and 5, and table 1. BatchNorm statistics are those of 32 images, as many as on one GPU
there, so a batch of 256 is the same recipe with another learning rate: `--batch-size 256 --optimizer.lr 0.1
--schedule.warmup 0`. Departure: images are resized bilinearly; the paper does not say how.
"""

from resnet_jax.recipe import Augment, Data, Loss, Model, Optimizer, Recipe, Schedule

recipe = Recipe(
    model=Model(
        name="resnet50",  # section 5.1: strides in the 3x3 convolutions; its head starts from N(0, 0.01)
        norm_group_size=32,  # section 2.3: always 32, however large the batch
        norm_momentum=0.9,
        zero_init_residual=True,  # section 5.1: the last scale of each block starts at 0
        dtype="float32",
    ),
    data=Data(
        name="folder:imagenet",
        image_size=224,
        crop_pct=224 / 256,  # section 5.1: one centre crop of images of 256 pixels
        interpolation="bilinear",
        mean=(0.485, 0.456, 0.406),  # section 5.1: by the mean and deviation of each channel
        std=(0.229, 0.224, 0.225),
    ),
    # section 5.1: crops of random scale and shape, as in fb.resnet.torch, and flips
    augment=Augment(
        crop_padding=0,
        random_resized_crop=True,
        rrc_from="original",
        rrc_scale=(0.08, 1.0),
        rrc_ratio=(3 / 4, 4 / 3),
        hflip=True,
    ),
    loss=Loss(name="cross_entropy", label_smoothing=0.0),
    optimizer=Optimizer(
        name="sgd",
        lr=3.2,  # section 2.1: 0.1 for every 256 images of the batch
        momentum=0.9,  # section 5.1: Nesterov's, of 0.9
        nesterov=True,
        weight_decay=1e-4,  # section 5.1: 0.0001, and none on BatchNorm's scale and bias
        weight_decay_mask="no_norm",
    ),
    schedule=Schedule(
        name="steps",
        warmup=5,  # section 2.2: 5 epochs
        warmup_start_factor=0.1 / 3.2,  # section 2.2: from the rate of a batch of 256
        milestones=(30, 60, 80),  # section 5.1: a tenth of it from epochs 30, 60 and 80
        gamma=0.1,
    ),
    batch_size=8192,
    epochs=90,  # section 5.1: 90 epochs
)
