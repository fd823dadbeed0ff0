"""Steps by which a reader turns a file's arrays into `Episodes`."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from omcda_jax.data.episodes import Episodes
from omcda_jax.types import DatasetError


class Reading(NamedTuple):
    """What a reader makes of a file.

    Attributes:
        episodes: as the file has them; the reward is [T] or, per agent, [T, N], on final rows that of a left-out step.
        notes: lines on what was left out and how the rest was interpreted.
        stored: [E] bool, the file stores the observation after the last step; elsewhere the last observation takes its
            place, which has no effect if the task itself ended the episode.
        files: name and number of episodes of each file, if there are several.
    """

    episodes: Episodes
    notes: list[str]
    stored: np.ndarray
    files: tuple[tuple[str, int], ...] = ()


def require_keys(keys: Sequence[str], expected: Sequence[str], source: str) -> None:
    """Raise a DatasetError if keys are missing; it names the missing keys and those that are there."""
    missing = [key for key in expected if key not in keys]
    if missing:
        there = ", ".join(sorted(keys)) or "nothing"
        raise DatasetError(
            f"{source}: {', '.join(missing)}: missing; expected {', '.join(expected)}, found {there[:200]}"
        )


def require_rows(arrays: Mapping[str, np.ndarray], source: str) -> int:
    """Return the number of rows that all arrays share; a DatasetError names the first array with another or none."""
    (first, values), *others = arrays.items()
    if len(values) == 0:
        raise DatasetError(f"{source}: {first}: expected at least one row, found none")
    for key, other in others:
        if len(other) != len(values):
            raise DatasetError(f"{source}: {key}: expected {len(values)} rows, as {first} has, found {len(other)}")
    return len(values)


def per_agent(values: np.ndarray, agents: int, source: str, key: str, *, axes: int = 1) -> np.ndarray:
    """Return values with an axis of one entry, or of one entry per agent, after the leading axes.

    Args:
        values: [..., N, 1], [..., N], [..., 1] or [...].
        agents: N.
        source: the file.
        key: the array's name in it.
        axes: how many leading axes there are.

    Raises:
        DatasetError: the axis has another size.
    """
    wide = values[..., 0] if values.ndim == axes + 2 and values.shape[-1] == 1 else values
    wide = wide[..., None] if wide.ndim == axes else wide
    if wide.ndim != axes + 1 or wide.shape[-1] not in (1, agents):
        lead = ", ".join(str(size) for size in values.shape[:axes])
        raise DatasetError(
            f"{source}: {key}: expected shape ({lead}, 1), for the team, or ({lead}, {agents}), for each agent,"
            f" found {values.shape}"
        )
    return wide


def team_reward(reward: np.ndarray) -> np.ndarray:
    """Return rewards [T, 1] as team rewards [T]; return rewards of each agent [T, N] as they are."""
    return reward[:, 0] if reward.shape[1] == 1 else reward


def ends(
    ended: np.ndarray, cut: np.ndarray, closed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Find where episodes end: where every agent has been ended or cut, or where the file closes them.

    Agents may end at different steps. An agent that has ended stays ended until its episode is over, even if its flag
    is not repeated. The task ended an episode if it ended every agent; else the time limit cut the episode.

    Args:
        ended: [T, N] bool, the task ended for the agent at the step; it wins over `cut`.
        cut: [T, N] bool, the time limit cut the agent's episode.
        closed: [T] bool, the episode is over after the row whatever the flags say; None: nowhere.

    Returns:
        [E] the last row of each episode, [E] bool whether the task ended it, and notes on agents that differ.
    """
    flagged = ended | cut
    closed = np.zeros(len(flagged), bool) if closed is None else closed
    apart = 0
    if (flagged == flagged[:, :1]).all():
        last = np.flatnonzero(flagged[:, 0] | closed)
    else:
        whole = flagged.all(axis=1)
        last = _sticky_ends(flagged, closed)
        apart = int((~whole[last] & ~closed[last]).sum())
    done = np.cumsum(np.vstack([np.zeros(ended.shape[1], np.int64), ended]), axis=0)
    begin = np.append(0, last[:-1] + 1) if len(last) else last
    by_task = done[last + 1] > done[begin]
    terminated = by_task.all(axis=1)
    mixed = int((by_task.any(axis=1) & ~terminated).sum())
    notes = []
    if apart:
        notes.append(f"in {apart} episodes agents end at different steps: an episode lasts until all have ended")
    if mixed:
        notes.append(
            f"{mixed} episodes end by the task for some agents, by the time limit for others: they count as cut"
        )
    return last, terminated, notes


def _sticky_ends(flagged: np.ndarray, closed: np.ndarray) -> np.ndarray:
    marks = [np.flatnonzero(column) for column in flagged.T]
    closings = np.flatnonzero(closed)
    total, start, last = len(flagged), 0, []
    following = lambda rows, row: rows[at] if (at := np.searchsorted(rows, row)) < len(rows) else total
    while start < total:
        end = min(max(following(rows, start) for rows in marks), following(closings, start))
        if end >= total:
            break
        last.append(end)
        start = end + 1
    return np.array(last, np.int64)


def shared_state(state: np.ndarray) -> np.ndarray:
    """Return the team's state from one state per agent: [T, N, S] to [T, S], or to [T, N * S] where they differ."""
    if (state == state[:, :1]).all():
        return state[:, 0].copy()
    return state.reshape(len(state), -1)


