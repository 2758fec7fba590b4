"""Runs side by side, or one alone: each is a generator that asks for its steps, and one loop sees that they are taken.

A run yields an `Ask` where it needs its next step, and is sent what that returned. It yields None where it has given
the devices work and does not need the answer yet. What is in between, lines of metrics, checkpoints, steps that are not
finite, is its own: the others do not show in it.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from typing import Any, NamedTuple, TypeVar

from resnet_jax.errors import InputError, MachineError
from resnet_jax.train.job import Job, Told
from resnet_jax.train.state import TrainState
from resnet_jax.train.step import Sums

Ended = TypeVar("Ended")


class Ask(NamedTuple):
    """A step that a run needs next."""

    job: Job
    step: int  # steps taken so far
    given: tuple[Any, ...]  # the arguments of `make_advance`'s function


class Taken(NamedTuple):
    """What a step returned."""

    state: TrainState
    sums: Sums
    told: Told
    seconds: float  # that compiling it took just now


def with_clock(returned: tuple[TrainState, Sums, Told], seconds: float) -> Taken:
    """What a step returned, and how long compiling it took."""
    return Taken(*returned, seconds)


Run = Generator[Ask | None, Taken | None, Ended]
# (asks) -> what their steps returned, in their order
Take = Callable[[list[Ask]], list[Taken]]
# (number of a run, what stopped it)
Stopped = Callable[[int, InputError | MachineError], None]


def drive(
    runs: Sequence[Run[Ended]],
    take: Take,
    between: Callable[[], None],
    *,
    together: bool = False,
    stopped: Stopped = lambda number, error: None,
) -> list[Ended | InputError | MachineError]:
    """All runs to their ends: what each returned, or the error that stopped it and none of the others.

    Args:
        runs: one or more.
        take: takes the steps that are asked for; the devices may still be at work when it returns.
        between: called whenever a run has moved; what it raises ends all.
        together: whether `take` waits until every run asks, or has ended, to take all of their steps in one call.
        stopped: told of an error as soon as it stops a run, for the others may go on for long.
    """
    ended: dict[int, Ended | InputError | MachineError] = {}
    asks: dict[int, Ask] = {}
    taken: dict[int, Taken] = {}
    with ExitStack() as stack:
        for run in runs:
            stack.enter_context(closing(run))
        while len(ended) < len(runs):
            for number in [n for n in range(len(runs)) if n not in ended and n not in asks]:
                try:
                    ask = runs[number].send(taken.pop(number, None))
                except StopIteration as end:
                    ended[number] = end.value
                except (InputError, MachineError) as error:
                    ended[number] = error
                    stopped(number, error)
                else:
                    if ask is not None:
                        asks[number] = ask
                between()
            if asks and (not together or len(asks) + len(ended) == len(runs)):
                asking = sorted(asks)
                taken = dict(zip(asking, take([asks[number] for number in asking]), strict=True))
                asks = {}
    return [ended[number] for number in range(len(runs))]
