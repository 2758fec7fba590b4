"""The Flower application trains as the program without Flower does; stand-ins take the place of Flower's classes."""

import sys
from types import ModuleType, SimpleNamespace

import chex
import jax
import numpy as np
import pytest

from experiments.questions import federated, trials
from resnet_jax.recipe import Model

RECIPE = trials.short_recipe(
    Model(name="resnet8", fields={"depths": (1,), "width": 4}), "digits", 2, momentum=0.0, batch_size=8
)
CONTEXT = {"seed": 0, "split": "tiny", "rounds": 1}


class Arrays(list):
    def to_numpy_ndarrays(self):
        return [np.array(array) for array in self]


class App:
    def train(self):
        return lambda function: function

    main = train


class FedAvg:
    """One round of all clients, averaged by their examples."""

    def __init__(self, **_):
        pass

    def start(self, grid, arrays, num_rounds, evaluate_fn):
        replies = grid(arrays)
        counts = [reply["metrics"]["num-examples"] for reply in replies]
        sums = zip(*(reply["arrays"] for reply in replies), strict=True)
        self.found = Arrays(np.average(leaves, 0, weights=counts) for leaves in sums)
        evaluate_fn(num_rounds, self.found)
        FedAvg.last = self.found


@pytest.fixture
def app(script, monkeypatch):
    names = {
        "flwr": {},
        "flwr.app": {
            "ArrayRecord": Arrays,
            "MetricRecord": dict,
            "RecordDict": dict,
            "Context": None,
            "Message": lambda content, reply_to: content,
        },
        "flwr.clientapp": {"ClientApp": App},
        "flwr.serverapp": {"ServerApp": App, "Grid": None},
        "flwr.serverapp.strategy": {"FedAvg": FedAvg},
    }
    for name, members in names.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    loaded, trial = script("flower", "federated_digits.py"), trials.make_trial(RECIPE)
    monkeypatch.setattr(loaded, "make_trial", lambda: trial)
    monkeypatch.setitem(federated.SPLITS, "tiny", lambda labels, clients, seed: [np.arange(16), np.arange(16, 40)])
    return loaded, trial


def test_a_round_through_messages_is_the_round_of_one_program(app, capsys):
    loaded, trial = app

    def grid(arrays):
        content = {"arrays": arrays, "config": {"server-round": 1}}
        nodes = [SimpleNamespace(run_config=CONTEXT, node_config={"partition-id": place}) for place in (0, 1)]
        return [loaded.train_client(SimpleNamespace(content=content), node) for node in nodes]

    loaded.serve(grid, SimpleNamespace(run_config=CONTEXT))
    assert "round 1: test accuracy " in capsys.readouterr().out
    start = trial.init(trials.keys_of(trial, 0)[0])
    expected = federated.make_round(trial, None)(start, [np.arange(16), np.arange(16, 40)], 0, 0)
    leaves = jax.tree.leaves((expected.params, expected.batch_stats))
    chex.assert_trees_all_close(list(FedAvg.last), list(map(np.asarray, leaves)), rtol=1e-4, atol=1e-5)
