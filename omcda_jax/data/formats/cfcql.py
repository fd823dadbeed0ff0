"""The SMAC files of CFCQL (Shao et al., NeurIPS 2023): the padded episode batches of PyMARL.

One HDF5 file, a folder of such files, or a folder of NumPy files with these names: state [E, T, S],
obs [E, T, N, O], actions [E, T, N, 1], avail_actions [E, T, N, A], reward [E, T, 1], terminated [E, T, 1],
filled [E, T, 1]. reward and terminated may have an entry per agent. An episode of L steps fills L + 1 rows;
`terminated` is not set if the step limit cut it.
"""

import numpy as np

from omcda_jax.data.episodes import final_rows
from omcda_jax.data.formats import columns, rows
from omcda_jax.types import DatasetError

_RANKS = {
    "state": (3,),
    "obs": (4,),
    "actions": (3, 4),
    "avail_actions": (4,),
    "reward": (2, 3),
    "terminated": (2, 3),
    "filled": (2, 3),
}
KEYS = tuple(_RANKS)
OPTIONAL = ()


def matches(keys: set[str]) -> bool:
    """Return whether a file's keys look like this layout, even if one is missing."""
    return len(keys & {"avail_actions", "filled", "actions", "terminated"}) >= 2


def parse(arrays: dict[str, np.ndarray], source: str) -> rows.Reading:
    """Return the episodes in a file's arrays; the memory of the arrays is freed one by one.

    Args:
        arrays: arrays by key.
        source: the file.

    Raises:
        DatasetError: a key, shape or type is not the layout's, or `filled` has gaps.
    """
    rows.require_keys(list(arrays), KEYS, source)
    arrays = {key: columns.numbers(arrays[key], source, key, ranks) for key, ranks in _RANKS.items()}
    rows.require_rows(arrays, source)
    count, slots, agents = arrays["obs"].shape[:3]
    _check_shapes(arrays, source)
    length, filled, ended, notes = _lengths(arrays, agents, source)
    kept = length > 0
    if not kept.all():
        notes.append(f"{(~kept).sum()} episodes without a step: left out")
    if not kept.any():
        raise DatasetError(f"{source}: filled: expected at least one episode with a step, found none")
    episode, step = np.nonzero((np.arange(slots + 1)[None] <= length[:, None]) & kept[:, None])
    # if the batch has no room for a row after the end, the last row takes its place
    step = np.minimum(step, filled[episode] - 1)
    picked = episode * slots + step
    where = lambda row: f"episode {episode[row]}, step {step[row]}"
    # the arrays are large: each is freed once it is cut
    pick = lambda key: (whole := arrays.pop(key)).reshape(count * slots, *whole.shape[2:])[picked]
    single = lambda key: columns.single(pick(key), source, key, where)
    stored = (filled > length)[kept]
    length, ended = length[kept], ended[kept]
    final = final_rows(length)
    is_step = np.ones(len(picked), bool)
    is_step[final] = False
    step_rows = np.flatnonzero(is_step)
    lead = (count, slots, agents)
    place = {"pick": picked[step_rows], "where": lambda row: where(step_rows[row])}
    legal = arrays["avail_actions"].shape[3]
    action = columns.actions(arrays.pop("actions"), lead, source, "actions", count=legal, **place)
    reward = rows.per_agent(arrays.pop("reward"), agents, source, "reward", axes=2)
    reward = columns.single(reward.reshape(count * slots, -1)[place["pick"]], source, "reward", place["where"])
    avail = columns.flags(pick("avail_actions"), source, "avail_actions", where)
    # an ended episode's padding is not an observation, and may have no legal action, which is one too few
    avail[final] |= ~avail[final].any(axis=-1, keepdims=True)
    values = {"obs": single("obs"), "global_state": single("state"), "avail": avail}
    values |= rows.with_final_rows({"action": action, "reward": rows.team_reward(reward)}, {}, length)
    return rows.Reading(rows.episodes(values, length, ended), notes, stored)


def _check_shapes(arrays: dict[str, np.ndarray], source: str) -> None:
    slots, agents = arrays["obs"].shape[1:3]
    for key, values in arrays.items():
        if values.shape[1] != slots:
            raise DatasetError(f"{source}: {key}: expected {slots} steps, as obs has, found {values.shape[1]}")
    if arrays["avail_actions"].shape[2] != agents:
        found = arrays["avail_actions"].shape[2]
        raise DatasetError(f"{source}: avail_actions: expected {agents} agents, as obs has, found {found}")
    for key in ("state", "obs", "avail_actions"):
        if 0 in arrays[key].shape:
            raise DatasetError(f"{source}: {key}: expected at least one entry on each axis, found {arrays[key].shape}")


def _lengths(
    arrays: dict[str, np.ndarray], agents: int, source: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Return steps, filled rows and ends of every episode [E], and notes on contradictions."""
    episode = lambda row: f"episode {row}"
    filled, terminated = (
        columns.flags(rows.per_agent(arrays.pop(key), agents, source, key, axes=2), source, key, episode)
        for key in ("filled", "terminated")
    )
    if (filled != filled[..., :1]).any():
        wrong = int((filled != filled[..., :1]).any(axis=(1, 2)).argmax())
        raise DatasetError(f"{source}: filled: expected the same rows for every agent, found others in episode {wrong}")
    filled = filled[..., 0]
    gaps = (np.diff(filled.astype(np.int8), axis=1) > 0).any(axis=1)
    if gaps.any():
        raise DatasetError(f"{source}: filled: expected rows without gaps, found one in episode {int(gaps.argmax())}")
    # an agent that has ended stays ended, whether or not its flag is repeated
    over = np.logical_or.accumulate(terminated & filled[..., None], axis=1).all(axis=-1)
    ended, count = over.any(axis=1), filled.sum(axis=1)
    length = np.where(ended, over.argmax(axis=1) + 1, count - 1)
    notes = []
    partly = (terminated & filled[..., None]).any(axis=(1, 2)) & ~ended
    if partly.any():
        notes.append(f"{partly.sum()} episodes end for some agents only: they count as cut by the time limit")
    beyond = ended & (count > length + 1)
    if beyond.any():
        notes.append(f"{beyond.sum()} episodes fill rows beyond the one after their end: those rows are left out")
    outside = ~ended & ~partly & terminated.any(axis=(1, 2))
    if outside.any():
        notes.append(
            f"{outside.sum()} episodes are marked as ended only in rows that are not filled: they count as cut"
        )
    return length, count, ended, notes
