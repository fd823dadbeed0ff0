"""SMAX, the StarCraft-like battles of JaxMARL, against its scripted enemy team.

The team shares its reward: the enemies' health lost in a step, as a fraction of their full health and averaged over
the enemies, plus 1 for the step that kills the last enemy while an ally lives. A won episode returns 2.

Three things differ from JaxMARL's own stepping. Nothing resets by itself, so the observation of the last step is the
true final one. The two ends differ: `terminated` when a side is wiped out, `truncated` when the horizon is reached.
The global state is brought to the scale of the observations (see `_scale_state`).
"""

import functools
import importlib.util
import sys
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np

from omcda_jax.envs.base import Environment, Map, TimeStep, Units
from omcda_jax.envs.versions import installed
from omcda_jax.types import ConfigError, EnvSpec, suggestion

HORIZON = 100
_LOCK = threading.RLock()  # held while JaxMARL's packages are put into sys.modules, or their code runs
_FEATURES = 10  # per unit in the global state: health, x, y, cooldown and six bits for the unit's type


def make(
    scenario: str, *, shift: tuple[float, float, float] | None = None, fewer: tuple[float, float] | None = None
) -> Environment:
    """Build one SMAX scenario as two pure functions.

    Args:
        scenario: a JaxMARL scenario name such as `3m`, `2s3z`, `5m_vs_6m`, `8m`, `6h_vs_8z`, or `corridor`
            (6 zealots against 24 zerglings).
        shift: `(probability, least, limit)`: with this probability an episode starts with the whole team moved north by
            the same distance, uniform in [least, limit] map units. For training behaviour policies only.
        fewer: `(probability, limit)`: with this probability, every enemy except the first may start dead, with a chance
            that is drawn for the episode, uniform in [0, limit]. For training behaviour policies only.

    Raises:
        ConfigError: unknown scenario, a start out of range, or JaxMARL is not installed.
    """
    simulator, scenarios = _jaxmarl()
    if scenario not in scenarios:
        raise ConfigError(f"smax: no scenario {scenario!r}; {suggestion(scenario, scenarios)}")
    if shift is not None and not (0 <= shift[0] <= 1 and 0 <= shift[1] <= shift[2] <= 12):
        raise ConfigError(f"smax shift: expected 0 <= probability <= 1 and 0 <= least <= limit <= 12, found {shift}")
    if fewer is not None and not (0 <= fewer[0] <= 1 and 0 <= fewer[1] <= 1):
        raise ConfigError(f"smax fewer: expected 0 <= probability <= 1 and 0 <= limit <= 1, found {fewer}")
    env = simulator(scenario=scenarios[scenario], max_steps=HORIZON)
    return Environment(
        name=f"smax/{scenario}" + ("" if shift is None and fewer is None else " (easier starts)"),
        spec=EnvSpec(env.num_allies, env.obs_size, env.state_size, env.num_ally_actions, discrete=True),
        horizon=HORIZON,
        max_return=2.0,
        versions=installed("jaxmarl", "jax"),
        reset=_allow_rank_promotion(functools.partial(_reset, env, shift, fewer)),
        step=_allow_rank_promotion(functools.partial(_step, env)),
        map=Map(tuple(env.unit_type_names), functools.partial(_units, env), functools.partial(_recorded, env)),
    )


def _jaxmarl():
    """Return JaxMARL's simulator against the scripted team, and its scenarios by name plus the missing `corridor`."""
    try:
        _defer_packages()
        from jaxmarl.environments.smax import HeuristicEnemySMAX, Scenario
        from jaxmarl.environments.smax.smax_env import MAP_NAME_TO_SCENARIO
    except ImportError as error:
        raise ConfigError(f"environment smax needs a package ({error}): pip install 'omcda-jax[smax]'") from error
    corridor = Scenario(jnp.array([3] * 6 + [4] * 24, jnp.uint8), 6, 24, False, False)
    return HeuristicEnemySMAX, {**MAP_NAME_TO_SCENARIO, "corridor": corridor}


def _reset(env, shift, fewer, key):
    reset_key, chance_key, distance_key = jax.random.split(key, 3)
    obs, env_state = env.reset(reset_key)
    if shift is not None:
        env_state = _moved(env_state, chance_key, distance_key, shift, env.num_allies)
    if fewer is not None:
        env_state = _thinned(env_state, jax.random.fold_in(key, 1), fewer, env.num_allies)
    if shift is not None or fewer is not None:
        obs = {**env.get_obs(env_state), "world_state": env.get_world_state(env_state)}
    no = jnp.zeros((), bool)
    return _strong(env_state), _show(env, env_state, obs, 0.0, no, no, no)


def _step(env, key, env_state, action):
    actions = {agent: action[i] for i, agent in enumerate(env.agents)}
    obs, env_state, rewards, _, _ = env.step_env(key, env_state, actions)
    ally_left = env_state.state.unit_alive[: env.num_allies].any()
    enemy_left = env_state.state.unit_alive[env.num_allies :].any()
    terminated = ~(ally_left & enemy_left)
    truncated = (env_state.state.step >= HORIZON) & ~terminated
    won = ally_left & ~enemy_left
    return _strong(env_state), _show(env, env_state, obs, rewards[env.agents[0]], terminated, truncated, won)


