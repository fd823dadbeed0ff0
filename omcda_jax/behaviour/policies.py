"""The behaviour policies that datasets are collected with, and the table of those datasets.

There are three kinds of network. `Layers`, for SMAX: all agents share one network, from an agent's observation and its
one-hot identity through two hidden ReLU layers to one logit per action. `Categorical` and `Gaussian`, for any other
simulator: one network per agent, from its standardised observation through two hidden tanh layers to logits, or to the
mean of a Gaussian of fixed width; a tanh bounds the sample. Weights are stored in one file per training stage,
`<family>_<scenario>_<stage>.npz`. Those that come with the package are in `weights/` in this folder. Each file names
the command that remakes it.
"""

import dataclasses
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from omcda_jax.envs.base import task
from omcda_jax.files import replacing
from omcda_jax.system import one_line
from omcda_jax.types import ConfigError, EnvSpec

WEIGHTS = Path(__file__).parent / "weights"
CLIP = 10.0  # bound on the absolute value of standardised features

Layers = tuple[tuple[chex.Array, chex.Array], ...]


class Gaussian(NamedTuple):
    """Weights of a policy of continuous actions.

    Attributes:
        layers: (w [N, in, out], b [N, out]) of each layer.
        log_std: [N, A], before the tanh.
        obs_mean: [N, O], subtracted from the observations.
        obs_std: [N, O], the observations are then divided by it.
    """

    layers: Layers
    log_std: chex.Array
    obs_mean: chex.Array
    obs_std: chex.Array


class Categorical(NamedTuple):
    """Weights of a policy of discrete actions that has a network for each agent.

    Attributes:
        layers, obs_mean, obs_std: as in `Gaussian`.
    """

    layers: Layers
    obs_mean: chex.Array
    obs_std: chex.Array


Params = Layers | Gaussian | Categorical


@dataclasses.dataclass(frozen=True)
class Quality:
    """How one dataset is made.

    Attributes:
        stages: the training stages whose policies are rolled out, each for an equal share of the dataset.
        temperature: the policy's log-density is divided by it before an action is sampled. It is part of what the
            dataset is: a greedy policy can win twice as often as a sampled one.
        won_only: keep an episode only if the team won it.
    """

    stages: tuple[str, ...]
    temperature: float = 1.0
    won_only: bool = False


def staged(replay: Sequence[str]) -> dict[str, Quality]:
    """Return the datasets of medium, expert and the stages before medium, by name.

    Args:
        replay: the stages before medium, in order; if there are none, there is no medium_replay dataset.
    """
    return {
        "expert": Quality(("expert",)),
        "medium": Quality(("medium",)),
        **({"medium_replay": Quality((*replay, "medium"))} if replay else {}),
        "medium_expert": Quality(("medium", "expert")),
    }


def _staged(environment: str) -> dict[tuple[str, str], Quality]:
    """The four datasets of a scenario."""
    qualities = staged(("replay_1", "replay_2", "replay_3", "replay_4"))
    return {(environment, name): quality for name, quality in qualities.items()}


def _smax(environment: str, won_only: bool = False) -> dict[tuple[str, str], Quality]:
    """The three datasets of a scenario; `won_only` applies to the good dataset."""
    return {
        (environment, "poor"): Quality(("poor",)),
        (environment, "medium"): Quality(("medium",)),
        (environment, "good"): Quality(("good",), won_only=won_only),
    }


QUALITIES = {
    **_smax("smax/3m"),
    **_smax("smax/2s3z"),
    **_smax("smax/8m"),
    **_smax("smax/3s5z"),
    **_smax("smax/5m_vs_6m", won_only=True),
    **_smax("smax/6h_vs_8z"),
    **_smax("smax/corridor", won_only=True),
    **_smax("smax/27m_vs_30m"),
    **_staged("mpe/simple_spread"),
    **_staged("mpe/simple_tag"),
    **_staged("mamujoco/Hopper_3x1"),
    **_staged("mamujoco/HalfCheetah_6x1"),
    **_staged("mamujoco/Ant_2x4"),
}


