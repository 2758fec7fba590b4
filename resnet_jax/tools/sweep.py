"""Search for a recipe: trials are ordinary runs, chosen and halved by optuna."""

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console

from resnet_jax.errors import InputError
from resnet_jax.recipe import Recipe, check, fields_of, nearest_fields, to_json, total_steps
from resnet_jax.run_dir.files import is_run
from resnet_jax.runtime.directory_lock import directory_lock
from resnet_jax.tasks.make import make_task
from resnet_jax.tasks.task import monitoring
from resnet_jax.training.options import RunOptions, default_data_dir, validate_options
from resnet_jax.training.rows import monitored_value
from resnet_jax.training.run import train
from resnet_jax.training.sources import eval_split, open_sources

if TYPE_CHECKING:
    import optuna

# Name of the study in its journal, and of the file
STUDY, JOURNAL = "sweep", "journal.log"


class Range(NamedTuple):
    """An interval of numbers to search, integers if both ends and the field are."""

    low: float
    high: float
    log: bool = False


# By dotted field: an interval, or a choice
Vary = Mapping[str, Range | tuple[Any, ...]]


class Trial(NamedTuple):
    """A trial of a sweep."""

    number: int
    values: dict[str, Any]
    """By dotted field."""
    state: str
    """"complete", "pruned" or "failed"."""
    value: float | None
    """Monitored value of its last row."""
    step: int


class Sweep(NamedTuple):
    """A sweep so far."""

    trials: list[Trial]
    best: Trial | None
    signal: int = 0
    """Number of the signal that stopped it; 0 for none."""


def run_sweep(
    recipe: Recipe,
    out: Path | str,
    vary: Vary,
    *,
    trials: int = 20,
    halving: int = 3,
    options: RunOptions = RunOptions(),
    log: Callable[[str], None] = lambda line: None,
) -> Sweep:
    """Train recipes that differ in the fields of `vary`, in OUT/trial0, OUT/trial1, ...; resume what is there.

    Values come from optuna's TPE, seeded by the recipe's seed and the number of the trial. With successive halving a
    trial is evaluated after 1 / halving**2 and 1 / halving of its steps, and goes on if it is among the best
    1 / halving of the trials that came so far. The study is in OUT/journal.log.

    Args:
        recipe: what the trials have in common.
        out: directory of the sweep.
        vary: fields to search.
        trials: number of trials in all, with those of earlier calls.
        halving: reduction factor of successive halving; 0 trains every trial to the end.
        options: of the runs.
        log: called with a line for each trial.

    Raises:
        InputError: optuna is not installed, `out` holds another sweep, or the recipe cannot be trained.

    Reference:
        Bergstra et al. 2011 (TPE); Li et al. 2020 (asynchronous successive halving).

    Example:
        >>> run_sweep(Recipe(), "runs/sweep", {"optimizer.lr": Range(0.01, 1, log=True)}).best  # doctest: +SKIP
    """
    optuna = require_optuna()
    validate_options(options)
    out, recipe = Path(out).expanduser(), check(recipe)
    if trials < 1 or halving in (1,) or halving < 0:
        raise InputError(f"--trials is {trials}, --halving {halving}: give 1 trial or more, and 0, 2 or more")
    for values in corners(vary):
        vary_recipe(recipe, values)
    task = monitoring(make_task(recipe.loss), options.monitor)
    size = open_sources(recipe, Path(options.data_dir or default_data_dir())).dataset.train_size
    if out.exists() and not (out / JOURNAL).is_file() and any(out.iterdir()):
        raise InputError(f"{out}: exists and is not a sweep; choose another --out")
    options = dataclasses.replace(options, return_on_signal=True, stop_at=None)
    with directory_lock(out, "is sweeping there"), _quiet_optuna(optuna):
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(out / JOURNAL)))
        direction = "maximize" if task.mode == "max" else "minimize"
        pruner = optuna.pruners.SuccessiveHalvingPruner(1, halving) if halving else optuna.pruners.NopPruner()
        study = optuna.create_study(
            storage=storage, study_name=STUDY, direction=direction, pruner=pruner, load_if_exists=True
        )
        _require_same_sweep(study, out, recipe, vary, halving, options)
        while (trial := _next_trial(optuna, study, recipe, trials)) is not None:
            values = {name: _ask(trial, name, space, recipe) for name, space in vary.items()}
            signal = _run(optuna, study, trial, values, recipe, out, halving, size, options, log)
            if signal:
                return _so_far(study)._replace(signal=signal)
        return _so_far(study)


def require_optuna() -> Any:
    """Return optuna; raise InputError if it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise InputError("sweep: needs optuna; pip install optuna") from error
    return optuna


@contextmanager
def _quiet_optuna(optuna: Any) -> Iterator[None]:
    """Silence optuna's log, and its warnings that the journal may still change."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def corners(vary: Vary) -> list[dict[str, Any]]:
    """Return values to check before anything is written: the ends of each interval and each choice, one at a time."""
    if not vary:
        raise InputError("nothing to vary; give --vary FIELD=LOW:HIGH")
    found = []
    for name, space in vary.items():
        if isinstance(space, Range) and not (space.low < space.high and (space.low > 0 or not space.log)):
            raise InputError(f"--vary {name}: {space.low:g} to {space.high:g} is empty, or log is not above 0")
        found += [{name: value} for value in (space[:2] if isinstance(space, Range) else space)]
    return found


