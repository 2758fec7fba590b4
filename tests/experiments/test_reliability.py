"""The attacks on runs: each holds once, and what does not hold is not counted."""

import pytest

from experiments.reliability import attacks

QUICK = ("corrupt-images",)
BOTH_WAYS = {"rewritten-shards": 2}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in attacks.ATTACKS]
)
def test_an_attack_is_held(name, tmp_path):
    n = BOTH_WAYS.get(name, 1)
    row = attacks.attack(name, n, tmp_path)
    assert row.startswith(f"| {name} | ")
    assert f"| {n} | {n} |" in row or "not tried" in row


@pytest.mark.slow
def test_a_run_that_ends_elsewhere_does_not_count(tmp_path, monkeypatch):
    whole = attacks.whole_run(tmp_path)
    other = whole._replace(rows=[row | {"test/loss": row["test/loss"] + 1} for row in whole.rows])
    assert not whole.equals(other)
    assert not whole.is_near(other)
    assert not whole.equals(None)
    assert whole.is_near(whole)
    monkeypatch.setattr(attacks, "whole_run", lambda out: whole)
    for found, said in ((other, ""), (None, "a traceback\nof several lines")):
        monkeypatch.setattr(attacks, "resumed", lambda run, found=found, said=said: (found, said))
        (tmp_path / said[:1]).mkdir(exist_ok=True)
        assert attacks.damage(tmp_path / str(len(said)), 2) == 0
