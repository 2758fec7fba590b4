"""One recipe, any hardware: devices, accumulation, shards and processes change nothing but rounding."""

import dataclasses
import importlib.util
import re
from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import pytest
from conftest import ROOT
from flax import linen as nn
from jax.sharding import PartitionSpec as P
from untrained import write_run

from resnet_jax.errors import InputError
from resnet_jax.input_pipeline.device_input import open_device_split, training_batches
from resnet_jax.parallel.grad_accumulation import (
    accumulate_gradients,
    require_accumulation_steps,
    valid_accumulation_steps,
)
from resnet_jax.parallel.sharding import data_mesh, shard_leaf
from resnet_jax.recipe import Augment, Data, Distill
from resnet_jax.training import make_step
from resnet_jax.training.init import abstract_train_state, init_train_state
from resnet_jax.training.make_step import make_train_step, step_key
from resnet_jax.training.setup import Parts, make_setup, microbatch_unit
from resnet_jax.training.sources import open_sources

spec = importlib.util.spec_from_file_location("topology", ROOT / "experiments" / "benchmarks" / "topology.py")
topology = importlib.util.module_from_spec(spec)
spec.loader.exec_module(topology)

DOUBLE = 1e-10  # relative to the largest number of an array
SINGLE = 1e-3  # relative to the length of all numbers; 20 steps amplify rounding
ONE = topology.ONE
MEANT = Augment(
    crop_padding=1, hflip=True, mixup_alpha=0.2
)  # quickly compiled; dropout and drop_path are in the recipe


NETWORKS = {
    "small": {"depths": (1,), "width": 4},
    # With a kernel that is large enough to be sharded
    "wide": {"depths": (1,), "width": 24},
}


def recipe(group: int | None = 2, name: str = "small", **fields):
    given = {"name": "resnet8", "fields": NETWORKS.get(name, ()), "norm_group_size": group}
    model = dataclasses.replace(topology.RECIPE.model, **given)
    return dataclasses.replace(
        topology.RECIPE, **{"model": model, "augment": MEANT, "batch_size": 64, "steps": 6, **fields}
    )


@cache
def one_device(group: int | None, double: bool, name: str = "small"):
    return topology.train(recipe(group, name), **ONE, double=double)


SETTINGS = [(8, 2), *(pytest.param(*x, marks=pytest.mark.slow) for x in [(1, 2), (1, 4), (2, 1), (4, 4), (8, 1)])]


@pytest.mark.parametrize(("devices", "steps"), SETTINGS)
def test_devices_and_accumulation_change_nothing(devices, steps, monkeypatch):
    """Two microbatches are written out one after the other, as on CPUs, and four are a loop, as elsewhere."""
    monkeypatch.setattr(make_step, "accumulate_gradients", partial(accumulate_gradients, unroll=steps == 2))
    there = topology.train(recipe(), devices=devices, grad_accum_steps=steps, double=True)
    assert topology.difference(one_device(2, True), there) < DOUBLE


@pytest.mark.slow
@pytest.mark.parametrize("setting", [{"devices": 8, "grad_accum_steps": 2}])
def test_in_single_precision_they_change_rounding(setting):
    there = topology.train(recipe(), **ONE | setting, double=False)
    assert topology.distance(one_device(2, False), there) < SINGLE


@pytest.mark.slow
def test_a_group_on_several_devices_is_one_group():
    """Of the whole batch; and of 16 images, half of one of two microbatches of it on each of 8 devices."""
    whole = topology.train(recipe(None), **ONE | {"devices": 8}, double=True)
    assert topology.difference(one_device(None, True), whole) < DOUBLE
    there = topology.train(recipe(16), **ONE | {"devices": 8, "grad_accum_steps": 2}, double=True)
    assert topology.difference(one_device(16, True), there) < DOUBLE


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 4])
def test_sharding_changes_nothing(steps):
    there = topology.train(
        recipe(name="wide"), devices=8, grad_accum_steps=steps, param_sharding="sharded", double=True
    )
    assert topology.difference(one_device(2, True, "wide"), there) < DOUBLE


@pytest.mark.slow
@pytest.mark.xdist_group("topology")
def test_devices_and_accumulation_change_nothing_for_a_student(tmp_path):
    """Under a teacher whose mean and std are others."""
    digits = open_sources(recipe(), tmp_path).dataset
    of_teacher = dataclasses.replace(recipe(), data=Data(name="digits", mean=(0.3,), std=(0.2,)))
    teacher = write_run(tmp_path / "teacher", of_teacher, digits.image_shape, digits.classes)
    student = recipe(distill=Distill(teacher=str(teacher), temperature=4.0), steps=2)
    results = [topology.train(student, **where, double=True) for where in (ONE, {"devices": 8, "grad_accum_steps": 2})]
    assert topology.difference(*results) < DOUBLE


@pytest.mark.slow
def test_two_processes_of_four_devices_change_nothing(tmp_path):
    """On loopback."""
    there = topology.train_in_processes(recipe(), processes=2, devices=4, double=True)
    assert topology.difference(one_device(2, True), there) < DOUBLE


