"""The behaviour policies whose rollouts are the datasets, and the table of those datasets.

A policy is one small network shared by all agents: an agent's observation with its one-hot identity, two hidden ReLU
layers, one logit per action. The weights lie beside this file, `weights/smax_<scenario>_<stage>.npz`, one file per
stage of training; each names the command that remakes it.
"""

import dataclasses
import hashlib
import zipfile
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np

from omcda_jax.types import ConfigError

WEIGHTS = Path(__file__).parent / "weights"

Params = tuple[tuple[chex.Array, chex.Array], ...]


@dataclasses.dataclass(frozen=True)
class Quality:
    """How one dataset is made.

    Attributes:
        stages: the training stages whose policies are rolled out, each for an equal share of the episodes.
        temperature: the logits are divided by it before an action is drawn. It is part of what the dataset is:
            the greedy policy can win twice as often as the sampled one.
        won_only: keep an episode only if the team won it.
    """

    stages: tuple[str, ...]
    temperature: float = 1.0
    won_only: bool = False


QUALITIES = {
    ("3m", "poor"): Quality(("poor",)),
    ("3m", "medium"): Quality(("medium",)),
    ("3m", "good"): Quality(("good",)),
    ("2s3z", "poor"): Quality(("poor",)),
    ("2s3z", "medium"): Quality(("medium",)),
    ("2s3z", "good"): Quality(("good",)),
    ("5m_vs_6m", "poor"): Quality(("poor",)),
    ("5m_vs_6m", "medium"): Quality(("medium",)),
    ("5m_vs_6m", "good"): Quality(("good",), won_only=True),
}


def quality(scenario: str, name: str) -> Quality:
    """Looks a dataset up in `QUALITIES`.

    Args:
        scenario: for instance `3m`.
        name: for instance `medium`.

    Raises:
        ConfigError: the table has no such dataset; lists those it has.
    """
    if (scenario, name) not in QUALITIES:
        known = ", ".join(known for where, known in QUALITIES if where == scenario)
        expected = f"one of {known}" if known else "a scenario with behaviour policies"
        expected += "" if known else f" ({', '.join(dict.fromkeys(where for where, _ in QUALITIES))})"
        raise ConfigError(f"quality: expected {expected}, found {name!r} of {scenario!r}")
    return QUALITIES[scenario, name]


def weights_path(scenario: str, stage: str) -> Path:
    """Returns the file of a policy's weights.

    Args:
        scenario: for instance `3m`.
        stage: for instance `medium`.

    Raises:
        ConfigError: no such file; lists the scenario's stages.
    """
    path = WEIGHTS / f"smax_{scenario}_{stage}.npz"
    if not path.is_file():
        prefix = f"smax_{scenario}_"
        stages = sorted(found.stem.removeprefix(prefix) for found in WEIGHTS.glob(f"{prefix}*.npz"))
        raise ConfigError(
            f"behaviour policy: expected a stage of {scenario} among {', '.join(stages) or 'none'}, found {stage!r}"
        )
    return path


def digest(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal.

    Args:
        path: the file.
    """
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def read_weights(path: Path) -> Params:
    """Reads a policy's weights.

    Args:
        path: an npz file with `actor_{k}_w` [in, out] and `actor_{k}_b` [out] for k = 0, 1, 2.

    Raises:
        ConfigError: the file is not such a file.
    """
    try:
        with np.load(path) as file:
            layers = [(file[f"actor_{k}_w"], file[f"actor_{k}_b"]) for k in range(3)]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path}: expected actor_0_w .. actor_2_b in an npz file, found: {error}") from error
    return tuple((jnp.asarray(w, jnp.float32), jnp.asarray(b, jnp.float32)) for w, b in layers)


def load(scenario: str, stage: str) -> Params:
    """Reads the weights of one of the policies that come with the package.

    Args:
        scenario: for instance `3m`.
        stage: for instance `medium`.

    Returns:
        (w [in, out], b [out]) of each layer, float32.

    Raises:
        ConfigError: no such policy.
    """
    return read_weights(weights_path(scenario, stage))


def logits(params: Params, obs: chex.Array, avail: chex.Array) -> jax.Array:
    """Returns every agent's logits, -1e9 for illegal actions.

    Args:
        params: (w, b) of each layer, shared by all agents.
        obs: [..., N, O] local observations.
        avail: [..., N, A] bool, legal actions.

    Returns:
        [..., N, A].
    """
    chex.assert_equal_shape_prefix([obs, avail], obs.ndim - 1)
    agents = obs.shape[-2]
    identity = jnp.broadcast_to(jnp.eye(agents, dtype=obs.dtype), (*obs.shape[:-1], agents))
    hidden = jnp.concatenate([obs, identity], axis=-1).reshape(-1, obs.shape[-1] + agents)
    for w, b in params[:-1]:
        hidden = jax.nn.relu(hidden @ w + b[None])
    w, b = params[-1]
    return jnp.where(avail, (hidden @ w + b[None]).reshape(avail.shape), -1e9)
