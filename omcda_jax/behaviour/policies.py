"""The behaviour policies that datasets are rollouts of, and the table of those datasets.

Discrete actions: one small network shared by all agents, from an agent's observation and its one-hot identity through
two hidden ReLU layers to one logit per action. Continuous actions: one network per agent, from its standardised
observation through two hidden tanh layers to the mean of a Gaussian of fixed width; a tanh bounds the draw. The weights
are stored beside this file, `weights/<family>_<scenario>_<stage>.npz`, one file per stage of training; each names the
command that remakes it.
"""

import dataclasses
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from omcda_jax.system import one_line, replacing
from omcda_jax.types import ConfigError, EnvSpec

WEIGHTS = Path(__file__).parent / "weights"
CLIP = 10.0  # standardised features are cut there

Layers = tuple[tuple[chex.Array, chex.Array], ...]


class Gaussian(NamedTuple):
    """Weights of a policy of continuous actions.

    Attributes:
        layers: (w [N, in, out], b [N, out]) of each layer.
        log_std: [N, A], before the tanh.
        obs_mean: [N, O], subtracted from the observations.
        obs_std: [N, O], which they are divided by.
    """

    layers: Layers
    log_std: chex.Array
    obs_mean: chex.Array
    obs_std: chex.Array


Params = Layers | Gaussian


@dataclasses.dataclass(frozen=True)
class Quality:
    """How one dataset is made.

    Attributes:
        stages: the training stages whose policies are rolled out, each for an equal share of the dataset.
        temperature: the policy's log-density is divided by it before an action is drawn. It is part of what the
            dataset is: a greedy policy can win twice as often as the sampled one.
        won_only: keep an episode only if the team won it.
    """

    stages: tuple[str, ...]
    temperature: float = 1.0
    won_only: bool = False


def _mujoco(environment: str) -> dict[tuple[str, str], Quality]:
    """The four datasets of a scenario; the numbered stages lie on the way from the start of training to medium."""
    return {
        (environment, "expert"): Quality(("expert",)),
        (environment, "medium"): Quality(("medium",)),
        (environment, "medium_replay"): Quality(("replay_1", "replay_2", "replay_3", "replay_4", "medium")),
        (environment, "medium_expert"): Quality(("medium", "expert")),
    }


def _smax(environment: str, won_only: bool = False) -> dict[tuple[str, str], Quality]:
    """The three datasets of a scenario; `won_only` is of the good one."""
    return {
        (environment, "poor"): Quality(("poor",)),
        (environment, "medium"): Quality(("medium",)),
        (environment, "good"): Quality(("good",), won_only=won_only),
    }


QUALITIES = {
    **_smax("smax/3m"),
    **_smax("smax/2s3z"),
    **_smax("smax/5m_vs_6m", won_only=True),
    **_smax("smax/6h_vs_8z"),
    **_smax("smax/corridor", won_only=True),
    **_mujoco("mamujoco/Hopper_3x1"),
    **_mujoco("mamujoco/HalfCheetah_6x1"),
    **_mujoco("mamujoco/Ant_2x4"),
}


def quality(environment: str, name: str) -> Quality:
    """Return how a dataset of `QUALITIES` is made.

    Args:
        environment: for instance `smax/3m`.
        name: for instance `medium`.

    Raises:
        ConfigError: the table has no such dataset; the message lists those it has.
    """
    if (environment, name) not in QUALITIES:
        known = ", ".join(known for where, known in QUALITIES if where == environment)
        expected = f"one of {known}" if known else "an environment with behaviour policies"
        expected += "" if known else f" ({', '.join(dict.fromkeys(where for where, _ in QUALITIES))})"
        raise ConfigError(f"quality: expected {expected}, found {name!r} of {environment!r}")
    return QUALITIES[environment, name]


def file_name(environment: str, stage: str) -> str:
    """Return the name of the file of a policy's weights.

    Args:
        environment: for instance `smax/3m`.
        stage: for instance `medium`.
    """
    return f"{environment.replace('/', '_')}_{stage}.npz"


def weights_path(environment: str, stage: str) -> Path:
    """Return the file of a policy's weights.

    Args:
        environment: for instance `smax/3m`.
        stage: for instance `medium`.

    Raises:
        ConfigError: no such file; the message lists the environment's stages.
    """
    path = WEIGHTS / file_name(environment, stage)
    if not path.is_file():
        prefix = file_name(environment, "").removesuffix(".npz")
        stages = sorted(file.stem.removeprefix(prefix) for file in WEIGHTS.glob(f"{prefix}*.npz"))
        raise ConfigError(
            f"behaviour policy: expected a stage of {environment} among {', '.join(stages) or 'none'}, found {stage!r}"
        )
    return path


def write_weights(path: Path, params: Params, **facts) -> None:
    """Write a policy's weights, as float16, and facts about it.

    Args:
        path: the npz file; its folder is made if missing.
        params: the weights.
        **facts: scalars and strings stored beside the weights.
    """
    layers = params.layers if isinstance(params, Gaussian) else params
    arrays = {}
    for index, (w, b) in enumerate(layers):
        arrays |= {f"actor_{index}_w": np.asarray(w, np.float16), f"actor_{index}_b": np.asarray(b, np.float16)}
    if isinstance(params, Gaussian):
        # float16 is too coarse for a feature whose mean is many times its spread
        arrays |= {key: np.asarray(getattr(params, key), np.float32) for key in Gaussian._fields[1:]}
    with replacing(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, **arrays, **facts)


