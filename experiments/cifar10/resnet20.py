"""ResNet-20 on CIFAR-10: 8.75 % error (He et al. 2015, section 4.2 and table 6).

    resnet-jax train experiments/cifar10/resnet20.py --data-dir FOLDER

Line by line from section 4.2, with these departures: the mean of each channel is subtracted in place of that of each
pixel, and the channels are divided by their standard deviation, which the first BatchNorm undoes. Statistics are those
of the whole batch, where the paper has two GPUs: `--model.norm_group 64` gives each its own. The paper trains
on 45,000 images and keeps 5,000 to choose the schedule: `--data.validation 5000` does so.

Deeper networks are a flag away, `--model.name resnet56`, and so are those without shortcuts, `--model.name plain56
--model.shortcut none`. Not measured in full: no accelerator was at hand. Shortened to one epoch, the times of the
schedule in proportion (`--epochs 1`), on two cores of a shared server, one seed each, test error with shortcuts and
without: 52.62 and 60.46 % with 20 layers, 57.25 and 64.21 with 32, 66.79 and 72.13 with 44, 78.08 and 79.99 with 56;
162 s of training with 20 layers, 518 with 56.
"""

from resnet_jax.recipe import Augment, Data, Loss, Model, Optimizer, Recipe, Schedule

recipe = Recipe(
    model=Model(name="resnet20", shortcut="A"),  # "identity shortcuts in all cases (i.e., option A)"
    data=Data(name="cifar10", mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
    augment=Augment(pad=4, flip=True),
    loss=Loss(label_smoothing=0.0),
    optimizer=Optimizer(lr=0.1, momentum=0.9, nesterov=False, weight_decay=1e-4, decay_scope="all"),
    schedule=Schedule(name="steps", warmup=0, milestones=(32_000, 48_000), factor=0.1),
    batch_size=128,
    steps=64_000,
    epochs=None,
)
