"""Open the data of a run while its step is compiled."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

from resnet_jax.data.source import Example, Source, require_readable
from resnet_jax.errors import InputError
from resnet_jax.input_pipeline.device_input import DeviceSplit, abstract_step_input, open_device_split
from resnet_jax.input_pipeline.loading import DataLoading
from resnet_jax.input_pipeline.preprocess import original_crop
from resnet_jax.training.aot import CompiledStep
from resnet_jax.training.evaluate import make_eval_step
from resnet_jax.training.executables import keep
from resnet_jax.training.make_step import step_constants
from resnet_jax.training.run_state import RunPrograms, RunState
from resnet_jax.training.setup import TrainSetup, program_identity
from resnet_jax.training.sources import Sources


def open_splits(
    setup: TrainSetup, sources: Sources, loading: DataLoading, corrupt: dict[int, str]
) -> tuple[DeviceSplit, DeviceSplit]:
    """Open both splits for the devices of a setup; training images that cannot be read are noted in `corrupt`.

    Raises:
        InputError: An image of the evaluation split cannot be read; the first evaluation would fail.
    """
    crop = original_crop(setup.recipe, sources.train)
    evaluation = open_device_split(sources.evaluation, setup.mesh, loading)
    if evaluation.arrays is None:
        require_readable(sources.evaluation)
    return open_device_split(sources.train, setup.mesh, loading, corrupt, crop), evaluation


def open_while_compiling(
    run: RunState, sources: Sources, loading: DataLoading, corrupt: dict[int, str], train_step: CompiledStep
) -> tuple[DeviceSplit, DeviceSplit]:
    """Open both splits on a thread while the next step is compiled here.

    Not the other way round: JAX's settings belong to a thread. If both fail, the error of the data is raised.
    """
    setup = run.setup
    crop = original_crop(setup.recipe, sources.train)
    inputs = abstract_step_input(sources.train, setup.mesh, setup.recipe, loading, crop)
    ended = Event()
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(open_splits, setup, _until(ended, sources), loading, corrupt)
        try:
            train_step(run.step, (run.state, inputs, *step_constants(setup)))
            return opening.result()
        except BaseException:
            error = opening.exception() if opening.done() else None
            ended.set()
            if isinstance(error, InputError):
                raise error from None
            raise


def _until(ended: Event, sources: Sources) -> Sources:
    """Return the sources, of which nothing is read once `ended` is set: a thread cannot be stopped from outside."""

    def stopping(source: Source) -> Source:
        def read(index: int) -> Example:
            if ended.is_set():
                raise InterruptedError
            return source.read(index)

        return source._replace(read=read)

    return sources._replace(train=stopping(sources.train), evaluation=stopping(sources.evaluation))


def make_programs(
    setup: TrainSetup, train_split: DeviceSplit, eval_split: DeviceSplit, train_step: CompiledStep
) -> RunPrograms:
    """Return the data and programs of a setup."""
    eval_step = make_eval_step(setup.model, setup.recipe.data, setup.mesh, setup.metrics)
    kept = keep(eval_step, setup.mesh, program_identity(setup, "evaluate", sorted(setup.metrics)))
    return RunPrograms(train_split, eval_split, train_step, kept)
