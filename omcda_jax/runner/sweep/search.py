"""A search: Optuna chooses the next trials of a sweep and is told their values.

SWEEP/search.db         Optuna's database, from which a stopped search resumes
SWEEP/search.json       the same for people and pages: what is searched for, and every trial with its value

A trial of the search is one setting; its value is a mean over seeds. Trials that were asked for together and differ
only in numbers are a population. A trial counts once its value is told. If the search ends at any moment, no trial is
lost and none is told twice.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omcda_jax.files import exclusive
from omcda_jax.runner.jobs import write_json
from omcda_jax.runner.outcomes import load, trials_of
from omcda_jax.runner.processes import say
from omcda_jax.runner.sweep import check, manifest, plan
from omcda_jax.runner.sweep.manifest import Row
from omcda_jax.runner.sweep.state import FINAL, has_diverged, is_over, result_of, selection_path
from omcda_jax.runner.sweep.study import SELECTION, Asked, Search, Space, Study, described, space_of
from omcda_jax.system import Interruption
from omcda_jax.types import ConfigError, suggestion

# what to call a search, by whether its metric is made from the data alone
HONEST = {
    False: "This search tried its settings in the simulator: tuning by online return is not offline evaluation, and a "
    "report of offline learning has to say so.",
    True: "This search went by a number made from the data alone. The returns beside it come from the simulator and "
    "played no part.",
}
Work = Callable[[Sequence[Row]], Mapping[str, int]]


def ahead(directory: str, search: Search) -> tuple[list[Row], str]:
    """Return the rows that the next round adds to the manifest, and the status of the search; write nothing.

    Raises:
        ConfigError: as in `space_of` and `Study`.
    """
    space = space_of(search)
    study = Study(directory, search, space, kept=False)
    asked, ended = _next(study, search), sum(trial.ended for trial in study.trials())
    left = max(0, search.trials - ended)
    rounds = math.ceil(left / search.parallel)
    said = f"search: {ended} of {search.trials} trials ended; {left} more in {rounds} rounds; this is the next"
    rows = space.rows([trial.settings for trial in asked], manifest.read(directory)) if asked else []
    return rows, said


def _next(study: Study, search: Search) -> list[Asked]:
    """The open trials or, if there are none, as many new trials as there is room for."""
    trials = study.trials()
    waiting = [trial for trial in trials if not trial.ended]
    return waiting or study.ask(min(search.parallel, search.trials - len(trials)))


def run(directory: str, search: Search, work: Work, interruption: Interruption) -> int:
    """Search until all trials have ended or a stop is requested, and return the exit status.

    Args:
        directory: the sweep's directory.
        search: what is searched for.
        work: runs rows, within `interruption.deferring`, and returns their exit statuses by name.
        interruption: a request ends the search; its rows save.

    Raises:
        ConfigError, DatasetError: as in `space_of`, `Study` and `check.check`, before anything is written; or a row has
            no such metric; or another process is working on the search.
    """
    space = space_of(search)
    check.check(directory, ahead(directory, search)[0])
    os.makedirs(directory, exist_ok=True)
    with exclusive(directory, manifest.FLAG):
        study = Study(directory, search, space)
        _write(directory, search, space, study)
        while not interruption.requested:
            begun = len(study.trials())
            asked = _next(study, search)
            if not asked:
                return os.EX_OK
            settings = [trial.settings for trial in asked]
            rows = check.extend(directory, lambda present: space.rows(settings, present))  # noqa: B023 called at once
            _write(directory, search, space, study)
            status = _round(directory, search, space, study, rows, work, again=asked[0].number < begun)
            _write(directory, search, space, study)
            if status != os.EX_OK:
                return status
    return os.EX_TEMPFAIL


def _round(
    directory: str, search: Search, space: Space, study: Study, rows: Sequence[Row], work: Work, *, again: bool
) -> int:
    """Run the rows of the open trials, tell their values, and return an exit status.

    Args:
        directory, search, space, study: those of the search.
        rows: rows of its manifest.
        work: as in `run`.
        again: these trials were open when the search began, so rows that fail have failed before.
    """
    places = {plan.identity(said): (row, place) for row in rows for place, said in enumerate(row.trials)}
    members = {
        trial.number: [places[plan.identity(one.said)] for one in space.of(trial.settings)]
        for trial in study.trials()
        if not trial.ended
    }
    own = {row.name: row for found in members.values() for row, _ in found}
    waiting = [row for row in own.values() if not is_over(directory, row)]
    statuses = work(waiting) if waiting else {}
    failed = {name for name, status in statuses.items() if status not in (*FINAL, os.EX_TEMPFAIL)}
    if failed == own.keys() and not again:
        return 1  # the failure may be the machine's fault
    failed |= {name for name, row in own.items() if has_diverged(directory, row)}
    values = {name: _values(directory, row, search.metric) for name, row in own.items() if result_of(directory, row)}
    told = 0
    for number, found in members.items():
        names = {row.name for row, _ in found}
        if not names <= values.keys() | failed:
            continue
        each = [values[row.name][place] for row, place in found if row.name in values]
        sound = not names & failed and all(value is not None and math.isfinite(value) for value in each)
        value = sum(each) / len(each) if sound else None
        study.tell(number, value)
        told += 1
        say(f"trial {number}: {'no value' if value is None else f'{search.metric} {value:.4g}'}")
    if told < len(members):
        return os.EX_CONFIG if os.EX_CONFIG in statuses.values() else os.EX_TEMPFAIL
    return os.EX_OK


def _values(directory: str, row: Row, metric: str) -> list[float | None]:
    """The metric of every trial of a finished row; None if the trial diverged or has no value."""
    place = os.path.join(directory, row.directory)
    trials = trials_of(place, load(os.path.join(place, "result.json")))
    kind, _, key = metric.partition("/")
    if f"{kind}/" == SELECTION:
        path = selection_path(directory, row)
        found = load(path)["trials"] if os.path.exists(path) else []
        values = [one[key]["value"] if key in one else None for one in found]
    elif kind == "evaluation":
        values = [trial.final.get(key) for trial in trials]
    else:
        values = [next((own[metric] for own in reversed(trial.rows) if metric in own), None) for trial in trials]
    if not values or any(isinstance(value, list) for value in values):
        raise ConfigError(f"--metric={metric}: expected one number for each trial in {place}, found none or several")
    sound = [value for value, trial in zip(values, trials, strict=True) if not trial.diverged]
    if sound and all(value is None for value in sound) and f"{kind}/" != SELECTION:
        there = sorted({name for trial in trials for own in trial.rows for name in own} - {"step"})
        raise ConfigError(f"--metric={metric}: no such metric in {place}; {suggestion(metric, there)}")
    return [None if trial.diverged else value for value, trial in zip(values, trials, strict=True)]


def path_of(directory: str) -> str:
    """Return the path of a sweep's search.json."""
    return os.path.join(directory, "search.json")


