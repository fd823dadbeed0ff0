"""The policies that a dataset can be collected with: a name on the command line, for any kind of stored policy."""

import dataclasses
import importlib
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from omcda_jax import algorithms, envs
from omcda_jax.behaviour import acts, policies
from omcda_jax.checkpoint import digest, load_policy
from omcda_jax.data.collect import describe, of_stages
from omcda_jax.envs.base import Environment, HostEnvironment
from omcda_jax.files import sha256
from omcda_jax.runner.jobs import job_of_run, load_run
from omcda_jax.system import one_line
from omcda_jax.types import Actor, ConfigError, EnvSpec, updates_done


class Source(NamedTuple):
    """A policy in a form that can be rolled out.

    Attributes:
        name: short name, for datasets.
        text: description of the policy.
        params: first argument of `act`.
        act: as in `acts.Behaviour`.
        weights: SHA-256 of the weights, or None without weights.
    """

    name: str
    text: str
    params: Any
    act: acts.Act
    weights: str | None


def behaviour(
    environment: str,
    quality: str | None,
    *,
    policy: str | None = None,
    weights: str | None = None,
    checkpoint: str = "latest",
    greedy: bool = False,
    random_share: float = 0.0,
) -> tuple[str, acts.Behaviour]:
    """Return the name of a dataset and the policies that it is collected with.

    Args:
        environment: for instance `smax/3m`.
        quality: quality of a dataset from training stages, or `random`. With `policy`, any name for the dataset; None
            takes the policy's name.
        policy: `random`, the directory of a finished run, the folder of a saved policy, an npz file of a behaviour
            policy, or `module:function`; None: training stages.
        weights: folder of the stages; None: the package's own.
        checkpoint: which checkpoint of a run, latest or best.
        greedy: take the likeliest action instead of a sampled one.
        random_share: probability that an agent acts at random in a step.

    Raises:
        ConfigError: there is no such policy, it does not fit the environment, or the flags do not go together.
    """
    if not 0 <= random_share <= 1:
        raise ConfigError(f"--random_share: expected a number from 0 to 1, found {random_share:g}")
    if policy is not None and weights is not None:
        raise ConfigError("--policy, --weights: expected one of them, found both")
    if checkpoint != "latest" and (policy is None or not _is_run(policy)):
        raise ConfigError(f"--checkpoint: expected the directory of a run as --policy, found {policy or 'none'}")
    game = envs.make(environment)
    if policy is None and weights is None and quality == "random":
        policy = quality
    if policy is None:
        name = quality or "medium"
        found = of_stages(environment, name, folder(weights))
        for stage, params in zip(found.recipe.stages, found.params, strict=True):
            policies.check(params, game.spec, f"{stage} for {environment}")
        recipe = dataclasses.replace(found.recipe, temperature=0.0) if greedy else found.recipe
        found = found._replace(recipe=recipe, act=acts.sampler(recipe.temperature))
        found.facts["description"] = describe(recipe)
    else:
        source = find(policy, game, checkpoint, greedy)
        name = quality or source.name
        facts = {"description": f"{source.text}; every episode kept", "policy": policy, "temperature": None}
        if source.weights is not None:
            facts["weights"] = {source.name: source.weights}
        flags = [f"--policy={shlex.quote(policy)}"]
        flags += [] if quality is None else [f"--quality={shlex.quote(quality)}"]
        flags += [] if checkpoint == "latest" else [f"--checkpoint={checkpoint}"]
        recipe = policies.Quality((source.name,))
        found = acts.Behaviour(recipe, (source.params,), source.act, facts, tuple(flags))
    return _varied(name, found, game.spec.discrete, greedy, random_share, named=policy is not None and quality)


def _is_run(policy: str) -> bool:
    return os.path.isfile(os.path.join(policy, "config.json"))


def _varied(name, found, discrete, greedy, share, *, named):
    """Mix in random actions, and add what differs from the plain dataset to the name and the facts."""
    changes, flags, facts = [], list(found.flags), dict(found.facts)
    if greedy:
        changes.append("greedy")
        flags.append("--greedy")
    if share:
        changes.append(f"random_{share:g}")
        flags.append(f"--random_share={share:g}")
        found = found._replace(act=acts.mixed(found.act, share, discrete))
        facts |= {"random_share": share, "description": f"{facts['description']}; {share:.4g} of all actions random"}
    return name if named else "_".join([name, *changes]), found._replace(facts=facts, flags=tuple(flags))


def folder(weights: str | None) -> Path | None:
    """Return the folder of weights that was named, if any.

    Raises:
        ConfigError: there is no such folder.
    """
    if weights is not None and not os.path.isdir(weights):
        raise ConfigError(f"--weights: expected a folder of behaviour policies, found none at {weights}")
    return None if weights is None else Path(weights)


