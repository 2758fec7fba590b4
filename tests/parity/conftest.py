"""What it takes to import torch, torchvision and timm, and networks of theirs whose every number is random.

Without them nothing here is even imported: `pip install -e '.[parity]'`.
"""

from pathlib import Path

import pytest

MISSING = ""
try:
    import torch

    try:
        import torchvision
    except RuntimeError as error:
        # Beside another build of torch (from its CPU index, say) torchvision's wheel cannot load its own operators,
        # and its import fails where it describes them. Nothing here computes with them: it is enough that they exist.
        if "does not exist" not in str(error):
            raise
        operators = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401
    import timm  # noqa: F401

    torch.set_num_threads(2)
except ImportError as error:
    MISSING = f"{error}: pip install -e '.[parity]'"


class Skipped(pytest.Module):
    """A file of tests that is not imported."""

    def collect(self):
        pytest.skip(MISSING, allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector):
    return Skipped.from_parent(parent, path=module_path) if MISSING else None


@pytest.fixture
def randomize():
    """Fills a torch module with random parameters and statistics under which the scale of a map stays near 1.

    Returns the module, in evaluation mode.
    """

    def fill(module, seed: int = 0):
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, tensor in module.state_dict().items():  # shares its memory with the module
                if tensor.ndim > 1:
                    fan_in = tensor[0].numel()
                    tensor.copy_(torch.randn(tensor.shape, generator=random) / fan_in**0.5)
                elif name.endswith(("bias", "running_mean")):
                    tensor.copy_(torch.randn(tensor.shape, generator=random) / 4)
                elif name.endswith(("weight", "running_var")):
                    tensor.copy_(torch.rand(tensor.shape, generator=random) + 0.5)
        return module.eval()

    return fill
