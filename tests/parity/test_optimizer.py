"""Several steps of every optimiser against torch.optim and timm, and learning rates against torch's schedules.

The gradients are random, so each step has another; parameters, in the layout of linen, are the same on both sides.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from timm.optim import Lamb, Lars, RMSpropTF
from timm.utils.agc import adaptive_clip_grad

from resnet_jax.optim.optimizers import make_optimizer
from resnet_jax.optim.schedules import learning_rate, plateau_factor
from resnet_jax.recipe import Optimizer, Recipe, Schedule

SHAPES = {
    "stem": {"conv": {"kernel": (3, 3, 2, 8)}, "norm": {"scale": (8,)}},
    "head": {"kernel": (8, 4), "bias": (4,)},
}
STEPS = 5


def drawn(seed):
    random = np.random.default_rng(seed)
    draw = lambda shape: random.normal(size=shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, SHAPES, is_leaf=lambda leaf: isinstance(leaf, tuple))


def ours(optimizer):
    """The parameters after some steps."""
    params = jax.tree.map(jnp.asarray, drawn(0))
    transform = make_optimizer(optimizer, optax.constant_schedule(optimizer.lr), params)
    state = transform.init(params)
    for step in range(STEPS):
        updates, state = transform.update(jax.tree.map(jnp.asarray, drawn(step + 1)), state, params)
        params = optax.apply_updates(params, updates)
    return params


def theirs(make, decay, clip=lambda tensors: None):
    """Likewise; kernels decay and are a group of their own."""
    leaves, tree = jax.tree.flatten(drawn(0))
    tensors = [torch.nn.Parameter(torch.tensor(leaf)) for leaf in leaves]
    kernels, others = ([t for t in tensors if (t.ndim > 1) == kernel] for kernel in (True, False))
    optimizer = make([{"params": kernels, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}])
    for step in range(STEPS):
        for tensor, gradient in zip(tensors, jax.tree.leaves(drawn(step + 1)), strict=True):
            tensor.grad = torch.tensor(gradient)
        clip(tensors)
        optimizer.step()
    return jax.tree.unflatten(tree, [tensor.detach().numpy() for tensor in tensors])


def assert_same(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **({"rtol": 1e-5, "atol": 1e-6} | tolerance))


def kernels_only(name, **fields):
    return Optimizer(name=name, weight_decay=0.05, weight_decay_mask="kernels", **fields)


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd(nesterov):
    optimizer = kernels_only("sgd", lr=0.1, momentum=0.9, nesterov=nesterov)
    assert_same(ours(optimizer), theirs(lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=nesterov), 0.05))


def test_adamw():
    optimizer = kernels_only("adamw", lr=0.01, b1=0.8, b2=0.99, eps=1e-6)
    assert_same(ours(optimizer), theirs(lambda p: torch.optim.AdamW(p, 0.01, (0.8, 0.99), 1e-6), 0.05))


def test_adam():
    optimizer = kernels_only("adam", lr=0.01, b1=0.8, b2=0.99, eps=1e-6)
    assert_same(ours(optimizer), theirs(lambda p: torch.optim.Adam(p, 0.01, (0.8, 0.99), 1e-6), 0.05))


@pytest.mark.parametrize("factor", [1, 2])
def test_cosine_with_restarts(factor):
    name, fields = "cosine_restarts", {"restart_every": 10, "restart_mult": factor, "end_factor": 0.1}
    recipe = Recipe(epochs=None, steps=80, schedule=Schedule(name=name, warmup=0, **fields), optimizer=Optimizer(lr=2))
    rate, torchs = learning_rate(recipe, 1), torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 2.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(torchs, 10, factor, eta_min=0.2)
    for step in range(80):
        assert float(rate(step)) == pytest.approx(torchs.param_groups[0]["lr"], rel=1e-5), step
        torchs.step()
        schedule.step()


@pytest.mark.parametrize("patience", [0, 2])
def test_plateau(patience):
    losses = np.random.default_rng(0).normal(size=60).cumsum() ** 2 + 1
    schedule = Schedule(name="plateau", gamma=0.5, plateau_patience=patience, end_factor=0.01)
    torchs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(torchs, factor=0.5, patience=patience, min_lr=0.01)
    found = []
    for count, loss in enumerate(losses, 1):
        theirs.step(loss)
        found.append(plateau_factor(losses[:count], schedule))
        assert found[-1] == pytest.approx(torchs.param_groups[0]["lr"])
    assert len(set(found)) > 3


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_rmsprop_is_that_of_tensorflow(momentum):
    optimizer = kernels_only("rmsprop", lr=0.01, momentum=momentum, b2=0.9, eps=1e-3)
    assert_same(ours(optimizer), theirs(lambda p: RMSpropTF(p, 0.01, 0.9, 1e-3, momentum=momentum), 0.05))


def test_lamb_with_the_clipping_that_is_built_into_timms():
    optimizer = kernels_only("lamb", lr=0.01, b1=0.9, b2=0.99, eps=1e-6, clip_grad_norm=1.0)
    assert_same(ours(optimizer), theirs(lambda p: Lamb(p, 0.01, betas=(0.9, 0.99), eps=1e-6, max_grad_norm=1.0), 0.05))


@pytest.mark.parametrize("nesterov", [True, False])
def test_lars(nesterov):
    """At one learning rate: ours is within the momentum, as in the paper, and timm's after it."""
    optimizer = kernels_only("lars", lr=0.5, momentum=0.9, nesterov=nesterov, trust_coefficient=0.02)
    expected = theirs(lambda p: Lars(p, 0.5, momentum=0.9, nesterov=nesterov, trust_coeff=0.02), 0.05)
    assert_same(ours(optimizer), expected)