def _write(directory: str, search: Search, space: Space, study: Study) -> None:
    trials = study.trials()
    written = {
        **described(search, space),
        "offline": search.offline,
        "wanted": search.trials,
        "trials": [{**trial._asdict(), "settings": dict(trial.settings)} for trial in trials],
    }
    write_json(path_of(directory), written)


def read(directory: str) -> Mapping[str, Any] | None:
    """Return the contents of a sweep's search.json, or None if the sweep is not a search."""
    path = path_of(directory)
    return load(path) if os.path.exists(path) else None


def best_so_far(search: Mapping[str, Any]) -> list[tuple[int, float, float]]:
    """Return number, value and best value so far of every trial that has a value.

    Args:
        search: as `read` returns it.
    """
    better = max if search["direction"] == "maximize" else min
    found: list[tuple[int, float, float]] = []
    for trial in search["trials"]:
        if trial["value"] is not None:
            best = better(trial["value"], found[-1][2]) if found else trial["value"]
            found.append((trial["number"], trial["value"], best))
    return found


def status(search: Mapping[str, Any]) -> str:
    """Return in one line how far a search is and the best trial so far.

    Args:
        search: as `read` returns it.
    """
    ended = sum(trial["ended"] for trial in search["trials"])
    line = f"search by {search['metric']}: {ended} of {search['wanted']} trials ended"
    course = best_so_far(search)
    if not course:
        return line
    best = course[-1][2]
    number = next(number for number, value, _ in course if value == best)
    [settings] = (trial["settings"] for trial in search["trials"] if trial["number"] == number)
    return f"{line}, the best {best:.4g} with " + ", ".join(f"{key}={text}" for key, text in settings.items())


def records(search: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a record of every trial: its number, its settings, and its value or why it has none.

    Args:
        search: as `read` returns it.
    """
    stands = lambda trial: "no value" if trial["ended"] else "open"
    value = lambda trial: stands(trial) if trial["value"] is None else trial["value"]
    return [
        {"trial": trial["number"], **trial["settings"], search["metric"]: value(trial)} for trial in search["trials"]
    ]
