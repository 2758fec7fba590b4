"""ResNet-50 as torchvision trained IMAGENET1K_V1: 76.130 % top-1 accuracy.

    resnet-jax train experiments/imagenet/torchvision_v1.py --data.name folder:IMAGENET

references/classification of torchvision: `torchrun --nproc_per_node=8 train.py --model resnet50`; the comments name its
defaults. Other networks were trained in the same way: `--model.name resnet18`.
"""

from resnet_jax.recipe import Augment, Data, Loss, Model, Optimizer, Recipe, Schedule

recipe = Recipe(
    model=Model(
        name="resnet50",
        norm_group_size=32,  # of one process: statistics are not shared without --sync-bn
        norm_momentum=0.9,  # BatchNorm2d's momentum of 0.1
        zero_init_residual=False,
        dtype="float32",
    ),
    data=Data(
        name="folder:imagenet",
        image_size=224,  # --val-crop-size 224
        crop_pct=224 / 256,  # --val-resize-size 256
        interpolation="bilinear",  # --interpolation bilinear
        mean=(0.485, 0.456, 0.406),  # presets.py
        std=(0.229, 0.224, 0.225),
    ),
    # presets.py: RandomResizedCrop(224) and RandomHorizontalFlip(0.5)
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
        name="sgd",  # --opt sgd
        lr=0.1,  # --lr 0.1
        momentum=0.9,  # --momentum 0.9
        nesterov=False,
        weight_decay=1e-4,  # --wd 1e-4
        weight_decay_mask="all",
    ),
    schedule=Schedule(
        name="steps",  # --lr-scheduler steplr
        warmup=0,
        milestones=(30, 60),  # --lr-step-size 30
        gamma=0.1,  # --lr-gamma 0.1
    ),
    batch_size=256,  # --batch-size 32, in each of 8 processes
    epochs=90,  # --epochs 90
)