def test_muon():
    """Without Nesterov's momentum, for optax corrects the bias of its two summands differently, and torch of neither.

    torch takes matrices, of outputs by inputs, and iterates in bfloat16, which leaves two digits.
    """
    optimizer = kernels_only("muon", lr=0.01, momentum=0.9, nesterov=False)

    def muon(groups):
        kernel = next(tensor for group in groups for tensor in group["params"] if tensor.ndim == 4)
        rest = [{**group, "params": [t for t in group["params"] if t is not kernel]} for group in groups]
        matrix = torch.nn.Parameter(kernel.detach().reshape(18, 8).T)  # shares the memory
        how = {"momentum": 0.9, "nesterov": False, "adjust_lr_fn": "match_rms_adamw"}
        first, second = torch.optim.Muon([matrix], 0.01, 0.05, **how), torch.optim.AdamW(rest, 0.01)

        class Both:
            def step(self):
                matrix.grad = kernel.grad.reshape(18, 8).T
                first.step()
                second.step()

        return Both()

    result, expected = ours(optimizer), theirs(muon, 0.05)
    assert_same(result["head"], expected["head"])
    kernels = [tree["stem"]["conv"]["kernel"] - drawn(0)["stem"]["conv"]["kernel"] for tree in (result, expected)]
    assert np.linalg.norm(kernels[0] - kernels[1]) < 0.02 * np.linalg.norm(kernels[1])


def test_clipping_by_the_norm_of_all():
    optimizer = kernels_only("sgd", lr=0.1, clip_grad_norm=2.0)
    expected = theirs(
        lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True),
        0.05,
        lambda tensors: torch.nn.utils.clip_grad_norm_(tensors, 2.0),
    )
    assert_same(ours(optimizer), expected)


def test_adaptive_clipping_of_all_but_the_head():
    """timm's units are the first axis of a tensor, ours the last."""

    def clip(tensors):
        for tensor in (t for t in tensors if t.shape[-1] == 8 or t.ndim == 4):
            turned = torch.nn.Parameter(tensor.detach().movedim(-1, 0).clone())
            turned.grad = tensor.grad.movedim(-1, 0).clone()
            adaptive_clip_grad(turned, 0.1)
            tensor.grad = turned.grad.movedim(0, -1)

    optimizer = kernels_only("sgd", lr=0.1, agc_clipping=0.1)
    assert_same(ours(optimizer), theirs(lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True), 0.05, clip))


def torch_rates(make, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.5, 0.9)
    schedule, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return np.array(rates)


def our_rates(recipe, size, steps):
    schedule = learning_rate(recipe, size)
    return np.array([float(schedule(step)) for step in steps])


@pytest.mark.parametrize("anneal", ["cosine", "linear"])
@pytest.mark.parametrize(("steps", "rise"), [(20, 0.3), (101, 0.37)])
def test_one_cycle(steps, rise, anneal):
    fields = {"warmup": 0, "pct_start": rise, "div_factor": 20.0, "final_div_factor": 1e3, "anneal_strategy": anneal}
    recipe = Recipe(epochs=None, steps=steps, schedule=Schedule(name="onecycle", **fields), optimizer=Optimizer(lr=0.5))
    how = {"pct_start": rise, "anneal_strategy": anneal[:3] if anneal == "cosine" else anneal}
    expected = torch_rates(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(
            o, 0.5, steps, div_factor=20.0, final_div_factor=1e3, cycle_momentum=False, **how
        ),
        steps,
    )
    np.testing.assert_allclose(our_rates(recipe, 1, range(steps)), expected, rtol=1e-5, atol=1e-7)


def test_warm_up_and_cosine_of_torchvisions_reference_at_the_start_of_each_epoch():
    """references/classification/train.py: 5 epochs from 0.01 and a cosine, moved once an epoch."""
    recipe = Recipe(
        epochs=30, batch_size=10, schedule=Schedule(warmup=5, warmup_start_factor=0.01), optimizer=Optimizer(lr=0.5)
    )

    def schedules(optimizer):
        warm = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=5)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=25)
        return torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], milestones=[5])

    steps_an_epoch = 7
    result = our_rates(recipe, 70, range(0, 30 * steps_an_epoch, steps_an_epoch))
    np.testing.assert_allclose(result, torch_rates(schedules, 30), rtol=1e-4, atol=1e-6)
    between = our_rates(recipe, 70, [3])[0]  # in the first epoch, theirs stays at 0.005
    assert between > 0.04
