"""WRN-28-10 on CIFAR-10: 4.00 % error, the median of five runs (Zagoruyko and Komodakis 2016).

    resnet-jax train experiments/cifar10/wrn_28_10.py --data-dir FOLDER

The comments name section 3 of the paper and the variables of its scripts/train_cifar.sh. With dropout, 3.89 %:
`--model.dropout 0.3`. On CIFAR-100, 19.25 %: `--data.name cifar100` and its mean and standard deviation.
"""

from resnet_jax.recipe import Augment, Data, Loss, Model, Optimizer, Recipe, Schedule

recipe = Recipe(
    model=Model(name="wrn_28_10", norm_group_size=None, zero_init_residual=False, dropout=0.0, dtype="float32"),
    data=Data(  # pytorch/main.py of the repository: 125.3, 123.0, 113.9 and 63.0, 62.1, 66.7 of 255
        name="cifar10",
        mean=(125.3 / 255, 123.0 / 255, 113.9 / 255),
        std=(63.0 / 255, 62.1 / 255, 66.7 / 255),
    ),
    augment=Augment(crop_padding=4, pad_mode="reflect", hflip=True),  # randomcrop_type=reflection
    loss=Loss(name="cross_entropy", label_smoothing=0.0),
    optimizer=Optimizer(
        name="sgd",
        lr=0.1,  # learningRate=0.1
        momentum=0.9,  # "momentum to 0.9"
        nesterov=True,  # nesterov=true
        weight_decay=5e-4,  # "weight decay to 0.0005"
        weight_decay_mask="all",
    ),
    schedule=Schedule(
        name="steps",
        warmup=0,
        milestones=(60, 120, 160),  # epoch_step={60,120,160}
        gamma=0.2,  # learningRateDecayRatio=0.2
    ),
    batch_size=128,  # "minibatch size to 128"
    epochs=200,  # max_epoch=200
)
