"""Published networks: exact parameter counts and multiply-adds."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import pytest
from jax.nn.initializers import zeros

from resnet_jax.errors import InputError
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.shortcuts import SHORTCUTS
from resnet_jax.models.summary import _published_costs, model_cost, published_cost, summarize
from resnet_jax.models.zoo import MODELS
from resnet_jax.weights.load import create_model

# torchvision's documentation; for the CIFAR family the counts that follow from He et al. 2015, section 4.2, option A
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet8": 75_290,
    "resnet8_mlperf_tiny": 78_186,
    "resnet14": 172_506,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "resnet1202": 19_421_274,
    # torchvision's
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "resnext101_32x48d": 828_411_176,
    "r3d_18": 33_371_472,
    "mc3_18": 11_695_440,
    "r2plus1d_18": 31_505_325,
    "mobilenet_v2": 3_504_872,
    # timm's
    "seresnet50": 28_088_024,
    "seresnext50_32x4d": 27_559_896,
    "resnet50d": 25_576_264,
    "resnetrs50": 35_691_912,
    "resnet50v2": 25_549_352,
    "resnetv2_50x1_bit": 25_549_352,
    # in millions in Zagoruyko and Komodakis 2016, table 4
    "wrn_16_8": 10_961_370,
    "wrn_28_10": 36_479_194,
    "wrn_40_4": 8_949_210,
    # torchvision's, with their auxiliary heads
    "fcn_resnet50": 35_322_218,
    "fcn_resnet101": 54_314_346,
    "deeplabv3_resnet50": 42_004_074,
    "deeplabv3_resnet101": 60_996_202,
    # Without what is frozen
    "retinanet_resnet50_fpn": 34_014_999,
    "retinanet_resnet50_fpn_v2": 38_198_935,
    "fcos_resnet50_fpn": 32_269_600,
    "fasterrcnn_resnet50_fpn": 41_755_286,
    "fasterrcnn_resnet50_fpn_v2": 43_712_278,
    # the widths of ImageNet on CIFAR, as in many published repositories
    "resnet18_cifar": 11_173_962,
}
# torchvision's documentation, in units of 1e9
MULTIPLY_ADDS = {
    "resnet18": 1.814,
    "resnet34": 3.664,
    "resnet50": 4.089,
    "resnet101": 7.801,
    "resnet152": 11.514,
    "wide_resnet50_2": 11.398,
    "wide_resnet101_2": 22.753,
    "resnext50_32x4d": 4.230,
    "resnext101_32x8d": 16.414,
    "resnext101_64x4d": 15.460,
    "r3d_18": 40.697,
    "mc3_18": 43.343,
    "r2plus1d_18": 40.519,
    "mobilenet_v2": 0.301,
    "fcn_resnet50": 152.717,
    "fcn_resnet101": 232.738,
    "deeplabv3_resnet50": 178.722,
    "deeplabv3_resnet101": 258.743,
    "retinanet_resnet50_fpn": 151.540,
    "retinanet_resnet50_fpn_v2": 152.238,
    "fcos_resnet50_fpn": 128.207,
    "fasterrcnn_resnet50_fpn": 134.380,
    "fasterrcnn_resnet50_fpn_v2": 280.371,
}


@lru_cache
def variables(model):
    """Shapes of what a network draws; of zeros, for to trace how random numbers are drawn takes longest."""

    def conv(features, *, kernel_init, **fields):
        return model.conv(features, kernel_init=zeros, **fields)

    network = model.clone(conv=conv)
    return jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, *model.input_shape))))


def size_of(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_parameters(name):
    assert model_cost(MODELS[name]).parameters == PARAMETERS[name]


def test_mlperf_tiny_counts_running_statistics_too():
    """As Keras does for the reference: with 2 for each of 16 + 16 + 16, 32 + 32 and 64 + 64 channels."""
    found = variables(MODELS["resnet8_mlperf_tiny"])
    assert size_of(found["batch_stats"]) == 480
    assert size_of(found) == 78_666


def at_most_three_blocks(model):
    """That many in each stage: one more than `model_cost` looks at."""
    return model.clone(depths=tuple(min(depth, 3) for depth in model.depths))


# Many networks differ in depth alone: the last of them stands for all
CLASSIFIERS = [name for name, model in MODELS.items() if isinstance(model, ResNet)]
KINDS = {at_most_three_blocks(MODELS[name]): name for name in CLASSIFIERS}


def parts_of(model):
    names = ("block", "stem", "shortcut", "gate", "conv", "norm", "antialias", "pool")
    return *(getattr(model, name) for name in names), model.groups > 1, len(model.input_shape)


# Some differ in widths and sizes alone: the first of them is enough for every day
QUICK = {parts_of(model): name for model, name in reversed(KINDS.items())}


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(model, id=name, marks=() if name in QUICK.values() else pytest.mark.slow)
        for model, name in KINDS.items()
    ],
)
def test_totals_count_the_parameters_that_are_there(model):
    assert model_cost(model).parameters == size_of(variables(model)["params"])


@pytest.mark.parametrize("name", ["resnet101", "resnet110v2", "resnetrs101"])
def test_parameters_of_a_deep_network(name):
    assert model_cost(MODELS[name]).parameters == size_of(variables(MODELS[name])["params"])


@pytest.mark.parametrize("names", [QUICK.values(), pytest.param(MODELS, marks=pytest.mark.slow)], ids=["kinds", "all"])
def test_costs_are_kept_as_data(names):
    assert list(_published_costs()) == list(MODELS)
    for name in names:
        assert published_cost(name, MODELS[name]) == model_cost(MODELS[name]), name


@pytest.mark.parametrize("name", MULTIPLY_ADDS)
def test_multiply_adds(name):
    assert round(model_cost(MODELS[name]).multiply_adds / 1e9, 3) == MULTIPLY_ADDS[name]


@pytest.mark.parametrize("name", ["resnet34", "resnext101_32x8d", pytest.param("resnet152", marks=pytest.mark.slow)])
def test_rows_add_up(name):
    rows = summarize(MODELS[name], (224, 224, 3))
    assert round(sum(row.multiply_adds for row in rows) / 1e9, 3) == MULTIPLY_ADDS[name]
    assert sum(row.parameters for row in rows) == PARAMETERS[name]


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110, 1202])
def test_plain_twins_have_the_parameters_of_option_a(depth):
    plain, residual = MODELS[f"plain{depth}"], MODELS[f"resnet{depth}"]
    assert variables(at_most_three_blocks(plain)) == variables(at_most_three_blocks(residual))
    assert plain.clone(shortcut=SHORTCUTS["A"]) == residual


def test_original_bottleneck_has_fewer_multiply_adds_and_as_many_parameters():
    costs = {
        name: sum(r.multiply_adds for r in summarize(MODELS[name], (224, 224, 3)))
        for name in ("resnet50", "resnet50_v1")
    }
    assert round(costs["resnet50_v1"] / 1e9, 1) == 3.9  # 3.8 in He et al. 2015, table 1, which rounds down
    assert costs["resnet50_v1"] < costs["resnet50"]


def test_a_network_is_a_value():
    assert create_model("resnet50") == MODELS["resnet50"]
    assert create_model("resnet50", num_classes=10) != MODELS["resnet50"]
    assert create_model("resnet50", num_classes=10).depths == (3, 4, 6, 3)
    # timm's name
    assert create_model("resnetv2_50") == MODELS["resnet50v2"]


def test_unknown_names():
    with pytest.raises(InputError, match="unknown model 'resnet51'; nearest: .*resnet50"):
        create_model("resnet51")
    with pytest.raises(TypeError, match="colour"):
        create_model("resnet50", colour="red")


def test_shortcuts_by_their_names():
    assert create_model("resnet20", shortcut="B") == create_model("resnet20", shortcut=SHORTCUTS["B"])
    with pytest.raises(InputError, match="unknown shortcut 'Z'; known: A, B"):
        create_model("resnet20", shortcut="Z")


def test_heads_and_channels():
    x = jnp.zeros((2, 32, 32, 1))
    features = create_model("resnet20", num_classes=0)
    v = jax.eval_shape(lambda: features.init(jax.random.key(0), x))
    assert "head" not in v["params"]
    assert jax.eval_shape(lambda v: features.apply(v, x), v).shape == (2, 64)
    assert v["params"]["stem"]["conv"]["kernel"].shape == (3, 3, 1, 16)