@pytest.mark.slow
def test_one_topology_gives_the_same_bits():
    runs = [topology.train(recipe(steps=3), **ONE | {"devices": 8}, double=False) for _ in range(2)]
    chex.assert_trees_all_equal(*runs)


def setup_on(devices, tmp_path, *, group=2, name="small", **layout):
    sources = open_sources(recipe(group, name), tmp_path)
    setup = make_setup(recipe(group, name), sources.dataset, devices, **layout)
    inputs = next(training_batches(open_device_split(sources.train, setup.mesh), setup.recipe, range(1)))
    return setup, inputs


def compiled_text(setup, inputs):
    return make_train_step(setup).lower(abstract_train_state(setup), inputs, step_key(setup)).compile().as_text()


@pytest.mark.parametrize("steps", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_devices_with_whole_groups_meet_twice_a_step(tmp_path, steps):
    """All gradients, statistics and losses in one reduction of floats, and all counts in one of integers."""
    setup, inputs = setup_on(8, tmp_path, grad_accum_steps=steps)
    text = compiled_text(setup, inputs)
    kinds = re.findall(r"= \(?([a-z]+\d+)\S* .*?all-reduce(?:-start)?\(", text)
    assert 1 <= len(re.findall(r" all-reduce(?:-start)?\(", text)) <= 2
    assert "s32" in kinds or "(s32" in text  # counts travel as integers, exact beyond 2**24
    assert not re.search(r"all-gather|all-to-all|collective-permute|reduce-scatter", text)
    # Compilers join at most 256 arrays: all vectors are one
    kernels = [leaf for leaf in jax.tree.leaves(abstract_train_state(setup).params) if leaf.ndim > 1]
    (floats,) = re.findall(r"= (\(?f32.*?) all-reduce(?:-start)?\(", text)
    assert len(re.findall(r"f32\[", floats)) == len(kernels) + 1


@pytest.mark.slow
def test_groups_on_several_devices_meet_in_every_layer(tmp_path):
    assert len(re.findall(r" all-reduce(?:-start)?\(", compiled_text(*setup_on(8, tmp_path, group=None)))) > 2


@pytest.mark.slow
def test_sharded_parameters_lie_in_equal_parts_and_are_gathered(tmp_path):
    setup, inputs = setup_on(8, tmp_path, name="wide", param_sharding="sharded")
    state = init_train_state(setup)
    kernel = state.params["stage1_block1"]["conv2"]["kernel"]
    assert kernel.shape == (3, 3, 24, 24)
    for leaf in (kernel, state.ema["params"]["stage1_block1"]["conv2"]["kernel"]):
        assert {shard.data.size for shard in leaf.addressable_shards} == {kernel.size // 8}
    momentum = [x for x in jax.tree.leaves(state.opt_state) if x.shape == kernel.shape]
    assert all(shard.data.size == kernel.size // 8 for x in momentum for shard in x.addressable_shards)
    assert state.params["head"]["bias"].is_fully_replicated
    assert "all-gather" in compiled_text(setup, inputs)


def test_where_an_array_is_cut():
    mesh = data_mesh(8)

    def shape(*lengths):
        return shard_leaf(jax.ShapeDtypeStruct(lengths, jnp.float32), mesh).spec

    assert shape(3, 3, 64, 128) == P(None, None, None, "data")
    assert shape(3, 3, 128, 65) == P(None, None, "data")
    assert shape(3, 3, 63, 65) == P()
    assert shape(64) == P()


class Whole(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(3)(x.reshape(len(x), -1))


def test_what_has_to_stay_together(tmp_path):
    dataset = open_sources(recipe(), tmp_path).dataset

    def unit(recipe, **parts):
        return microbatch_unit(make_setup(recipe, dataset, 1, parts=Parts(**parts)))

    assert unit(recipe(2)) == 2
    assert unit(recipe(None)) == 64
    without = dataclasses.replace(recipe(None).model, fields={"depths": (1,), "width": 32, "norm": "GroupNorm"})
    assert unit(dataclasses.replace(recipe(None), model=without)) == 2  # the pairs of mixup
    assert unit(recipe(1, augment=Augment())) == 1
    assert unit(recipe(1), model=Whole()) == 64  # a network of one's own may normalise over the whole batch


@pytest.mark.parametrize(
    ("batch", "unit", "devices", "parts"),
    [
        (64, 2, 1, [1, 2, 4, 8, 16, 32]),
        (64, 2, 8, [1, 2, 4, 8]),
        (96, 32, 8, [1, 3]),
        (64, 64, 8, [1]),
        (12, 4, 2, [1, 3]),
    ],
)
def test_valid_accumulation_steps(batch, unit, devices, parts):
    assert valid_accumulation_steps(batch, unit, devices) == parts


def test_a_cut_group_is_refused_with_the_nearest_choice():
    with pytest.raises(
        InputError,
        match=r"--grad-accum-steps is 3; the batch of 64, in groups of 16, on devices: 8, .* 1, 2, 4: take 2",
    ):
        require_accumulation_steps(64, 16, 8, 3)
    with pytest.raises(InputError, match="--grad-accum-steps is 0"):
        require_accumulation_steps(64, 16, 8, 0)