def quality(environment: str, name: str, folder: Path | None = None) -> Quality:
    """Return how a dataset is made, from `QUALITIES` or from the stages in a folder.

    Args:
        environment: for instance `smax/3m`.
        name: for instance `medium`.
        folder: folder of weights, whose stages are datasets too; None: the package's own, with only `QUALITIES`.

    Raises:
        ConfigError: there is no such dataset; the message lists the existing ones.
    """
    known = {known: quality for (where, known), quality in QUALITIES.items() if where == task(environment)}
    if folder is not None:
        found = stages(environment, folder)
        replay = sorted((stage for stage in found if re.fullmatch(r"replay_\d+", stage)), key=lambda s: int(s[7:]))
        offered = {stage: Quality((stage,)) for stage in found} | staged(replay) | known
        known = {key: quality for key, quality in offered.items() if set(quality.stages) <= set(found)}
    if name not in known:
        always = () if folder else ("random",)
        expected = f"one of {', '.join([*known, *always])}" if known else "an environment with behaviour policies"
        if not known and folder is None:
            own = "data that `collect` makes with --policy or --weights"
            expected += f" ({', '.join(dict.fromkeys(where for where, _ in QUALITIES))}), or {own}"
        place = "" if folder is None else f" in {folder}"
        raise ConfigError(f"quality: expected {expected}, found {name!r} of {environment!r}{place}")
    return known[name]


def stages(environment: str, folder: Path) -> list[str]:
    """Return the names of the stages with weights in a folder, sorted.

    Args:
        environment: for instance `smax/3m`.
        folder: folder of npz files.
    """
    prefix = file_name(environment, "").removesuffix(".npz")
    return sorted(file.stem.removeprefix(prefix) for file in folder.iterdir() if _is_weights(file, prefix))


def _is_weights(file: Path, prefix: str) -> bool:
    return file.name.startswith(prefix) and file.suffix == ".npz"


def file_name(environment: str, stage: str) -> str:
    """Return the name of the file of a policy's weights; characters special to a shell become underscores.

    Args:
        environment: for instance `smax/3m`.
        stage: for instance `medium`.
    """
    return f"{re.sub('[/?&=*]', '_', environment)}_{stage}.npz"


def weights_path(environment: str, stage: str, folder: Path | None = None) -> Path:
    """Return the file of a policy's weights.

    Args:
        environment: for instance `smax/3m`.
        stage: for instance `medium`.
        folder: folder of the weights; None: the package's own.

    Raises:
        ConfigError: there is no such file; the message lists the environment's stages.
    """
    if folder is None:
        folder, environment = WEIGHTS, task(environment)
    path = folder / file_name(environment, stage)
    if not path.is_file():
        found = ", ".join(stages(environment, folder)) or "none"
        raise ConfigError(f"behaviour policy: expected a stage of {environment} among {found}, found {stage!r}")
    return path


def write_weights(path: Path, params: Params, **facts) -> None:
    """Write a policy's weights as float16, and facts about the policy.

    Args:
        path: the npz file; its folder is made if missing.
        params: the weights.
        **facts: scalars and strings stored with the weights.
    """
    separate = isinstance(params, Gaussian | Categorical)
    layers = params.layers if separate else params
    arrays = {}
    for index, (w, b) in enumerate(layers):
        arrays |= {f"actor_{index}_w": np.asarray(w, np.float16), f"actor_{index}_b": np.asarray(b, np.float16)}
    if separate:
        # float16 is too coarse for a feature whose mean is many times its spread
        arrays |= {key: np.asarray(getattr(params, key), np.float32) for key in params._fields[1:]}
    with replacing(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, **arrays, **facts)


