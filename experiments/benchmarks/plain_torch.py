"""ResNet-18, -20, -50 and wide ResNets in PyTorch, as published: the baseline of the benchmarks."""

from typing import Any

import torch
from torch.nn import functional

from resnet_jax.models.resnet import ResNet
from resnet_jax.models.stems import ImageNetStem


class TorchBlock(torch.nn.Module):
    """A residual block as in torchvision; without bottleneck it may have option A's shortcut."""

    def __init__(self, channels: int, features: int, stride: int, bottleneck: bool, project: bool) -> None:
        super().__init__()
        wide = features * (4 if bottleneck else 1)
        sizes = ((channels, features, 1, 1), (features, features, 3, stride), (features, wide, 1, 1))
        sizes = sizes if bottleneck else ((channels, wide, 3, stride), (wide, wide, 3, 1))  # type: ignore[assignment]
        for i, (before, after, kernel, step) in enumerate(sizes, 1):
            self.add_module(f"conv{i}", torch.nn.Conv2d(before, after, kernel, step, kernel // 2, bias=False))
            self.add_module(f"bn{i}", torch.nn.BatchNorm2d(after))
        self.layers, self.stride, self.more, self.downsample = len(sizes), stride, wide - channels, None
        if project and self.more:
            convolution = torch.nn.Conv2d(channels, wide, 1, stride, bias=False)
            self.downsample = torch.nn.Sequential(convolution, torch.nn.BatchNorm2d(wide))

    def forward(self, x: Any) -> Any:
        y = x
        for i in range(1, self.layers + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = functional.relu(y) if i < self.layers else y
        if self.downsample is not None:
            x = self.downsample(x)
        elif self.more:
            # Option A
            pad = (0, 0, 0, 0, self.more // 2, self.more - self.more // 2)
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], pad)
        return functional.relu(y + x)


class TorchNetwork(torch.nn.Module):
    """The network of `like` in PyTorch, with the names of torchvision."""

    def __init__(self, like: ResNet) -> None:
        super().__init__()
        self.deep, channels = like.stem is ImageNetStem, like.width
        size, stride = (7, 2) if self.deep else (3, 1)
        self.conv1 = torch.nn.Conv2d(3, channels, size, stride, size // 2, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(channels)
        self.stages = len(like.depths)
        for stage, depth in enumerate(like.depths):
            blocks, features = [], like.width * 2**stage
            for block in range(depth):
                stride = 2 if stage and not block else 1
                blocks.append(TorchBlock(channels, features, stride, like.block.expansion == 4, self.deep))
                channels = features * like.block.expansion
            self.add_module(f"layer{stage + 1}", torch.nn.Sequential(*blocks))
        self.fc = torch.nn.Linear(channels, like.num_classes)

    def forward(self, x: Any) -> Any:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.max_pool2d(x, 3, 2, 1) if self.deep else x
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.fc(x.mean((2, 3)))


class TorchWideBlock(torch.nn.Module):
    """A block with pre-activation (He et al. 2016; Zagoruyko and Komodakis 2016), with the names of timm."""

    def __init__(self, channels: int, features: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = torch.nn.BatchNorm2d(channels), torch.nn.BatchNorm2d(features)
        self.conv1 = torch.nn.Conv2d(channels, features, 3, stride, 1, bias=False)
        self.conv2 = torch.nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.downsample: Any = torch.nn.Module() if channels != features else None
        if self.downsample is not None:
            self.downsample.conv = torch.nn.Conv2d(channels, features, 1, stride, bias=False)

    def forward(self, x: Any) -> Any:
        y = functional.relu(self.norm1(x))
        shortcut = x if self.downsample is None else self.downsample.conv(y)
        return shortcut + self.conv2(functional.relu(self.norm2(self.conv1(y))))


class TorchWideNetwork(torch.nn.Module):
    """The wide network of `like` in PyTorch."""

    def __init__(self, like: ResNet) -> None:
        super().__init__()
        channels = like.stem_features or like.width
        self.stem: Any = torch.nn.Module()
        self.stages: Any = torch.nn.Module()
        self.head: Any = torch.nn.Module()
        self.stem.conv = torch.nn.Conv2d(3, channels, 3, 1, 1, bias=False)
        for stage, depth in enumerate(like.depths):
            blocks, features = [], like.width * 2**stage
            for block in range(depth):
                blocks.append(TorchWideBlock(channels, features, 2 if stage and not block else 1))
                channels = features
            made: Any = torch.nn.Module()
            made.blocks = torch.nn.Sequential(*blocks)
            self.stages.add_module(str(stage), made)
        self.norm = torch.nn.BatchNorm2d(channels)
        self.head.fc = torch.nn.Conv2d(channels, like.num_classes, 1)

    def forward(self, x: Any) -> Any:
        x = self.stem.conv(x)
        for stage in self.stages.children():
            x = stage.blocks(x)
        return self.head.fc(functional.relu(self.norm(x)).mean((2, 3), keepdim=True)).flatten(1)


def torch_network(like: ResNet) -> torch.nn.Module:
    """Return a network in PyTorch, with the names of the weights that `to_state_dict` gives `like`."""
    return TorchWideNetwork(like) if like.block.preactivation else TorchNetwork(like)
