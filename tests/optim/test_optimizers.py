"""Updates against the papers' formulas; what is frozen, scaled and clipped.

Against PyTorch and timm: tests/parity/test_optimizer.py.
"""

from dataclasses import replace
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet_jax.errors import InputError
from resnet_jax.optim.masks import decay_mask, frozen_mask, rate_factors
from resnet_jax.optim.optimizers import RULES, make_optimizer
from resnet_jax.optim.schedule_free import gradient_point
from resnet_jax.recipe import Optimizer
from resnet_jax.weights.load import create_model

TREE = {
    "stem": {"conv": {"kernel": (3, 3, 2, 4)}, "norm": {"scale": (4,), "bias": (4,)}},
    "stage1_block1": {"conv1": {"kernel": (3, 3, 4, 4)}},
    "stage1_block2": {"conv1": {"kernel": (1, 1, 4, 4)}},
    "head": {"kernel": (4, 3), "bias": (3,)},
}
RATE = 0.1


def gradient_at(optimizer):
    """Where the gradient is taken, by optimiser state and parameters."""
    if optimizer.name.startswith("schedule_free"):
        return partial(gradient_point, b1=optimizer.b1)
    return lambda state, params: params


def drawn(seed):
    """A small tree of random numbers, float32."""
    random = np.random.default_rng(seed)
    draw = lambda shape: jnp.asarray(random.normal(size=shape), jnp.float32)  # noqa: E731
    return jax.tree.map(draw, TREE, is_leaf=lambda leaf: isinstance(leaf, tuple))


def made(optimizer, rate=RATE):
    return make_optimizer(optimizer, optax.constant_schedule(rate), drawn(0))


def change(optimizer, rate=RATE, steps=1):
    """The last change of several steps with gradients of their own, each from the same parameters."""
    transform, params = made(optimizer, rate), drawn(0)
    state, update = transform.init(params), jax.jit(transform.update)
    for step in range(steps):
        updates, state = update(drawn(step + 1), state, params)
    return updates


@pytest.fixture(scope="module")
def resnet20():
    model = create_model("resnet20")
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3))))["params"]


@pytest.mark.parametrize(
    ("scope", "conv", "scale", "head_bias"), [("all", 1, 1, 1), ("no_norm", 1, 0, 1), ("kernels", 1, 0, 0)]
)
def test_what_decays(resnet20, scope, conv, scale, head_bias):
    mask = decay_mask(resnet20, scope)
    assert jax.tree.structure(mask) == jax.tree.structure(resnet20)
    block = mask["stage1_block1"]
    assert (block["conv1"]["kernel"], block["norm1"]["scale"], mask["head"]["bias"]) == (conv, scale, head_bias)
    assert block["norm1"]["bias"] == scale
    assert mask["head"]["kernel"]


def test_without_norm_the_biases_of_other_layers_decay():
    params = {
        "stage1_block1": {"gate": {"fc1": {"bias": 0}}, "shortcut": {"norm": {"scale": 0, "bias": 0}}},
        "BatchNorm_0": {"scale": 0, "bias": 0},
        "bn1": {"scale": 0, "bias": 0},
        "Dense_0": {"kernel": 0, "bias": 0},
        "bias": 0,
    }
    mask = decay_mask(params, "no_norm")
    assert mask["stage1_block1"] == {"gate": {"fc1": {"bias": True}}, "shortcut": {"norm": {"scale": 0, "bias": 0}}}
    assert not any(jax.tree.leaves((mask["BatchNorm_0"], mask["bn1"])))
    assert all(jax.tree.leaves((mask["Dense_0"], mask["bias"])))


