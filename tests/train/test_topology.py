"""One recipe, any hardware: devices, accumulation, shards and processes change nothing but rounding."""

import dataclasses
import importlib.util
import re
from functools import cache, partial
from itertools import product

import chex
import jax
import jax.numpy as jnp
import pytest
from conftest import ROOT
from jax.sharding import PartitionSpec as P

from resnet_jax.errors import InputError
from resnet_jax.model.norm import BatchNorm, group_norm
from resnet_jax.model.resnet import ResNet
from resnet_jax.model.stems import CifarStem
from resnet_jax.model.zoo import MODELS
from resnet_jax.recipe import Augment
from resnet_jax.train import job as job_module
from resnet_jax.train.devices import data_mesh, spread
from resnet_jax.train.feed import supply, training_items
from resnet_jax.train.job import abstract, initial, make_advance, open_sources, prepare, step_key
from resnet_jax.train.sweep import make_sweep, possible_parts, require_parts, unit_of

spec = importlib.util.spec_from_file_location("topology", ROOT / "experiments" / "benchmarks" / "topology.py")
topology = importlib.util.module_from_spec(spec)
spec.loader.exec_module(topology)

DOUBLE = 1e-10  # relative to the largest number of an array
SINGLE = 1e-3  # relative to the length of all numbers; 20 steps amplify rounding
ONE = topology.ONE
MEANT = Augment(pad=1, flip=True, mixup=0.2)  # quickly compiled; dropout and drop_path are in the recipe


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    """One that is quickly compiled, and one with a kernel that is large enough to be sharded."""
    monkeypatch.setitem(MODELS, "small", ResNet((1,), stem=CifarStem, width=4))
    monkeypatch.setitem(MODELS, "wide", ResNet((1,), stem=CifarStem, width=24))


def recipe(group: int | None = 2, name: str = "small", **fields):
    model = dataclasses.replace(topology.RECIPE.model, name=name, norm_group=group)
    return dataclasses.replace(topology.RECIPE, model=model, augment=MEANT, batch_size=64, **fields)


@cache
def one_device(group: int | None, double: bool, name: str = "small"):
    return topology.train(recipe(group, name), **ONE, double=double)


@pytest.mark.xdist_group("topology")
@pytest.mark.parametrize(("devices", "accumulate"), [x for x in product([1, 2, 4, 8], [1, 2, 4]) if x != (1, 1)])
def test_devices_and_accumulation_change_nothing(devices, accumulate, monkeypatch):
    """Two parts are written out one after the other, as on CPUs, and four are a loop, as elsewhere."""
    monkeypatch.setattr(job_module, "make_sweep", partial(make_sweep, unroll=accumulate == 2))
    there = topology.train(recipe(), **ONE | {"devices": devices, "accumulate": accumulate}, double=True)
    assert topology.difference(one_device(2, True), there) < DOUBLE


@pytest.mark.xdist_group("topology")
@pytest.mark.parametrize("setting", [{"devices": 8, "accumulate": 2}])
def test_in_single_precision_they_change_rounding(setting):
    there = topology.train(recipe(), **ONE | setting, double=False)
    assert topology.distance(one_device(2, False), there) < SINGLE


@pytest.mark.xdist_group("topology")
def test_a_group_on_several_devices_is_one_group():
    """Of the whole batch; and of 16 images, half of one of two parts of it on each of 8 devices."""
    assert (
        topology.difference(one_device(None, True), topology.train(recipe(None), **ONE | {"devices": 8}, double=True))
        < DOUBLE
    )
    there = topology.train(recipe(16), **ONE | {"devices": 8, "accumulate": 2}, double=True)
    assert topology.difference(one_device(16, True), there) < DOUBLE


@pytest.mark.xdist_group("topology")
@pytest.mark.parametrize("accumulate", [1, 4])
def test_shards_change_nothing(accumulate):
    there = topology.train(recipe(name="wide"), devices=8, accumulate=accumulate, shard="params", double=True)
    assert topology.difference(one_device(2, True, "wide"), there) < DOUBLE