def _show(env, env_state, obs, reward, terminated, truncated, won):
    avail = env.get_avail_actions(env_state)
    num_units = env.num_allies + env.num_enemies
    return TimeStep(
        obs=jnp.stack([obs[agent] for agent in env.agents]),
        global_state=_scale_state(obs["world_state"], num_units, env.map_width, env.map_height),
        avail=jnp.stack([avail[agent] for agent in env.agents]).astype(bool),
        reward=jnp.asarray(reward, jnp.float32),
        terminated=terminated,
        truncated=truncated,
        won=won,
    )


def _units(env, env_state):
    state, index = env_state.state, jnp.arange(env.num_allies + env.num_enemies)
    kind, attack = state.unit_types, state.prev_attack_actions - env.num_movement_actions
    # enemies number their opponents backwards, in the order in which they observe them
    target = jnp.where(index < env.num_allies, env.num_allies + attack, env.num_allies - 1 - attack)
    return Units(
        position=state.unit_positions,
        radius=env.unit_type_radiuses[kind],
        health=jnp.where(state.unit_alive, state.unit_health / env.unit_type_health[kind], 0.0),
        team=state.unit_teams.astype(jnp.int32),
        kind=kind.astype(jnp.int32),
        target=jnp.where(attack >= 0, target, index),
    )


def _recorded(env, global_state, action):
    """Return the units of an episode from its global states [L + 1, S], which do not contain the enemies' targets."""
    allies, count = env.num_allies, env.num_allies + env.num_enemies
    moments, index = np.arange(len(global_state))[:, None], np.arange(count)
    units = np.asarray(global_state)[:, : _FEATURES * count].reshape(-1, count, _FEATURES)
    teams, kinds = np.split(np.asarray(global_state)[:, _FEATURES * count :], 2, axis=1)
    health, kind = units[..., 0], np.rint(5 * kinds).astype(np.int32)
    # a dead unit's features are zeros: it stays where it fell
    seen = np.maximum.accumulate(np.where(health > 0, moments, 0), axis=0)
    position = np.take_along_axis(units[..., 1:3], seen[..., None], axis=0) * [env.map_width, env.map_height]
    target = np.tile(index, (len(units), 1))
    attack = np.asarray(action) - env.num_movement_actions
    target[1:, :allies] = np.where(attack >= 0, allies + attack, index[:allies])
    radius = np.asarray(env.unit_type_radiuses)[kind]
    return Units(position, radius, health, np.rint(teams).astype(np.int32), kind, target)


def _moved(env_state, chance_key, distance_key, shift, num_agents):
    """Move the team north, by chance."""
    probability, least, limit = shift
    moved = jax.random.bernoulli(chance_key, probability)
    distance = jnp.where(moved, jax.random.uniform(distance_key, minval=least, maxval=limit), 0.0)
    positions = env_state.state.unit_positions.at[:num_agents, 1].add(distance)
    return env_state.replace(state=env_state.state.replace(unit_positions=positions))


def _thinned(env_state, key, fewer, num_agents):
    """Let some enemies start dead, by chance; the first one lives."""
    probability, limit = fewer
    each_key, chance_key, share_key = jax.random.split(key, 3)
    share = jnp.where(jax.random.bernoulli(chance_key, probability), limit, 0.0) * jax.random.uniform(share_key)
    units = jnp.arange(env_state.state.unit_alive.shape[0])
    alive = (jax.random.uniform(each_key, units.shape) >= share) | (units <= num_agents)
    health = jnp.where(alive, env_state.state.unit_health, 0.0)
    return env_state.replace(state=env_state.state.replace(unit_alive=alive, unit_health=health))


class _Deferred(types.ModuleType):
    """A package that runs its own code at the first access to an attribute that its submodules have not set."""

    def __getattr__(self, name):
        with _LOCK:
            if "_begun" not in self.__dict__:
                self._begun = True
                self.__spec__.loader.exec_module(self)
        if name in self.__dict__:
            return self.__dict__[name]
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


def _defer_packages():
    """Let submodules of JaxMARL be imported without running the code of its packages, unless it has run already.

    The packages import all of JaxMARL's environments, which takes seconds, prints, and compiles dozens of programs.
    """
    with _LOCK:
        for name in ("jaxmarl", "jaxmarl.environments"):
            spec = None if name in sys.modules else importlib.util.find_spec(name)
            if spec is not None:
                sys.modules[name] = package = importlib.util.module_from_spec(spec)
                package.__class__ = _Deferred
                parent, _, child = name.rpartition(".")
                if parent:
                    setattr(sys.modules[parent], child, package)


def _allow_rank_promotion(function):
    """Let JaxMARL broadcast even if the caller makes JAX refuse it (`jax_numpy_rank_promotion`)."""

    @functools.wraps(function)
    def wrapped(*arguments):
        with jax.numpy_rank_promotion("allow"):
            return function(*arguments)

    return wrapped


def _scale_state(world_state, num_units, width, height):
    """Scale JaxMARL's world state [12 * units] to about the range of the observations.

    Positions are divided by the map's size and unit types (0..5) by 5. Weapon cooldowns stay in seconds. JaxMARL counts
    on below zero while a weapon is ready; this is clipped to 0, because it changes nothing in the battle.
    """
    units = world_state[: _FEATURES * num_units].reshape(num_units, _FEATURES)
    units = units.at[:, 1:3].divide(jnp.array([width, height], jnp.float32))
    units = units.at[:, 3].max(0.0)
    teams, kinds = jnp.split(world_state[_FEATURES * num_units :], 2)
    return jnp.concatenate([units.reshape(-1), teams, kinds / 5.0])


def _strong(tree):
    """Make every leaf strongly typed, so that a scan carrying the state from `reset` compiles once."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.asarray(leaf).dtype), tree)
