"""Minari's datasets (Farama Foundation), read by its own library: one agent, N = 1.

The path is a folder with metadata.json and the data, or the folder around it, which has them in `data`. Observations
are boxes or dictionaries of boxes, with entries joined in the order of their names; they are also the state. Actions
are Discrete or boxes; a box is taken as it is, so its bounds should be ±1.
"""

import os
import warnings
from typing import Any

import numpy as np

from omcda_jax.data import guess
from omcda_jax.data.formats import columns, rows
from omcda_jax.system import one_line
from omcda_jax.types import ConfigError, DatasetError


def matches(path: str) -> bool:
    """Return whether a folder looks like this layout."""
    return guess.is_minari(path) or guess.is_minari(os.path.join(path, "data"))


def read(path: str) -> rows.Reading:
    """Read a dataset.

    Args:
        path: its folder.

    Raises:
        DatasetError: it is damaged, its spaces are neither boxes nor Discrete, or the parts of an episode do not fit.
        ConfigError: Minari is not installed.
    """
    try:
        import gymnasium
        import minari
    except ImportError as error:
        raise ConfigError(
            f"{path}: Minari datasets need its library ({error}): pip install 'omcda-jax[minari]'"
        ) from error
    folder = path if guess.is_minari(path) else os.path.join(path, "data")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = minari.MinariDataset(folder)
            stored = list(dataset.iterate_episodes())
    # a damaged dataset can raise almost any exception class
    except Exception as error:
        raise DatasetError(f"{path}: expected an intact Minari dataset, found: {one_line(error)}") from error
    space, notes = dataset.action_space, []
    discrete = isinstance(space, gymnasium.spaces.Discrete)
    if not discrete and not isinstance(space, gymnasium.spaces.Box):
        raise DatasetError(f"{path}: actions: expected a Discrete or Box space, found {type(space).__name__}")
    if not discrete and not (np.isclose(space.low, -1).all() and np.isclose(space.high, 1).all()):
        bounds = f"{float(np.min(space.low)):.6g}..{float(np.max(space.high)):.6g}"
        notes.append(
            f"the action space is {bounds}, not -1..1: actions are taken as they are; action_scale divides them"
        )
    if not stored:
        raise DatasetError(f"{path}: expected at least one episode, found none")
    parts, missing = [], 0
    for number, episode in enumerate(stored):
        where = f"{path}: episode {number}"
        parts.append(_episode(episode, space, discrete, where))
        missing += not parts[-1][-1]
    if missing:
        notes.append(f"{missing} episodes lack the observation after their last step")
    return _together(parts, notes, path)


def _episode(episode: Any, space: Any, discrete: bool, source: str) -> tuple[Any, ...]:
    """Return an episode's observations, actions, rewards, whether the task ended it, and whether it has a final row."""
    obs = _flat(episode.observations, source)
    reward = columns.single(columns.numbers(episode.rewards, source, "rewards", (1,)), source, "rewards")
    steps = len(reward)
    if not steps or len(obs) not in (steps, steps + 1):
        raise DatasetError(f"{source}: observations: expected {steps + 1} rows for {steps} rewards, found {len(obs)}")
    ends = {}
    for key in ("terminations", "truncations"):
        ends[key] = columns.flags(columns.numbers(getattr(episode, key), source, key, (1,)), source, key)
        if len(ends[key]) != steps:
            raise DatasetError(f"{source}: {key}: expected {steps} rows, as rewards has, found {len(ends[key])}")
        if ends[key][:-1].any():
            step = int(ends[key].argmax())
            raise DatasetError(
                f"{source}: {key}: expected an end on the last step only, {steps - 1}, found one on {step}"
            )
    action = columns.numbers(episode.actions, source, "actions", (1, 2, 3, 4))
    if len(action) != steps:
        raise DatasetError(f"{source}: actions: expected {steps} rows, as rewards has, found {len(action)}")
    if discrete:
        action = columns.actions(action - space.start, (steps,), source, "actions", count=int(space.n))
    else:
        action = columns.single(action.reshape(steps, 1, -1), source, "actions")
    return obs, action, reward, bool(ends["terminations"][-1]), len(obs) == steps + 1


def _flat(observations: Any, source: str, key: str = "observations") -> np.ndarray:
    """Return observations as [T, O]; those of a dictionary are joined in the order of their names."""
    if isinstance(observations, dict):
        parts = [_flat(observations[name], source, f"{key}.{name}") for name in sorted(observations)]
        if not parts or len({len(part) for part in parts}) != 1:
            raise DatasetError(f"{source}: {key}: expected entries with equally many rows, found others")
        return np.concatenate(parts, axis=1)
    if isinstance(observations, list | tuple):
        raise DatasetError(f"{source}: {key}: expected a Box or a Dict of them, found a sequence")
    values = columns.numbers(observations, source, key, (1, 2, 3, 4))
    if not values.size:
        raise DatasetError(f"{source}: {key}: expected numbers in every row, found shape {values.shape}")
    return columns.single(values.reshape(len(values), -1), source, key)


def _together(parts: list[tuple[Any, ...]], notes: list[str], path: str) -> rows.Reading:
    widths = {part[0].shape[1] for part in parts}
    if len(widths) > 1 or 0 in widths:
        raise DatasetError(
            f"{path}: observations: expected the same number of features in all episodes, found {sorted(widths)}"
        )
    terminated, complete = (np.array([part[k] for part in parts]) for k in (3, 4))
    # adds a row for the action and the reward, which a final observation does not have
    grown = lambda k: np.concatenate(
        [np.concatenate([part[k], np.zeros_like(part[k][:1])]) if part[4] else part[k] for part in parts]
    )
    obs = np.concatenate([part[0] for part in parts])
    last = np.cumsum([len(part[0]) for part in parts]) - 1
    taken = {"action": grown(1), "reward": grown(2)}
    reading = rows.without_successors(
        {"obs": obs[:, None], "global_state": obs}, taken, last, terminated, path, stored=complete
    )
    return reading._replace(notes=[*notes, *reading.notes])
