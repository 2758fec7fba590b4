"""Folders for the hub: timm builds the network from them alone, and its logits are those of the run."""

import json
import sys

import chex
import huggingface_hub
import jax
import numpy as np
import pytest
import timm
import torch
from conftest import QUICKLY
from PIL import Image
from untrained import write_run

from resnet_jax.errors import InputError
from resnet_jax.inference.load_run import load_run
from resnet_jax.inference.predict import predict
from resnet_jax.inference.push import push, save_for_hub
from resnet_jax.recipe import Augment, Data, Model, Recipe
from resnet_jax.runtime.compiler_options import compiler_options
from resnet_jax.weights.load import create_model
from resnet_jax.weights.tensors import read_tensors

CLASSES = ("ant", "bee", "cat")


def run_of(home, name, channels=3, **fields):
    """A run with random statistics, since those of a new network are the same everywhere."""
    size = {"image_size": 64, "crop_pct": 0.9, "interpolation": "bicubic"}
    data = Data(name="folder:pets", **size, mean=(0.4,), std=(0.2, 0.3, 0.4)[:channels])
    recipe = Recipe(model=Model(name=name, fields=fields), data=data, augment=Augment(crop_padding=0))
    rng = np.random.default_rng(0)

    def change(state):
        stats = jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32), state.batch_stats)
        return state.replace(batch_stats=stats)

    return write_run(home / "run", recipe, (64, 64, channels), CLASSES, change=change)


def images(channels=3):
    return np.random.default_rng(1).normal(size=(2, 64, 64, channels)).astype(np.float32)


def logits_of(model, variables, x):
    return np.asarray(jax.jit(model.apply, compiler_options=compiler_options() | QUICKLY)(variables, x))


@pytest.mark.parametrize(
    ("name", "channels", "fields"),
    [
        pytest.param("resnet18", 3, {}, marks=pytest.mark.slow),
        ("resnet18d", 1, {"depths": (1, 1, 1, 1), "act": "silu", "pool": "max"}),
        pytest.param("resnet18v2", 3, {}, marks=pytest.mark.slow),
        pytest.param("ecaresnet26t", 3, {"depths": (1, 1, 1, 1)}, marks=pytest.mark.slow),
        pytest.param("resnet50_gn", 3, {"depths": (1, 1, 1, 1)}, marks=pytest.mark.slow),
    ],
)
def test_timm_and_we_load_it_with_equal_logits(tmp_path, name, channels, fields):
    run = run_of(tmp_path, name, channels, **fields)
    saved = save_for_hub(run, tmp_path / "hub", license="apache-2.0")
    assert saved.why == ""
    setup, state = load_run(run, 1)
    x = images(channels)
    expected = logits_of(setup.model, {"params": state.params, "batch_stats": state.batch_stats}, x)
    theirs = timm.create_model(f"local-dir:{saved.folder}", pretrained=True).eval()
    with torch.no_grad():
        logits = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    np.testing.assert_array_equal(logits_of(*create_model(str(saved.folder), pretrained=True), x), expected)
    known = timm.data.resolve_data_config(theirs.pretrained_cfg)
    assert known["input_size"] == (channels, 64, 64)
    assert (known["crop_pct"], known["interpolation"]) == (0.9, "bicubic")
    assert known["mean"] == (0.4,) * channels
    assert known["std"] == (0.2, 0.3, 0.4)[:channels]
    assert theirs.pretrained_cfg["label_names"] == list(CLASSES)
    card = (saved.folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: timm\nlicense: apache-2.0\ntags:\n- image-classification\n")
    assert 'timm.create_model("local-dir:hub", pretrained=True)' in card
    assert f"| Network | {name}, " in card


@pytest.mark.parametrize(
    ("name", "fields", "why"),
    [
        ("resnet8", {}, "timm has no resnet8"),
        ("resnet18", {"width": 16, "depths": (1, 1, 1, 1)}, "timm's resnet18 has other width"),
        ("resnet18", {"act": "gelu", "width": 16, "depths": (1, 1, 1, 1)}, "timm's resnet18 has other width and act"),
    ],
)
def test_what_timm_lacks_is_said_and_opened_here(tmp_path, name, fields, why):
    run = run_of(tmp_path, name, **fields)
    saved = save_for_hub(run, tmp_path / "hub")
    assert (saved.timm, saved.why) == ("", why)
    assert f"{why[0].upper()}{why[1:]}.\n" in (saved.folder / "README.md").read_text()
    image = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 80, 3), np.uint8)).save(image)
    ours, theirs = predict(run, [image])[0], predict(saved.folder / "model.safetensors", [image])[0]
    assert ours.classes == theirs.classes
    np.testing.assert_allclose(ours.probabilities, theirs.probabilities, rtol=1e-6)


def test_a_folder_of_others_is_not_replaced(tmp_path):
    run = run_of(tmp_path, "resnet8")
    hub = tmp_path / "hub"
    save_for_hub(run, hub)
    before = read_tensors(hub / "model.safetensors")
    save_for_hub(run, hub)
    chex.assert_trees_all_equal(read_tensors(hub / "model.safetensors"), before)
    assert sorted(path.name for path in hub.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    (hub / "notes").write_text("mine")
    with pytest.raises(InputError, match="hub: has other files; name a new folder"):
        save_for_hub(run, hub)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub", "run"]


class Hub:
    """What huggingface_hub is asked for."""

    asked: list

    def __init__(self, library_name):
        type(self).asked = []

    def create_repo(self, name, private, exist_ok):
        self.asked.append(("create", name, private, exist_ok))

    def upload_folder(self, folder_path, repo_id, commit_message):
        self.asked.append(("upload", sorted(path.name for path in folder_path.iterdir()), repo_id, commit_message))


def test_what_is_uploaded(tmp_path, monkeypatch):
    run = run_of(tmp_path, "resnet8")
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert push(run, "me/pets", tmp_path / "hub", private=True) == "https://huggingface.co/me/pets"
    files = ["README.md", "config.json", "model.safetensors"]
    assert Hub.asked == [("create", "me/pets", True, True), ("upload", files, "me/pets", "Add weights")]
    assert 'create_model("hf:me/pets", pretrained=True)' in (tmp_path / "hub" / "README.md").read_text()
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["label_names"] == list(CLASSES)

    def refuse(self, *args, **options):
        raise OSError("no network\nat all")

    monkeypatch.setattr(Hub, "create_repo", refuse)
    with pytest.raises(InputError, match=r"^me/pets: cannot be uploaded \(no network.*\); log in with `hf auth login`"):
        push(run, "me/pets", tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="needs huggingface_hub; pip install huggingface_hub"):
        push(run, "me/pets", tmp_path / "hub")
    for wrong in ("pets", "me/", "me/pets/x", "me/pe ts"):
        with pytest.raises(InputError, match="not a repository of the hub; write OWNER/NAME"):
            push(run, wrong, tmp_path / "hub")
