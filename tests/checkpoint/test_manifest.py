"""A manifest holds for the very files that it was written for, and for no others."""

import hashlib
import json

import jax
import jax.numpy as jnp
import pytest

from resnet_jax.checkpoint.manifest import DamageError, describe_leaves, misfits, read_manifest, verify, write_manifest

LEAVES = {"params/kernel": "float32[3, 4]"}
PROGRESS = {"totals": {"count": 3}, "timer": [1.5, 2]}


@pytest.fixture
def sealed(tmp_path):
    """A folder of four files, one of them empty, sealed as step 7."""
    folder = tmp_path / "7"
    (folder / "d").mkdir(parents=True)
    for name, content in (("a", b"content"), ("d/b", bytes(range(256))), ("d/c", b"x"), ("empty", b"")):
        (folder / name).write_bytes(content)
    write_manifest(folder, 7, metric=0.25, progress=PROGRESS, leaves=LEAVES)
    return folder


def flip(path, index):
    content = bytearray(path.read_bytes())
    content[index] ^= 1 << index % 8
    path.write_bytes(content)


def test_what_is_sealed_is_intact(sealed):
    manifest = verify(sealed)
    assert manifest == read_manifest(sealed)
    assert (manifest.step, manifest.metric, manifest.progress, manifest.leaves) == (7, 0.25, PROGRESS, LEAVES)
    assert {name: size for name, (size, _) in manifest.files.items()} == {"a": 7, "d/b": 256, "d/c": 1, "empty": 0}


@pytest.mark.parametrize("name", ["a", "d/b", "d/c"])
def test_every_byte_of_every_file_counts(sealed, name):
    path = sealed / name
    content = path.read_bytes()
    for index in range(len(content)):
        flip(path, index)
        with pytest.raises(DamageError, match=f"^{name} has changed$"):
            verify(sealed)
        path.write_bytes(content)
    verify(sealed)


def test_every_byte_of_the_manifest_counts(sealed):
    path = sealed / "manifest.json"
    content = path.read_bytes()
    for index in range(len(content)):
        flip(path, index)
        with pytest.raises(DamageError, match=r"^manifest.json has changed$"):
            read_manifest(sealed)
        path.write_bytes(content[:index])
        with pytest.raises(DamageError, match=r"^manifest.json has changed$"):
            read_manifest(sealed)
        path.write_bytes(content)
    verify(sealed)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "d/b").write_bytes(b"short"), r"d/b has 5 bytes of 256"),
        (lambda folder: (folder / "empty").write_bytes(b"!"), r"empty has 1 bytes of 0"),
        (lambda folder: (folder / "empty").unlink(), r"empty is missing"),
        (lambda folder: (folder / "d/new").touch(), r"d/new does not belong there"),
        (lambda folder: (folder / "manifest.json").unlink(), r"no manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("[" * 100_000), r"manifest.json has changed"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), r"manifest.json has changed"),
        (lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe\x00"), r"manifest.json has changed"),
        (lambda folder: ((folder / "a").unlink(), (folder / "a").mkdir()), r"a is missing"),
    ],
    ids=["short", "longer", "missing", "extra", "no manifest", "deep", "list", "bytes", "folder"],
)
def test_other_damage_names_the_file(sealed, damage, message):
    damage(sealed)
    with pytest.raises(DamageError, match=f"^{message}$"):
        verify(sealed)


def test_a_checkpoint_of_another_step_is_none_of_this(sealed):
    with pytest.raises(DamageError, match=r"manifest.json is of step 7"):
        verify(sealed.rename(sealed.with_name("8")))


def test_leaves_are_described_by_path_dtype_and_global_shape():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(jnp.zeros((16, 3)), jax.NamedSharding(mesh, jax.P("data")))
    tree = {"state": {"params": spread, "step": jnp.int32(3)}, "ema": {}, "opt": (jnp.zeros(2, jnp.bfloat16),)}
    expected = {"opt/0": "bfloat16[2]", "state/params": "float32[16, 3]", "state/step": "int32[]"}
    assert describe_leaves(tree) == expected
    assert describe_leaves(jax.eval_shape(lambda: tree)) == expected


def test_every_leaf_that_does_not_fit_is_named():
    saved = {"a": "float32[3]", "b": "float32[3]", "c": "float32[3]", "d": "int32[]"}
    expected = {"a": "float32[3]", "b": "float32[4]", "c": "bfloat16[3]", "e": "int32[]"}
    assert misfits(saved, saved) == []
    assert misfits(saved, expected) == [
        "b is float32[3], not float32[4]",
        "c is float32[3], not bfloat16[3]",
        "d is not expected",
        "e is missing",
    ]


@pytest.mark.parametrize(
    "about",
    [
        {"step": 7.0},
        {"metric": "0.9"},
        {"progress": []},
        {"leaves": None},
        {"files": {"a": 1.5}},
        {"files": {"a": [7, 7]}},
        {"files": []},
    ],
)
def test_a_manifest_of_other_types_is_damage_although_its_digest_is_right(sealed, about):
    values = read_manifest(sealed)._asdict() | about
    digest = hashlib.sha256(json.dumps(values, indent=1).encode()).hexdigest()
    (sealed / "manifest.json").write_text(json.dumps({**values, "sha256": digest}, indent=1))
    with pytest.raises(DamageError, match=r"^manifest.json has changed$"):
        verify(sealed)
