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
        model=st.builds(Model, norm_group=st.none() | st.integers(1, 64), shortcut=st.sampled_from([None, "A", "C"])),
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
        (Recipe(model=Model(norm_group=48)), "model.norm_group is 48, which does not divide the batch of 64"),
        (Recipe(model=Model(norm_group=0)), "model.norm_group is 0"),
        (Recipe(model=Model(norm_momentum=1.0)), "model.norm_momentum is 1.0"),
        (Recipe(data=Data(std=(0.0,))), "data.std is"),
        (Recipe(data=Data(size=0)), "data.size is 0; it must be positive"),
        (Recipe(data=Data(validation=-1)), "data.validation is -1"),
        (Recipe(augment=Augment(pad=-1)), "augment.pad is -1; it must not be negative"),
        (Recipe(augment=Augment(pad_mode="edge")), "recipe: augment.pad_mode is 'edge'"),
        (Recipe(augment=Augment(flip=True, alternate_flip=True)), "augment.alternate_flip and augment.flip are both"),
        (Recipe(augment=Augment(crop_area=(0.5, 0.1))), r"augment.crop_area is \(0.5, 0.1\); .* at most 1"),
        (Recipe(augment=Augment(crop_ratio=(0.0, 1.0))), r"augment.crop_ratio is \(0.0, 1.0\)"),
        (Recipe(augment=Augment(erase_ratio=(1.0,))), r"augment.erase_ratio is \(1.0,\); .* a smallest and a largest"),
        (Recipe(augment=Augment(crop_size=8)), "augment.crop_size needs augment.crop"),
        (Recipe(augment=Augment(crop=True, crop_size=0)), "augment.crop_size is 0"),
        (Recipe(augment=Augment(policy="rand-m7")), "recipe: augment.policy is 'rand-m7'"),
        (
            Recipe(augment=Augment(policy="randaugment", policy_magnitude=31)),
            "policy_magnitude is 31; it must be 0 to 30",
        ),
        (
            Recipe(augment=Augment(policy="randaugment_increasing", policy_magnitude=11)),
            "policy_magnitude is 11; it must be 0 to 10",
        ),
        (Recipe(augment=Augment(policy_ops=0)), "augment.policy_ops is 0; it must be positive"),
        (Recipe(augment=Augment(policy_fill=256)), "augment.policy_fill is 256; it must be 0 to 255"),
        (Recipe(augment=Augment(hue=0.6)), "augment.hue is 0.6; it must be 0 to 0.5"),
        (Recipe(augment=Augment(erase=1.5)), "augment.erase is 1.5; it must be 0 to 1"),
        (Recipe(augment=Augment(cutout=-1)), "augment.cutout is -1"),
        (Recipe(augment=Augment(mixup=-0.1)), "augment.mixup is -0.1; it must not be negative"),
        (Recipe(augment=Augment(mixup=0.2), batch_size=63), "augment.mixup mixes pairs; the batch of 63 is odd"),
        (Recipe(augment=Augment(cutmix=1.0), batch_size=63), "augment.cutmix mixes pairs; the batch of 63 is odd"),
        (Recipe(augment=Augment(cutmix=1.0, repeats=64)), "augment.cutmix would mix an image with itself"),
        (Recipe(augment=Augment(repeats=3)), "augment.repeats is 3, which does not divide the batch of 64"),
        (Recipe(augment=Augment(repeats=0)), "augment.repeats is 0; it must be positive"),
        (Recipe(optimizer=Optimizer(lr=0)), "optimizer.lr is 0"),
        (Recipe(optimizer=Optimizer(lr=float("nan"))), "optimizer.lr is nan"),
        (Recipe(optimizer=Optimizer(momentum=1)), "optimizer.momentum is 1"),
        (Recipe(optimizer=Optimizer(weight_decay=-1)), "optimizer.weight_decay must not be negative"),
        (Recipe(optimizer=Optimizer(name="adam")), "recipe: optimizer.name is 'adam'"),
        (Recipe(optimizer=Optimizer(b2=1.0)), "optimizer.b2 is 1.0; it must be at least 0 and less than 1"),
        (Recipe(optimizer=Optimizer(eps=-1e-8)), "optimizer.eps must not be negative"),
        (Recipe(optimizer=Optimizer(trust=0)), "optimizer.trust is 0; it must be positive"),
        (Recipe(optimizer=Optimizer(clip=-1)), "optimizer.clip must not be negative"),
        (Recipe(optimizer=Optimizer(clip=1, clip_adaptive=0.01)), "clip_adaptive and optimizer.clip are both on"),
        (Recipe(optimizer=Optimizer(layer_decay=0)), "optimizer.layer_decay is 0; .* over 0 and at most 1"),
        (Recipe(optimizer=Optimizer(layer_decay=1.1)), "optimizer.layer_decay is 1.1"),
        (Recipe(optimizer=Optimizer(head_rate=0)), "optimizer.head_rate is 0; it must be positive"),
        (Recipe(optimizer=Optimizer(freeze=("stem", ""))), "optimizer.freeze is .*; a path must not be empty"),
        (Recipe(optimizer=Optimizer(freeze="stem")), "recipe: optimizer.freeze is 'stem'"),
        (
            Recipe(optimizer=Optimizer(name="adamw", momentum=0.8)),
            "optimizer.momentum is 0.8, which optimizer.name adamw does not use; leave it at 0.9",
        ),
        (Recipe(optimizer=Optimizer(b1=0.8)), "optimizer.b1 is 0.8, which optimizer.name sgd does not use"),
        (Recipe(optimizer=Optimizer(name="rmsprop", trust=0.1)), "optimizer.trust is 0.1, which .* rmsprop does not"),
        (Recipe(loss=Loss(label_smoothing=1)), "loss.label_smoothing is 1; it must be at least 0 and less than 1"),
        (Recipe(loss=Loss(name="bce", threshold=1.0)), "loss.threshold is 1.0"),
        (Recipe(loss=Loss(threshold=0.2)), "loss.threshold is 0.2, which loss.name cross_entropy does not use"),
        (Recipe(loss=Loss(sum_classes=True)), "loss.sum_classes is True, which loss.name cross_entropy does not use"),
        (
            Recipe(loss=Loss(name="mean_squared_error", label_smoothing=0.1)),
            "loss.label_smoothing is 0.1, which loss.name mean_squared_error does not use; leave it at 0.0",
        ),
        (Recipe(ema=1.0), "ema is 1.0; it must be at least 0 and less than 1"),
        (Recipe(ema_every=0), "ema_every is 0; it must be positive"),
        (Recipe(nonfinite="ignore"), "recipe: nonfinite is 'ignore'"),
        (Recipe(model=Model(norm_frozen=True, norm_group=32)), "norm_group is 32, but model.norm_frozen takes no"),
        (Recipe(augment=Augment(sizes=(0,), size_times=(0.0,))), "augment.sizes is .0,.; sizes must be positive"),
        (Recipe(augment=Augment(sizes=(8, 16))), "augment.size_times has 0 times for 2 of augment.sizes"),
        (Recipe(augment=Augment(sizes=(8,), size_times=(1,))), "augment.size_times is .1,.; the first time must be 0"),
        (Recipe(augment=Augment(sizes=(8, 4), size_times=(0, 0))), "augment.size_times is .*; the times must increase"),
        (Recipe(augment=Augment(sizes=(8, 4), size_times=(0, 30))), "size_times .* within the run's 30 epochs"),
        (Recipe(schedule=Schedule(warmup_from=1.5)), "schedule.warmup_from is 1.5; it is a share of the peak, 0 to 1"),
        (Recipe(schedule=Schedule(final=-0.1)), "schedule.final is -0.1; it is a share"),
        (Recipe(schedule=Schedule(name="polynomial", power=0)), "schedule.power is 0; it must be positive"),
        (Recipe(schedule=Schedule(name="exponential")), 'schedule.every is 0; the schedule "exponential" needs a time'),
        (Recipe(schedule=Schedule(name="exponential", every=31)), "schedule.every is 31; .*within the run's 30 epochs"),
        (
            Recipe(schedule=Schedule(name="onecycle")),
            'schedule.warmup is 3; "onecycle" rises by itself, .* set it to 0',
        ),
        (Recipe(schedule=Schedule(name="onecycle", warmup=0, rise=1.0)), "schedule.rise is 1.0"),
        (Recipe(schedule=Schedule(name="onecycle", warmup=0, end_divisor=0.5)), "end_divisor is 0.5; .* at least 1"),
        (Recipe(schedule=Schedule(power=3.0)), "schedule.power is 3.0, which schedule.name cosine does not use"),
        (Recipe(schedule=Schedule(milestones=(5,))), "schedule.milestones is .5,., which .* cosine does not use"),
        (Recipe(epochs=2), "schedule.warmup is 3; it must lie within the run's 2 epochs: .* .--steps makes all"),
        (Recipe(epochs=1), "schedule.warmup is 3; it must lie within the run's 1 epoch:"),
        (
            Recipe(epochs=None, steps=2),
            "schedule.warmup is 3; it must lie within the run's 2 steps: give a shorter one$",
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
        (Recipe(optimizer=Optimizer(decay_scope="some")), "recipe: optimizer.decay_scope is 'some'"),
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
    with pytest.raises(InputError, match="r.json: damaged, it is not text"):
        load_recipe(tmp_path / "r.json")