@pytest.mark.xdist_group("topology")
def test_two_processes_of_four_devices_change_nothing(tmp_path):
    """On loopback; a published network, for a process knows none of ours."""
    published = dataclasses.replace(recipe(), model=dataclasses.replace(topology.RECIPE.model, name="resnet8"))
    there = topology.train_in_processes(published, processes=2, devices=4, double=True)
    assert topology.difference(topology.train(published, **ONE, double=True), there) < DOUBLE


def test_one_topology_gives_the_same_bits():
    runs = [topology.train(recipe(steps=3), **ONE | {"devices": 8}, double=False) for _ in range(2)]
    chex.assert_trees_all_equal(*runs)


def job_on(devices, tmp_path, *, group=2, name="small", accumulate=1, shard="nothing"):
    sources = open_sources(recipe(group, name), tmp_path)
    job = prepare(recipe(group, name), sources.dataset, devices, accumulate=accumulate, shard=shard)
    item = next(training_items(supply(sources.train, job.mesh), 0, 64, range(1)))
    return job, item


def compiled_text(job, item):
    state, sums = abstract(job)
    return make_advance(job).lower(state, sums, item, step_key(job), None).compile().as_text()


@pytest.mark.parametrize("accumulate", [1, 4])
def test_devices_with_whole_groups_meet_twice_a_step(tmp_path, accumulate):
    """All gradients, statistics and totals in one reduction of floats and one of integers."""
    text = compiled_text(*job_on(8, tmp_path, accumulate=accumulate))
    assert 1 <= len(re.findall(r" all-reduce(?:-start)?\(", text)) <= 2
    assert not re.search(r"all-gather|all-to-all|collective-permute|reduce-scatter", text)


def test_groups_on_several_devices_meet_in_every_layer(tmp_path):
    assert len(re.findall(r" all-reduce(?:-start)?\(", compiled_text(*job_on(8, tmp_path, group=None)))) > 2


def test_shards_lie_in_equal_parts_and_are_gathered(tmp_path):
    job, item = job_on(8, tmp_path, name="wide", shard="params")
    state, _ = initial(job)
    kernel = state.params["stage1_block1"]["conv2"]["kernel"]
    assert kernel.shape == (3, 3, 24, 24)
    for leaf in (kernel, state.ema["params"]["stage1_block1"]["conv2"]["kernel"]):
        assert {shard.data.size for shard in leaf.addressable_shards} == {kernel.size // 8}
    momentum = [x for x in jax.tree.leaves(state.opt_state) if x.shape == kernel.shape]
    assert all(shard.data.size == kernel.size // 8 for x in momentum for shard in x.addressable_shards)
    assert state.params["head"]["bias"].is_fully_replicated
    assert "all-gather" in compiled_text(job, item)


def test_where_an_array_is_cut():
    mesh = data_mesh(8)

    def shape(*lengths):
        return spread(jax.ShapeDtypeStruct(lengths, jnp.float32), mesh).spec

    assert shape(3, 3, 64, 128) == P(None, None, None, "data")
    assert shape(3, 3, 128, 65) == P(None, None, "data")
    assert shape(3, 3, 63, 65) == P()
    assert shape(64) == P()


def test_what_has_to_stay_together():
    assert unit_of(recipe(2), BatchNorm) == 2
    assert unit_of(recipe(None), BatchNorm) == 64
    assert unit_of(recipe(None), group_norm) == 2  # the pairs of mixup
    assert unit_of(dataclasses.replace(recipe(1), augment=Augment()), BatchNorm) == 1


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
def test_possible_parts(batch, unit, devices, parts):
    assert possible_parts(batch, unit, devices) == parts


def test_a_cut_group_is_refused_with_the_nearest_choice():
    with pytest.raises(
        InputError, match=r"--accumulate is 3; the batch of 64, in groups of 16, on devices: 8, .* 1, 2, 4: take 2"
    ):
        require_parts(64, 16, 8, 3)
    with pytest.raises(InputError, match="--accumulate is 0"):
        require_parts(64, 16, 8, 0)
