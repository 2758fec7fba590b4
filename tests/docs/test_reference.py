"""The generated pages of the site are complete; `make docs` checks links and builds them."""

import importlib.util
import re
import shlex
from functools import cache

import pytest
from conftest import ROOT

import resnet_jax
from resnet_jax.cli.completion import flags_of
from resnet_jax.cli.main import COMMANDS
from resnet_jax.models.zoo import MODELS
from resnet_jax.recipe import Recipe, fields_of
from resnet_jax.weights.entries import WEIGHTS

PAGES = [path for folder in (ROOT, ROOT / "docs") for path in sorted(folder.glob("*.md"))]


@cache
def flags(command):
    name, *words = command.split()
    return {*flags_of(lambda help_word: COMMANDS[name][0]([*words, *help_word]))}


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_is_on_one_page_once(reference):
    names = [name for names in reference.API.values() for name in names]
    assert sorted(names) == sorted(resnet_jax.__all__)


def test_every_field_of_a_recipe_is_explained(reference):
    fields = [field for kind, prefix in reference.groups() for field in reference.fields_of_group(kind, prefix)]
    assert {field.name for field in fields} == {name for name, _ in fields_of(Recipe())}
    assert not [field.name for field in fields if len(field.text) < 10]
    assert {field.name: field.used_by for field in fields}["schedule.power"] == ("polynomial",)
    page = reference.recipe()
    assert all(f"`{field.name}`" in page for field in fields)


def test_every_network_and_all_weights_are_in_the_tables(reference):
    page = reference.models()
    assert all(f"| {name} |" in page for name in MODELS)
    assert all(f"| `{name}` |" in page for name in WEIGHTS)
    assert not [name for name, entry in WEIGHTS.items() if not reference.trained_on(entry.tag)]


def test_every_command_has_its_long_help(reference):
    assert "(default:" in reference.help_of("summary")
    assert list(COMMANDS) == re.findall(r"^## (.*)", reference.commands(), re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_a_page_exist_with_their_flags(page):
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("resnet-jax "):
                name, *words = shlex.split(line, comments=True)[1:]
                given = {word.partition("=")[0] for word in words if word.startswith("--")}
                known = flags(f"bench {words[0]}" if name == "bench" else name)
                # The short help shows one word of a switch
                assert not [flag for flag in given if not {flag, flag.replace("no-", "")} & known], line


def test_flags_in_the_table_of_other_libraries_are_ours():
    page = (ROOT / "docs" / "migration.md").read_text().partition("## Flags and fields")[2]
    known = flags("train")
    for row in re.findall(r"^\|.*\| (.*) \|$", page, re.M)[2:]:
        group = ""
        for flag in re.findall(r"`((?:--|\.)[\w.-]+)", row):
            group = flag.rpartition(".")[0] if flag.startswith("--") else group
            assert (flag if flag.startswith("--") else group + flag) in known, row


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_to_files(page):
    # Generated pages are there once the site is built
    for target in re.findall(r"\]\((?!https?://|#|generated/)([^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{target} is missing"
