"""ResNet-110 on CIFAR-10: 6.43 % error, 6.61 +- 0.16 over five runs (He et al. 2015, section 4.2 and table 6).

    resnet-jax train experiments/cifar10/resnet110.py --data-dir FOLDER

Line by line from section 4.2, with three departures: the learning rate rises linearly from 0.01 to 0.1 in the first 400
steps, while the paper keeps it at 0.01 until the training error is below 80 %, "about 400 iterations"; the mean is
subtracted per channel instead of per pixel, and the channels are divided by their standard deviation, which the first
BatchNorm undoes; and all 50,000 images are trained on (`--data.num_validation 5000` holds out the 5,000 with which the
paper chose its schedule).

Not measured in full: no accelerator was available. Compressed to one epoch, a quarter of it warm-up (`--epochs 1
--schedule.warmup 0.25`; in proportion it would be two steps), on two cores of a shared server: 61.03 % error, one seed,
1,065 s of training.
"""

from resnet_jax.recipe import Augment, Data, Loss, Model, Optimizer, Recipe, Schedule

recipe = Recipe(
    model=Model(
        name="resnet110",
        shortcut="A",  # "identity shortcuts in all cases (i.e., option A)"
        norm_group_size=64,  # "a mini-batch size of 128 on two GPUs"
        zero_init_residual=False,
        dtype="float32",
    ),
    data=Data(name="cifar10", mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
    augment=Augment(crop_padding=4, pad_mode="zero", hflip=True),  # "4 pixels are padded on each side", crop and flip
    loss=Loss(name="cross_entropy", label_smoothing=0.0),
    optimizer=Optimizer(
        name="sgd",
        lr=0.1,  # "a learning rate of 0.1"
        momentum=0.9,  # "momentum of 0.9"
        nesterov=False,
        weight_decay=1e-4,  # "a weight decay of 0.0001"
        weight_decay_mask="all",
    ),
    schedule=Schedule(
        name="steps",
        warmup=400,  # "0.01 to warm up the training"
        warmup_start_factor=0.1,
        milestones=(32_000, 48_000),  # "divide it by 10 at 32k and 48k iterations"
        gamma=0.1,
    ),
    batch_size=128,
    steps=64_000,  # "terminate training at 64k iterations"
    epochs=None,
)
