"""What every algorithm's update shares: checked settings, states, keys, per-group optimisers, target networks."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from omcda_jax.distributions import has_choice
from omcda_jax.reductions import loss_share, total
from omcda_jax.types import Batch, ConfigError, EnvSpec, Metrics, TrainState

MAX_GRADIENT_NORM = 1.0

Objective = Callable[[Any], tuple[dict[str, chex.Array], dict[str, chex.Array]]]


def require(config: Any, key: str, condition: Any, expected: str) -> None:
    """Raises ConfigError `ALGORITHM: KEY: expected EXPECTED, found VALUE` unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{config.name}: {key}: expected {expected}, found {getattr(config, key)!r}")


@dataclasses.dataclass(frozen=True)
class CriticSettings:
    """What the methods with a mixed critic have in common, with OMIGA's code for a model.

    Attributes:
        discount: per step.
        learning_rate: of Adam.
        target_rate: weight of the newest networks in the moving averages that make targets.
        policy_average_rate: weight of the newest policy in the moving average that acts; 1 acts with the newest.
        hidden_sizes: of all networks but the mixers.
        mixer_hidden: width of the mixers' layers.
        critic_layer_norm: normalise the hidden layers of the action values.
    """

    discount: float = 0.99
    learning_rate: float = 5e-4
    target_rate: float = 0.005
    policy_average_rate: float = 1.0
    hidden_sizes: tuple[int, ...] = (256, 256)
    mixer_hidden: int = 64
    critic_layer_norm: bool = False


def check_numbers(config: Any, positive: Sequence[str] = (), rates: Sequence[str] = ()) -> None:
    """Checks the numbers all algorithms share, as far as `config` has them, and further ones by name.

    Does nothing for static structure, whose numbers `split_config` removed.

    Args:
        config: an algorithm's settings.
        positive: fields to be positive and finite.
        rates: fields to be in (0, 1].

    Raises:
        ConfigError: naming the first field out of its range.
    """
    if config.learning_rate is None:
        return
    names = {field.name for field in dataclasses.fields(config)}
    for key in ("learning_rate", *positive):
        require(config, key, 0 < getattr(config, key) < float("inf"), "a positive number")
    for key in (*rates, *sorted(names & {"target_rate", "policy_average_rate"})):
        require(config, key, 0 < getattr(config, key) <= 1, "in (0, 1]")
    for key in names & {"discount"}:
        require(config, key, 0 <= getattr(config, key) <= 1, "between 0 and 1")


def split_config(config: Any) -> tuple[Any, dict[str, chex.Array]]:
    """Part a config into static structure and numeric hyper-parameters.

    Args:
        config: a frozen dataclass; its fields annotated `float` are the numbers.

    Returns:
        The same dataclass with None for every number, so that states with different numbers share one tree
        structure, and {field: [] float32}.
    """
    names = [field.name for field in dataclasses.fields(config) if field.type is float]
    hyper = {name: jnp.asarray(getattr(config, name), jnp.float32) for name in names}
    return dataclasses.replace(config, **dict.fromkeys(names)), hyper


def new_state(
    key: chex.PRNGKey, spec: EnvSpec, config: Any, params: dict[str, Any], *, targets: Sequence[str], extra: Any = None
) -> TrainState:
    """State before the first update.

    Args:
        key: typed PRNG key of the run.
        spec: the task's sizes.
        config: the algorithm's settings, numbers included.
        params: network parameters by optimiser group.
        targets: groups with a Polyak-averaged copy.
        extra: the algorithm's own state.
    """
    structure, hyper = split_config(config)
    return TrainState(
        params=params,
        target_params={group: jax.tree.map(jnp.array, params[group]) for group in targets},
        opt_state=init_optimiser(params),
        extra={} if extra is None else extra,
        hyper=hyper,
        step=jnp.zeros((), jnp.int32),
        key=key,
        spec=spec,
        config=structure,
    )


def row_places(batch: Batch, axis_name: str | None = None) -> tuple[chex.Array, int]:
    """Each row's place in the whole batch, of which `axis_name`'s devices have a part each, [B]; and its size."""
    rows = batch.reward.shape[0]
    before = 0 if axis_name is None else rows * jax.lax.axis_index(axis_name)
    return before + jnp.arange(rows), total(rows, axis_name)


