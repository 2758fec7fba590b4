"""ResNet-50 as torchvision trained IMAGENET1K_V2: 80.858 % top-1 accuracy.

    resnet-jax train experiments/imagenet/torchvision_v2.py --data.name folder:IMAGENET

The comments name the flags of references/classification/train.py, in 8 processes (pytorch.org/blog, "How to train
state-of-the-art models using TorchVision's latest primitives"; pytorch/vision#3995). Departures: the rate moves
with every step and not once an epoch; the copies of a repeated image lie in other groups of BatchNorm, as there, but
in fixed ones; the average of the weights is also kept during the warm-up, where torchvision starts it anew each time.
"""

from resnet_jax.recipe import Augment, Data, Loss, Model, Optimizer, Recipe, Schedule

recipe = Recipe(
    model=Model(
        name="resnet50",
        norm_group=128,  # of one process: statistics are not shared without --sync-bn
        norm_momentum=0.9,  # BatchNorm2d's momentum of 0.1
        zero_init=False,
        dtype="float32",
    ),
    data=Data(
        name="folder:imagenet",
        size=224,  # --val-crop-size 224
        crop=224 / 232,  # --val-resize-size 232
        interpolation="bilinear",
        mean=(0.485, 0.456, 0.406),  # presets.py
        std=(0.229, 0.224, 0.225),
    ),
    augment=Augment(
        pad=0,
        crop=True,  # presets.py: RandomResizedCrop
        crop_from="original",
        crop_area=(0.08, 1.0),
        crop_ratio=(3 / 4, 4 / 3),
        crop_size=176,  # --train-crop-size 176
        flip=True,  # --hflip-prob 0.5
        policy="trivial",  # --auto-augment ta_wide
        policy_interpolation="bilinear",
        policy_fill=0,
        erase=0.1,  # --random-erase 0.1
        erase_area=(0.02, 0.33),  # RandomErasing's own
        erase_ratio=(0.3, 3.3),
        mixup=0.2,  # --mixup-alpha 0.2
        cutmix=1.0,  # --cutmix-alpha 1.0
        mix_probability=1.0,  # train.py: both with p=1.0, one of them at random
        cutmix_probability=0.5,
        repeats=4,  # --ra-sampler --ra-reps 4
    ),
    loss=Loss(name="cross_entropy", label_smoothing=0.1),  # --label-smoothing 0.1
    optimizer=Optimizer(
        name="sgd",
        lr=0.5,  # --lr 0.5
        momentum=0.9,  # --momentum 0.9
        nesterov=False,
        weight_decay=2e-5,  # --weight-decay 0.00002
        decay_scope="no_norm",  # --norm-weight-decay 0.0
    ),
    schedule=Schedule(
        name="cosine",  # --lr-scheduler cosineannealinglr
        warmup=5,  # --lr-warmup-epochs 5 --lr-warmup-method linear
        warmup_from=0.01,  # --lr-warmup-decay 0.01
        final=0.0,  # --lr-min 0.0
    ),
    batch_size=1024,  # --batch-size 128, of 8 processes
    epochs=600,  # --epochs 600
    # --model-ema --model-ema-decay 0.99998 --model-ema-steps 32, which train.py scales by batch and steps over epochs
    ema=1 - (1 - 0.99998) * 1024 * 32 / 600,
    ema_every=32,
)
