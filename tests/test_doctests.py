"""The examples in docstrings run, and every public function has one."""

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import resnet_jax

PACKAGE = Path(resnet_jax.__file__).parent
WITH_EXAMPLES = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>>" in path.read_text()
]


@pytest.mark.parametrize("name", [name.removesuffix(".__init__") for name in WITH_EXAMPLES])
def test_examples_print_what_they_say(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert not result.failed, capsys.readouterr().out


def test_every_public_function_has_an_example():
    public = {name: getattr(resnet_jax, name) for name in resnet_jax.__all__}
    assert not [
        name for name, value in public.items() if inspect.isfunction(value) and ">>>" not in (value.__doc__ or "")
    ]