def test_unknown_names():
    with pytest.raises(InputError, match="unknown optimizer.weight_decay_mask 'kernel'; nearest: kernels"):
        decay_mask({}, "kernel")
    with pytest.raises(InputError, match="unknown optimizer.name 'adamx'; nearest: adam"):
        made(Optimizer(name="adamx"))


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_is_that_of_pytorch(nesterov):
    """torch.optim.SGD's documented algorithm: g += wd p; v = m v + g; g = g + m v or v; p -= lr g."""
    rate = lambda step: 0.1 / (step + 1)  # noqa: E731
    params = {"kernel": jnp.array([1.0, -2.0])}
    transform = make_optimizer(Optimizer(momentum=0.9, nesterov=nesterov, weight_decay=0.1), rate, params)
    state = transform.init(params)
    p, v = np.array([1.0, -2.0]), np.zeros(2)
    for step in range(5):
        grad = np.array([0.3 * step, 1.0])
        updates, state = transform.update({"kernel": jnp.asarray(grad)}, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        g = grad + 0.1 * p
        v = 0.9 * v + g
        p = p - rate(step) * (g + 0.9 * v if nesterov else v)
        np.testing.assert_allclose(params["kernel"], p, rtol=1e-5)


def test_without_momentum_there_is_no_momentum_to_keep():
    for name in ("sgd", "rmsprop", "lars"):
        sizes = [
            sum(leaf.size for leaf in jax.tree.leaves(made(Optimizer(name=name, momentum=m)).init(drawn(0))))
            for m in (0.9, 0.0)
        ]
        assert sizes[0] == sizes[1] + sum(leaf.size for leaf in jax.tree.leaves(drawn(0))), name


@pytest.mark.parametrize("name", RULES)
def test_every_optimizer_goes_down(name):
    """Towards 0 on the sum of squares, also where parts are frozen, clipped and have rates of their own."""
    lr = {"sgd": 0.05, "lars": 0.5, "muon": 0.05, "schedule_free_sgd": 0.05}.get(name, 0.02)
    trust = {"trust_coefficient": 0.1} if name == "lars" else {}
    decay = 1.0 if name.startswith("schedule_free") else 0.9
    optimizer = Optimizer(name=name, lr=lr, clip_grad_norm=5.0, layer_decay=decay, freeze=("stem/norm",), **trust)
    point = gradient_at(optimizer)
    params = drawn(0)
    transform = make_optimizer(optimizer, optax.constant_schedule(lr), params)

    @jax.jit
    def step(params, state):
        updates, state = transform.update(jax.tree.map(lambda p: 2 * p, point(state, params)), state, params)
        return optax.apply_updates(params, updates), state

    state = transform.init(params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    after = params
    for _ in range(40):
        after, state = step(after, state)
    chex.assert_trees_all_equal(after["stem"]["norm"], params["stem"]["norm"])
    moved = {**params, "stem": params["stem"]["conv"]}, {**after, "stem": after["stem"]["conv"]}
    for old, new in zip(*map(jax.tree.leaves, moved), strict=True):
        assert np.linalg.norm(np.ravel(new)) < 0.8 * np.linalg.norm(np.ravel(old))


@pytest.mark.parametrize("name", RULES)
def test_only_what_is_in_scope_decays(name):
    """With gradients of 0, what moves moves by its decay alone, with momentum once more where it is Nesterov's."""
    optimizer = Optimizer(name=name, weight_decay=0.01, weight_decay_mask="kernels", momentum=0.0, eps=1e-3)
    transform, params = made(optimizer), drawn(0)
    updates, _ = jax.jit(transform.update)(jax.tree.map(jnp.zeros_like, params), transform.init(params), params)
    expected = {
        "rmsprop": lambda p: -RATE * 0.01 * p / np.sqrt(0.999 + 0.001 * (0.01 * p) ** 2 + 1e-3),
        "adam": lambda p: -RATE * 0.01 * p / (np.abs(0.01 * p) + 1e-3),
        "lamb": lambda p: -RATE * p,  # the change, 0.01 p, is given the norm of p
    }.get(name, lambda p: -RATE * 0.01 * p)  # lars: with a gradient of 0 its rate is 1
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        param = np.asarray(
            params[path[0].key][path[1].key][path[2].key] if len(path) == 3 else params["head"][path[1].key]
        )
        if path[-1].key == "kernel":
            # The difference of z and x is rounded like them
            atol = 1e-6 if name.startswith("schedule_free") else 0
            np.testing.assert_allclose(update, expected(param), rtol=1e-4, atol=atol)
        else:
            assert not update.any()


def test_rates_of_the_layers_are_those_of_lars():
    """You et al. 2017, equation 6: trust_coefficient |w| / (|g| + decay |w|)."""
    optimizer = Optimizer(
        name="lars", momentum=0.0, weight_decay=0.1, trust_coefficient=0.01, weight_decay_mask="kernels", eps=0.0
    )
    updates, w, g = change(optimizer), drawn(0)["head"], drawn(1)["head"]
    norm = lambda x: float(np.linalg.norm(np.ravel(x)))  # noqa: E731
    rate = 0.01 * norm(w["kernel"]) / (norm(g["kernel"]) + 0.1 * norm(w["kernel"]))
    np.testing.assert_allclose(updates["head"]["kernel"], -RATE * rate * (g["kernel"] + 0.1 * w["kernel"]), rtol=1e-5)
    np.testing.assert_allclose(updates["head"]["bias"], -RATE * g["bias"], rtol=1e-6)


def test_muon_makes_changes_of_convolutions_orthogonal():
    """Singular values of a kernel as a matrix of inputs by outputs are nearly alike; entries are of AdamW's size."""
    updates = change(Optimizer(name="muon", weight_decay=0.0, momentum=0.95))
    for name, width in (("stem", 18), ("stage1_block1", 36)):
        kernel = np.asarray(jax.tree.leaves(updates[name])[0]).reshape(width, 4)
        values = np.linalg.svd(kernel, compute_uv=False) / (RATE * 0.2 * width**0.5)
        assert values.min() > 0.6
        assert values.max() < 1.3
    np.testing.assert_allclose(jnp.abs(updates["head"]["kernel"]), RATE, rtol=1e-3)  # Adam's first step


def test_clipping_by_the_norm_of_all_gradients():
    plain = Optimizer(momentum=0.0, weight_decay=0.0)
    free, clipped = change(plain), change(replace(plain, clip_grad_norm=0.5))
    factor = 0.5 / float(optax.tree.norm(drawn(1)))
    chex.assert_trees_all_close(clipped, jax.tree.map(lambda u: factor * u, free), rtol=1e-5)
    chex.assert_trees_all_close(change(replace(plain, clip_grad_norm=100.0)), free, rtol=1e-6)


def test_what_is_frozen_does_not_count_in_the_norm():
    plain = Optimizer(momentum=0.0, weight_decay=0.0, clip_grad_norm=0.5, freeze=("st*",))
    factor = 0.5 / float(optax.tree.norm(drawn(1)["head"]))
    updates = change(plain)
    np.testing.assert_allclose(updates["head"]["bias"], -RATE * factor * drawn(1)["head"]["bias"], rtol=1e-5)
    assert not any(leaf.any() for leaf in jax.tree.leaves({**updates, "head": {}}))
    nan = {**jax.tree.map(lambda g: g * np.nan, drawn(1)), "head": drawn(1)["head"]}
    transform = made(plain)
    again, _ = jax.jit(transform.update)(nan, transform.init(drawn(0)), drawn(0))
    chex.assert_trees_all_equal(again, updates)


def test_clipping_by_the_norm_of_each_output_channel():
    """Brock et al. 2021, equation 3: |g_i| at most share * max(|w_i|, 1e-3), of each output i; not the head."""
    optimizer = Optimizer(momentum=0.0, weight_decay=0.0, agc_clipping=0.2)
    updates, w, g = change(optimizer), drawn(0), drawn(1)
    kernel, weight = (np.asarray(tree["stem"]["conv"]["kernel"]).reshape(-1, 4) for tree in (g, w))
    most = 0.2 * np.linalg.norm(weight, axis=0)
    expected = kernel * np.minimum(1, most / np.linalg.norm(kernel, axis=0))
    np.testing.assert_allclose(updates["stem"]["conv"]["kernel"].reshape(-1, 4), -RATE * expected, rtol=1e-5)
    scale, weight = np.asarray(g["stem"]["norm"]["scale"]), np.asarray(w["stem"]["norm"]["scale"])
    factor = min(1, 0.2 * np.linalg.norm(weight) / np.linalg.norm(scale))
    np.testing.assert_allclose(updates["stem"]["norm"]["scale"], -RATE * factor * scale, rtol=1e-5)
    np.testing.assert_allclose(updates["head"]["kernel"], -RATE * g["head"]["kernel"], rtol=1e-6)


@pytest.mark.parametrize("shape", [(3, 2, 4), (3, 3, 3, 2, 4)], ids=["sequence", "video"])
def test_output_channels_of_other_ranks(shape):
    random = np.random.default_rng(0)
    weight, gradient = ({"conv": {"kernel": jnp.asarray(random.normal(size=shape), jnp.float32)}} for _ in range(2))
    optimizer = Optimizer(momentum=0.0, weight_decay=0.0, agc_clipping=1e-3)
    transform = make_optimizer(optimizer, optax.constant_schedule(1.0), weight)
    updates, _ = transform.update(gradient, transform.init(weight), weight)
    norms = [np.linalg.norm(np.asarray(x["conv"]["kernel"]).reshape(-1, 4), axis=0) for x in (updates, weight)]
    np.testing.assert_allclose(norms[0], 1e-3 * norms[1], rtol=1e-4)


@pytest.mark.parametrize(
    ("patterns", "frozen"),
    [
        (("stem",), 3),
        (("stem", "stage1_*"), 22 - 1),
        (("*/bias",), 20),
        (("stage2_block1/conv1/kernel",), 1),
        (("stage?_block1/conv1",), 3),
    ],
    ids=str,
)
def test_patterns_freeze_what_is_at_and_below_them(resnet20, patterns, frozen):
    mask = frozen_mask(resnet20, patterns)
    assert jax.tree.structure(mask) == jax.tree.structure(resnet20)
    assert sum(jax.tree.leaves(mask)) == frozen


def test_frozen_parameters_have_no_state(resnet20):
    optimizer = Optimizer(name="adamw", freeze=("stem", "stage*"))
    transform = make_optimizer(optimizer, optax.constant_schedule(0.1), resnet20)
    state = jax.eval_shape(transform.init, resnet20)
    head = sum(leaf.size for leaf in jax.tree.leaves(resnet20["head"]))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 2 * head + 2  # and two counters


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (("stemm",), "'stemm' is no parameter; nearest: stem"),
        (("stage1_block1/conv9",), "'stage1_block1/conv9' is no parameter; nearest: stage1_block1/conv"),
        (("zzzz",), "'zzzz' is no parameter; nearest: head, stage1_block1"),
        (("*",), "leaves nothing to train; leave out the head"),
    ],
)
def test_patterns_that_make_no_sense(resnet20, patterns, message):
    with pytest.raises(InputError, match=message):
        frozen_mask(resnet20, patterns)


