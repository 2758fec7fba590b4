"""What CONTRIBUTING.md says that one change costs: its examples, in the modules where it says they belong."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from resnet_jax.tasks import losses, metrics

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)


def run(block, module=None):
    """Run a block with the names of a module, and return all names."""
    names = dict(vars(module)) if module else {}
    exec(compile(block, "CONTRIBUTING.md", "exec"), names)
    return names


def test_a_metric_is_two_functions():
    names = run(BLOCKS[0], metrics)
    logits, targets = jnp.array([[0.0, 0.0], [0.0, 0.0], [9.0, 0.0]]), jnp.array([0, 1, 0])
    sums = names["squared_prob_errors"](logits, targets, jnp.array([True, True, False]))
    assert names["brier_score"](sums) == {"brier": 0.5}


def test_a_loss_is_one_function():
    logits, targets = jnp.array([[1.0, -2.0]]), jnp.array([1])
    loss = run(BLOCKS[1], losses)["poly1"](logits, targets)
    correct = jax.nn.softmax(logits)[0, 1]
    np.testing.assert_allclose(loss, [-jnp.log(correct) + 1 - correct], rtol=1e-6)


@pytest.mark.slow
def test_a_network_a_task_and_a_logger_of_ones_own_need_no_file_of_the_package(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(BLOCKS[2])
    assert "'test/pixel_accuracy': " in capsys.readouterr().out
