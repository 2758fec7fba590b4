"""JSON that anybody may have written is a value or a ValueError, in every reader."""

import contextlib
import json
import time

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from resnet_jax.checkpoint.manifest import DamageError, read_manifest
from resnet_jax.cli.main import main
from resnet_jax.data.formats.shards import read_index
from resnet_jax.errors import InputError
from resnet_jax.recipe import load_recipe
from resnet_jax.run_dir.environment import read_environments
from resnet_jax.run_dir.files import read_dataset_info, read_metrics, read_recipe
from resnet_jax.run_dir.given import read_given
from resnet_jax.runtime.strict_json import MAX_DEPTH, parse_json
from resnet_jax.weights.config import describe

HOSTILE = {
    "brackets": "[" * 100_000,
    "nested": "[" * 900 + "]" * 900,
    "objects": '{"a":' * 100_000,
    "digits": "9" * 5_000,
    "long": "-" + "9" * 4_000,
    "large": "1e999",
    "infinity": "-Infinity",
    "nan": "NaN",
    "twins": '{"a": 1, "a": 2}',
    "surrogate": '{"\\ud800": 1}',
    "cut": '{"a": ',
    "nothing": "",
    "bytes": b"\xff\xfe{}",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_value_is_one_short_line(kind):
    text = HOSTILE[kind]
    wrapped = text if isinstance(text, bytes) else f'{{"optimizer": {{"lr": {text}}}}}'
    for one in (text, wrapped):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            parse_json(one)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 200


def test_values_are_read_as_they_were_written():
    value = {"a": [1, -(2**64), 0.1, 5e-324, None, True, "\x00é"], "b": {"": []}}
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json("[1e999, -Infinity]", nonfinite=True) == [float("inf"), -float("inf")]
    deep = "[" * MAX_DEPTH + "1" + "]" * MAX_DEPTH
    assert parse_json(deep)
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(f"[{deep}]")


def test_many_keys_take_no_time():
    start = time.monotonic()
    with pytest.raises(ValueError, match="'199999' occurs twice"):
        parse_json("{" + ",".join(f'"{i}":1' for i in (*range(200_000), 199_999)) + "}")
    assert time.monotonic() - start < 2


@given(st.text() | st.binary() | st.lists(st.sampled_from('{}[]",:0e-\\u.'), max_size=30).map("".join))
def test_any_text_is_a_value_or_a_value_error(text):
    with contextlib.suppress(ValueError):
        parse_json(text)


@pytest.mark.parametrize("kind", HOSTILE)
def test_every_reader_refuses_it(tmp_path, kind, capsys):
    """As the whole file, and as a value in it."""
    text = HOSTILE[kind]
    for content in (text, text if isinstance(text, bytes) else f'{{"seed": {text}, "step": {text}}}'):
        for name in ("recipe.json", "dataset.json", "given.json", "environment.json", "config.json", "manifest.json"):
            path = tmp_path / name
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        for read in (
            read_recipe,
            load_recipe,
            read_dataset_info,
            read_given,
            lambda run: read_index(run / "dataset.json"),
        ):
            with pytest.raises(InputError) as caught:
                read(tmp_path)
            assert str(caught.value).startswith(f"{tmp_path}/")
            assert "\n" not in str(caught.value)
            assert len(str(caught.value)) < 500
        with pytest.raises(DamageError):
            read_manifest(tmp_path)
        assert describe(tmp_path / "config.json", "here") is None
        read_environments(tmp_path)
        (tmp_path / "recipe.json").replace(tmp_path / "metrics.jsonl")
        if kind not in ("large", "infinity", "nan"):
            assert read_metrics(tmp_path) == []
        if isinstance(content, str):
            assert main(["train", "--model.fields", content]) == 2
            assert capsys.readouterr().err.count("\n") == 1


def test_nothing_else_reads_json():
    users = {p.name for p in (ROOT / "resnet_jax").rglob("*.py") if "json.load" in p.read_text()}
    # tfds.py looks for what TFDS would import, and so parses as TFDS does; each of its errors is an InputError
    assert users == {"strict_json.py", "tfds.py"}
