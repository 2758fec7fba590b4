"""Recipes as values: round trips, differences, checks."""

import dataclasses
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_jax.errors import InputError
from resnet_jax.recipe import (
    Augment,
    Data,
    Loss,
    Model,
    Optimizer,
    Recipe,
    Schedule,
    check,
    differences,
    fields_of,
    from_json,
    in_steps,
    load_recipe,
    to_json,
    total_steps,
)


@given(
    st.builds(
        Recipe,
        model=st.builds(
            Model, norm_group_size=st.none() | st.integers(1, 64), shortcut=st.sampled_from([None, "A", "C"])
        ),
        data=st.builds(Data, mean=st.lists(st.floats(0, 1), min_size=1, max_size=3).map(tuple)),
        schedule=st.builds(Schedule, milestones=st.lists(st.integers(1, 100) | st.floats(1, 9), max_size=3).map(tuple)),
        batch_size=st.integers(1, 4096),
        epochs=st.none() | st.floats(0.1, 100) | st.integers(1, 90),
        steps=st.none() | st.integers(1, 10**6),
    )
)
def test_json_round_trip(recipe):
    again = from_json(to_json(recipe))
    assert again == recipe
    assert differences(recipe, again) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": {"lrr": 0.1}}, "unknown field in here: 'optimizer.lrr'; nearest: optimizer.lr"),
        ({"optimizer": {"lr": "big"}}, "here: optimizer.lr is 'big'"),
        ({"seed": True}, "here: seed is True"),
        ({"seed": 0.5}, "here: seed is 0.5"),
        ({"model": {"shortcut": "Q"}}, "here: model.shortcut is 'Q'"),
        ({"model": "resnet20"}, "here: model. is 'resnet20', not a table"),
        ({"schedule": {"milestones": ["a"]}}, r"here: schedule.milestones is \('a',\)"),
        ([], "here: the recipe is .*not a table"),
    ],
)
def test_json_of_another_shape_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        from_json(json.dumps(change), "here")


def test_broken_json_is_refused():
    with pytest.raises(InputError, match="here: not JSON"):
        from_json('{"seed": ', "here")


def test_differences_name_fields_and_values():
    other = replace(Recipe(), seed=3, optimizer=replace(Recipe().optimizer, lr=0.5))
    assert differences(Recipe(), other) == ["optimizer.lr 0.1 -> 0.5", "seed 0 -> 3"]


def test_fields_of_names_every_leaf():
    names = dict(fields_of(Recipe()))
    assert names["schedule.warmup"] == 3.0
    assert not any(dataclasses.is_dataclass(value) for value in names.values())


