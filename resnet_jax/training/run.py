"""Train a recipe in a run directory: open, restore or start, and hand over to the loop."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optax
from flax import linen as nn
from rich.console import Console

from resnet_jax.data.source import Source
from resnet_jax.errors import InputError
from resnet_jax.input_pipeline.preprocess import Transform
from resnet_jax.parallel.multihost import is_primary_host, same_on_hosts
from resnet_jax.parallel.sharding import data_mesh
from resnet_jax.recipe import Recipe, check
from resnet_jax.run_dir.files import init_run_dir, require_same_monitor, require_same_run, restore_metrics
from resnet_jax.run_dir.lock import run_lock
from resnet_jax.runtime.checksum import file_sha256
from resnet_jax.runtime.signals import reraise_signal, stop_signal, watchdog
from resnet_jax.tasks.task import Task
from resnet_jax.training.aot import compile_once
from resnet_jax.training.distillation import Teacher
from resnet_jax.training.evaluate import Totals
from resnet_jax.training.init import init_train_state
from resnet_jax.training.loop import guarded_loggers, train_loop
from resnet_jax.training.make_step import step_constants
from resnet_jax.training.opening import make_programs, open_while_compiling
from resnet_jax.training.options import RunOptions, default_data_dir, require_epoch_rows, validate_options
from resnet_jax.training.parent import load_parent
from resnet_jax.training.pretrained import load_pretrained
from resnet_jax.training.progress import (
    AddBar,
    Log,
    RunConsole,
    Tick,
    console_log,
    corrupt_log,
    headline,
    progress,
    require_written,
)
from resnet_jax.training.restore import restore_run
from resnet_jax.training.rows import heading
from resnet_jax.training.run_state import Logger, RunState, TrainResult, finished_result, last_step
from resnet_jax.training.setup import Parts, TrainSetup, setup_training
from resnet_jax.training.sources import eval_split, facts_of, notes_on_data, open_sources, with_digest
from resnet_jax.training.teacher import with_teacher


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

    Every part that the recipe names can be passed as a value instead. The run records this; to resume or
    open it, pass the value again.

    Args:
        recipe: everything that determines the result.
        out: the run directory: new, empty, or of the same recipe.
        options: devices, evaluation, checkpoints and stopping; none changes the curve.
        data: training and test split, instead of the data set that the recipe names.
        model: linen module whose `__call__(x, *, train)` returns the outputs.
        task: loss, metrics and targets.
        optimizer: schedule -> gradient transformation.
        schedule: step -> learning rate, which is logged as "lr".
        transform: (key, image uint8, target) -> (image, target), applied to each training example after the recipe's
            augmentation.
        log: functions (step, row), called after each row of metrics. One that fails is not called again.
        console: where to show progress; None is standard output.

    Raises:
        InputError: Recipe, data, devices or directory do not fit each other, and nothing was written; or the loss is no
            longer finite, and earlier checkpoints are kept.
        MachineError: The last checkpoint cannot be written, or standard output, which stops the run with a checkpoint.
        KeyboardInterrupt: A signal stopped the run, which was saved; its argument is the number of the signal.

    Example:
        >>> from resnet_jax import Recipe, train
        >>> result = train(Recipe(), "runs/digits")  # doctest: +SKIP
        >>> result.rows[-1]["test/accuracy"]  # doctest: +SKIP
        0.9917
    """
    validate_options(options)
    require_epoch_rows(recipe, options)
    out, recipe, parts = Path(out).expanduser(), check(recipe), Parts(model, task, optimizer, schedule, transform)
    console = console or RunConsole(quiet=not is_primary_host())
    say = console_log(console)
    with run_lock(out), stop_signal(options.time_limit) as signal_received:
        with same_on_hosts() as facts:
            sources = with_digest(open_sources(recipe, Path(options.data_dir or default_data_dir()), data, task))
            reraise_signal(signal_received())
            setup, accum_steps = setup_training(recipe, sources.dataset, data_mesh(options.devices), parts, options)
            setup = setup._replace(draws=sources.train.draws)
            facts |= facts_of(recipe, sources, out, options)
            require_same_monitor(out, options.monitor)
        run = restore_or_init(setup, out, say)
        reraise_signal(signal_received())
        if done := finished_result(run, options):
            say(f"{out}: already {'finished' if done.step == done.steps else f'at step {done.step}'}, nothing trained")
            return done
        setup = with_teacher(setup)
        run = run_with_teacher(run, setup.teacher)
        log_start(run)
        for note in (*sources.notes(), *notes_on_data(recipe, sources), heading(eval_split(recipe), setup.task)):
            say(note)
        corrupt: dict[int, str] = {}
        train_step = compile_once(setup, accum_steps, say)
        splits = open_while_compiling(run, sources, options, corrupt, train_step)
        programs = make_programs(setup, *splits, train_step)
        write_start(run, options)
        with watchdog(options.watchdog_seconds) as kick, progress(console, setup.task.facts.display) as add_bar:
            most = options.max_corrupt_fraction * setup.dataset.train_size
            result = train_loop(
                run,
                programs,
                options,
                constants=step_constants(setup),
                loggers=guarded_loggers(log, say),
                stop=signal_received,
                tick=make_tick(run, options, kick, corrupt_log(corrupt, most, say), add_bar),
            )
    require_written(console)
    return unless_stopped(result, options)