def test_rates_fall_from_the_head_to_the_stem(resnet20):
    factors = rate_factors(resnet20, Optimizer(layer_decay=0.5, head_lr_mult=10.0))
    tops = {top: set(jax.tree.leaves(factors[top])) for top in factors}
    assert tops["head"] == {10.0}
    assert tops["stage3_block3"] == {0.5}
    assert tops["stage3_block1"] == {0.5**3}
    assert tops["stage1_block1"] == {0.5**9}
    assert tops["stem"] == {0.5**10}


def test_blocks_are_counted_as_numbers_and_the_last_norm_with_the_last():
    model = create_model("resnet164v2")
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3))))["params"]
    factors = rate_factors(params, Optimizer(layer_decay=0.5))
    blocks = {top: max(jax.tree.leaves(factors[top])) for top in params}
    assert blocks["norm"] == blocks["stage3_block18"] == 0.5
    assert blocks["stage3_block9"] == 0.5**10  # after block 10 in the alphabet
    assert blocks["stem"] == 0.5**55


@pytest.mark.parametrize("name", RULES)
def test_rates_of_parts_are_learning_rates(name):
    """Of every optimiser, also where the learning rate comes before the momentum."""
    optimizer = Optimizer(name=name, layer_decay=0.5, head_lr_mult=10.0)
    even = change(replace(optimizer, layer_decay=1.0, head_lr_mult=1.0), steps=3)
    uneven = change(optimizer, steps=3)
    factors = {"stem": 0.125, "stage1_block1": 0.25, "stage1_block2": 0.5, "head": 10.0}
    for top, factor in factors.items():
        chex.assert_trees_all_close(uneven[top], jax.tree.map(lambda u, f=factor: f * u, even[top]), rtol=1e-5)


