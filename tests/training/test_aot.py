"""Which step is compiled: with as few microbatches as the memory allows, once for each size of the images."""

import jax
import pytest

from resnet_jax.input_pipeline.device_input import open_device_split, training_batches
from resnet_jax.training import aot
from resnet_jax.training.aot import compile_once, step_bytes
from resnet_jax.training.init import init_train_state
from resnet_jax.training.make_step import step_key
from resnet_jax.training.setup import make_setup
from resnet_jax.training.sources import open_sources


@pytest.fixture
def ready(tiny, tmp_path):
    sources = open_sources(tiny, tmp_path)
    setup = make_setup(tiny, sources.dataset, 1)
    inputs = next(training_batches(open_device_split(sources.train, setup.mesh), tiny, range(1)))
    return setup, (init_train_state(setup), inputs, step_key(setup))


def test_a_step_is_compiled_once_and_says_so(ready):
    setup, arguments = ready
    said = []
    compiled = compile_once(setup, [1], said.append)
    step, seconds = compiled(0, arguments)
    assert seconds > 0
    assert compiled(1, arguments) == (step, 0.0)
    assert len(said) == 1
    assert said[0].startswith("compiled in ")
    assert int(step(*arguments)[0].step) == 1


def test_what_does_not_fit_is_split(ready, monkeypatch):
    setup, arguments = ready
    whole, steps = aot.compile_within(setup, [1], None, arguments)
    assert steps == 1
    assert step_bytes(whole) >= sum(leaf.nbytes for leaf in jax.tree.leaves(arguments[0]))
    asked = []

    def make_train_step(setup, size):
        asked.append(setup.grad_accum_steps)
        lowered = type("lowered", (), {"compile": lambda: refused(setup)})
        return type("step", (), {"lower": lambda *arguments: lowered})

    def refused(setup):
        if setup.grad_accum_steps < 4:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: too large")
        return whole

    monkeypatch.setattr(aot, "make_train_step", make_train_step)
    assert aot.compile_within(setup, [1, 2, 4, 8], None, arguments) == (whole, 4)
    assert asked == [1, 2, 4]
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        aot.compile_within(setup, [1, 2], None, arguments)