def row_keys(state: TrainState, batch: Batch, count: int, axis_name: str | None = None) -> tuple[chex.PRNGKey, ...]:
    """Keys of one update's draws, `count` times [B]: a function of the run's key, the step and the row's place.

    A row's place is that in the whole batch: spreading the batch over the devices of `axis_name` changes no draw.
    """
    places, _ = row_places(batch, axis_name)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.fold_in(state.key, state.step), places)
    return tuple(jax.vmap(lambda key: jax.random.split(key, count), out_axes=1)(keys))


def optimiser() -> optax.GradientTransformation:
    """Adam on gradients clipped to global norm 1; the learning rate is applied by `apply_gradients`."""
    return optax.chain(optax.clip_by_global_norm(MAX_GRADIENT_NORM), optax.scale_by_adam())


def init_optimiser(params: dict[str, Any]) -> dict[str, Any]:
    """One optimiser state per parameter group."""
    return {group: optimiser().init(group_params) for group, group_params in params.items()}


def apply_gradients(
    params: dict[str, Any], gradients: dict[str, Any], opt_state: dict[str, Any], learning_rate: chex.Numeric
) -> tuple[dict[str, Any], dict[str, Any]]:
    """One clipped Adam step, each group on its own.

    Args:
        params: parameters by group.
        gradients: the same structure.
        opt_state: from `init_optimiser`.
        learning_rate: may be traced.

    Returns:
        New parameters and optimiser state.
    """
    new_params, new_opt_state = {}, {}
    for group, group_params in params.items():
        updates, new_opt_state[group] = optimiser().update(gradients[group], opt_state[group])
        new_params[group] = jax.tree.map(lambda p, u: p - learning_rate * u, group_params, updates)
    return new_params, new_opt_state


def track(state: TrainState, params: dict[str, Any]) -> dict[str, Any]:
    """The target networks after a step to `params`: policies follow at policy_average_rate, all else at target_rate."""
    rate = lambda group: state.hyper["policy_average_rate" if group == "policy" else "target_rate"]
    return {
        group: optax.incremental_update(params[group], target, rate(group))
        for group, target in state.target_params.items()
    }


def gradient_step(
    state: TrainState,
    batch: Batch,
    objective: Objective,
    axis_name: str | None = None,
    groups: Sequence[str] | None = None,
) -> tuple[TrainState, Metrics]:
    """One optimiser step down the sum of the averaged losses; targets and the step's count are left to `advance`.

    Args:
        state: where to step from.
        batch: B transitions; this device's part of them when `axis_name` is given.
        objective: of all parameters; returns losses by name and other statistics by name, each per row [B], or per
            agent [B, N], of which rows without a choice are left out.
        axis_name: mapped device axis to reduce over.
        groups: the only groups that step; None: all.

    Returns:
        The state with new parameters, and every loss and statistic averaged over the whole batch, [].
    """
    masks = {1: jnp.ones_like(batch.reward, bool), 2: has_choice(batch.avail, state.spec.discrete)}

    def averaged(chosen):
        losses, statistics = objective(state.params | chosen)
        share = lambda values: loss_share(values, masks[values.ndim], axis_name)
        losses, statistics = jax.tree.map(share, (losses, statistics))
        return sum(losses.values()), losses | statistics

    chosen = {group: state.params[group] for group in (state.params if groups is None else groups)}
    gradients, metrics = jax.grad(averaged, has_aux=True)(chosen)
    gradients, metrics = total((gradients, metrics), axis_name)
    chosen, opt_state = apply_gradients(chosen, gradients, state.opt_state, state.hyper["learning_rate"])
    return state.replace(params=state.params | chosen, opt_state=state.opt_state | opt_state), metrics


def advance(state: TrainState) -> TrainState:
    """Ends an update: target networks follow, one step more is counted."""
    return state.replace(target_params=track(state, state.params), step=state.step + 1)


def descend(
    state: TrainState, batch: Batch, objective: Objective, axis_name: str | None = None
) -> tuple[TrainState, Metrics]:
    """A whole update of an algorithm whose losses are all taken at the parameters before it, see `gradient_step`."""
    state, metrics = gradient_step(state, batch, objective, axis_name)
    return advance(state), metrics


def hold(new: TrainState, old: TrainState, held: Mapping[str, chex.Array]) -> TrainState:
    """`new`, with the groups whose flag [] bool is set as they were in `old`, optimiser and target included."""

    def choose(tree, before):
        pick = lambda flag: lambda x, y: jnp.where(flag, y, x)
        return tree | {g: jax.tree.map(pick(flag), tree[g], before[g]) for g, flag in held.items() if g in tree}

    return new.replace(
        params=choose(new.params, old.params),
        opt_state=choose(new.opt_state, old.opt_state),
        target_params=choose(new.target_params, old.target_params),
    )
