"""What a run directory says of the parts that its run was given as values."""

import json

import pytest

from resnet_jax.errors import InputError
from resnet_jax.run_dir.given import given_json, read_given, require_given
from resnet_jax.tasks.metric import Display
from resnet_jax.tasks.task import TaskFacts

FACTS = TaskFacts(
    "pixel_accuracy", "ranked", {"pixel_accuracy": Display(True, "pixel error"), "iou": Display(digits=2)}
)


def test_what_is_written_is_read(tmp_path):
    assert read_given(tmp_path) == {}
    given = {"model": "Segmenter", "task": FACTS}
    (tmp_path / "given.json").write_text(given_json(given))
    assert read_given(tmp_path) == given
    require_given(tmp_path, ("model", "task"))
    with pytest.raises(InputError, match=r"its task was passed as a value; pass it again in Python, task=VALUE"):
        require_given(tmp_path, ("model",))
    require_given(tmp_path, (), needed=("optimizer",))


@pytest.mark.parametrize(
    "task",
    [
        None,
        {},
        {"monitor": "x", "answers": "ranked", "display": []},
        {"monitor": "x", "answers": "ranked", "display": {"x": {"digits": 10**9}}},
        {"monitor": "x", "answers": "ranked", "display": {"x": {"percent": "yes"}}},
        {"monitor": "x", "answers": "ranked", "display": {"x": {"colour": "red"}}},
    ],
)
def test_damage_is_one_line(tmp_path, task):
    (tmp_path / "given.json").write_text(json.dumps({"task": task}))
    with pytest.raises(InputError, match=r"given\.json: damaged; it records the parts"):
        read_given(tmp_path)
