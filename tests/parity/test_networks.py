"""Whole networks: the weights of torchvision and timm give the same maps, logits, gradients and running statistics."""

from functools import partial

import jax
import numpy as np
import optax
import pytest
import timm
import torch
import torchvision
from conftest import QUICKLY
from flax import traverse_util
from torch import nn
from torch.nn import functional
from torchvision.models.video import resnet as video

from resnet_jax.models.layers import average_pool
from resnet_jax.models.shortcuts import ProjectionShortcut
from resnet_jax.models.stems import ImageNetStem
from resnet_jax.models.summary import model_cost
from resnet_jax.models.zoo import ALIASES, MODELS
from resnet_jax.runtime.compiler_options import compiler_options
from resnet_jax.weights.load import create_model
from resnet_jax.weights.names import abstract_variables, from_torch, to_state_dict, torch_names

DEPTHS, WIDTH, CLASSES = (2, 1, 1, 1), 16, 10


def timm_name(name):
    """What timm calls a network of MODELS."""
    return {ours: theirs for theirs, ours in ALIASES.items()}.get(name, name)


def narrow(name, depths=DEPTHS, smooth=False, width=WIDTH, **fields):
    """A network of MODELS and the same of timm, with few blocks and channels."""
    model, fields = MODELS[name], {**fields, "num_classes": CLASSES}
    channels = tuple(width * 2**i for i in range(len(depths)))
    if model.block.preactivation:  # timm counts the channels of the output there
        channels = tuple(model.block.expansion * c for c in channels)
        ours, theirs = model.clone(depths=depths, width=width, **fields), {"stem_chs": width}
    else:  # the width of the stem is fixed
        stem = model.stem_features or 64
        ours, theirs = model.clone(depths=depths, width=width, stem_features=stem, **fields), {}
    if smooth:
        ours, theirs = ours.clone(act=jax.nn.silu), {**theirs, "act_layer": nn.SiLU}
    return ours, timm.create_model(timm_name(name), layers=depths, channels=channels, **theirs, **fields)


def narrow_bit():
    """Group normalisation needs 32 channels, and timm's function does not take other depths."""
    model = MODELS["resnetv2_50x1_bit"].clone(depths=DEPTHS, width=32, num_classes=CLASSES)
    channels, conv = (128, 256, 512, 1024), partial(timm.layers.StdConv2d, eps=1e-8)
    fields = {"stem_chs": 32, "stem_type": "fixed", "conv_layer": conv, "num_classes": CLASSES}
    return model, timm.models.resnetv2.ResNetV2(DEPTHS, channels, **fields)


def shallow_video(name, first, later, stem):
    model = MODELS[name].clone(depths=(1, 1, 1, 1), num_classes=CLASSES)
    return model, video.VideoResNet(video.BasicBlock, [first, *[later] * 3], [1, 1, 1, 1], stem, num_classes=CLASSES)


def shallow_mobile():
    """With a stride in a stage of one block, and a block whose shape stays."""
    depths, widths, strides = (2, 1, 1, 1, 1, 1), (24, 32, 64, 96, 160, 320), (2, 2, 2, 1, 2, 1)
    settings = [[1, 16, 1, 1], *([6, *each] for each in zip(widths, depths, strides, strict=True))]
    theirs = torchvision.models.MobileNetV2(CLASSES, inverted_residual_setting=settings)
    return MODELS["mobilenet_v2"].clone(depths=depths, num_classes=CLASSES), theirs


@pytest.mark.parametrize("name", ["r3d_18", "mc3_18", "r2plus1d_18"])
def test_files_of_the_published_video_networks_are_read_whole(name, tmp_path):
    network = getattr(video, name)()
    torch.save(network.state_dict(), tmp_path / f"{name}.pth")
    model, variables = create_model(name, pretrained=tmp_path / f"{name}.pth")
    assert (model, model.num_classes) == (MODELS[name], 400)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == model_cost(model).parameters
    back = to_state_dict(model, variables)
    assert all(np.array_equal(tensor.numpy(), back[key]) for key, tensor in network.state_dict().items())


def deep():
    return MODELS["resnet50"], torchvision.models.resnet50()


