"""Held-out images, folds, groups, classes and draws, against scikit-learn and NumPy."""

import pickle

import numpy as np
import pytest
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, StratifiedKFold

from resnet_jax.data.classes import map_classes
from resnet_jax.data.datasets import DATASETS, open_split
from resnet_jax.data.permutation import Draws, epoch_draws, epoch_permutation
from resnet_jax.data.selection import Selection, assign_groups, held_out, select
from resnet_jax.data.source import from_arrays, source_digest, subset, to_arrays
from resnet_jax.errors import InputError

RANDOM = np.random.default_rng(0)
# Of 5 classes, the last of which is rare, and 40 groups of very different sizes
LABELS = RANDOM.choice(5, 400, p=[0.5, 0.25, 0.15, 0.08, 0.02])
GROUPS = RANDOM.choice(40, 400, p=RANDOM.dirichlet(np.ones(40)))


def source(labels=LABELS, groups=GROUPS):
    """Images that are the number of the example, so that one can see which they are."""
    numbers = np.arange(len(labels))
    images = np.stack([numbers // 256, numbers % 256], -1).astype(np.uint8).reshape(-1, 1, 2, 1)
    return from_arrays(images, labels, ["a", "b", "c", "d", "e"])._replace(groups={"patient": groups}.__getitem__)


def numbers_of(part):
    images = to_arrays(part)[0].astype(int)
    return images[:, 0, 0, 0] * 256 + images[:, 0, 1, 0]


def parts(selection):
    train, held = (numbers_of(select(source(), split, selection, "x")) for split in ("train", "validation"))
    assert sorted((*train, *held)) == list(range(400))
    return train, held


def counts(numbers, labels=LABELS):
    return np.bincount(labels[numbers], minlength=5)


def test_a_fraction_is_that_of_all_training_images():
    assert np.array_equal(parts(Selection(0.1))[1], parts(Selection(40))[1])


@pytest.mark.parametrize("amount", [40, 0.25, 7])
def test_stratified_counts_are_within_one_of_their_share(amount):
    held = parts(Selection(amount, stratify=True))[1]
    assert len(held) == (amount if amount > 1 else 400 * amount)
    assert (abs(counts(held) - counts(np.arange(400)) * len(held) / 400) < 1).all()


@pytest.mark.parametrize("stratify", [False, True])
def test_each_image_is_held_out_by_one_fold(stratify):
    folds = [parts(Selection(fold=(part, 7), stratify=stratify))[1] for part in range(7)]
    assert sorted(np.concatenate(folds)) == list(range(400))
    assert {len(fold) for fold in folds} == {57, 58}
    theirs = [fold for _, fold in StratifiedKFold(7).split(LABELS, LABELS)]
    if stratify:
        ours, sklearn = (np.sort([counts(fold) for fold in some], axis=0) for some in (folds, theirs))
        np.testing.assert_array_equal(ours, sklearn)


def test_groups_stay_together_in_folds_as_even_as_scikit_learns():
    folds = [parts(Selection(fold=(part, 5), group_by="patient"))[1] for part in range(5)]
    assert sum(len(set(GROUPS[fold])) for fold in folds) == len(set(GROUPS))
    theirs = [fold for _, fold in GroupKFold(5).split(LABELS, LABELS, GROUPS)]
    assert sorted(map(len, folds)) == sorted(map(len, theirs))


def test_stratified_groups_are_as_even_as_scikit_learns():
    """In the mean over problems; both are greedy."""
    ours, theirs = [], []
    for seed in range(8):
        random = np.random.default_rng(seed)
        labels, groups = random.choice(3, 300, p=[0.7, 0.2, 0.1]), random.choice(40, 300)

        def unevenness(folds, labels=labels):
            shares = np.array([np.bincount(labels[fold], minlength=3) for fold in folds]) / np.bincount(labels)
            return np.square(shares - 0.2).sum()

        even = assign_groups(groups, labels, [0.2] * 5)
        ours.append(unevenness([np.flatnonzero(even == part) for part in range(5)]))
        theirs.append(unevenness([fold for _, fold in StratifiedGroupKFold(5).split(labels, labels, groups)]))
    assert np.mean(ours) <= np.mean(theirs)


@pytest.mark.parametrize("stratify", [False, True])
def test_a_fraction_of_the_groups_is_held_out(stratify):
    train, held = parts(Selection(0.25, stratify=stratify, group_by="patient"))
    assert not set(GROUPS[train]) & set(GROUPS[held])
    assert abs(len(held) - 100) <= 5


def test_classes_are_merged_dropped_and_renamed():
    mapped = map_classes(source(), {"a": "x", "d": "x", "b": None, "e": "last"})
    assert mapped.classes == ("x", "c", "last")
    kept = LABELS != 1
    np.testing.assert_array_equal(numbers_of(mapped), np.flatnonzero(kept))
    expected = np.array([0, -1, 1, 0, 2])[LABELS[kept]]
    np.testing.assert_array_equal(to_arrays(mapped)[1], expected)
    np.testing.assert_array_equal(mapped.labels, expected)
    other = map_classes(source(), {"a": "x", "e": "x", "b": None, "d": "last"})
    assert source_digest(mapped) != source_digest(other)


def test_labels_that_are_not_known_are_read():
    unknown = source()._replace(labels=None)
    mapping = {"a": None}
    np.testing.assert_array_equal(map_classes(unknown, mapping).labels, map_classes(source(), mapping).labels)


def test_a_larger_limit_contains_a_smaller_one():
    small, large, half = (numbers_of(select(source(), "train", Selection(limit=limit), "x")) for limit in (3, 20, 0.5))
    assert counts(small).tolist() == [3, 3, 3, 3, 3]
    assert counts(large).tolist() == np.minimum(counts(np.arange(400)), 20).tolist()
    assert counts(half).tolist() == [round(n / 2) for n in counts(np.arange(400)).tolist()]
    assert set(small) <= set(large)


def test_what_is_held_out_does_not_depend_on_the_limit():
    limited, whole = (Selection(0.2, limit=limit, stratify=True) for limit in (5, None))
    held = [numbers_of(select(source(), "validation", s, "x")) for s in (limited, whole)]
    np.testing.assert_array_equal(*held)


@pytest.mark.parametrize(("sampling", "power"), [("balanced", -1.0), ("sqrt", -0.5)])
def test_an_epoch_draws_each_class_its_share(sampling, power):
    draws = select(source(), "train", Selection(sampling=sampling), "x").draws
    sizes = counts(np.arange(400))
    expected = 400 * sizes ** (1 + power) / (sizes ** (1 + power)).sum()
    drawn = [epoch_draws(0, epoch, draws) for epoch in range(50)]
    assert all((abs(counts(order) - expected) < 1).all() for order in drawn)
    # And each image as often as the others of its class, rounded
    times = np.bincount(drawn[0], minlength=400)
    assert all(np.ptp(times[label == LABELS]) <= 1 for label in range(5))


def test_expected_draws_are_the_weights():
    weights = np.array([0.0, 1.0, 2.5, 0.2, 7.0])
    drawn = np.concatenate([epoch_draws(1, epoch, DRAWS) for epoch in range(5_000)])
    np.testing.assert_allclose(np.bincount(drawn, minlength=5) / 5_000, 5 * weights / weights.sum(), atol=0.02)


DRAWS = Draws(np.array([0.0, 1.0, 2.5, 0.2, 7.0]), np.zeros(5, int))


def test_draws_are_a_function_of_seed_and_epoch():
    """Golden: another order would silently make runs irreproducible."""
    for draws in (DRAWS, pickle.loads(pickle.dumps(DRAWS))):
        assert epoch_draws(0, 0, draws).tolist() == [4, 4, 2, 4, 4]
        assert epoch_draws(3, 7, draws).tolist() == [4, 4, 2, 2, 4]
    assert len({tuple(epoch_draws(seed, epoch, DRAWS)) for seed in range(4) for epoch in range(4)}) > 8


def test_equal_weights_are_a_permutation():
    even = Draws(np.full(100, 0.3), RANDOM.integers(0, 3, 100))
    assert all(sorted(epoch_draws(5, epoch, even)) == list(range(100)) for epoch in range(20))


def test_weights_in_a_file_belong_to_the_images_before_any_is_left_out(tmp_path):
    file = tmp_path / "weights.txt"
    np.savetxt(file, np.arange(400))
    chosen = select(source(), "train", Selection(40, class_map=(("b", None),), sampling=str(file)), "x")
    np.testing.assert_array_equal(chosen.draws.weights, numbers_of(chosen))
    before = source_digest(chosen)
    np.savetxt(file, np.arange(400) + 1)
    assert source_digest(select(source(), "train", Selection(40, (), sampling=str(file)), "x")) != before


def test_a_subset_keeps_draws_and_groups():
    part = subset(source()._replace(draws=Draws(np.arange(400.0), LABELS)), np.array([7, 3]))
    assert part.draws.weights.tolist() == [7, 3]
    assert part.groups("patient").tolist() == GROUPS[[7, 3]].tolist()


def test_wrong_selections_are_one_line(tmp_path):
    whole, numbers = source(), from_arrays(np.zeros((4, 1, 1, 1), np.uint8), np.ones((4, 2), np.float32), ["u", "v"])
    few = source(groups=np.zeros(400, int))
    short, bad = tmp_path / "short.txt", tmp_path / "bad.txt"
    short.write_text("1\n2\n")
    bad.write_text("1\n" * 399 + "-1\n")
    for data, selection, message in (
        (whole, Selection(fold=(0, 500)), "data.fold is 1/500; x has 400 training images"),
        (whole._replace(groups=None), Selection(5, group_by="p"), "data.group_by is p; x has no groups"),
        (few, Selection(fold=(1, 3), group_by="patient"), "data.group_by patient: x has too few groups"),
        (numbers, Selection(1, stratify=True), "data.stratify is for one class per image"),
        (numbers, Selection(sampling="balanced"), "data.sampling balanced is for one class per image"),
        (numbers, Selection(class_map=(("u", "w"),)), "data.class_map is for one class per image"),
        (whole, Selection(class_map=(("f", "w"),)), "unknown class in data.class_map 'f'; known: a, b, c, d, e"),
        (whole, Selection(class_map=tuple((c, None) for c in "abcde")), "data.class_map drops the classes of all"),
        (whole, Selection(sampling="balansed"), "data.sampling is balansed: cannot be read .*; give uniform, balanced"),
        (whole, Selection(sampling=str(short)), "2 weights for 400 training images"),
        (whole, Selection(sampling=str(bad)), "weights must be finite, not negative"),
    ):
        with pytest.raises(InputError, match=message):
            select(data, "train", selection, "x")


def test_what_is_held_out_never_changes():
    """Golden: runs are compared on the images that were held out."""
    held = [np.flatnonzero(held_out(source(), s, "x"))[:5].tolist() for s in HELD]
    assert held == HELD_FIRST
    assert sorted(epoch_permutation(0, 0, 400)[-40:]) == sorted(parts(Selection(40))[1])


HELD = (Selection(40, stratify=True), Selection(fold=(1, 5)))
HELD_FIRST = [[3, 17, 20, 27, 36], [7, 13, 22, 30, 34]]


def test_mixed_sources_have_their_fractions_of_an_epoch(tmp_path, monkeypatch):
    monkeypatch.setitem(DATASETS, "big", lambda split, folder: source())
    monkeypatch.setitem(DATASETS, "small", lambda split, folder: source(LABELS[:100], GROUPS[:100]))
    for sampling in ("uniform", "balanced"):
        mixed = open_split("big", "train", tmp_path, Selection(0.1, sampling=sampling, mix=(("small", 3),)))
        assert mixed.size == 360 + 100
        assert numbers_of(mixed)[360:].tolist() == list(range(100))
        drawn = epoch_draws(0, 0, mixed.draws)
        assert abs((drawn >= 360).sum() - 460 * 3 / 4) <= 5
    assert mixed.read(400).target == LABELS[40]
    assert open_split("big", "validation", tmp_path, Selection(0.1, mix=(("small", 3),))).size == 40
    other = map_classes(source(), {"a": "z"})
    monkeypatch.setitem(DATASETS, "other", lambda split, folder: other)
    with pytest.raises(InputError, match="data.mix: other has other classes than big"):
        open_split("big", "train", tmp_path, Selection(mix=(("other", 1),)))
