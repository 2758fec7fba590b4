"""Published networks: exact parameter counts and multiply-adds."""

import jax
import jax.numpy as jnp
import pytest

from resnet_jax.errors import InputError
from resnet_jax.model.blocks import SHORTCUTS
from resnet_jax.model.zoo import MODELS, create, image_size
from resnet_jax.summary import count_parameters, summarize

# torchvision's documentation; for the CIFAR family the counts that follow from He et al. 2015, section 4.2, option A
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "resnet1202": 19_421_274,
}
# torchvision's documentation, in units of 1e9
MULTIPLY_ADDS = {"resnet18": 1.814, "resnet34": 3.664, "resnet50": 4.089, "resnet101": 7.801, "resnet152": 11.514}


def variables(model, channels=3):
    size = image_size(model)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, size, size, channels))))


def size_of(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    assert size_of(variables(MODELS[name])["params"]) == PARAMETERS[name]


@pytest.mark.parametrize("name", [name for name in MODELS if "1202" not in name])
def test_count_parameters_counts_what_is_there(name):
    size = image_size(MODELS[name])
    assert count_parameters(MODELS[name], (size, size, 3)) == size_of(variables(MODELS[name])["params"])


def test_count_parameters_of_the_deepest():
    assert count_parameters(MODELS["resnet1202"], (32, 32, 3)) == PARAMETERS["resnet1202"]


@pytest.mark.parametrize("name", MULTIPLY_ADDS)
def test_multiply_adds(name):
    rows = summarize(MODELS[name], (224, 224, 3))
    assert round(sum(row.multiply_adds for row in rows) / 1e9, 3) == MULTIPLY_ADDS[name]
    assert sum(row.parameters for row in rows) == PARAMETERS[name]


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_plain_twins_have_the_parameters_of_option_a(depth):
    plain, residual = MODELS[f"plain{depth}"], MODELS[f"resnet{depth}"]
    assert variables(plain) == variables(residual)
    assert plain.clone(shortcut=SHORTCUTS["A"]) == residual


def test_original_bottleneck_has_fewer_multiply_adds_and_as_many_parameters():
    costs = {
        name: sum(r.multiply_adds for r in summarize(MODELS[name], (224, 224, 3)))
        for name in ("resnet50", "resnet50_v1")
    }
    assert round(costs["resnet50_v1"] / 1e9, 1) == 3.9  # 3.8 in He et al. 2015, table 1, which rounds down
    assert costs["resnet50_v1"] < costs["resnet50"]


def test_a_network_is_a_value():
    assert create("resnet50") == MODELS["resnet50"]
    assert create("resnet50", num_classes=10) != MODELS["resnet50"]
    assert create("resnet50", num_classes=10).depths == (3, 4, 6, 3)


def test_unknown_names():
    with pytest.raises(InputError, match="unknown model 'resnet51'; nearest: .*resnet50"):
        create("resnet51")
    with pytest.raises(TypeError, match="colour"):
        create("resnet50", colour="red")


def test_heads_and_channels():
    x = jnp.zeros((2, 32, 32, 1))
    features = create("resnet20", num_classes=0)
    v = jax.eval_shape(lambda: features.init(jax.random.key(0), x))
    assert "head" not in v["params"]
    assert jax.eval_shape(lambda v: features.apply(v, x), v).shape == (2, 64)
    assert v["params"]["stem"]["conv"]["kernel"].shape == (3, 3, 1, 16)