def with_final_rows(
    steps: Mapping[str, np.ndarray], finals: Mapping[str, np.ndarray], length: np.ndarray
) -> dict[str, np.ndarray]:
    """Return arrays with a final row after every episode's steps.

    Args:
        steps: arrays over all steps [sum(length), ...], episode after episode.
        finals: for some of the arrays, the final rows [E, ...]; the others get zeros.
        length: [E] steps.
    """
    length = np.asarray(length, np.int64)
    rows = np.arange(length.sum()) + np.repeat(np.arange(len(length)), length)
    last = np.cumsum(length + 1) - 1
    joined = {}
    for key, values in steps.items():
        joined[key] = np.zeros((len(values) + len(length), *values.shape[1:]), values.dtype)
        joined[key][rows] = values
        if key in finals:
            joined[key][last] = finals[key]
    return joined


def without_successors(
    seen: Mapping[str, np.ndarray],
    taken: Mapping[str, np.ndarray],
    last: np.ndarray,
    terminated: np.ndarray,
    source: str,
    stored: np.ndarray | None = None,
) -> Reading:
    """Return the episodes of a layout that stores nothing after the last step.

    If the time limit cut an episode, its last step has no successor: the step is left out, and its observation ends
    the episode.

    Args:
        seen: [T, ...] obs, global_state and, if there is one, avail.
        taken: [T, ...] action and reward.
        last: [E] the last row of each episode; the episodes cover all rows.
        terminated: [E] bool.
        source: the file.
        stored: [E] bool, the last row is already the observation after the last step; None: nowhere.

    Raises:
        DatasetError: no episode has a step and its successor.
    """
    notes = []
    stored = np.zeros(len(last), bool) if stored is None else stored
    rows = np.diff(last, prepend=-1)
    cut = ~terminated & ~stored
    length = rows - (cut | stored)
    if cut.any():
        notes.append(
            f"{cut.sum()} episodes were cut by the time limit; what followed their last step is not stored:"
            " that step is left out"
        )
    kept = length > 0
    if not kept.all():
        notes.append(f"{(~kept).sum()} episodes without a step that has a successor: left out")
    if not kept.any():
        raise DatasetError(f"{source}: expected an episode with a step and its successor, found none")
    episode = np.repeat(np.arange(len(last)), rows)
    is_step = kept[episode]
    is_step[last[cut | stored]] = False
    steps = {name: values[is_step] for name, values in (*seen.items(), *taken.items())}
    # after an end nothing counts, so the last observation can replace the one that is not stored
    finals = {name: values[last[kept]] for name, values in seen.items()}
    # returns-to-go include the rewards of the steps left out
    finals["reward"] = np.where(cut.reshape(-1, *[1] * (taken["reward"].ndim - 1)), taken["reward"][last], 0)[kept]
    joined = with_final_rows(steps, finals, length[kept])
    return Reading(episodes(joined, length[kept], terminated[kept]), notes, (cut | stored)[kept])


def episodes(rows: Mapping[str, np.ndarray], length: Any, terminated: Any) -> Episodes:
    """Return rows as `Episodes` with the right types; a missing `avail` allows everything.

    Args:
        rows: obs, global_state, action, reward and, if there is one, avail, each with its final rows.
        length: [E].
        terminated: [E].
    """
    action = rows["action"]
    discrete = action.dtype.kind != "f"
    avail = rows.get("avail")
    if avail is None:
        shape = (*action.shape, int(action.max(initial=0)) + 1) if discrete else action.shape
        avail = np.ones(shape, bool)
    length = np.asarray(length, np.int32)
    return Episodes(
        obs=np.asarray(rows["obs"], np.float32),
        global_state=np.asarray(rows["global_state"], np.float32),
        avail=np.asarray(avail, bool),
        action=np.asarray(action, np.int32 if discrete else np.float32),
        reward=np.asarray(rows["reward"], np.float32),
        length=length,
        terminated=np.asarray(terminated, bool),
        won=np.zeros(len(length), bool),
    )


def joined(readings: Sequence[Reading], names: Sequence[str]) -> Reading:
    """Return several files' episodes as one dataset, in the order given.

    Args:
        readings: readings of the files.
        names: names of the files, for messages.

    Raises:
        DatasetError: naming the first file with sizes that differ from those of the first file.
    """
    first = readings[0].episodes
    widest = max(reading.episodes.avail.shape[2] for reading in readings if reading.episodes.avail.ndim == 3)
    parts = []
    for reading, name in zip(readings, names, strict=True):
        part = reading.episodes
        discrete = part.action.dtype.kind != "f"
        # without a mask, a file only tells the largest action in it
        if discrete and part.avail.shape[2] < widest and part.avail.all():
            part = part._replace(avail=np.ones((*part.avail.shape[:2], widest), bool))
        for key in ("obs", "global_state", "avail", "action", "reward"):
            mine, others = getattr(part, key), getattr(first, key)
            same_width = key == "avail" and discrete or mine.shape[1:] == others.shape[1:]
            if not same_width or mine.dtype != others.dtype:
                raise DatasetError(
                    f"{name}: {key}: expected rows of shape {others.shape[1:]} and {others.dtype}, as {names[0]} has,"
                    f" found {mine.shape[1:]} and {mine.dtype}"
                )
        if part.avail.shape[2] != widest:
            raise DatasetError(f"{name}: avail: expected {widest} actions, as others have, found {part.avail.shape[2]}")
        parts.append(part)
    return Reading(
        Episodes(*(np.concatenate(field) for field in zip(*parts, strict=True))),
        [
            f"{os.path.basename(name)}: {note}"
            for reading, name in zip(readings, names, strict=True)
            for note in reading.notes
        ],
        np.concatenate([reading.stored for reading in readings]),
        tuple((os.path.basename(name), len(reading.stored)) for reading, name in zip(readings, names, strict=True)),
    )
