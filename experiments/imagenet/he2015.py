"""ResNet-50 on ImageNet as first published (He et al. 2015): 22.85 % error of ten crops (table 3).

    resnet-jax train experiments/imagenet/he2015.py --data.name folder:IMAGENET

Line by line from section 3.4, with these departures. The learning rate drops after a third and two thirds of the steps,
as in fb.resnet.torch, since the paper drops it "when the error plateaus". Crops have a random area and aspect ratio and
are resized (Szegedy et al. 2015); the paper resizes the shorter side to 256 to 480 pixels and crops 224. The mean is
per channel instead of per pixel. There is no colour augmentation; the paper adds noise along the principal components
of the colours, for which there is no field. Evaluation uses one centre crop.
"""

from resnet_jax.recipe import Augment, Data, Loss, Model, Optimizer, Recipe, Schedule

recipe = Recipe(
    model=Model(
        name="resnet50_v1",  # table 1, the stride in the first 1x1
        shortcut="B",  # "option B for increasing dimensions"
        norm_group_size=None,  # the paper names no number of GPUs
        zero_init_residual=False,
        dtype="float32",
    ),
    data=Data(
        name="folder:imagenet",
        image_size=224,
        crop_pct=224 / 256,
        interpolation="bilinear",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
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
        lr=0.1,  # "starts from 0.1"
        momentum=0.9,  # "a momentum of 0.9"
        nesterov=False,
        weight_decay=1e-4,  # "a weight decay of 0.0001"
        weight_decay_mask="all",
    ),
    schedule=Schedule(name="steps", warmup=0, milestones=(200_000, 400_000), gamma=0.1),  # "divided by 10"
    batch_size=256,  # "a mini-batch size of 256"
    steps=600_000,  # "up to 60 x 10^4 iterations"
    epochs=None,
)
