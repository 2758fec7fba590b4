"""Which runs are compared, and under which names."""

from resnet_jax.recipe import Recipe
from resnet_jax.report.runs import Run, differing_fields, group_runs
from resnet_jax.run_dir.files import DatasetInfo

DATA = DatasetInfo(("a", "b"), (8, 8, 1), 40, "data")


def test_runs_with_other_parts_given_as_values_are_other_groups(tmp_path):
    one = Run(tmp_path / "a", "a", Recipe(), DATA, (), ())
    other = one._replace(name="b", recipe=Recipe(seed=1), given={"optimizer": "lion"})
    assert len(group_runs([one, other._replace(given={})])) == 1
    groups = group_runs([one, other])
    assert [group.label for group in groups] == ["sgd", "lion, passed as a value"]
    assert differing_fields(groups) == ["optimizer.name"]  # and not the fields that it stands for
