"""Checks of rows before any of them runs, and an estimate of what they will cost."""

import heapq
import os
from collections.abc import Callable, Mapping, Sequence

import jax

from omcda_jax import envs
from omcda_jax.metrics import duration
from omcda_jax.runner import select
from omcda_jax.runner.command import parse
from omcda_jax.runner.jobs import refuse_other_settings
from omcda_jax.runner.run import job_of
from omcda_jax.runner.sweep import manifest
from omcda_jax.runner.sweep.manifest import Row
from omcda_jax.runner.sweep.state import is_over
from omcda_jax.runner.sweep.task import command
from omcda_jax.types import ConfigError, DatasetError

PER_HOUR = 3600


def check(directory: str, rows: Sequence[Row]) -> None:
    """Refuse rows with settings that do not fit their task's simulator, their data or their directory.

    No accelerator is used: the rows themselves need it.

    Args:
        directory: the sweep's directory.
        rows: the rows to run.

    Raises:
        ConfigError, DatasetError: a mistake that the user can fix; the row is named.
    """
    jax.config.update("jax_platforms", "cpu")
    specs, seen = {}, set()
    for row in rows:
        if list(row.command[:2]) != ["omcda-jax", "run"]:
            continue
        try:
            ordered = parse(["omcda-jax run", *command(row, directory)[4:]])
            job, _ = job_of(ordered)
            refuse_other_settings(job)
            data = ordered.config.data
            if data.path is not None and not os.path.exists(data.path):
                raise DatasetError(f"{data.path}: no such file")
            # what the rest depends on: rows that differ in seeds only need one check
            algorithms = [(trial.algorithm.name, trial.algorithm) for trial in job.configs]
            kind = repr((data, ordered.config.learner, algorithms, ordered.select))
            if kind in seen:
                continue
            seen.add(kind)
            if data.environment not in specs:
                specs[data.environment] = envs.make(data.environment).spec
            job.template(specs[data.environment])
            if ordered.select:
                select.check(ordered.select, job, specs[data.environment])
        except (ConfigError, DatasetError) as error:
            raise type(error)(f"{row.name}: {error}") from None


def extend(directory: str, more: Callable[[Sequence[Row]], list[Row]]) -> list[Row]:
    """Add rows to a sweep's manifest and return all rows; new and waiting rows are checked before any is written.

    Args:
        directory: the sweep's directory, made if missing.
        more: takes the existing rows and returns the rows to add.

    Raises:
        ConfigError, DatasetError: as in `check` and `manifest.extend`.
    """

    def checked(present: Sequence[Row]) -> list[Row]:
        added = more(present)
        check(directory, [row for row in [*present, *added] if not is_over(directory, row)])
        return added

    return manifest.extend(directory, checked)


def estimate(
    rows: Sequence[Row], rates: Mapping[tuple[str, int], float], rate: float | None, at_a_time: int, devices: int
) -> str:
    """Return the size of rows: populations, compilations, updates and, as far as rates are known, time.

    Args:
        rows: the rows to run.
        rates: updates per second of rows that ran, by program and number of trials.
        rate: updates per second of rows without an entry in `rates`, or None.
        at_a_time: rows at a time, on all hosts together.
        devices: devices of each row.
    """
    populations = [len(row.trials) for row in rows if len(row.trials) > 1]
    programs = {(row.program, len(row.trials)) for row in rows}
    whole = sum(row.updates * len(row.trials) for row in rows)
    lines = [
        f"{len(rows)} rows, {sum(len(row.trials) for row in rows)} trials: {len(populations)} populations of up to "
        f"{max(populations, default=0)} trials, {len(rows) - len(populations)} single trials",
        f"{len(programs)} compilations of different programs",
        f"{sum(row.updates for row in rows):,} updates of rows, {whole:,} of trials",
    ]
    its_rate = lambda row: rates.get((row.program, len(row.trials)), rate)
    known = {row.name: row.updates / its_rate(row) for row in rows if its_rate(row)}
    if not known:
        return "\n".join(
            [*lines, "time: no rate known; give --rate=UPDATES_PER_SECOND, or --rates=SWEEP with such rows"]
        )
    mean = sum(known.values()) / len(known)
    seconds = [known.get(row.name, mean) for row in rows]
    ends = [0.0] * at_a_time
    for each in seconds:  # a row begins on the place that is free first
        heapq.heapreplace(ends, ends[0] + each)
    unknown = (
        f", {len(rows) - len(known)} rows without a known rate taken at the mean" if len(known) < len(rows) else ""
    )
    lines.append(
        f"time: {duration(max(ends))} of training with {at_a_time} rows at a time, "
        f"{sum(seconds) * max(devices, 1) / PER_HOUR:.2f} device hours with {max(devices, 1)} devices per row{unknown}"
    )
    return "\n".join(lines)
