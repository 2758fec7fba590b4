"""What runs that differ in their seeds have in common on the same devices: their data, and what is compiled."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import NamedTuple

from resnet_jax.data.source import Example, Source
from resnet_jax.errors import InputError
from resnet_jax.train.begin import Begun
from resnet_jax.train.compiling import Compiled
from resnet_jax.train.devices import signals
from resnet_jax.train.evaluate import Evaluation, make_evaluation
from resnet_jax.train.feed import Supply, abstract_item, supply
from resnet_jax.train.habits import Feeding
from resnet_jax.train.job import Job, Sources, step_key
from resnet_jax.train.preprocess import original_crop


class Shared(NamedTuple):
    """What such runs have in common."""

    job: Job  # of one of them
    train: Supply
    held: Supply
    evaluation: Evaluation
    compiled: Compiled


def open_data(job: Job, sources: Sources, feeding: Feeding, bad: dict[int, str]) -> tuple[Supply, Supply]:
    """Both splits for the devices of a job; training images that cannot be read are noted in `bad`."""
    train = supply(sources.train, job.mesh, feeding, bad, original_crop(job.recipe, sources.train))
    return train, supply(sources.held, job.mesh, feeding)


def open_while_compiling(
    begun: Begun, sources: Sources, feeding: Feeding, bad: dict[int, str], compiled: Compiled
) -> tuple[Supply, Supply]:
    """As `open_data`, on a thread, while the step that comes next is compiled.

    Not the other way round: JAX's settings are those of a thread. Where both fail, what the data raises is raised.
    """
    job, recipe = begun.job, begun.job.recipe
    crop = original_crop(recipe, sources.train)
    item = abstract_item(sources.train, job.mesh, recipe.seed, recipe.batch_size, feeding, crop)
    ended = Event()
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(open_data, job, _until(ended, sources), feeding, bad)
        try:
            compiled(begun.step, (begun.state, begun.sums, item, step_key(job), signals(job.mesh, 0)))
            return opening.result()
        except BaseException:
            error = opening.exception() if opening.done() else None
            ended.set()
            if isinstance(error, InputError):
                raise error from None
            raise


def _until(ended: Event, sources: Sources) -> Sources:
    """The same, of which nothing more is read once that is set: a thread cannot be stopped from outside."""

    def stopping(source: Source) -> Source:
        def read(index: int) -> Example:
            if ended.is_set():
                raise InterruptedError
            return source.read(index)

        return source._replace(read=read)

    return sources._replace(train=stopping(sources.train), held=stopping(sources.held))


def share(job: Job, train: Supply, held: Supply, compiled: Compiled) -> Shared:
    """What runs share on the devices of a job."""
    evaluation = make_evaluation(job.model, job.recipe.data, job.mesh, loss=job.measure, right=job.right)
    return Shared(job, train, held, evaluation, compiled)
