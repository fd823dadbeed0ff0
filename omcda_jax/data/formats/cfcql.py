"""The SMAC files of CFCQL (Shao et al., NeurIPS 2023): HDF5 with the padded episode batches of PyMARL.

state [E, T, S], obs [E, T, N, O], actions [E, T, N, 1], avail_actions [E, T, N, A], reward [E, T, 1],
terminated [E, T, 1], filled [E, T, 1]. An episode of L steps fills L + 1 rows; `terminated` is not set where the step
limit cut it.
"""

from typing import Any

import numpy as np

from omcda_jax.data.episodes import Episodes, final_rows
from omcda_jax.data.formats import rows
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


def matches(keys: set[str]) -> bool:
    """Return whether a file's keys look like this layout, even if one is missing."""
    return len(keys & {"avail_actions", "filled", "actions", "terminated"}) >= 2


def read(file: Any, source: str) -> tuple[Episodes, list[str]]:
    """Read an open file.

    Args:
        file: of h5py.
        source: its path.

    Returns:
        The episodes, and notes on what was left out.

    Raises:
        DatasetError: a key, shape or type is not the layout's, or `filled` has gaps.
    """
    rows.require_keys(list(file), tuple(_RANKS), source)
    arrays = {key: rows.numbers(file[key][()], source, key, ranks) for key, ranks in _RANKS.items()}
    rows.require_rows(arrays, source)
    count, slots = arrays["state"].shape[:2]
    for key, values in arrays.items():
        if values.shape[1] != slots:
            raise DatasetError(f"{source}: {key}: expected {slots} steps, as state has, found {values.shape[1]}")
    flat = lambda key: arrays[key].reshape(count, slots, -1)[..., 0]
    filled, terminated = flat("filled") != 0, flat("terminated") != 0
    if (np.diff(filled.astype(np.int8), axis=1) > 0).any():
        episode = int((np.diff(filled.astype(np.int8), axis=1) > 0).any(axis=1).argmax())
        raise DatasetError(f"{source}: filled: expected rows without gaps, found one in episode {episode}")
    ended = (terminated & filled).any(axis=1)
    # where the batch has no room for a row after the end, the end alone tells the length
    length = np.where(ended, (terminated & filled).argmax(axis=1) + 1, filled.sum(axis=1) - 1)
    kept = length > 0
    notes = [f"{(~kept).sum()} episodes without a step: left out"] if not kept.all() else []
    if not kept.any():
        raise DatasetError(f"{source}: filled: expected at least one episode with a step, found none")
    episode, step = np.nonzero((np.arange(slots + 1)[None] <= length[:, None]) & kept[:, None])
    # the last slot stands for the row that would come after it
    picked = episode * slots + np.minimum(step, slots - 1)
    agents = arrays["actions"].shape[2]
    arrays["actions"], arrays["reward"] = arrays["actions"].reshape(count, slots, agents), flat("reward")
    # the arrays are large: each is let go once it is cut
    pick = lambda key: (whole := arrays.pop(key)).reshape(count * slots, *whole.shape[2:])[picked]
    values = {
        "obs": pick("obs"),
        "global_state": pick("state"),
        "avail": pick("avail_actions") != 0,
        "action": pick("actions").astype(np.int64),
        "reward": pick("reward"),
    }
    length, ended = length[kept], ended[kept]
    final = final_rows(length)
    values["action"][final], values["reward"][final] = 0, 0
    # what an ended episode's padding holds is not an observation, and no legal action is one too few
    values["avail"][final] |= ~values["avail"][final].any(axis=-1, keepdims=True)
    return rows.episodes(values, length, ended), notes
