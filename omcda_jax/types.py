"""The data types every other module shares.

Dimension legend, used in every docstring of the library:

    B  batch rows            N  agents             T  time steps or dataset rows
    O  observation features  S  state features     A  actions (discrete: how many; continuous: dimensions)
    K  support points of an expectation over one agent's actions (discrete: K = A)
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import chex
import flax.struct
import jax
import numpy as np


class ConfigError(ValueError):
    """A configuration that the user can fix; the one-line message names the key and what was expected and found."""


class BatchError(ValueError):
    """Arrays that do not fit an update or a policy; one line names the field and what was expected and found."""


class StorageError(RuntimeError):
    """The disk or network refused to write or read; the message names the directory and what is still there."""


class DatasetError(ValueError):
    """A dataset that the user can fix; the one-line message names the file, the key and what was expected and found."""


Params = Any
Metrics = dict[str, chex.Array]
Losses = tuple[Metrics, Metrics]  # losses and statistics by name, see `training.gradient_step`


def suggestion(word: str, choices: Iterable[str]) -> str:
    """Return a "did you mean ...? valid: ..." phrase for a word that is not in `choices`.

    Args:
        word: what was found.
        choices: what was expected.
    """
    choices = sorted(choices)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return (f"did you mean {close[0]!r}? valid: " if close else "valid: ") + ", ".join(choices)


def check_seed(seed: int, key: str = "seed") -> None:
    """Refuse a seed outside [0, 2**32): JAX takes 2**32 + 5 for 5, and does not take numbers of more than 64 bits.

    Args:
        seed: a whole number.
        key: setting or flag that gave the seed, for the message.

    Raises:
        ConfigError: the seed is out of range.
    """
    if not 0 <= seed < 2**32:
        raise ConfigError(f"{key}: expected a whole number from 0 to {2**32 - 1}, found {seed}")


@dataclasses.dataclass(frozen=True)
class EnvSpec:
    """Sizes of one cooperative task; hashable, so usable as a static argument.

    Attributes:
        num_agents: N.
        obs_dim: O, features of one agent's local observation.
        state_dim: S, features of the global state.
        action_dim: A, number of discrete actions, or dimensions of a continuous one in [-1, 1].
        discrete: whether actions are indices (True) or vectors (False).

    Raises:
        ConfigError: a size is not a whole number of at least 1.
    """

    num_agents: int
    obs_dim: int
    state_dim: int
    action_dim: int
    discrete: bool

    def __post_init__(self):
        for name in ("num_agents", "obs_dim", "state_dim", "action_dim"):
            size = getattr(self, name)
            if not isinstance(size, int | np.integer) or size < 1:
                raise ConfigError(f"spec: {name}: expected a whole number of at least 1, found {size}")
            object.__setattr__(self, name, int(size))  # JSON cannot contain NumPy integers


@flax.struct.dataclass
class Batch:
    """B independent transitions of the whole team.

    Attributes:
        obs: [B, N, O] local observations.
        global_state: [B, S] what the mixer sees.
        avail: [B, N, A] bool, legal actions, at least one per agent. If actions are continuous: the dimensions that
            the agent's action has; the others are padding.
        action: [B, N] integer indices of legal actions (the values are not checked), or [B, N, A] floats in [-1, 1];
            padding is never read.
        reward: [B] team reward.
        discount: [B] 0 where the next state is terminal, else 1 (a time limit is not terminal).
        next_obs: [B, N, O].
        next_global_state: [B, S].
        next_avail: [B, N, A] bool.
        next_action: [B, N] or [B, N, A], the data's action at the next state, zero after the last step. This field and
            those below are optional: `Algorithm.needs` names those that an algorithm reads.
        first: [B] bool, the row starts an episode.
        last: [B] bool, the row ends an episode, by termination or a time limit: there is no next action.
        return_to_go: [B] sum of the rewards from here to the end of the episode, discounted by the algorithm's gamma;
            nan where a time limit cut the episode so soon that the sum says too little, see `data.returns_to_go`.
    """

    obs: chex.Array
    global_state: chex.Array
    avail: chex.Array
    action: chex.Array
    reward: chex.Array
    discount: chex.Array
    next_obs: chex.Array
    next_global_state: chex.Array
    next_avail: chex.Array
    next_action: chex.Array | None = None
    first: chex.Array | None = None
    last: chex.Array | None = None
    return_to_go: chex.Array | None = None


@flax.struct.dataclass
class Normaliser:
    """Shift and factor that bring raw features to about unit scale, (x - shift) * factor.

    A factor of 0 drops a feature: padding, or one that never varies.

    Attributes:
        obs_shift: [N, O].
        obs_factor: [N, O].
        global_state_shift: [S].
        global_state_factor: [S].
    """

    obs_shift: chex.Array
    obs_factor: chex.Array
    global_state_shift: chex.Array
    global_state_factor: chex.Array


@flax.struct.dataclass
class TrainState:
    """Everything one algorithm needs to resume learning; a pytree, so it can be stacked, vmapped and saved.

    Attributes:
        params: network parameters by optimiser group.
        target_params: Polyak-averaged copies of some groups.
        opt_state: optimiser state by group.
        extra: the algorithm's own state, [N] arrays for OMCDA.
        config: the algorithm's settings. Every float setting is a leaf, a float32 scalar, so that a vmapped population
            over different values compiles once; integers, booleans, strings and layer sizes are compiled in.
            `state.replace(config=state.config.replace(d_tot=jnp.float32(1.8)))`
            changes one without compiling again.
        step: int32, updates done.
        key: typed PRNG key; it never changes: each update folds `step` into it.
        spec: the task's sizes (static).
        normaliser: applied to observations and states before the algorithm sees them, so it is part of the policy;
            None takes them as they are.
    """

    params: Any
    target_params: Any
    opt_state: Any
    extra: Any
    config: Any
    step: chex.Array
    key: chex.PRNGKey
    spec: EnvSpec = flax.struct.field(pytree_node=False)
    normaliser: Normaliser | None = None


@flax.struct.dataclass
class Actor:
    """The part of a training state that acts: what you save, ship and export.

    Attributes:
        params: parameters of the networks that choose actions, by optimiser group.
        config: the algorithm's settings, as in `TrainState`.
        spec: the task's sizes (static).
        normaliser: as in `TrainState`.
    """

    params: Any
    config: Any
    spec: EnvSpec = flax.struct.field(pytree_node=False)
    normaliser: Normaliser | None = None


def updates_done(state: TrainState) -> int:
    """Return the number of updates that a state has done; in a stack of states, all have done the same number."""
    return int(np.ravel(state.step)[0])


class Algorithm(NamedTuple):
    """What a learner and an evaluator know about an algorithm.

    Attributes:
        config: class of its settings, a `flax.struct.dataclass`: floats are leaves, structure is declared
            `pytree_node=False`. It has a class attribute `name`, by which `omcda_jax.algorithms.find` finds the
            algorithm, and a method `validate`, which raises ConfigError.
        init: `init(key, spec, config) -> TrainState`.
        update: `update(state, batch, *, axis_name=None) -> (TrainState, Metrics)`. The learner keeps an update if all
            of its metrics are finite; `training.gradient_step` puts the gradients' norms among them.
        policy: `policy(state) -> Actor`.
        act: `act(actor, obs, avail=None, key=None) -> action`; greedy when `key` is None.
        needs: optional fields of `Batch` that `update` reads.
    """

    config: type
    init: Callable[..., TrainState]
    update: Callable[..., tuple[TrainState, Metrics]]
    policy: Callable[[TrainState], Actor]
    act: Callable[..., jax.Array]
    needs: tuple[str, ...] = ()