STEPS = Schedule(name="steps", warmup=0)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(steps=5), "steps give either steps or epochs"),
        (Recipe(epochs=None), "steps give either steps or epochs"),
        (Recipe(epochs=0), "epochs is 0; it must be positive"),
        (Recipe(epochs=None, steps=-1), "steps is -1; it must be positive"),
        (Recipe(batch_size=0), "batch_size is 0"),
        (Recipe(seed=-1), "seed is -1"),
        (Recipe(seed=2**32), "seed is 4294967296"),
        (Recipe(model=Model(norm_group_size=48)), "model.norm_group_size is 48, which does not divide the batch of 64"),
        (Recipe(model=Model(norm_group_size=0)), "model.norm_group_size is 0"),
        (Recipe(model=Model(norm_momentum=1.0)), "model.norm_momentum is 1.0"),
        (Recipe(data=Data(std=(0.0,))), "data.std is"),
        (Recipe(data=Data(image_size=0)), "data.image_size is 0; it must be positive"),
        (Recipe(data=Data(num_validation=-1)), "data.num_validation is -1"),
        (Recipe(augment=Augment(crop_padding=-1)), "augment.crop_padding is -1; it must not be negative"),
        (Recipe(augment=Augment(pad_mode="edge")), "recipe: augment.pad_mode is 'edge'"),
        (
            Recipe(augment=Augment(hflip=True, alternating_hflip=True)),
            "augment.alternating_hflip and augment.hflip are both",
        ),
        (Recipe(augment=Augment(rrc_scale=(0.5, 0.1))), r"augment.rrc_scale is \(0.5, 0.1\); .* at most 1"),
        (Recipe(augment=Augment(rrc_ratio=(0.0, 1.0))), r"augment.rrc_ratio is \(0.0, 1.0\)"),
        (Recipe(augment=Augment(erase_ratio=(1.0,))), r"augment.erase_ratio is \(1.0,\); .* a minimum and a maximum"),
        (Recipe(augment=Augment(train_crop_size=8)), "augment.train_crop_size needs augment.random_resized_crop"),
        (Recipe(augment=Augment(random_resized_crop=True, train_crop_size=0)), "augment.train_crop_size is 0"),
        (Recipe(augment=Augment(policy="rand-m7")), "recipe: augment.policy is 'rand-m7'"),
        (
            Recipe(augment=Augment(policy="randaugment", magnitude=31)),
            "magnitude is 31; it must be 0 to 30",
        ),
        (
            Recipe(augment=Augment(policy="randaugment_inc", magnitude=11)),
            "magnitude is 11; it must be 0 to 10",
        ),
        (Recipe(augment=Augment(num_ops=0)), "augment.num_ops is 0; it must be positive"),
        (Recipe(augment=Augment(policy_fill=256)), "augment.policy_fill is 256; it must be 0 to 255"),
        (Recipe(augment=Augment(hue=0.6)), "augment.hue is 0.6; it must be 0 to 0.5"),
        (Recipe(augment=Augment(erase_prob=1.5)), "augment.erase_prob is 1.5; it must be 0 to 1"),
        (Recipe(augment=Augment(cutout=-1)), "augment.cutout is -1"),
        (Recipe(augment=Augment(mixup_alpha=-0.1)), "augment.mixup_alpha is -0.1; it must not be negative"),
        (
            Recipe(augment=Augment(mixup_alpha=0.2), batch_size=63),
            "augment.mixup_alpha mixes pairs; the batch of 63 is odd",
        ),
        (
            Recipe(augment=Augment(cutmix_alpha=1.0), batch_size=63),
            "augment.cutmix_alpha mixes pairs; the batch of 63 is odd",
        ),
        (
            Recipe(augment=Augment(cutmix_alpha=1.0, aug_repeats=64)),
            "augment.cutmix_alpha would mix an image with itself",
        ),
        (Recipe(augment=Augment(aug_repeats=3)), "augment.aug_repeats is 3, which does not divide the batch of 64"),
        (Recipe(augment=Augment(aug_repeats=0)), "augment.aug_repeats is 0; it must be positive"),
        (Recipe(optimizer=Optimizer(lr=0)), "optimizer.lr is 0"),
        (Recipe(optimizer=Optimizer(lr=float("nan"))), "optimizer.lr is nan"),
        (Recipe(optimizer=Optimizer(momentum=1)), "optimizer.momentum is 1"),
        (Recipe(optimizer=Optimizer(weight_decay=-1)), "optimizer.weight_decay is -1; it must not be negative"),
        (Recipe(optimizer=Optimizer(name="adagrad")), "recipe: optimizer.name is 'adagrad'"),
        (Recipe(optimizer=Optimizer(b2=1.0)), "optimizer.b2 is 1.0; it must be at least 0 and less than 1"),
        (Recipe(optimizer=Optimizer(eps=-1e-8)), "optimizer.eps is -1e-08; it must not be negative"),
        (Recipe(optimizer=Optimizer(trust_coefficient=0)), "optimizer.trust_coefficient is 0; it must be positive"),
        (Recipe(optimizer=Optimizer(clip_grad_norm=-1)), "optimizer.clip_grad_norm is -1; it must not be negative"),
        (
            Recipe(optimizer=Optimizer(clip_grad_norm=1, agc_clipping=0.01)),
            "agc_clipping and optimizer.clip_grad_norm are both on",
        ),
        (Recipe(optimizer=Optimizer(layer_decay=0)), "optimizer.layer_decay is 0; .* over 0 and at most 1"),
        (Recipe(optimizer=Optimizer(layer_decay=1.1)), "optimizer.layer_decay is 1.1"),
        (Recipe(optimizer=Optimizer(head_lr_mult=0)), "optimizer.head_lr_mult is 0; it must be positive"),
        (Recipe(optimizer=Optimizer(freeze=("stem", ""))), "optimizer.freeze is .*; a path must not be empty"),
        (Recipe(optimizer=Optimizer(freeze="stem")), "recipe: optimizer.freeze is 'stem'"),
        (
            Recipe(optimizer=Optimizer(name="adamw", momentum=0.8)),
            "optimizer.momentum is 0.8, which optimizer.name adamw does not use; leave it at 0.9",
        ),
        (Recipe(optimizer=Optimizer(b1=0.8)), "optimizer.b1 is 0.8, which optimizer.name sgd does not use"),
        (
            Recipe(optimizer=Optimizer(name="rmsprop", trust_coefficient=0.1)),
            "optimizer.trust_coefficient is 0.1, which .* rmsprop does not",
        ),
        (Recipe(loss=Loss(label_smoothing=1)), "loss.label_smoothing is 1; it must be at least 0 and less than 1"),
        (Recipe(loss=Loss(name="bce", bce_target_thresh=1.0)), "loss.bce_target_thresh is 1.0"),
        (
            Recipe(loss=Loss(bce_target_thresh=0.2)),
            "loss.bce_target_thresh is 0.2, which loss.name cross_entropy does not use",
        ),
        (Recipe(loss=Loss(sum_classes=True)), "loss.sum_classes is True, which loss.name cross_entropy does not use"),
        (
            Recipe(loss=Loss(name="mse", label_smoothing=0.1)),
            "loss.label_smoothing is 0.1, which loss.name mse does not use; leave it at 0.0",
        ),
        (Recipe(ema_decay=1.0), "ema_decay is 1.0; it must be at least 0 and less than 1"),
        (Recipe(ema_update_every=0), "ema_update_every is 0; it must be positive"),
        (Recipe(on_nonfinite="ignore"), "recipe: on_nonfinite is 'ignore'"),
        (
            Recipe(model=Model(freeze_norm=True, norm_group_size=32)),
            "norm_group_size is 32, but model.freeze_norm uses no",
        ),
        (
            Recipe(augment=Augment(progressive_sizes=(0,), progressive_starts=(0.0,))),
            "augment.progressive_sizes is .0,.; it must be positive",
        ),
        (
            Recipe(augment=Augment(progressive_sizes=(8, 16))),
            "augment.progressive_starts has 0 times for 2 of augment.progressive_sizes",
        ),
        (
            Recipe(augment=Augment(progressive_sizes=(8,), progressive_starts=(1,))),
            "augment.progressive_starts is .1,.; the first time must be 0",
        ),
        (
            Recipe(augment=Augment(progressive_sizes=(8, 4), progressive_starts=(0, 0))),
            "augment.progressive_starts is .*; the times must increase",
        ),
        (
            Recipe(augment=Augment(progressive_sizes=(8, 4), progressive_starts=(0, 30))),
            "progressive_starts .* within the run's 30 epochs",
        ),
        (
            Recipe(schedule=Schedule(warmup_start_factor=1.5)),
            "schedule.warmup_start_factor is 1.5; it must be 0 to 1",
        ),
        (Recipe(schedule=Schedule(end_factor=-0.1)), "schedule.end_factor is -0.1; it must be 0 to 1"),
        (Recipe(schedule=Schedule(name="polynomial", power=0)), "schedule.power is 0; it must be positive"),
        (
            Recipe(schedule=Schedule(name="exponential")),
            'schedule.decay_every is 0; the schedule "exponential" needs a time',
        ),
        (
            Recipe(schedule=Schedule(name="exponential", decay_every=31)),
            "schedule.decay_every is 31; .*within the run's 30 epochs",
        ),
        (
            Recipe(schedule=Schedule(name="onecycle")),
            'schedule.warmup is 3; "onecycle" has its own rise, .* set it to 0',
        ),
        (Recipe(schedule=Schedule(name="onecycle", warmup=0, pct_start=1.0)), "schedule.pct_start is 1.0"),
        (
            Recipe(schedule=Schedule(name="onecycle", warmup=0, final_div_factor=0.5)),
            "final_div_factor is 0.5; .* at least 1",
        ),
        (Recipe(schedule=Schedule(power=3.0)), "schedule.power is 3.0, which schedule.name cosine does not use"),
        (Recipe(schedule=Schedule(milestones=(5,))), "schedule.milestones is .5,., which .* cosine does not use"),
        (
            Recipe(epochs=2),
            "schedule.warmup is 3; it must lie within the run's 2 epochs: .* --epochs and --steps rescale",
        ),
        (Recipe(epochs=1), "schedule.warmup is 3; it must lie within the run's 1 epoch:"),
        (
            Recipe(epochs=None, steps=2),
            "schedule.warmup is 3; it must lie within the run's 2 steps: give a shorter one .on the command line",
        ),
        (
            Recipe(schedule=replace(STEPS, milestones=(5, 30))),
            r"milestones is \(5, 30\); .*the run's 30 epochs.*--stop-at",
        ),
        (Recipe(schedule=replace(STEPS, milestones=(9, 5))), r"milestones is \(9, 5\); the times must increase"),
        (Recipe(schedule=STEPS), "milestones is empty"),
        (Recipe(epochs=float("inf")), "epochs is inf; it must be finite"),
        (Recipe(data=Data(mean=(float("nan"),))), "data.mean is .*; it must be finite"),
        (Recipe(batch_size="64"), "recipe: batch_size is '64'"),
        (Recipe(batch_size=64.0), "recipe: batch_size is 64.0"),
        (Recipe(model="resnet20"), "recipe: model. is 'resnet20'"),
        (Recipe(model=Model(dtype="float16")), "recipe: model.dtype is 'float16'"),
        (Recipe(data=Data(mean=0.5)), "recipe: data.mean is 0.5"),
        (Recipe(optimizer=Optimizer(weight_decay_mask="some")), "recipe: optimizer.weight_decay_mask is 'some'"),
        (Recipe(optimizer=Optimizer(lr=np.float32(0.1))), "recipe: .*float32 is not JSON serializable"),
    ],
)
def test_numbers_that_make_no_sense(recipe, message):
    with pytest.raises(InputError, match=message):
        check(recipe)


