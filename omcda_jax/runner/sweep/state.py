"""The state of each row of a sweep, read only from its folders: any host, engine or person sees the same."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from omcda_jax.files import check_free
from omcda_jax.metrics import duration, read
from omcda_jax.runner.outcomes import load
from omcda_jax.runner.report import align
from omcda_jax.runner.sweep.manifest import Row
from omcda_jax.system import EX_DIVERGED
from omcda_jax.types import ConfigError

KINDS = ("done", "running", "waiting", "failed")
FINAL = (os.EX_OK, os.EX_CONFIG, EX_DIVERGED)  # exit statuses of rows that are not started again


class State(NamedTuple):
    """The state of a row.

    Attributes:
        kind: one of KINDS.
        step: updates done by each trial, according to the metrics.
        rate: updates per second, or None if not measured.
        why: why a row failed, in one line.
    """

    kind: str
    step: int = 0
    rate: float | None = None
    why: str = ""


def result_of(directory: str, row: Row) -> Mapping[str, Any] | None:
    """Return the result that a row's run wrote when it was done, or None."""
    path = os.path.join(directory, row.directory, "result.json")
    selects = any(word.startswith("--select=") for word in row.command)
    if not os.path.exists(path) or (selects and not os.path.exists(selection_path(directory, row))):
        return None
    result = load(path)
    return result if result.get("finished") else None


def has_diverged(directory: str, row: Row) -> bool:
    """Return whether every trial of a row diverged, so that it has no result; a restart would diverge again."""
    path = outcome_path(directory, row)
    return os.path.exists(path) and load(path)["status"] == EX_DIVERGED


def is_over(directory: str, row: Row) -> bool:
    """Return whether nothing is left to do for a row."""
    return result_of(directory, row) is not None or has_diverged(directory, row)


def selection_path(directory: str, row: Row) -> str:
    """Return where a row that selects among its trials writes its selection."""
    return os.path.join(directory, row.directory, "selection.json")


def outcome_path(directory: str, row: Row, part: str = "") -> str:
    """Return the path of the file with a row's latest outcome; `part` as in `task.Task`."""
    return os.path.join(directory, row.log, part, "outcome.json")


def is_claimed(directory: str, row: Row) -> bool:
    """Return whether a process on any host is working on a row."""
    try:
        check_free(os.path.join(directory, row.log))
    except ConfigError:
        return True
    return False


def state_of(directory: str, row: Row) -> State:
    """Return the state of a row."""
    result = result_of(directory, row)
    if result:
        seconds = result.get("training_seconds")
        return State("done", result["step"], result["step"] / seconds if seconds else None)
    rows = read(os.path.join(directory, row.directory, "metrics.jsonl"))
    timed = next((one for one in reversed(rows) if one.get("seconds")), None)
    step, rate = rows[-1]["step"] if rows else 0, timed and timed["step"] / timed["seconds"]
    if is_claimed(directory, row):
        return State("running", step, rate)
    path = outcome_path(directory, row)
    if os.path.exists(path):
        outcome = load(path)
        if outcome["status"] != os.EX_TEMPFAIL:
            return State("failed", step, rate, outcome["why"])
    return State("waiting", step, rate)


def rates(directory: str, rows: Sequence[Row]) -> dict[tuple[str, int], float]:
    """Return the mean updates per second of the rows that ran, by program and number of trials.

    Args:
        directory: the sweep's directory.
        rows: rows of its manifest.
    """
    return _rates(rows, [state_of(directory, row) for row in rows])


def _rates(rows: Sequence[Row], states: Sequence[State]) -> dict[tuple[str, int], float]:
    found: dict[tuple[str, int], list[float]] = {}
    for row, state in zip(rows, states, strict=True):
        if state.rate:
            found.setdefault((row.program, len(row.trials)), []).append(state.rate)
    return {key: sum(values) / len(values) for key, values in found.items()}


def status(directory: str, rows: Sequence[Row]) -> str:
    """Return how many rows are in each state, how far the running ones are, why rows failed, and the time left.

    Args:
        directory: the sweep's directory.
        rows: rows of its manifest.
    """
    states = [state_of(directory, row) for row in rows]
    counts = {kind: [state.kind for state in states].count(kind) for kind in KINDS}
    trials = sum(len(row.trials) for row, state in zip(rows, states, strict=True) if state.kind == "done")
    lines = [
        f"{directory}: {len(rows)} rows, {sum(len(row.trials) for row in rows)} trials",
        "  ".join(f"{count} {kind}" for kind, count in counts.items()) + f"; {trials} trials done",
    ]
    shown = [
        (f"  {row.name}", state.kind, f"{state.step}/{row.updates}", state.why)
        for row, state in zip(rows, states, strict=True)
        if state.kind in ("running", "failed")
    ]
    lines += [align(shown)] if shown else []
    left = remaining(rows, states)
    if left is not None:
        at_work = max(1, counts["running"])
        lines.append(f"about {duration(left / at_work)} of training left with {at_work} rows at a time")
    elif counts["running"] + counts["waiting"]:
        lines.append("time left: no rate known yet")
    return "\n".join(lines)


def remaining(rows: Sequence[Row], states: Sequence[State]) -> float | None:
    """Return the seconds of training that running and waiting rows still take one after the other; None if unknown.

    A row without a rate takes that of a row with the same program and size, else the mean of all rates.
    """
    known = _rates(rows, states)
    open_rows = [(row, state) for row, state in zip(rows, states, strict=True) if state.kind in ("running", "waiting")]
    if not known or not open_rows:
        return None
    mean = sum(known.values()) / len(known)
    return sum(
        max(0, row.updates - state.step) / (state.rate or known.get((row.program, len(row.trials)), mean))
        for row, state in open_rows
    )
