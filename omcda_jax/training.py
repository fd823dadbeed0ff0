"""What every algorithm's update shares: checked settings, states, keys, per-group optimisers, target networks."""

import dataclasses
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from omcda_jax.distributions import has_choice
from omcda_jax.losses import bellman_target
from omcda_jax.reductions import loss_share, total
from omcda_jax.types import Batch, BatchError, ConfigError, EnvSpec, Losses, Metrics, Params, TrainState

MAX_GRADIENT_NORM = 1.0
# Folded into the run's key before any step is: `init` splits that key, and on jax 0.10 split(key, n)[i] is
# fold_in(key, i).
_STEP_STREAM = 0x7374_6570

Loss = Callable[[Params, TrainState, Batch, Any], Losses]


def static(default: Any, choices: Iterable[str] = (), *, warmup: bool = False) -> Any:
    """Declare a field of an algorithm's settings as structure: hashable, compiled in, the same for a population.

    Args:
        default: its value.
        choices: all allowed values, for `check_choices` and the help; if empty, any value of its type is allowed.
        warmup: the field counts the updates before the policy follows its values.
    """
    metadata = {"choices": tuple(choices), "warmup": warmup}
    return flax.struct.field(pytree_node=False, default=default, metadata=metadata)


@flax.struct.dataclass(kw_only=True)
class CriticSettings:
    """Settings that all methods with a mixed critic share, modelled on OMIGA's code.

    Attributes:
        gamma: discount factor per step.
        learning_rate: step size of Adam.
        target_rate: weight of the newest networks in the target networks, which are moving averages.
        policy_average_rate: weight of the newest policy in the moving average that acts; 1 acts with the newest.
        hidden_sizes: widths of the hidden layers of all networks except the mixers.
        mixer_hidden: width of the mixers' layers.
        critic_layer_norm: normalise the hidden layers of the action-value networks.
        priming: number of first updates in which the critic learns the data's own returns-to-go (in rows that have
            one) instead of bootstrapped values. The returns are there at once, while one-step targets take about
            1 / target_rate updates to carry them back one step (after Jelley et al. 2024, "Efficient Offline
            Reinforcement Learning: The Critic is Critical").
    """

    gamma: float = 0.99
    learning_rate: float = 5e-4
    target_rate: float = 0.005
    policy_average_rate: float = 1.0
    hidden_sizes: tuple[int, ...] = static((256, 256))
    mixer_hidden: int = static(64)
    critic_layer_norm: bool = static(False)
    priming: int = static(0)


def require(config: Any, key: str, holds: Callable[[Any], Any], expected: str) -> None:
    """Check one setting; a traced number passes, because its value is unknown.

    Args:
        config: an algorithm's settings.
        key: name of the field.
        holds: returns whether a value is allowed; for an array, whether each element is.
        expected: what is allowed, for the message.

    Raises:
        ConfigError: `ALGORITHM: KEY: expected EXPECTED, found VALUE`.
    """
    value = getattr(config, key)
    try:
        allowed = holds(value)
    except (TypeError, ValueError):  # a text, or a number in place of several
        if isinstance(value, jax.core.Tracer):
            raise
        allowed = False
    if not isinstance(allowed, jax.core.Tracer) and not np.all(allowed):
        found = list(value) if isinstance(value, tuple) else value
        raise ConfigError(f"{config.name}: {key}: expected {expected}, found {found!r}")


def _counts(number: Any) -> Any:
    return (number if isinstance(number, jax.core.Tracer) else operator.index(number)) >= 1


def require_choice(config: Any, key: str, choices: Sequence[str]) -> None:
    """Raise ConfigError unless the field is one of the choices."""
    require(config, key, lambda value: value in choices, f"one of {', '.join(choices)}")


def check_choices(config: Any) -> None:
    """Raise ConfigError for the first field that is not one of its choices, see `static`."""
    for field in dataclasses.fields(config):
        choices = field.metadata.get("choices")
        if choices:
            require_choice(config, field.name, choices)


