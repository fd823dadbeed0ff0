"""What a search may try, and Optuna's record of what it tried."""

import importlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from omcda_jax import grid
from omcda_jax.runner.evaluation import SUMMARY
from omcda_jax.runner.select import ESTIMATES
from omcda_jax.runner.sweep import plan
from omcda_jax.runner.sweep.manifest import Row
from omcda_jax.types import ConfigError, suggestion

SELECTION = "select/"  # prefix of metrics that are estimates of --select
EVALUATION = "evaluation/"


class Search(NamedTuple):
    """What is searched for, and how.

    Attributes:
        order: the sweep's order; its single grid says what may be tried.
        metric: `evaluation/KEY` of the final evaluation, `select/ESTIMATE` of --select, or a key of metrics.jsonl.
        direction: maximize or minimize.
        trials: total number of trials.
        parallel: trials at a time.
        select_updates: updates for --select, or None.
    """

    order: plan.Order
    metric: str
    direction: str
    trials: int
    parallel: int
    select_updates: int | None = None

    @property
    def offline(self) -> bool:
        """Whether the metric comes from the data alone."""
        return not self.metric.startswith(EVALUATION)


class Space(NamedTuple):
    """What may be tried.

    Attributes:
        axes: for each key, values as texts or a range.
        seeds: seeds that every trial is a mean over; empty: the single seed in the settings.
        order: the order of any trial, without its grid.
    """

    axes: Mapping[str, list[str] | grid.Range]
    seeds: Sequence[str]
    order: plan.Order

    def of(self, settings: Mapping[str, str]) -> list[plan.Trial]:
        """Return the sweep's trials of one setting, one for each seed."""
        return plan.trials(self.order._replace(grids=[self.grid(settings)]))

    def grid(self, settings: Mapping[str, str]) -> str:
        """Return one setting and its seeds as the text of a grid."""
        seeds = {"seed": ",".join(self.seeds)} if self.seeds else {}
        return "; ".join(f"{key}={text}" for key, text in {**settings, **seeds}.items())

    def rows(self, settings: Sequence[Mapping[str, str]], present: Sequence[Row]) -> list[Row]:
        """Return the rows that these settings add to the existing rows."""
        return plan.rows(self.order._replace(grids=[" | ".join(map(self.grid, settings))]), present)


def space_of(search: Search) -> Space:
    """Return what may be tried.

    Raises:
        ConfigError: the grid is not a single space, or one of its values is not a valid setting.
    """
    order, selects = search.order, search.metric.startswith(SELECTION)
    for start, known in ((EVALUATION, SUMMARY), (SELECTION, ESTIMATES)):
        if search.metric.startswith(start) and search.metric.removeprefix(start) not in known:
            choices = [start + name for name in known]
            raise ConfigError(f"--metric={search.metric}: no such metric; {suggestion(search.metric, choices)}")
    if len(order.grids) != 1 or "|" in order.grids[0]:
        raise ConfigError("--grid: expected one grid without | to search, found none or several")
    axes = grid.axes(order.grids[0], "--grid")
    seeds = axes.pop("seed", [])
    if isinstance(seeds, grid.Range):
        raise ConfigError("--grid: seed: expected seeds, the same for every trial, found a range")
    if not axes:
        raise ConfigError(f"--grid: expected a setting to search, found {order.grids[0]!r}")
    for key in axes:
        if key in ("task", "distributed"):
            raise ConfigError(f"--grid: {key}: expected a setting of the one task to search, found {key}")
        if selects and (key == "algorithm.gamma" or key.startswith("data.")):
            raise ConfigError(f"--grid: {key}: expected one value for --metric={search.metric}, so that trials compare")
    words = [f"--select={search.metric.removeprefix(SELECTION)}"] if selects else []
    if selects and search.select_updates is not None:
        words += [f"--select_updates={search.select_updates}"]
    if selects and len(seeds) < 2:
        raise ConfigError(f"--grid: seed: expected two seeds or more for --metric={search.metric}, found {len(seeds)}")
    # the seeds of a trial stay in one row: a row with a single seed has nothing to select among
    together = order.population // max(len(seeds), 1) * len(seeds) or order.population
    space = Space(axes, seeds, order._replace(words=words, population=together))
    first = {key: _ends(axis)[0] for key, axis in axes.items()}
    for key, axis in axes.items():
        for text in _ends(axis):
            space.of({**first, key: text})
    return space