def read_weights(path: Path) -> Params:
    """Read a policy's weights.

    Args:
        path: an npz file with `actor_{k}_w` [in, out] and `actor_{k}_b` [out] for k = 0, 1, 2; with a leading axis
            [N] and with `log_std`, `obs_mean` and `obs_std` for continuous actions.

    Returns:
        float32 weights.

    Raises:
        ConfigError: the file is not such a file.
    """
    try:
        with np.load(path) as file:
            layers = tuple((file[f"actor_{k}_w"], file[f"actor_{k}_b"]) for k in range(3))
            params = Gaussian(layers, *(file[key] for key in Gaussian._fields[1:])) if "log_std" in file else layers
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"{path}: expected actor_0_w .. actor_2_b in an npz file, found: {one_line(error)}"
        ) from error
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)


def load(environment: str, stage: str) -> Params:
    """Read the weights of one of the policies that come with the package.

    Args:
        environment: for instance `smax/3m`.
        stage: for instance `medium`.

    Returns:
        float32 weights.

    Raises:
        ConfigError: no such policy.
    """
    return read_weights(weights_path(environment, stage))


def check(params: Params, spec: EnvSpec, name: str) -> None:
    """Check that a policy fits a task.

    Args:
        params: the policy's weights.
        spec: the task's sizes.
        name: what the message calls the policy, and the task it should fit.

    Raises:
        ConfigError: another kind of action or other sizes.
    """
    layers = params.layers if isinstance(params, Gaussian) else params
    sizes = (layers[0][0].shape[:-1], layers[-1][0].shape[-1], not isinstance(params, Gaussian))
    inputs = (spec.obs_dim + spec.num_agents,) if spec.discrete else (spec.num_agents, spec.obs_dim)
    expected = (inputs, spec.action_dim, spec.discrete)
    if sizes != expected:
        words = "{} inputs and {} {} outputs".format
        kinds = {True: "discrete", False: "continuous"}
        raise ConfigError(
            f"behaviour policy {name}: expected {words(*expected[:2], kinds[expected[2]])},"
            f" found {words(*sizes[:2], kinds[sizes[2]])}"
        )


def sample(params: Params, obs: chex.Array, avail: chex.Array, key: chex.PRNGKey, temperature: float) -> jax.Array:
    """Draw every agent's action.

    Args:
        params: the policy's weights.
        obs: [..., N, O] local observations.
        avail: [..., N, A] bool, legal actions, or the dimensions an agent has.
        key: typed PRNG key.
        temperature: divides the policy's log-density; 0 gives the centre of a continuous policy, and is not for a
            discrete one.

    Returns:
        [..., N] int32 indices, or [..., N, A] float32 in [-1, 1], zero where an agent has no such dimension.
    """
    if isinstance(params, Gaussian):
        centre = mean(params, obs)
        std = jnp.broadcast_to(jnp.exp(params.log_std) * temperature**0.5, centre.shape)
        return jnp.where(avail, jnp.tanh(centre + std * jax.random.normal(key, centre.shape)), 0.0)
    return jax.random.categorical(key, logits(params, obs, avail) / temperature).astype(jnp.int32)


def logits(params: Layers, obs: chex.Array, avail: chex.Array) -> jax.Array:
    """Return every agent's logits, -1e9 for illegal actions.

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
    inputs = jnp.concatenate([obs, identity], axis=-1).reshape(-1, obs.shape[-1] + agents)
    return jnp.where(avail, forward(params, inputs, jax.nn.relu).reshape(avail.shape), -1e9)


def mean(params: Gaussian, obs: chex.Array) -> jax.Array:
    """Return the centre of every agent's Gaussian, before the tanh.

    Args:
        params: the weights.
        obs: [..., N, O] local observations.

    Returns:
        [..., N, A].
    """
    rows = obs.reshape(-1, *obs.shape[-2:])
    chex.assert_equal_shape([rows[0], params.obs_mean, params.obs_std])
    inputs = jnp.clip((rows - params.obs_mean[None]) / params.obs_std[None], -CLIP, CLIP)
    outputs = jax.vmap(lambda layers, x: forward(layers, x, jnp.tanh), (0, 1), 1)(params.layers, inputs)
    return outputs.reshape(*obs.shape[:-1], -1)


def forward(layers: Layers, inputs: chex.Array, activation: Callable) -> jax.Array:
    """Return the outputs of a small network.

    Args:
        layers: (w [in, out], b [out]) of each layer.
        inputs: [R, in].
        activation: of all layers but the last.

    Returns:
        [R, out].
    """
    chex.assert_rank(inputs, 2)
    for w, b in layers[:-1]:
        inputs = activation(inputs @ w + b[None])
    w, b = layers[-1]
    return inputs @ w + b[None]