def check_numbers(
    config: Any,
    *,
    positive: Sequence[str] = (),
    nonnegative: Sequence[str] = (),
    rates: Sequence[str] = (),
    shares: Sequence[str] = (),
    counts: Sequence[str] = (),
) -> None:
    """Check the numbers that algorithms share, as far as `config` has them, and other fields by name.

    Args:
        config: an algorithm's settings.
        positive: fields that must be positive and finite.
        nonnegative: fields that must be 0 or more, and finite.
        rates: fields that must be in (0, 1].
        shares: fields that must be in [0, 1].
        counts: fields that must be whole numbers of at least 1.

    Raises:
        ConfigError: naming the first field out of its range.
    """
    present = lambda *keys: [key for key in keys if hasattr(config, key)]
    for key in ("learning_rate", *positive):
        require(config, key, lambda x: (x > 0) & (x < np.inf), "a positive number")
    for key in nonnegative:
        require(config, key, lambda x: (x >= 0) & (x < np.inf), "a number >= 0")
    for key in (*rates, *present("target_rate", "policy_average_rate")):
        require(config, key, lambda x: (x > 0) & (x <= 1), "in (0, 1]")
    for key in (*shares, *present("gamma")):
        require(config, key, lambda x: (x >= 0) & (x <= 1), "between 0 and 1")
    for key in (*counts, *present("mixer_hidden")):
        require(config, key, _counts, "a whole number of at least 1")
    for key in present("hidden_sizes", "vae_hidden"):
        fits = lambda widths: len(widths) > 0 and all(map(_counts, widths))
        require(config, key, fits, "one or more widths of at least 1")
    for key in present("priming"):
        require(config, key, lambda x: x >= 0, "a number of updates >= 0")


def new_state(
    key: chex.PRNGKey, spec: EnvSpec, config: Any, params: dict[str, Any], *, targets: Sequence[str], extra: Any = None
) -> TrainState:
    """Return the state before the first update.

    Args:
        key: typed PRNG key of the run.
        spec: the task's sizes.
        config: the algorithm's settings.
        params: network parameters by optimiser group.
        targets: groups with a Polyak-averaged copy.
        extra: the algorithm's own state.
    """
    return TrainState(
        params=params,
        target_params={group: jax.tree.map(jnp.array, params[group]) for group in targets},
        opt_state=init_optimiser(params),
        extra={} if extra is None else extra,
        config=jax.tree.map(lambda number: jnp.array(number, jnp.float32), config),  # a copy: a state may be donated
        step=jnp.zeros((), jnp.int32),
        key=jax.random.fold_in(key, _STEP_STREAM),
        spec=spec,
    )


def bootstrap(state: TrainState, batch: Batch, next_value: chex.Array) -> chex.Array:
    """Return y = r + gamma nu V(s') [B], gradient stopped, from next team values [B]; while priming, returns-to-go.

    Raises:
        BatchError: the settings ask for priming, but the batch has no returns-to-go.
    """
    target = bellman_target(batch.reward, batch.discount, state.config.gamma, next_value)
    priming = getattr(state.config, "priming", 0)
    if not priming:
        return target
    if batch.return_to_go is None:
        expected = f"[B] of floats, because {state.config.name} has priming={priming}"
        raise BatchError(f"batch.return_to_go: expected {expected}, found None; data.returns_to_go makes them")
    primes = (state.step < priming) & jnp.isfinite(batch.return_to_go)
    return jnp.where(primes, batch.return_to_go, target)


def row_places(batch: Batch, axis_name: str | None = None) -> tuple[chex.Array, int]:
    """Return each row's place [B] in the whole batch, spread over `axis_name`'s devices, and the size of that batch."""
    rows = batch.reward.shape[0]
    before = 0 if axis_name is None else rows * jax.lax.axis_index(axis_name)
    return before + jnp.arange(rows), total(rows, axis_name)


def row_keys(state: TrainState, batch: Batch, count: int, axis_name: str | None = None) -> tuple[chex.PRNGKey, ...]:
    """Return keys of one update's draws, `count` times [B]: a function of the run's key, the step and the row's place.

    The place is in the whole batch, so spreading the batch over the devices of `axis_name` changes no draw.
    """
    places, _ = row_places(batch, axis_name)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.fold_in(state.key, state.step), places)
    return tuple(jax.vmap(lambda key: jax.random.split(key, count), out_axes=1)(keys))


def optimiser() -> optax.GradientTransformation:
    """Return Adam on gradients clipped to global norm 1; the learning rate is applied by `apply_gradients`."""
    # eps_root, too small to matter, gives the root a derivative where a gradient has always been 0
    return optax.chain(optax.stateless(lambda gradient, _: clip(gradient)), optax.scale_by_adam(eps_root=1e-20))


def norm(gradient: Any) -> chex.Array:
    """Return the norm [] of a gradient over all its leaves; where the norm is 0, its own derivative is 0 too."""
    # dot products compile in less time than sums of squares; nan stays nan
    square = sum(jnp.vdot(leaf, leaf, precision="highest") for leaf in jax.tree.leaves(gradient))
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), square)


def clip(gradient: Any) -> Any:
    """Scale a gradient down to the norm MAX_GRADIENT_NORM if its norm is larger."""
    scale = MAX_GRADIENT_NORM / jnp.maximum(norm(gradient), MAX_GRADIENT_NORM)
    return jax.tree.map(lambda leaf: scale * leaf, gradient)


