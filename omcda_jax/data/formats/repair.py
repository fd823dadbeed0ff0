"""What published datasets do differently: always noted, but corrected only if the user says so.

Readers of foreign formats return episodes as their file has them; everything here works on such episodes.
"""

import math

import numpy as np

from omcda_jax.config import Repairs
from omcda_jax.data.episodes import Episodes, Where, by_row, final_rows
from omcda_jax.data.formats import columns
from omcda_jax.types import ConfigError, DatasetError


def repaired(
    episodes: Episodes, repairs: Repairs, source: str, stored: np.ndarray | None = None, where: Where = by_row
) -> tuple[Episodes, list[str]]:
    """Return episodes with the user's corrections, and lines on what the corrections left out.

    Args:
        episodes: as a reader returns them; the reward may be [T, N].
        repairs: what to correct.
        source: what error messages call the data.
        stored: [E] bool, as in `rows.Reading`: if an episode turns out to be cut but nothing is stored after its last
            step, it loses that step. None if all episodes have something stored there.
        where: what error messages call a row.

    Raises:
        DatasetError: the agents' rewards differ and `team_reward` does not say what to make of them.
        ConfigError: a repair does not apply to the data.
    """
    reward = _team(episodes.reward, repairs.team_reward, source, where)
    final = final_rows(episodes.length)
    if repairs.rewards == "return_to_go":
        reward = columns.single(reward - np.append(reward[1:], 0.0), source, "reward from return_to_go")
    reward[final] = 0.0
    action = episodes.action
    continuous = action.dtype.kind == "f"
    if not continuous and (repairs.action_scale != 1.0 or repairs.clip_actions):
        raise ConfigError(f"{source}: action_scale and clip_actions: expected continuous actions, found discrete ones")
    if repairs.action_scale != 1.0:
        action = action / np.float32(repairs.action_scale)
    if repairs.clip_actions:
        action = np.clip(action, -1.0, 1.0)
    terminated = episodes.terminated
    if repairs.time_limit is not None:
        if episodes.length.max(initial=0) > repairs.time_limit:
            raise ConfigError(
                f"{source}: time_limit: expected at least {episodes.length.max()}, the longest episode,"
                f" found {repairs.time_limit}"
            )
        terminated = terminated & (episodes.length < repairs.time_limit)
    cut = episodes.terminated & ~terminated
    episodes = episodes._replace(reward=reward, action=action, terminated=terminated)
    if stored is None or not (cut & ~stored).any():
        return episodes, []
    return _shortened(episodes, cut & ~stored, source)


def _shortened(episodes: Episodes, which: np.ndarray, source: str) -> tuple[Episodes, list[str]]:
    """Remove the last step of some episodes [E]; its observation becomes the final one. Return them and notes."""
    final = final_rows(episodes.length)
    kept = episodes.length > which
    if not kept.any():
        raise DatasetError(f"{source}: time_limit: expected an episode with a step and its successor, found none")
    action, reward = episodes.action.copy(), episodes.reward.copy()
    action[final[which] - 1], reward[final[which] - 1] = 0, 0
    row = np.ones(len(reward), bool)
    row[final[which]] = False
    row[final[~kept] - 1] = False
    episodes = episodes._replace(action=action, reward=reward, length=episodes.length - which)
    rows, others = [field[row] for field in episodes[:5]], [field[kept] for field in episodes[5:]]
    notes = [
        f"{which.sum()} episodes count as cut by time_limit; what followed their last step is not stored: the step is"
        " left out"
    ]
    if not kept.all():
        notes.append(f"{(~kept).sum()} episodes without a step that has a successor: left out")
    return Episodes(*rows, *others), notes


def _team(reward: np.ndarray, rule: str | None, source: str, where: Where) -> np.ndarray:
    if reward.ndim == 1:
        return reward.copy()
    if rule is not None:
        return columns.single(getattr(reward, rule)(axis=1, dtype=np.float64), source, f"reward, {rule} over agents")
    different = (reward != reward[:, :1]).any(axis=1)
    if different.any():
        row = int(different.argmax())
        raise DatasetError(
            f"{source}: reward: expected one reward for the team, found {_listed(reward[row])} in {where(row)};"
            " team_reward=mean or team_reward=sum combines them"
        )
    return reward[:, 0].copy()


def _listed(values: np.ndarray) -> str:
    return f"{', '.join(f'{value:.6g}' for value in values[:8])}{', ...' if len(values) > 8 else ''}"


def quirks(episodes: Episodes) -> list[str]:
    """Return one line for each oddity that changes what is learned, with the repair that undoes it.

    Args:
        episodes: episodes with a reward [T].
    """
    notes = []
    if episodes.action.dtype.kind == "f" and (largest := float(np.abs(episodes.action).max(initial=0))) > 1:
        scale = math.ceil(largest * 1e3) / 1e3
        notes.append(
            f"actions reach ±{largest:.9g}, beyond ±1: action_scale={scale:.9g} or clip_actions=True makes them fit"
        )
    if _looks_like_return_to_go(episodes):
        notes.append(
            "rewards never rise within any episode: if they are returns-to-go, rewards=return_to_go undoes that"
        )
    longest = int(episodes.length.max(initial=0))
    ended = (episodes.length == longest) & episodes.terminated
    # if many episodes share the longest length, it is that of the time limit
    if len(ended) > 1 and ended.sum() > max(1, 0.05 * len(ended)) and longest >= 50:
        notes.append(
            f"{ended.sum()} of {len(ended)} episodes last {longest} steps, the longest, and count as ended by the"
            f" task: time_limit={longest} counts them as cut by the time limit"
        )
    return notes


def _looks_like_return_to_go(episodes: Episodes) -> bool:
    final = final_rows(episodes.length)
    step = np.diff(episodes.reward.astype(np.float64))
    # a step to an episode's final row or into the next episode says nothing
    inside = np.ones(len(step), bool)
    inside[final[:-1]] = inside[final - 1] = False
    changes = step[inside]
    slack = 1e-6 * np.abs(episodes.reward).max(initial=0)
    long = episodes.length >= 3
    return bool(long.any() and (changes <= slack).all() and (changes < -slack).mean() > 0.1)