def find(policy: str, game: Environment | HostEnvironment, checkpoint: str, greedy: bool) -> Source:
    """Return the policy that was named.

    Args:
        policy: as in `behaviour`.
        game: the environment it acts in.
        checkpoint: which checkpoint of a run, latest or best.
        greedy: take the likeliest action instead of a sampled one.

    Raises:
        ConfigError: as in `behaviour`.
    """
    how = "greedy actions of" if greedy else "actions sampled from"
    if os.path.isfile(os.path.join(policy, "policy.json")):
        return _of_actor(load_policy(policy), f"the policy saved as {policy}", game, greedy, how)
    if _is_run(policy):
        actor, updates = actor_of_run(policy, game, checkpoint)
        return _of_actor(actor, f"the run {policy} after {updates} updates", game, greedy, how)
    if os.path.isfile(policy):
        params = policies.read_weights(Path(policy))
        policies.check(params, game.spec, f"{policy} for {game.name}")
        text = f"{how} the behaviour policy {policy}"
        return Source(Path(policy).stem, text, params, acts.sampler(0.0 if greedy else 1.0), sha256(policy))
    module, colon, function = policy.partition(":")
    if policy != "random" and (os.path.exists(policy) or not colon):
        kinds = "random, the directory of a run, a saved policy, an npz file of a behaviour policy, or module:function"
        raise ConfigError(f"--policy: expected {kinds}, found {policy!r}")
    if greedy:
        raise ConfigError(f"--greedy: expected a policy with a likeliest action, found {policy}")
    if policy == "random":
        act = acts.uniform(game.spec.discrete)
        return Source(policy, acts.CHANCE, (), act, None)
    act = _of_function(policy, _imported(policy, module, function), game)
    return Source(function, f"actions of {policy}", (), act, None)


def actor_of_run(directory: str, game: Environment | HostEnvironment, checkpoint: str) -> tuple[Actor, int]:
    """Return the actor in a run's checkpoint, and the number of updates it was trained for.

    Args:
        directory: the run's directory.
        game: the environment it acts in.
        checkpoint: latest or best.

    Raises:
        ConfigError: the run is still training, has no such checkpoint, has several trials, or is for another task.
    """
    if job_of_run(directory).population:
        raise ConfigError(f"--policy: expected a run of one trial, found several in {directory}")
    config, state = load_run(directory, checkpoint=checkpoint)
    _require_spec(state.spec, game, f"{directory}, which was trained in {config.data.environment}")
    return algorithms.policy(state), updates_done(state)


def _of_actor(actor: Actor, text: str, game: Environment | HostEnvironment, greedy: bool, how: str) -> Source:
    _require_spec(actor.spec, game, text)

    def act(actor, obs, avail, key):
        return algorithms.act(actor, obs[None], avail[None], None if greedy else key)[0]

    name = actor.config.name.replace(":", ".")
    return Source(name, f"{how} {text} ({actor.config.name})", actor, act, digest(actor))


def _require_spec(spec: EnvSpec, game: Environment | HostEnvironment, text: str) -> None:
    for field in dataclasses.fields(EnvSpec):
        expected, found = getattr(game.spec, field.name), getattr(spec, field.name)
        if expected != found:
            raise ConfigError(f"--policy: {text}: {field.name}: expected {expected} for {game.name}, found {found}")


def _imported(policy: str, module: str, function: str) -> Callable:
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"--policy: expected module:function, found {policy!r}: {one_line(error)}") from error
    if not callable(found):
        raise ConfigError(f"--policy: expected a function at {policy}, found {type(found).__name__}")
    return found


def _of_function(policy: str, function: Callable, game: Environment | HostEnvironment) -> acts.Act:
    """Turn a user's function into an act function: in JAX if it can be traced, else in Python."""
    spec = game.spec
    sizes = (spec.num_agents, spec.obs_dim), (spec.num_agents, spec.action_dim)
    in_jax = []

    def trace(obs, avail, key):
        chosen = function(obs, avail, key)
        in_jax.append(isinstance(chosen, jax.core.Tracer))
        return chosen

    key = jax.eval_shape(lambda: jax.random.key(0))
    places = [jax.ShapeDtypeStruct(shape, kind) for shape, kind in zip(sizes, (jnp.float32, bool), strict=True)]
    reason = "it does not compute with JAX"
    try:
        chosen = jax.eval_shape(trace, *places, key)
    except Exception as error:  # whatever a user's function raises when it is given tracers
        reason = one_line(error)
    if in_jax == [True]:
        _check_choice(policy, chosen, spec)
        kind = jnp.int32 if spec.discrete else jnp.float32
        return lambda params, obs, avail, key: function(obs, avail, key).astype(kind)
    try:
        chosen = np.asarray(function(np.zeros(sizes[0], np.float32), np.ones(sizes[1], bool), np.zeros(2, np.uint32)))
    except Exception as error:  # whatever a user's function raises
        raise ConfigError(f"--policy: {policy}(obs, avail, key) failed: {one_line(error)}") from error
    if not isinstance(game, HostEnvironment):
        raise ConfigError(f"--policy: {policy}: expected a function in JAX, because {game.name} is in JAX: {reason}")
    _check_choice(policy, chosen, spec)
    return acts.InPython(function, spec.discrete)


def _check_choice(policy: str, chosen: Any, spec: EnvSpec) -> None:
    shape = (spec.num_agents,) if spec.discrete else (spec.num_agents, spec.action_dim)
    kind, word = (jnp.integer, "integers") if spec.discrete else (jnp.floating, "floats")
    if getattr(chosen, "shape", None) != shape or not jnp.issubdtype(chosen.dtype, kind):
        found = f"{list(chosen.shape)} of {chosen.dtype}" if hasattr(chosen, "shape") else type(chosen).__name__
        raise ConfigError(f"--policy: {policy}: expected actions {list(shape)} of {word}, found {found}")