def descend(optimizer, rate, steps=6):
    """The parameters after some steps down the sum of squares of p - 1, from 2 and -2, and the last state."""
    params = {"kernel": jnp.array([2.0, -2.0])}
    transform = make_optimizer(optimizer, rate, params)
    state, point = transform.init(params), gradient_at(optimizer)
    for _ in range(steps):
        grads = jax.tree.map(lambda p: 2 * (p - 1), point(state, params))
        updates, state = transform.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return np.asarray(params["kernel"]), state


def test_schedule_free_is_that_of_the_paper():
    """Defazio et al. 2024, algorithm 1, with averages weighted by the square of the largest rate so far."""
    rate = lambda step: 0.1 * jnp.minimum((step + 1) / 3, 1)  # noqa: E731
    ours, _ = descend(Optimizer(name="schedule_free_sgd", b1=0.9, weight_decay=0.01), rate)
    x = z = np.array([2.0, -2.0])
    total = 0.0
    for step in range(6):
        lr = 0.1 * min((step + 1) / 3, 1)
        y = 0.1 * z + 0.9 * x
        z = z - lr * (2 * (y - 1) + 0.01 * y)
        total += lr**2
        x = (1 - lr**2 / total) * x + lr**2 / total * z
    np.testing.assert_allclose(ours, x, rtol=1e-5)