def unless_stopped(result: TrainResult, options: RunOptions) -> TrainResult:
    """Return a result; raise KeyboardInterrupt if a signal stopped the run, so that a loop over runs stops as well."""
    if result.signal and not options.return_on_signal:
        raise KeyboardInterrupt(result.signal)
    return result


def make_tick(
    run: RunState, options: RunOptions, kick: Callable[[], None], log_corrupt: Callable[[], None], add_bar: AddBar
) -> Tick:
    """Return what happens after each step: the watchdog is kicked, corrupt images are logged, the bar moves."""
    bar = add_bar(f"{run.out.name} step", run.setup.recipe.batch_size, run.step, last_step(run.setup, options))

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
            parent = load_parent(setup) if setup.recipe.parent else None
            pretrained = parent[1] if parent else load_pretrained(setup)
            facts["the pretrained weights"] = pretrained and file_sha256(pretrained.file)
        if parent:
            return RunState(setup, out, parent[0], int(parent[0].step), {}, {}, [], log, pretrained)
        state = init_train_state(setup, pretrained and pretrained.variables)
        # Its variables are in the state now
        return RunState(setup, out, state, 0, {}, {}, [], log, pretrained and pretrained._replace(variables={}))
    state, saved = restored
    step, totals = int(state.step), known_totals(setup, saved.get("totals", {}))
    timer, unevaluated = saved.get("timer", {}), bool(saved.get("unevaluated"))
    restore_metrics(out, saved["rows"], log)
    return RunState(
        setup,
        out,
        state,
        step,
        totals,
        timer,
        saved["rows"],
        log,
        unevaluated=unevaluated,
        teacher=saved.get("teacher", ""),
    )


def run_with_teacher(run: RunState, teacher: Teacher | None) -> RunState:
    """Return a run with its teacher, if the recipe names one.

    Raises:
        InputError: The steps so far had another one under this name.
    """
    if teacher and run.step and run.teacher != teacher.digest:
        name = f"distill.teacher {run.setup.recipe.distill.teacher}"
        raise InputError(f"{run.out}: {name} has changed since the run started; restore it or choose another --out")
    return run._replace(setup=run.setup._replace(teacher=teacher))


def write_start(run: RunState, options: RunOptions) -> None:
    """Write the run directory, which no refusal leaves behind: nothing is refused after this."""
    setup = run.setup
    with same_on_hosts():
        if is_primary_host():
            file = run.pretrained and run.pretrained.file
            teacher = setup.teacher and setup.teacher.digest
            init_run_dir(run.out, setup.recipe, setup.dataset, setup.given, file, vars(options), teacher)
        # Rows of an interrupted start without a checkpoint
        if not run.rows:
            restore_metrics(run.out, [], run.log)


def known_totals(setup: TrainSetup, saved: Totals) -> Totals:
    """Return the saved totals that this task still measures; a metric that is new is None until the next row."""
    if not saved:
        return {}
    return {name: saved.get(name) for name in ("loss", "weight", "count", "nonfinite_steps", *setup.task.train_metrics)}


def log_start(run: RunState) -> None:
    """Say what is trained, and on which weights."""
    how = f"continuing {run.setup.recipe.parent}" if run.pretrained else "resuming"
    run.log(f"{f'{how} at step {run.step}' if run.step else 'training'}: {headline(run.setup, run.out)}")
    taught, setup = run.pretrained.notes if run.pretrained else (), run.setup
    taught += setup.teacher.notes if setup.teacher else ()
    for note in (*taught, *ema_notes(setup.recipe, setup.steps)):
        run.log(note)


def ema_notes(recipe: Recipe, steps: int) -> list[str]:
    """Return a note if the EMA would average over more steps than the run has."""
    span = recipe.ema_update_every / (1 - recipe.ema_decay)
    if not recipe.ema_decay or span <= steps:
        return []
    effect = "its warm-up shortens the average" if recipe.ema_warmup else "it includes the initial parameters: lower it"
    return [f"ema_decay {recipe.ema_decay:g} averages over about {span:,.0f} steps, the run has {steps:,}; {effect}"]
