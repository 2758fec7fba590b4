"""ResNet-50 by procedure A2 of "ResNet strikes back": 79.83 % top-1 accuracy (the weights `resnet50.a2_in1k`).

    resnet-jax train experiments/imagenet/strikes_back_a2.py --data.name folder:IMAGENET

Wightman et al. 2021; the comments name the rows of its table 2, or flags of timm's train.py. strikes_back_a1 and
strikes_back_a3 give only their differences from it. Departures: a batch of 2,064 instead of 2,048, which 3 copies of
each image do not divide; RandAugment fills with one grey level and transforms images bilinearly, while timm fills with
the mean colour and transforms them bicubically.
"""

from resnet_jax.recipe import Augment, Data, Loss, Model, Optimizer, Recipe, Schedule

recipe = Recipe(
    model=Model(
        name="resnet50",
        norm_group_size=516,  # a quarter of the batch: 4 GPUs
        norm_momentum=0.9,
        zero_init_residual=True,  # the default of timm's resnet50
        drop_path=0.05,  # Stoch. Depth 0.05
        dtype="float32",
    ),
    data=Data(
        name="folder:imagenet",
        image_size=224,  # Test res 224
        crop_pct=0.95,  # Test crop ratio 0.95
        interpolation="bicubic",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
    augment=Augment(
        crop_padding=0,
        random_resized_crop=True,  # RRC
        rrc_from="original",
        rrc_scale=(0.08, 1.0),
        rrc_ratio=(3 / 4, 4 / 3),
        train_crop_size=224,  # Train res 224
        hflip=True,  # H. flip
        policy="randaugment_inc",  # Rand Augment 7 / 0.5: rand-m7-mstd0.5-inc1
        num_ops=2,
        magnitude=7.0,
        magnitude_std=0.5,
        policy_interpolation="bilinear",
        policy_fill=115,  # the mean of timm's (124, 116, 104)
        mixup_alpha=0.1,  # Mixup alpha 0.1
        cutmix_alpha=1.0,  # Cutmix alpha 1.0
        mix_prob=1.0,  # --mixup-prob 1.0
        mix_switch_prob=0.5,  # --mixup-switch-prob 0.5
        aug_repeats=3,  # Repeated Aug, --aug-repeats 3
    ),
    loss=Loss(
        name="bce",  # BCE loss
        label_smoothing=0.0,
        bce_target_thresh=0.2,  # section 2.2: all classes of a mixed image are targets of 1
        sum_classes=False,
    ),
    optimizer=Optimizer(
        name="lamb",  # Optimizer LAMB
        lr=5e-3,  # LR 5e-3
        b1=0.9,
        b2=0.999,
        eps=1e-6,  # of timm's Lamb
        weight_decay=0.02,  # Weight decay 0.02
        weight_decay_mask="kernels",  # timm applies neither decay nor the trust ratio to vectors
        clip_grad_norm=1.0,  # max_grad_norm, the default of timm's Lamb
    ),
    schedule=Schedule(
        name="cosine",  # LR decay cosine
        warmup=5,  # Warmup epochs 5
        warmup_start_factor=1e-4 / 5e-3,  # --warmup-lr 1e-4
        end_factor=1e-6 / 5e-3,  # --min-lr 1e-6
    ),
    batch_size=2064,
    epochs=300,  # Epochs 300
)