def _ends(axis: list[str] | grid.Range) -> list[str]:
    """Values to check: if they are valid, all are. For a range they are its ends and a number that is not whole."""
    if not isinstance(axis, grid.Range):
        return axis
    return [grid.number(value, axis) for value in (axis.low, axis.high, axis.low + 0.3719 * (axis.high - axis.low))]


class Asked(NamedTuple):
    """One trial that was asked for: its number, its settings, its value, and whether it has ended."""

    number: int
    settings: Mapping[str, str]
    value: float | None
    ended: bool


class Study:
    """Optuna's study in a sweep's directory.

    The sampler knows only the trials before, so a stopped search asks for the same trials as it would have without the
    stop.

    Args:
        directory: the sweep's directory.
        search: what is searched for.
        space: its space.
        kept: True: the study is stored in the directory; False: it is a copy, which leaves nothing there.

    Raises:
        ConfigError: Optuna is not installed, or the directory contains another search.
    """

    def __init__(self, directory: str, search: Search, space: Space, *, kept: bool = True):
        self._optuna = _optuna()
        self._space, self._direction = space, search.direction
        path = os.path.join(directory, "search.db")
        given = {"direction": search.direction, "study_name": "search", "load_if_exists": True}
        self._study = self._optuna.create_study(**given)
        if kept or os.path.exists(path):
            there = self._optuna.create_study(storage=f"sqlite:///{path}", **given)
            _refuse_other(directory, there, search, space)
            if kept:
                self._study = there
                there.set_user_attr("search", described(search, space))
            else:
                self._study.add_trials(there.get_trials())
        distributions = self._optuna.distributions
        self._distributions = {
            key: distributions.FloatDistribution(axis.low, axis.high, log=axis.kind == "loguniform")
            if isinstance(axis, grid.Range)
            else distributions.CategoricalDistribution(axis)
            for key, axis in space.axes.items()
        }

    def trials(self) -> list[Asked]:
        """Return every trial with complete settings, in order."""
        found = []
        for trial in self._study.get_trials(deepcopy=False):
            if trial.params.keys() == self._space.axes.keys():
                settings = {key: _text(trial.params[key], axis) for key, axis in self._space.axes.items()}
                found.append(Asked(trial.number, settings, trial.value, trial.state.is_finished()))
        return found

    def ask(self, count: int) -> list[Asked]:
        """Return `count` new trials."""
        for trial in self._study.get_trials(deepcopy=False):
            # a trial that was being asked for when the search ended
            if not trial.state.is_finished() and trial.params.keys() != self._space.axes.keys():
                self._study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)
        before = len(self.trials())
        for _ in range(count):
            number = len(self._study.get_trials(deepcopy=False))
            self._study.sampler = self._optuna.samplers.TPESampler(seed=number)
            self._study.ask(self._distributions)
        return self.trials()[before:]

    def tell(self, number: int, value: float | None) -> None:
        """Tell Optuna a trial's value; None counts as worse than any value."""
        state = self._optuna.trial.TrialState
        self._study.tell(number, value, state=state.PRUNED if value is None else state.COMPLETE)


def _text(value: str | float, axis: list[str] | grid.Range) -> str:
    return grid.number(value, axis) if isinstance(axis, grid.Range) else value


def described(search: Search, space: Space) -> dict[str, Any]:
    """Return what must stay the same for values to be comparable, in JSON's types."""
    ranges = {key: list(axis[:3]) if isinstance(axis, grid.Range) else axis for key, axis in space.axes.items()}
    return {
        "metric": search.metric,
        "direction": search.direction,
        "select_updates": search.select_updates,
        "config": search.order.task,
        "settings": sorted(map(plan.from_anywhere, search.order.assignments)),
        "distributed": search.order.distributed,
        "seeds": list(space.seeds),
        "grid": ranges,
    }


def _refuse_other(directory: str, study: Any, search: Search, space: Space) -> None:
    begun, now = study.user_attrs.get("search"), described(search, space)
    if not begun:
        return
    if not any(trial.state.is_finished() for trial in study.get_trials(deepcopy=False)):
        begun["metric"] = now["metric"]  # no value was told yet
    changed = [f"{key} was {begun[key]}, is {now[key]}" for key in now if begun[key] != now[key]]
    if changed:
        raise ConfigError(
            f"{directory}: holds another search ({'; '.join(changed)}); choose another --directory, or search as before"
        )


def _optuna() -> Any:
    try:
        optuna = importlib.import_module("optuna")
    except ImportError:
        raise ConfigError("--search=optuna: expected Optuna, found none; pip install 'omcda-jax[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