def test_schedule_free_adamw_is_adam_without_momentum_in_that_place():
    ours, _ = descend(Optimizer(name="schedule_free_adamw", b1=0.8, b2=0.9, weight_decay=0.1), lambda step: 0.05)
    x = z = np.array([2.0, -2.0])
    v = np.zeros(2)
    for step in range(1, 7):
        y = 0.2 * z + 0.8 * x
        g = 2 * (y - 1)
        v = 0.9 * v + 0.1 * g**2
        z = z - 0.05 * (g / (np.sqrt(v / (1 - 0.9**step)) + 1e-8) + 0.1 * y)
        x = (1 - 1 / step) * x + z / step
    np.testing.assert_allclose(ours, x, rtol=1e-5)


def test_lion_is_that_of_the_paper():
    """Chen et al. 2023, program 1."""
    ours, _ = descend(Optimizer(name="lion", b1=0.9, b2=0.99, weight_decay=0.1), lambda step: 0.05)
    p, m = np.array([2.0, -2.0]), np.zeros(2)
    for _ in range(6):
        g = 2 * (p - 1)
        update, m = np.sign(0.9 * m + 0.1 * g), 0.99 * m + 0.01 * g
        p = p - 0.05 * (update + 0.1 * p)
    np.testing.assert_allclose(ours, p, rtol=1e-5)


def test_adafactor_is_that_of_the_paper_and_decays_with_the_rate():
    """Shazeer and Stern 2018, algorithm 4 for a vector; relative step sizes by the size of the parameters."""
    ours, _ = descend(Optimizer(name="adafactor", weight_decay=0.1), lambda step: 0.05)
    p, v = np.array([2.0, -2.0]), np.zeros(2)
    rms = lambda x: np.sqrt(np.mean(x**2))  # noqa: E731
    for step in range(1, 7):
        g = 2 * (p - 1)
        decay = 1 - step**-0.8
        v = decay * v + (1 - decay) * (g**2 + 1e-30)
        u = g / np.sqrt(v)
        u = u / max(1.0, rms(u))
        p = p - 0.05 * (u * max(rms(p), 1e-3) + 0.1 * p)
    np.testing.assert_allclose(ours, p, rtol=1e-4)


def test_the_factor_of_a_plateau_scales_the_rate_of_any_rule():
    params = {"kernel": jnp.array([2.0, -2.0])}
    for name in ("sgd", "rmsprop", "adamw"):
        optimizer = Optimizer(name=name, weight_decay=0.0)
        transform = make_optimizer(optimizer, lambda step: 0.1, params, plateau=True)
        slower = make_optimizer(optimizer, lambda step: 0.1 * jnp.where(step < 1, 1.0, 0.5), params)
        state, other = transform.init(params), slower.init(params)
        for step in range(3):
            if step == 1:
                state = optax.tree.set(state, factor=jnp.float32(0.5))
            updates, state = transform.update(params, state, params)
            expected, other = slower.update(params, other, params)
            chex.assert_trees_all_close(updates, expected, rtol=1e-6)
