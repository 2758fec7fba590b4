"""ResNet-20 on CIFAR-10: 8.75 % error (He et al. 2015, section 4.2 and table 6).

    resnet-jax train experiments/cifar10/resnet20.py --data-dir FOLDER

Line by line from section 4.2, with these departures: the mean is subtracted per channel instead of per pixel, and the
channels are divided by their standard deviation, which the first BatchNorm undoes. BatchNorm statistics are those of
the whole batch; the paper has two GPUs, as `--model.norm_group_size 64`. The paper trains on 45,000 images and keeps
5,000 to choose the schedule, as `--data.num_validation 5000`.

For deeper networks, `--model.name resnet56`; without shortcuts, `--model.name plain56 --model.shortcut none`. Not
measured in full: no accelerator was available. Compressed to one epoch, with the times of the schedule in proportion
(`--epochs 1`), on two cores of a shared server, one seed each, the test error with and without shortcuts is 52.62 and
60.46 % with 20 layers, 57.25 and 64.21 with 32, 66.79 and 72.13 with 44, 78.08 and 79.99 with 56; training took 162 s
with 20 layers and 518 s with 56.
"""

from resnet_jax.recipe import Augment, Data, Loss, Model, Optimizer, Recipe, Schedule

recipe = Recipe(
    model=Model(name="resnet20", shortcut="A"),  # "identity shortcuts in all cases (i.e., option A)"
    data=Data(name="cifar10", mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
    augment=Augment(crop_padding=4, hflip=True),
    loss=Loss(label_smoothing=0.0),
    optimizer=Optimizer(lr=0.1, momentum=0.9, nesterov=False, weight_decay=1e-4, weight_decay_mask="all"),
    schedule=Schedule(name="steps", warmup=0, milestones=(32_000, 48_000), gamma=0.1),
    batch_size=128,
    steps=64_000,
    epochs=None,
)