def vary_recipe(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Return a recipe with other values of dotted fields.

    Raises:
        InputError: A field is unknown or does not take the value.

    Example:
        >>> vary_recipe(Recipe(), {"optimizer.lr": 0.2, "seed": 3}).optimizer.lr
        0.2
    """
    known = dict(fields_of(recipe))
    for name, value in values.items():
        if name not in known:
            near = nearest_fields(name, list(known))
            raise InputError(f"--vary {name}: no such field" + (f"; nearest: {', '.join(near)}" if near else ""))
        part, _, field = name.rpartition(".")
        value = float(value) if isinstance(known[name], float) and type(value) is int else value
        inner: Any = dataclasses.replace(getattr(recipe, part), **{field: value}) if part else value
        changed: dict[str, Any] = {part or field: inner}
        recipe = dataclasses.replace(recipe, **changed)
    return check(recipe)


def _require_same_sweep(
    study: "optuna.Study", out: Path, recipe: Recipe, vary: Vary, halving: int, options: RunOptions
) -> None:
    mine = {"recipe": to_json(recipe), "vary": str({k: tuple(v) for k, v in vary.items()})}
    mine |= {"halving": str(halving), "monitor": str(options.monitor), "eval_every": str(options.eval_every)}
    for name, value in mine.items():
        if study.user_attrs.setdefault(name, value) != value:
            raise InputError(f"{out}: holds a sweep with another {name.replace('_', '-')}; choose another --out")
        study.set_user_attr(name, value)


def _next_trial(optuna: Any, study: "optuna.Study", recipe: Recipe, trials: int) -> Any:
    """Return the trial that was interrupted, or a new one; None if there are enough."""
    for frozen in study.trials:
        if frozen.state == optuna.trial.TrialState.RUNNING:
            return optuna.trial.Trial(study, frozen._trial_id)
    number = len(study.trials)
    if number >= trials:
        return None
    # So that values are a function of the history and not of the process
    study.sampler = optuna.samplers.TPESampler(seed=(recipe.seed + number) % 2**32)
    return study.ask()


def _ask(trial: Any, name: str, space: Range | tuple[Any, ...], recipe: Recipe) -> Any:
    if not isinstance(space, Range):
        return trial.suggest_categorical(name, space)
    whole = all(type(end) is int for end in space[:2]) and not isinstance(dict(fields_of(recipe))[name], float)
    ask = trial.suggest_int if whole else trial.suggest_float
    return ask(name, space.low, space.high, log=space.log)


def rungs(steps: int, halving: int, per_epoch: float) -> list[int]:
    """Return the steps, at ends of epochs, at which a run is compared; the last is its end.

    Example:
        >>> rungs(270, 3, 10.0)
        [30, 90, 270]
    """
    fractions = (1 / halving**2, 1 / halving) if halving else ()
    epochs = {max(1, round(steps * fraction / per_epoch)) for fraction in fractions}
    stops = {-int(-epoch * per_epoch // 1) for epoch in epochs}
    return [*sorted(stop for stop in stops if stop < steps), steps]


def _run(
    optuna: Any,
    study: "optuna.Study",
    trial: Any,
    values: dict[str, Any],
    recipe: Recipe,
    out: Path,
    halving: int,
    size: int,
    options: RunOptions,
    log: Callable[[str], None],
) -> int:
    """Train a trial until it ends or is pruned; return the number of a signal that stopped it, or 0."""
    run, states = out / f"trial{trial.number}", optuna.trial.TrialState
    task, what = (
        monitoring(make_task(recipe.loss), options.monitor),
        ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()),
    )
    try:
        varied = vary_recipe(recipe, values)
    except InputError as error:
        study.tell(trial, state=states.FAIL)
        log(f"trial {trial.number}: {what}: {error}")
        return 0
    stops = rungs(total_steps(varied, size), halving, size / varied.batch_size)
    for rung, stop in enumerate(stops):
        try:
            result = train(varied, run, options=dataclasses.replace(options, stop_at=stop), console=Console(quiet=True))
        except InputError as error:
            # What is wrong with the data or the flags is not the fault of the trial
            if not is_run(run):
                raise
            study.tell(trial, state=states.FAIL)
            log(f"trial {trial.number}: {what}: {error}")
            return 0
        if result.signal:
            return result.signal
        value = monitored_value(result.rows[-1], result.split, task) if result.rows else None
        resource = max(halving, 1) ** rung
        if value is not None and resource not in study.trials[trial.number].intermediate_values:
            trial.report(value, resource)
        trial.set_user_attr("step", result.step)
        if stop < stops[-1] and value is not None and trial.should_prune():
            study.tell(trial, state=states.PRUNED)
            log(f"trial {trial.number}: {what}: {task.monitor} {value:.4f} after {stop} steps, pruned")
            return 0
    study.tell(trial, value)
    log(f"trial {trial.number}: {what}: {task.monitor} {value:.4f}")
    return 0


_STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}


def _so_far(study: "optuna.Study") -> Sweep:
    found = [
        Trial(t.number, t.params, _STATES[t.state.name], t.value if t.values else _last(t), t.user_attrs.get("step", 0))
        for t in study.trials
        if t.state.name in _STATES
    ]
    sign = 1 if study.direction.name == "MAXIMIZE" else -1
    done = [trial for trial in found if trial.state == "complete" and trial.value is not None]
    return Sweep(found, max(done, key=lambda trial: sign * (trial.value or 0.0), default=None))


def _last(trial: Any) -> float | None:
    return trial.intermediate_values[max(trial.intermediate_values)] if trial.intermediate_values else None


def split_note(recipe: Recipe) -> Sequence[str]:
    """Return a note if the trials are compared on the test split."""
    if eval_split(recipe) == "validation":
        return ()
    return ("compared on the test split, so the best value is optimistic: hold images out with --data.num-validation",)
