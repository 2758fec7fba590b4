"""Which step is compiled: in as few parts as the memory allows, once for each size of the images."""

import jax
import pytest

from resnet_jax.train import compiling
from resnet_jax.train.compiling import bytes_of, compile_within, compiler
from resnet_jax.train.feed import supply, training_items
from resnet_jax.train.job import initial, open_sources, prepare, step_key


@pytest.fixture
def begun(tiny, tmp_path):
    sources = open_sources(tiny, tmp_path)
    job = prepare(tiny, sources.dataset, 1)
    item = next(training_items(supply(sources.train, job.mesh), tiny.seed, tiny.batch_size, range(1)))
    return job, (*initial(job), item, step_key(job), None)


def test_a_step_is_compiled_once_and_says_so(begun):
    job, given = begun
    said = []
    compiled = compiler(job, [1], said.append)
    step, seconds = compiled(0, given)
    assert seconds > 0
    assert compiled(1, given) == (step, 0.0)
    assert len(said) == 1
    assert said[0].startswith("compiled in ")
    assert int(step(*given)[2].step) == 1


def test_what_does_not_fit_is_cut(begun, monkeypatch):
    job, given = begun
    whole, parts = compile_within(job, [1], None, given)
    assert parts == 1
    asked = []

    def advance(job, size):
        asked.append(job.accumulate)
        return type("step", (), {"lower": lambda *given: type("lowered", (), {"compile": lambda: refused(job)})})

    def refused(job):
        if job.accumulate < 4:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: too large")
        return whole

    monkeypatch.setattr(compiling, "make_advance", advance)
    assert compile_within(job, [1, 2, 4, 8], None, given) == (whole, 4)
    assert asked == [1, 2, 4]
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        compile_within(job, [1, 2], None, given)


def test_the_memory_of_a_step_holds_its_state_at_least(begun):
    job, given = begun
    step, _ = compile_within(job, [1], None, given)
    assert bytes_of(step) >= sum(leaf.nbytes for leaf in jax.tree.leaves(given[0]))
