"""Runs as generators: whose step is taken when, and what an error of one means to the others."""

import pytest

from resnet_jax.errors import InputError
from resnet_jax.train.drive import Ask, Taken, drive


def run(name, steps, pauses=0, error=None):
    """Asks for so many steps, pausing after the first; returns what it was sent."""
    sent = []
    for step in range(steps):
        taken = yield Ask(name, step, ())
        sent.append(taken.state)
        for _ in range(pauses if step == 0 else 0):
            assert (yield) is None
    if error:
        raise error
    return sent


def taking(calls):
    def take(asks):
        calls.append([f"{ask.job}{ask.step}" for ask in asks])
        return [Taken(f"{ask.job}{ask.step}", None, None, 0.0) for ask in asks]

    return take


def test_each_is_sent_what_it_asked_for():
    calls, moved = [], []
    ends = drive([run("a", 2), run("b", 3)], taking(calls), lambda: moved.append(1))
    assert ends == [["a0", "a1"], ["b0", "b1", "b2"]]
    assert calls == [["a0", "b0"], ["a1", "b1"], ["b2"]]
    assert len(moved) == 7


def test_one_that_pauses_is_waited_for_where_all_are_one_call():
    apart, together = [], []
    drive([run("a", 2, pauses=2), run("b", 3)], taking(apart), lambda: None)
    drive([run("a", 2, pauses=2), run("b", 3)], taking(together), lambda: None, together=True)
    assert apart == [["a0", "b0"], ["b1"], ["b2"], ["a1"]]
    assert together == [["a0", "b0"], ["a1", "b1"], ["b2"]]


def test_an_error_ends_one_and_a_bug_ends_all():
    error, told, closed = InputError("no"), [], []
    runs = [run("a", 1, error=error), run("b", 2)]
    ends = drive(runs, taking([]), lambda: None, together=True, stopped=lambda *what: told.append(what))
    assert ends == [error, ["b0", "b1"]]
    assert told == [(0, error)]

    def careful():
        try:
            yield Ask("c", 0, ())
        finally:
            closed.append("c")

    with pytest.raises(ZeroDivisionError):
        drive([careful(), run("a", 0, error=ZeroDivisionError())], taking([]), lambda: None)
    assert closed == ["c"]
