"""Train a recipe in a run directory: open, restore or start, and hand over to the loop."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import jax
import optax
from flax import linen as nn
from rich.console import Console

from resnet_jax.data.source import Example, Source, require_readable
from resnet_jax.errors import InputError
from resnet_jax.input_pipeline.device_input import DeviceSplit, abstract_step_input, open_device_split
from resnet_jax.input_pipeline.loading import DataLoading
from resnet_jax.input_pipeline.preprocess import Transform, original_crop
from resnet_jax.parallel.multihost import is_primary_host, same_on_hosts
from resnet_jax.parallel.sharding import data_mesh
from resnet_jax.recipe import Recipe, check
from resnet_jax.run_dir.files import init_run_dir, require_same_run, restore_metrics
from resnet_jax.run_dir.lock import run_lock
from resnet_jax.runtime.checksum import file_sha256
from resnet_jax.runtime.signals import reraise_signal, stop_signal, watchdog
from resnet_jax.tasks.task import Task
from resnet_jax.training.aot import CompiledStep, compile_once
from resnet_jax.training.evaluate import Totals, make_eval_step
from resnet_jax.training.loop import (
    Logger,
    RunPrograms,
    RunState,
    TrainResult,
    finished_result,
    guarded_loggers,
    train_loop,
)
from resnet_jax.training.options import RunOptions, default_data_dir, validate_options
from resnet_jax.training.pretrained import load_pretrained
from resnet_jax.training.progress import (
    Log,
    RunConsole,
    Tick,
    console_log,
    corrupt_log,
    headline,
    progress,
)
from resnet_jax.training.restore import restore_run
from resnet_jax.training.rows import heading
from resnet_jax.training.setup import (
    BatchLayout,
    Parts,
    TrainSetup,
    init_train_state,
    setup_training,
    step_key,
)
from resnet_jax.training.sources import Sources, eval_split, facts_of, open_sources, with_digest


def train(
    recipe: Recipe,
    out: Path | str,
    *,
    options: RunOptions = RunOptions(),
    data: tuple[Source, Source] | None = None,
    model: nn.Module | None = None,
    task: Task | None = None,
    optimizer: Callable[[optax.Schedule], optax.GradientTransformation] | None = None,
    schedule: optax.Schedule | None = None,
    transform: Transform | None = None,
    log: Sequence[Logger] = (),
    console: Console | None = None,
) -> TrainResult:
    """Train a recipe in a run directory, from its newest checkpoint if there is one.

    Every part that the recipe names can be given as a value instead. The run records that it was, and to resume or
    open the run the value is needed again.

    Args:
        recipe: everything that decides the result.
        out: the run directory: new, empty or of this very recipe.
        options: how and where to run; none changes the curve.
        data: training and test split, instead of the data set that the recipe names.
        model: linen module whose `__call__(x, *, train)` returns the outputs.
        task: loss, metrics and targets.
        optimizer: schedule -> gradient transformation.
        schedule: step -> learning rate, which is logged as "lr".
        transform: (key, image uint8, target) -> (image, target), applied to each training example after the recipe's
            augmentation.
        log: functions (step, row), called after each row of metrics. One that fails is reported once.
        console: where progress is shown; None is standard output.

    Raises:
        InputError: Recipe, data, devices or directory do not fit each other, and nothing was written; or the loss is no
            longer finite, and earlier checkpoints are kept.
        MachineError: The last checkpoint cannot be written.
        KeyboardInterrupt: A signal stopped the run, which is saved; its argument is the number of the signal.

    Example:
        >>> from resnet_jax import Recipe, train
        >>> result = train(Recipe(), "runs/digits")  # doctest: +SKIP
        >>> result.rows[-1]["test/accuracy"]  # doctest: +SKIP
        0.9917
    """
    validate_options(options)
    out, recipe, parts = Path(out).expanduser(), check(recipe), Parts(model, task, optimizer, schedule, transform)
    console = console or RunConsole(quiet=not is_primary_host())
    say = console_log(console)
    with run_lock(out), stop_signal() as signal_received:
        with same_on_hosts() as facts:
            sources = with_digest(open_sources(recipe, Path(options.data_dir or default_data_dir()), data, task))
            reraise_signal(signal_received())
            layout = BatchLayout(data_mesh(options.devices), options.grad_accum_steps, options.param_sharding)
            setup, accum_steps = setup_training(recipe, sources.dataset, layout, parts, options.metrics)
            facts |= facts_of(recipe, sources, out, options)
        run = restore_or_init(setup, out, say)
        reraise_signal(signal_received())
        if done := finished_result(run, options):
            say(f"{out}: already {'finished' if done.step == done.steps else f'at step {done.step}'}, nothing trained")
            return done
        log_start(run)
        for note in (*sources.notes(), heading(eval_split(recipe), setup.task)):
            say(note)
        corrupt: dict[int, str] = {}
        train_step = compile_once(setup, accum_steps, say)
        splits = open_while_compiling(run, sources, options, corrupt, train_step)
        programs = make_programs(setup, *splits, train_step)
        write_start(run, options)
        with watchdog(options.watchdog_seconds) as kick, progress(console) as add_bar:
            last = min(setup.steps, options.stop_at or setup.steps)
            bar = add_bar(f"{out.name} step", recipe.batch_size, run.step, last)
            most = options.max_corrupt_fraction * setup.dataset.train_size
            tick = all_of(kick, corrupt_log(corrupt, most, say), bar)
            loggers = guarded_loggers(log, say)
            result = train_loop(
                run, programs, options, key=step_key(setup), loggers=loggers, stop=signal_received, tick=tick
            )
    return unless_stopped(result, options)


def unless_stopped(result: TrainResult, options: RunOptions) -> TrainResult:
    """Return a result; raise KeyboardInterrupt if a signal stopped the run, so that a loop over runs stops as well."""
    if result.signal and not options.return_on_signal:
        raise KeyboardInterrupt(result.signal)
    return result


def all_of(kick: Callable[[], None], log_corrupt: Callable[[], None], bar: Tick) -> Tick:
    """Return what happens after each step: the watchdog is kicked, corrupt images are logged, the bar moves."""

    def tick(step: int, values: Callable[[], dict[str, Any]]) -> None:
        kick()
        log_corrupt()
        bar(step, values)

    return tick


def restore_or_init(setup: TrainSetup, out: Path, log: Log) -> RunState:
    """Restore the newest checkpoint, or initialise a state, of which nothing is written yet.

    Raises:
        InputError: Recipe, data or network do not fit what is there.
    """
    with same_on_hosts():
        require_same_run(out, setup.recipe, setup.dataset, setup.given)
    restored = restore_run(setup, out, quarantine=True, log=log)
    if restored is None:
        with same_on_hosts() as facts:
            pretrained = load_pretrained(setup)
            facts["the pretrained weights"] = pretrained and file_sha256(pretrained.file)
        state = init_train_state(setup, pretrained and pretrained.variables)
        # Its variables are in the state now
        return RunState(setup, out, state, 0, {}, {}, [], log, pretrained and pretrained._replace(variables={}))
    state, saved = restored
    step, totals = int(state.step), known_totals(setup, saved.get("totals", {}))
    timer, unevaluated = saved.get("timer", {}), bool(saved.get("unevaluated"))
    restore_metrics(out, saved["rows"], log)
    return RunState(setup, out, state, step, totals, timer, saved["rows"], log, unevaluated=unevaluated)


def write_start(run: RunState, options: RunOptions) -> None:
    """Write the run directory, which no refusal leaves behind: nothing is refused after this."""
    setup = run.setup
    with same_on_hosts():
        if is_primary_host():
            file = run.pretrained and run.pretrained.file
            init_run_dir(run.out, setup.recipe, setup.dataset, setup.given, file, vars(options))
        # Rows of an interrupted start without a checkpoint
        if run.step == 0:
            restore_metrics(run.out, [], run.log)


def known_totals(setup: TrainSetup, saved: Totals) -> Totals:
    """Return the saved totals that this task still measures; a metric that is new is None until the next row."""
    if not saved:
        return {}
    return {name: saved.get(name) for name in ("loss", "weight", "count", "nonfinite_steps", *setup.task.train_metrics)}


def log_start(run: RunState) -> None:
    """Say what is trained, and on which weights."""
    resuming = f"resuming at step {run.step}"
    run.log(f"{resuming if run.step else 'training'}: {headline(run.setup, run.out)}")
    for note in (*(run.pretrained.notes if run.pretrained else ()), *ema_notes(run.setup.recipe, run.setup.steps)):
        run.log(note)


def ema_notes(recipe: Recipe, steps: int) -> list[str]:
    """Return a note if the EMA would average over more steps than the run has."""
    span = recipe.ema_update_every / (1 - recipe.ema_decay)
    if not recipe.ema_decay or span <= steps:
        return []
    effect = "its warm-up shortens the average" if recipe.ema_warmup else "the initial parameters weigh in: lower it"
    return [f"ema_decay {recipe.ema_decay:g} averages over about {span:,.0f} steps, the run has {steps:,}; {effect}"]


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
            train_step(run.step, (run.state, inputs, step_key(setup)))
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
    eval_step: jax.stages.Wrapped = make_eval_step(setup.model, setup.recipe.data, setup.mesh, setup.metrics)
    return RunPrograms(train_split, eval_split, train_step, eval_step)