def torchvision_dilated(output_stride):
    """torchvision's, with two blocks in the stages whose stride becomes a dilation."""
    depths, replaced = (1, 1, 2, 2), [False, output_stride < 16, True]
    fields = {"num_classes": CLASSES, "replace_stride_with_dilation": replaced}
    theirs = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, list(depths), **fields)
    return MODELS["resnet50"].clone(depths=depths, num_classes=CLASSES, output_stride=output_stride), theirs


# Torch modules for what neither library has, under the names that it would have there.


def convolution(rank):
    return (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]


def normalisation(rank):
    return (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 1]


def pad_channels(x, channels, stride):
    """Option A: new channels on both sides of the old."""
    x = x[(slice(None), slice(None), *(slice(None, None, stride),) * (x.ndim - 2))]
    each = (channels - x.shape[1]) // 2
    zeros = x.new_zeros(x.shape[0], each, *x.shape[2:])
    return torch.cat([zeros, x, zeros], 1)


class TorchBlock(nn.Module):
    """Convolutions of the given widths, kernels and strides, and what goes around them."""

    def __init__(self, channels, widths, kernels, strides, shortcut, rank, pre):
        super().__init__()
        conv, norm = convolution(rank), normalisation(rank)
        self.count, self.shortcut, self.pre = len(widths), shortcut, pre
        self.stride, self.channels = max(strides), widths[-1]
        inputs = (channels, *widths)
        for i, (width, kernel, stride) in enumerate(zip(widths, kernels, strides, strict=True)):
            self.add_module(f"conv{i + 1}", conv(inputs[i], width, kernel, stride, kernel // 2, bias=False))
            self.add_module(f"norm{i + 1}" if pre else f"bn{i + 1}", norm(inputs[i] if pre else width))
        changes = self.stride > 1 or channels != widths[-1]
        if shortcut == "C" or (shortcut == "B" and changes):
            conv = conv(channels, widths[-1], 1, self.stride, bias=False)
            self.downsample = nn.Sequential()
            self.downsample.add_module("conv" if pre else "0", conv)
            if not pre:
                self.downsample.add_module("1", norm(widths[-1]))

    def around(self, x, activated):
        if hasattr(self, "downsample"):
            return self.downsample(activated if self.pre else x)
        if self.shortcut == "A":
            return pad_channels(x, self.channels, self.stride)
        return 0 if self.shortcut == "none" else x

    def forward(self, x):
        y, activated = x, None
        for i in range(1, self.count + 1):
            conv = getattr(self, f"conv{i}")
            if self.pre:
                y = getattr(self, f"norm{i}")(y).relu()
                activated = y if i == 1 else activated
                y = conv(y)
            else:
                y = getattr(self, f"bn{i}")(conv(y))
                y = y.relu() if i < self.count else y
        y = y + self.around(x, activated)
        return y if self.pre else y.relu()


class TorchPooled(nn.Module):
    """A block of ResNet-9."""

    def __init__(self, channels, features, stride):
        super().__init__()
        self.pooled = stride > 1 or channels != features
        self.conv1, self.bn1 = nn.Conv2d(channels, features, 3, 1, 1, bias=False), nn.BatchNorm2d(features)
        if not self.pooled:
            self.conv2, self.bn2 = nn.Conv2d(features, features, 3, 1, 1, bias=False), nn.BatchNorm2d(features)

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        return functional.max_pool2d(y, 2) if self.pooled else x + self.bn2(self.conv2(y)).relu()


class TorchNetwork(nn.Module):
    """A stem, stages of the given blocks and a head."""

    def __init__(self, stages, channels, stem, rank=2, kernel=3, pre=False, largest=False):
        super().__init__()
        self.count, self.kernel, self.pre, self.largest = len(stages), kernel, pre, largest
        conv = convolution(rank)(3, stem, kernel, 1 if kernel == 3 else 2, kernel // 2, bias=False)
        if pre:
            self.stem, self.stages = nn.Sequential(), nn.Sequential()
            self.stem.add_module("conv", conv)
            for blocks in stages:
                self.stages.append(nn.Sequential())
                self.stages[-1].add_module("blocks", nn.Sequential(*blocks))
            self.norm, self.head = normalisation(rank)(channels), nn.Sequential()
            self.head.add_module("fc", convolution(rank)(channels, CLASSES, 1))
        else:
            self.conv1, self.bn1, self.fc = conv, normalisation(rank)(stem), nn.Linear(channels, CLASSES)
            for i, blocks in enumerate(stages, 1):
                self.add_module(f"layer{i}", nn.Sequential(*blocks))

    def forward(self, x):
        if self.pre:
            x = self.norm(self.stages(self.stem(x))).relu()
            return self.head(x.mean((2, 3), keepdim=True)).flatten(1)
        x = self.bn1(self.conv1(x)).relu()
        if self.kernel == 7:
            pool = functional.max_pool1d if x.ndim == 3 else functional.max_pool2d
            x = pool(x, 3, 2, 1)
        for i in range(1, self.count + 1):
            x = getattr(self, f"layer{i}")(x)
        return self.fc(x.flatten(2).amax(2) if self.largest else x.flatten(2).mean(2))


def own(model, kernels, strides_at, shortcut, **fields):
    """That network in torch; `strides_at` is the convolution that carries the stride."""
    channels, stages = model.stem_features or model.width, []
    for stage in model.stages():
        stages.append([])
        for index in range(stage.depth):
            widths = (*(stage.features,) * (len(kernels) - 1), stage.channels)
            strides = [stage.stride if index == 0 and i == strides_at else 1 for i in range(len(kernels))]
            pre, rank = model.block.preactivation, fields.get("rank", 2)
            stages[-1].append(TorchBlock(channels, widths, kernels, strides, shortcut, rank, pre))
            channels = stage.channels
    stem = model.stem_features or model.width
    kernel = 7 if model.stem is ImageNetStem else 3
    return model, TorchNetwork(stages, channels, stem, kernel=kernel, pre=model.block.preactivation, **fields)


def own_named(name, *args, depths, width, fields=(), **torch_fields):
    model = MODELS[name].clone(depths=depths, width=width, num_classes=CLASSES, **dict(fields))
    return own(model, *args, **torch_fields)


def resnet9():
    model = MODELS["resnet9"].clone(width=12, stem_features=8, num_classes=CLASSES)
    channels, stages = 8, []
    for stage in model.stages():
        blocks = []
        for index in range(stage.depth):
            blocks.append(TorchPooled(channels, stage.features, stage.stride if index == 0 else 1))
            channels = stage.features
        stages.append(blocks)
    return model, TorchNetwork(stages, channels, 8, largest=True)


_cifar = partial(own_named, depths=(1, 1, 1), width=8)
NETWORKS = {
    **{
        name: partial(narrow, name)
        for name in (
            "resnet18",
            "resnet50",
            "wide_resnet50_2",
            "resnext50_32x4d",
            "seresnet18",
            "seresnet50",
            "resnet50c",
            "resnet50s",
            "resnet50d",
            "seresnext26d_32x4d",
            "resnetrs50",
            "resnetblur18",
            "resnetblur50",
            "resnetblur50d",
            "resnet18v2",
            "resnet50v2",
            "resnet10t",
            "resnet14t",
            "ecaresnet50t",
            "ecaresnetlight",
            "resnetaa50",
            "seresnetaa50d",
        )
    },
    "resnetv2_50x1_bit": narrow_bit,
    "resnet50_gn": partial(narrow, "resnet50_gn", width=32),
    "resnet50, all of it": deep,
    "r3d_18": partial(shallow_video, "r3d_18", video.Conv3DSimple, video.Conv3DSimple, video.BasicStem),
    "mc3_18": partial(shallow_video, "mc3_18", video.Conv3DSimple, video.Conv3DNoTemporal, video.BasicStem),
    "r2plus1d_18": partial(shallow_video, "r2plus1d_18", video.Conv2Plus1D, video.Conv2Plus1D, video.R2Plus1dStem),
    "mobilenet_v2": shallow_mobile,
    "mobilenet_v2, all of it": lambda: (MODELS["mobilenet_v2"], torchvision.models.mobilenet_v2()),
    **{
        f"{name}, output stride {stride}": partial(narrow, name, depths=(1, 1, 2, 2), output_stride=stride)
        for name in ("resnet50", "resnet50v2")
        for stride in (8, 16)
    },
    "resnet50 of torchvision, output stride 8": partial(torchvision_dilated, 8),
    "resnet50 of torchvision, output stride 16": partial(torchvision_dilated, 16),
    "option A": partial(_cifar, "resnet20", (3, 3), 0, "A"),
    "option C": partial(_cifar, "resnet20", (3, 3), 0, "C", fields={"shortcut": ProjectionShortcut}),
    "plain": partial(_cifar, "plain20", (3, 3), 0, "none"),
    "resnet50_v1": partial(own_named, "resnet50_v1", (1, 3, 1), 0, "B", depths=DEPTHS, width=8),
    "resnet18_1d": partial(own_named, "resnet18_1d", (3, 3), 0, "B", depths=DEPTHS, width=8, rank=1),
    "wide, pre-activation": partial(_cifar, "wrn_16_4", (3, 3), 0, "B", depths=(2, 1, 1)),
    "option A, pre-activation": partial(_cifar, "resnet110v2", (3, 3), 0, "A"),
    "bottleneck, pre-activation": partial(_cifar, "resnet164v2", (1, 3, 1), 1, "B"),
    "resnet9": resnet9,
}


def images(model, batch=2):
    """Images of odd sizes, but for averages, for which timm's have to be even."""
    shapes = {1: (71,), 2: (32, 64) if model.antialias is average_pool else (33, 41), 3: (5, 17, 15)}
    shape = shapes[len(model.input_shape) - 1]
    return np.random.default_rng(0).normal(size=(batch, *shape, 3)).astype(np.float32)


def channels_first(x):
    return torch.tensor(np.moveaxis(x, -1, 1).copy())


def channels_last(tensor):
    return np.moveaxis(tensor.detach().numpy(), 1, -1)


def with_channels(model):
    """The network for images of three channels, whatever it was published for."""
    return model.clone(input_shape=(*model.input_shape[:-1], 3))


def variables_of(model, state):
    """A state dict of torch's as variables of ours, all of it."""
    names, expected = torch_names(model), traverse_util.flatten_dict(abstract_variables(model))
    assert {name for name in state if not name.endswith("num_batches_tracked")} == set(names.values())
    leaves = {p: from_torch(p, state[name].numpy().copy(), len(expected[p].shape)) for p, name in names.items()}
    assert {p: leaf.shape for p, leaf in leaves.items()} == {p: leaf.shape for p, leaf in expected.items()}
    return traverse_util.unflatten_dict(leaves)


def stages_of(model, network):
    """The modules after which the map of a stage is complete."""
    if model.last_features:
        return [network.features[1 + sum(model.depths[: i + 1])] for i in range(5)] + [network.features[-1]]
    if not model.block.preactivation:
        return [getattr(network, f"layer{i + 1}") for i in range(len(model.depths))]
    return [*network.stages[:-1], network.norm]


def assert_near(ours, theirs, what, within=1e-4):
    """Equal up to `within` of the scale of the map."""
    assert ours.shape == theirs.shape, what
    scale = theirs.std()
    assert 0.05 < scale < 50, f"{what}: a scale of {scale}"
    worst = np.abs(ours - theirs).max() / scale
    assert worst < within, f"{what}: {worst}"


# Of whose parts each is in another network that is compared every day
SLOW = {
    "wide_resnet50_2",
    "seresnet50",
    "resnet50c",
    "resnet50s",
    "resnetblur50",
    "resnet50, all of it",
    "mobilenet_v2, all of it",
    "resnet50, output stride 16",
    "resnet50v2, output stride 16",
    "resnet50 of torchvision, output stride 16",
    "resnet50 of torchvision, output stride 8",
    "resnet50v2, output stride 8",
    "resnetblur50d",
    "resnet50d",
    "resnet50_v1",
    "resnetrs50",
    "seresnext26d_32x4d",
    "resnetv2_50x1_bit",
    "resnet14t",
    "ecaresnetlight",
    "seresnetaa50d",
}
assert set(NETWORKS) > SLOW


def slowly(names, slow):
    return [pytest.param(name, marks=pytest.mark.slow if name in slow else ()) for name in names]


@pytest.mark.parametrize("name", slowly(NETWORKS, SLOW))
def test_maps_and_logits_and_weights_there_and_back(name, randomize):
    """In one test, for to make a network and to name its parameters takes as long as to compile it."""
    model, network = NETWORKS[name]()
    model, network = with_channels(model), randomize(network)
    state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    variables = variables_of(model, state)
    assert_maps_and_logits(model, network, variables)
    back = {key: torch.tensor(value) for key, value in to_state_dict(model, variables).items()}
    randomize(network, seed=1)
    network.load_state_dict(back, strict=True)
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[key]), key
        assert tensor.dtype == back[key].dtype


def assert_maps_and_logits(model, network, variables):
    maps = []
    for module in stages_of(model, network):
        # A copy, because timm's activations write over their input
        module.register_forward_hook(lambda module, x, y: maps.append(channels_last(y.clone())))
    x = images(model)
    with torch.no_grad():
        logits = network(channels_first(x)).numpy()
    if isinstance(network, TorchNetwork) and network.pre:
        maps[-1] = maps[-1].clip(0)  # the last normalisation of timm's activates as well

    def both(v, x):
        """The maps, and the logits that follow from the last: as of the whole, which is compiled for some."""
        features = model.apply(v, x, method="features")
        if max(model.depths) > 2:
            return features, model.apply(v, x)
        return features, model.apply(v, features[-1], len(model.depths), method="forward_from_stage")

    compiled = jax.jit(both, compiler_options=compiler_options() | QUICKLY)
    our_maps, our_logits = jax.device_get(compiled(variables, x))
    assert len(maps) == len(our_maps) == len(model.depths)
    for i, (ours, theirs) in enumerate(zip(our_maps, maps, strict=True), 1):
        assert_near(ours, theirs, f"stage {i}")
    assert_near(our_logits, logits, "logits")


@pytest.mark.parametrize(
    "name",
    slowly(
        ("seresnet18", "resnet18v2", "seresnext26d_32x4d", "resnet50v2"),
        ("seresnet18", "seresnext26d_32x4d", "resnet50v2"),
    ),
)
def test_gradients_and_running_statistics(name, randomize):
    # ReLU has another gradient where rounding changes a sign
    model, network = narrow(name, depths=(1, 1, 1, 1), smooth=True)
    randomize(network)
    x, labels = images(model, batch=6), np.arange(6) % CLASSES
    v = variables_of(model, network.state_dict())

    network.train()
    loss = functional.cross_entropy(network(channels_first(x)), torch.tensor(labels))
    loss.backward()
    gradients = {key: parameter.grad for key, parameter in network.named_parameters()}

    def objective(params):
        logits, updated = model.apply({**v, "params": params}, x, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updated

    compiled = jax.jit(jax.value_and_grad(objective, has_aux=True), compiler_options=compiler_options() | QUICKLY)
    (our_loss, updated), our_gradients = jax.device_get(compiled(v["params"]))
    np.testing.assert_allclose(our_loss, loss.item(), rtol=1e-5)

    names, state = torch_names(model), network.state_dict()
    for path, ours in traverse_util.flatten_dict({"params": our_gradients, **updated}).items():
        theirs = gradients[names[path]] if path[0] == "params" else state[names[path]]
        theirs = from_torch(path, theirs.numpy(), ours.ndim)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max(), err_msg=names[path])


def known_to_timm():
    return [name for name in MODELS if timm_name(name) in timm.list_models() and len(MODELS[name].input_shape) == 3]


def alike():
    """The networks that differ from one before them in depths, widths and sizes alone."""
    seen, later = set(), []
    for name in known_to_timm():
        model = MODELS[name]
        parts = ("block", "stem", "shortcut", "gate", "conv", "norm", "antialias")
        key = *(getattr(model, part) for part in parts), model.groups > 1
        later += [name] if key in seen else []
        seen.add(key)
    return later


@pytest.mark.parametrize("name", slowly(known_to_timm(), alike()))
def test_parameters_are_as_many_as_timm_has(name):
    with torch.device("meta"):
        network = timm.create_model(timm_name(name))
    assert model_cost(MODELS[name]).parameters == sum(parameter.numel() for parameter in network.parameters())


def test_timm_has_most_of_them():
    assert len(known_to_timm()) >= 70
