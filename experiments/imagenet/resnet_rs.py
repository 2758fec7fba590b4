"""ResNet-RS-50 on ImageNet at 160 pixels: 78.8 % top-1 accuracy (Bello et al. 2021).

    resnet-jax train experiments/imagenet/resnet_rs.py --data.name folder:IMAGENET

The comments name the lines of tensorflow/tpu, resnet_rs/configs/resnetrs50_i160.yaml, and, as "garden", those of
tensorflow/models, imagenet_resnetrs50_i160.yaml. Departures: the cosine starts after the warm-up instead of under it;
BatchNorm statistics are those of the whole batch, since the sources do not name the batch size per core; the activation
is ReLU, in garden it is swish.
"""

from resnet_jax.recipe import Augment, Data, Loss, Model, Optimizer, Recipe, Schedule

recipe = Recipe(
    model=Model(
        name="resnetrs50",  # resnet_depth: 50, se_ratio: 0.25, and the true of its stem and shortcuts
        norm_group_size=None,
        norm_momentum=0.0,  # bn_momentum: 0, for statistics are averaged with the weights
        zero_init_residual=True,
        head_dropout=0.25,  # dropout_rate: 0.25
        drop_path=0.0,  # drop_connect_rate: null
        dtype="bfloat16",  # precision: bfloat16
    ),
    data=Data(
        name="folder:imagenet",
        image_size=160,  # image_size: 160
        crop_pct=160 / 192,  # resnet_preprocessing.py: 32 pixels around the crop
        interpolation="bicubic",
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
        policy="randaugment",  # augment_name: randaugment
        num_ops=2,  # randaug_num_layers: 2
        magnitude=30.0,  # randaug_magnitude: 10, of a largest of 10, which is 30 here
        policy_interpolation="nearest",
        policy_fill=128,  # RandAugment's own there
    ),
    loss=Loss(name="cross_entropy", label_smoothing=0.1),  # label_smoothing: 0.1
    optimizer=Optimizer(
        name="sgd",
        lr=1.6,  # base_learning_rate: 0.1, for every 256 images of the batch
        momentum=0.9,  # momentum: 0.9
        nesterov=False,  # garden: sgd with momentum alone
        weight_decay=4e-5,  # weight_decay: 4.0e-05
        weight_decay_mask="kernels",
    ),
    schedule=Schedule(
        name="cosine",  # garden: cosine
        warmup=5,  # garden: warmup_steps 1560 of 312 an epoch
        warmup_start_factor=0.0,
        end_factor=0.0,
    ),
    batch_size=4096,  # train_batch_size: 4096
    epochs=350,  # train_steps: 109475
    ema_decay=0.9999,  # moving_average_decay: 0.9999
    ema_update_every=1,
    ema_warmup=True,  # num_updates=global_step, of TensorFlow's ExponentialMovingAverage
)
