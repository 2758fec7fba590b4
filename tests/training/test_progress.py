"""The bar of a notebook: one output a run, redrawn in place."""

import io
import sys
import time
from types import ModuleType

from rich.console import Console

from resnet_jax.tasks.metric import Display
from resnet_jax.training import progress as module
from resnet_jax.training.progress import progress


def test_a_bar_in_a_notebook_is_redrawn_in_place_and_removed(monkeypatch):
    drawn = []

    class Handle:
        def __init__(self, number):
            self.number = number

        def update(self, shown):
            drawn.append((self.number, shown))

    numbers = iter(range(5))
    display = ModuleType("IPython.display")
    display.HTML = str
    display.display = lambda shown, display_id: Handle(next(numbers))
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(module, "_REFRESH", 0.0)
    console = Console(file=io.StringIO(), force_jupyter=True)
    with progress(console, {"score": Display(percent=True)}) as add:
        tick = add("<run> step", 16, 0, 10)
        time.sleep(0.001)
        tick(5, lambda: {"score": 0.5})
    (number, text), last = drawn
    assert number == 0
    assert "<progress value='5' max='10'>" in text
    assert "&lt;run&gt; step 5/10  score 50.00%" in text
    assert last == (0, "")
