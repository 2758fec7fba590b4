"""ResNet-50 as torchvision trained IMAGENET1K_V2: 80.858 % top-1 accuracy.

    resnet-jax train experiments/imagenet/torchvision_v2.py --data.name folder:IMAGENET

The comments name the flags of references/classification/train.py, in 8 processes (pytorch.org/blog, "How to train
state-of-the-art models using TorchVision's latest primitives"; pytorch/vision#3995). Departures: the learning rate
changes at every step and not once per epoch; the copies of a repeated image are in different BatchNorm groups, as
there, but always in the same ones; the EMA also runs during the warm-up, in which torchvision resets it at every
update.
"""

from resnet_jax.recipe import Augment, Data, Loss, Model, Optimizer, Recipe, Schedule

recipe = Recipe(
    model=Model(
        name="resnet50",
        norm_group_size=128,  # of one process: statistics are not shared without --sync-bn
        norm_momentum=0.9,  # BatchNorm2d's momentum of 0.1
        zero_init_residual=False,
        dtype="float32",
    ),
    data=Data(
        name="folder:imagenet",
        image_size=224,  # --val-crop-size 224
        crop_pct=224 / 232,  # --val-resize-size 232
        interpolation="bilinear",
        mean=(0.485, 0.456, 0.406),  # presets.py
        std=(0.229, 0.224, 0.225),
    ),
    augment=Augment(
        crop_padding=0,
        random_resized_crop=True,  # presets.py: RandomResizedCrop
        rrc_from="original",
        rrc_scale=(0.08, 1.0),
        rrc_ratio=(3 / 4, 4 / 3),
        train_crop_size=176,  # --train-crop-size 176
        hflip=True,  # --hflip-prob 0.5
        policy="trivialaugment_wide",  # --auto-augment ta_wide
        policy_interpolation="bilinear",
        policy_fill=0,
        erase_prob=0.1,  # --random-erase 0.1
        erase_scale=(0.02, 0.33),  # RandomErasing's own
        erase_ratio=(0.3, 3.3),
        mixup_alpha=0.2,  # --mixup-alpha 0.2
        cutmix_alpha=1.0,  # --cutmix-alpha 1.0
        mix_prob=1.0,  # train.py: both with p=1.0, one of them at random
        mix_switch_prob=0.5,
        aug_repeats=4,  # --ra-sampler --ra-reps 4
    ),
    loss=Loss(name="cross_entropy", label_smoothing=0.1),  # --label-smoothing 0.1
    optimizer=Optimizer(
        name="sgd",
        lr=0.5,  # --lr 0.5
        momentum=0.9,  # --momentum 0.9
        nesterov=False,
        weight_decay=2e-5,  # --weight-decay 0.00002
        weight_decay_mask="no_norm",  # --norm-weight-decay 0.0
    ),
    schedule=Schedule(
        name="cosine",  # --lr-scheduler cosineannealinglr
        warmup=5,  # --lr-warmup-epochs 5 --lr-warmup-method linear
        warmup_start_factor=0.01,  # --lr-warmup-decay 0.01
        end_factor=0.0,  # --lr-min 0.0
    ),
    batch_size=1024,  # --batch-size 128, in each of 8 processes
    epochs=600,  # --epochs 600
    # --model-ema --model-ema-decay 0.99998 --model-ema-steps 32, which train.py scales by batch and steps over epochs
    ema_decay=1 - (1 - 0.99998) * 1024 * 32 / 600,
    ema_update_every=32,
    ema_warmup=False,
)
