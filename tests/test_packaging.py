"""What a wheel and a source distribution contain, and the files that name the version."""

import email
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest
from conftest import ROOT

from resnet_jax import __version__

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BASE = f"https://example.org/owner/name/blob/v{__version__}"
LINK = re.compile(r"\]\((?!#)([^)]+)\)")


def build(folder, base):
    environment = os.environ | {"README_BASE": base}
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", folder], cwd=ROOT, env=environment, check=True, timeout=60
    )
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    return build(tmp_path_factory.mktemp("dist"), BASE)


def described(wheel):
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_string(archive.read(name).decode())


def test_a_wheel_holds_the_package_and_nothing_else(distributions):
    with zipfile.ZipFile(distributions[0]) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = {path for path in (ROOT / "resnet_jax").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert inside == {str(path.relative_to(ROOT)) for path in files}
    assert {"resnet_jax/py.typed", "resnet_jax/__init__.pyi", "resnet_jax/weights/entries.json"} <= inside


def test_a_source_distribution_can_be_tested_and_documented(distributions):
    with tarfile.open(distributions[1]) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"tests/conftest.py", "experiments/digits.py", "hatch_build.py", "Makefile"} <= inside
    assert not [name for name in inside if "__pycache__" in name or name.startswith("docs/_build")]


def test_metadata(distributions):
    metadata = described(distributions[0])
    assert (metadata["Name"], metadata["Version"]) == ("jaxresnets", __version__)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Project-URL"] == "Source, https://example.org/owner/name"


def test_links_of_the_description_are_absolute(distributions):
    targets = LINK.findall(described(distributions[0]).get_payload())
    assert [target for target in targets if target.endswith(".png?raw=true")]
    assert all(target.startswith("https://") for target in targets)


def test_without_an_address_the_description_has_no_dead_links(tmp_path):
    metadata = described(build(tmp_path, "")[0])
    assert "Project-URL" not in metadata
    assert all(target.startswith("https://") for target in LINK.findall(metadata.get_payload()))


def test_the_version_is_the_same_everywhere():
    changes = re.findall(r"^## \[?([\d.]+)\]?", (ROOT / "CHANGELOG.md").read_text(), re.M)
    citation = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M)[1]
    assert changes[0] == citation == __version__


def test_litert_is_tested_as_it_is_documented():
    documented = re.search(r"^pip install --no-deps (.*)$", (ROOT / "docs" / "export.md").read_text(), re.M)[1]
    tested = re.search(r"^LITERT := (.*)$", (ROOT / "Makefile").read_text(), re.M)[1]
    assert documented == tested


def test_the_package_needs_no_extra():
    wanted = (wanted for group in PROJECT["optional-dependencies"].values() for wanted in group)
    needed = {re.match("[A-Za-z0-9_-]+", name)[0] for name in PROJECT["dependencies"]}
    extras = {re.match("[A-Za-z0-9_-]+", name)[0] for name in wanted} - needed
    code = f"""
import importlib, pkgutil, sys
for name in {sorted(name.lower().replace("-", "_") for name in extras)}:
    sys.modules[name] = None
import resnet_jax
for module in pkgutil.walk_packages(resnet_jax.__path__, "resnet_jax."):
    # The two that generate machine code are imported if llvmlite is there
    if module.name.rpartition(".")[2] not in ("__main__", "cpu_codegen", "cpu_tiles"):
        importlib.import_module(module.name)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-1000:]