def read_weights(path: Path) -> Params:
    """Read a policy's weights.

    Args:
        path: an npz file with `actor_{k}_w` [in, out] and `actor_{k}_b` [out] for k = 0, 1, 2. If each agent has a
            network, they have a leading axis [N], and the file has `obs_mean` and `obs_std`; for continuous actions it
            also has `log_std`.

    Returns:
        float32 weights.

    Raises:
        ConfigError: the file is not such a file.
    """
    try:
        with np.load(path) as file:
            layers = tuple((file[f"actor_{k}_w"], file[f"actor_{k}_b"]) for k in range(3))
            kind = Gaussian if "log_std" in file else Categorical if "obs_mean" in file else None
            params = layers if kind is None else kind(layers, *(file[key] for key in kind._fields[1:]))
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
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
        ConfigError: there is no such policy.
    """
    return read_weights(weights_path(environment, stage))


def check(params: Params, spec: EnvSpec, name: str) -> None:
    """Check that a policy fits a task.

    Args:
        params: the policy's weights.
        spec: the task's sizes.
        name: name of the policy and of the task in the message.

    Raises:
        ConfigError: the policy has another kind of action or other sizes.
    """
    separate = isinstance(params, Gaussian | Categorical)
    layers = params.layers if separate else params
    sizes = (layers[0][0].shape[:-1], layers[-1][0].shape[-1], not isinstance(params, Gaussian))
    shared = spec.discrete and not isinstance(params, Categorical)
    inputs = (spec.obs_dim + spec.num_agents,) if shared else (spec.num_agents, spec.obs_dim)
    expected = (inputs, spec.action_dim, spec.discrete)
    if sizes != expected:
        words = "{} inputs and {} {} outputs".format
        kinds = {True: "discrete", False: "continuous"}
        raise ConfigError(
            f"behaviour policy {name}: expected {words(*expected[:2], kinds[expected[2]])},"
            f" found {words(*sizes[:2], kinds[sizes[2]])}"
        )
    lead = (spec.num_agents,) if separate else ()
    widths = [inputs[-1], *(w.shape[-1] for w, _ in layers)]
    arrays = {}
    for k, (w, b) in enumerate(layers):
        arrays |= {f"actor_{k}_w": (w, (*lead, *widths[k : k + 2])), f"actor_{k}_b": (b, (*lead, widths[k + 1]))}
    if separate:
        known = {"log_std": spec.action_dim, "obs_mean": spec.obs_dim, "obs_std": spec.obs_dim}
        arrays |= {key: (getattr(params, key), (*lead, known[key])) for key in params._fields[1:]}
    for key, (array, shape) in arrays.items():
        if array.shape != shape:
            raise ConfigError(f"behaviour policy {name}: {key}: expected {list(shape)}, found {list(array.shape)}")


def sample(params: Params, obs: chex.Array, avail: chex.Array, key: chex.PRNGKey, temperature: float) -> jax.Array:
    """Sample every agent's action.

    Args:
        params: the policy's weights.
        obs: [..., N, O] local observations.
        avail: [..., N, A] bool, legal actions, or the dimensions that an agent has.
        key: typed PRNG key.
        temperature: divides the policy's log-density; 0 returns the likeliest action, or the centre of a Gaussian.

    Returns:
        [..., N] int32 indices, or [..., N, A] float32 in [-1, 1], zero where an agent has no such dimension.
    """
    if isinstance(params, Gaussian):
        centre = mean(params, obs)
        std = jnp.broadcast_to(jnp.exp(params.log_std) * temperature**0.5, centre.shape)
        return jnp.where(avail, jnp.tanh(centre + std * jax.random.normal(key, centre.shape)), 0.0)
    scores = logits(params, obs, avail)
    if temperature == 0:
        return scores.argmax(axis=-1).astype(jnp.int32)
    return jax.random.categorical(key, scores / temperature).astype(jnp.int32)


def logits(params: Layers | Categorical, obs: chex.Array, avail: chex.Array) -> jax.Array:
    """Return every agent's logits, -1e9 for illegal actions.

    Args:
        params: (w, b) of each layer, shared by all agents; or one network per agent.
        obs: [..., N, O] local observations.
        avail: [..., N, A] bool, legal actions.

    Returns:
        [..., N, A].
    """
    chex.assert_equal_shape_prefix([obs, avail], obs.ndim - 1)
    if isinstance(params, Categorical):
        return jnp.where(avail, _separate(params, obs), -1e9)
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
    return _separate(params, obs)


def _separate(params: Gaussian | Categorical, obs: chex.Array) -> jax.Array:
    """The outputs of each agent's own network for its standardised observation, [..., N, A]."""
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
        activation: activation of all layers except the last.

    Returns:
        [R, out].
    """
    chex.assert_rank(inputs, 2)
    for w, b in layers[:-1]:
        inputs = activation(inputs @ w + b[None])
    w, b = layers[-1]
    return inputs @ w + b[None]