def test_what_is_off_is_not_unused():
    """A recipe may say that it wants none of what its optimiser has not."""
    check(Recipe(optimizer=Optimizer(name="adamw", momentum=0.0, nesterov=False)))
    check(Recipe(schedule=Schedule(name="constant", warmup=0)))


def test_lengths():
    assert total_steps(Recipe(epochs=20, batch_size=64), 1437) == 449
    assert total_steps(Recipe(epochs=None, steps=64_000), 1) == 64_000
    assert total_steps(Recipe(epochs=0.001), 100) == 1
    assert in_steps(Recipe(epochs=20, batch_size=64), 2, 640) == 20
    assert in_steps(Recipe(epochs=None, steps=50), 7, 640) == 7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such recipe"),
        ("x = 1", "defines no `recipe = Recipe"),
        ("recipe = 1 / 0", "ZeroDivisionError: division by zero"),
        ("recipe = (", "SyntaxError"),
        ("from resnet_jax.recipe import Recipe\nrecipe = Recipe(lr=1)", "TypeError: .*'lr'"),
    ],
)
def test_files_that_are_no_recipe(tmp_path, content, message):
    path = tmp_path / "r.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=f"{re.escape(str(path))}: {message}"):
        load_recipe(path)


def test_a_text_file_is_no_recipe(tmp_path):
    (tmp_path / "r.txt").write_text("hello")
    with pytest.raises(InputError, match="not a recipe"):
        load_recipe(tmp_path / "r.txt")


def test_lists_become_tuples():
    assert check(Recipe(data=Data(mean=[0.5]))) == Recipe(data=Data(mean=(0.5,)))


def test_a_recipe_that_is_no_text(tmp_path):
    (tmp_path / "r.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="r.json: damaged .not text"):
        load_recipe(tmp_path / "r.json")