def init_optimiser(params: dict[str, Any]) -> dict[str, Any]:
    """Return one optimiser state per parameter group."""
    return {group: optimiser().init(group_params) for group, group_params in params.items()}


def apply_gradients(
    params: dict[str, Any], gradients: dict[str, Any], opt_state: dict[str, Any], learning_rate: chex.Numeric
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Take one clipped Adam step, each group on its own.

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


def gradient_step(
    state: TrainState,
    batch: Batch,
    losses: Sequence[Loss],
    fixed: Any,
    axis_name: str | None = None,
    groups: Sequence[str] | None = None,
) -> tuple[TrainState, Metrics]:
    """Take one optimiser step down the sum of the averaged losses; targets and the step's count are left to `advance`.

    Args:
        state: where to step from.
        batch: B transitions; this device's part of them when `axis_name` is given.
        losses: each `loss(params, state, batch, fixed) -> (losses, statistics)`. Both map names to values per row [B]
            or per agent [B, N]; per agent, rows without a choice are left out. ceil(B/2) values are of every second
            row, from the first on. `params` are differentiated, the parameters in `state` are constants.
        fixed: what the losses take as constant; it is passed on to them.
        axis_name: mapped device axis to reduce over.
        groups: groups that take the step; None: all.

    Returns:
        The state with new parameters, and the metrics: every loss and statistic averaged over the whole batch [], and
        as `gradient/GROUP` the norm of each group's gradient before it is clipped.

    Raises:
        ValueError: two losses have the same name, or one has another shape.
    """
    per_agent = has_choice(batch.avail, state.spec.discrete)
    masks = [mask[::every] for every in (1, 2) for mask in (jnp.ones_like(batch.reward, bool), per_agent)]
    masks = {mask.shape: mask for mask in masks}

    def share(name, values):
        if jnp.shape(values) not in masks:
            expected = f"[B] = {list(batch.reward.shape)} or [B, N] = {list(per_agent.shape)}, or of every second row"
            raise ValueError(f"losses: {name}: expected {expected}, found {list(jnp.shape(values))}")
        return loss_share(values, masks[values.shape], axis_name)

    def objective(chosen):
        by_name, statistics = {}, {}
        for loss in losses:
            more, more_statistics = loss(state.params | chosen, state, batch, fixed)
            if by_name.keys() & more.keys():
                raise ValueError(f"losses: expected each name once, found {sorted(by_name.keys() & more.keys())} twice")
            by_name, statistics = by_name | more, statistics | more_statistics
        by_name, statistics = ({name: share(name, each[name]) for name in each} for each in (by_name, statistics))
        return sum(by_name.values()), by_name | statistics

    chosen = {group: state.params[group] for group in (state.params if groups is None else groups)}
    gradients, metrics = jax.grad(objective, has_aux=True)(chosen)
    gradients, metrics = total((gradients, metrics), axis_name)
    metrics |= {f"gradient/{group}": norm(gradient) for group, gradient in gradients.items()}
    chosen, opt_state = apply_gradients(chosen, gradients, state.opt_state, state.config.learning_rate)
    return state.replace(params=state.params | chosen, opt_state=state.opt_state | opt_state), metrics


def advance(state: TrainState) -> TrainState:
    """End an update: move the policy's target at policy_average_rate, all others at target_rate; count the step."""
    rate = lambda group: state.config.policy_average_rate if group == "policy" else state.config.target_rate
    targets = {
        group: optax.incremental_update(state.params[group], target, rate(group))
        for group, target in state.target_params.items()
    }
    return state.replace(target_params=targets, step=state.step + 1)


def descend(
    state: TrainState, batch: Batch, losses: Sequence[Loss], fixed: Any, axis_name: str | None = None
) -> tuple[TrainState, Metrics]:
    """Do a whole update in which all losses are taken at the parameters before it, see `gradient_step`."""
    state, metrics = gradient_step(state, batch, losses, fixed, axis_name)
    return advance(state), metrics


def hold(new: TrainState, old: TrainState, held: Mapping[str, chex.Array]) -> TrainState:
    """Return `new`, but take each group whose flag ([] bool) is True from `old`, with its optimiser and target."""

    def choose(tree, before):
        pick = lambda flag: lambda x, y: jnp.where(flag, y, x)
        return tree | {g: jax.tree.map(pick(flag), tree[g], before[g]) for g, flag in held.items() if g in tree}

    return new.replace(
        params=choose(new.params, old.params),
        opt_state=choose(new.opt_state, old.opt_state),
        target_params=choose(new.target_params, old.target_params),
    )
