"""Run an environment's recipe and save the policies of its stages."""

import collections
import functools
import json
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import chex
import jax

from omcda_jax import envs
from omcda_jax.behaviour import mappo, mappo_continuous, policies
from omcda_jax.behaviour.recipes import RECIPES, Recipe
from omcda_jax.envs import smax
from omcda_jax.envs.base import Environment, HostEnvironment
from omcda_jax.types import ConfigError

LOG_EVERY = 100_000  # environment steps

# gives facts on a policy, by name, from episodes with sampled actions
Evaluate = Callable[[policies.Params, chex.PRNGKey], dict[str, float]]


def train(
    name: str,
    out: Path,
    make_evaluate: Callable[[Environment | HostEnvironment, int], Evaluate],
    *,
    seed: int = 0,
    every: int = 0,
    episodes: int = 0,
) -> None:
    """Run an environment's recipe until its last stage, printing the progress, and save its stages.

    Args:
        name: a key of `RECIPES`.
        out: folder for the files, made if missing.
        make_evaluate: `make_evaluate(environment, episodes)` gives a function that evaluates policies; where a stage is
            taken by its win rate, the function's facts include `win_rate`.
        seed: of the training.
        every: environment steps between two further snapshots, 0 for none.
        episodes: a snapshot is evaluated on, 0 for the recipe's own number.

    Raises:
        ConfigError: no recipe for the environment, its simulator is not installed, or a stage was never reached.
    """
    if name not in RECIPES:
        raise ConfigError(f"--environment: expected one of {', '.join(RECIPES)}, found {name!r}")
    recipe, environment, key = RECIPES[name], envs.make(name), jax.random.key(seed)
    check = make_evaluate(environment, recipe.check_episodes)
    keep = functools.partial(save, environment, seed, make_evaluate(environment, episodes or recipe.episodes), out)
    stages, previous = list(recipe.stages.items()), 0
    for steps, actor in progress(environment, recipe, key):
        crossed = lambda interval, now=steps, before=previous: bool(interval) and now // interval > before // interval
        step_key = jax.random.fold_in(key, steps)
        stage, when = stages[0]
        if isinstance(when, int):
            due = steps >= when
        else:
            due = crossed(recipe.check_every) and check(actor, step_key)["win_rate"] >= when
        if due:
            keep(stage, steps, actor, step_key)
            stages = stages[1:]
        if crossed(every):
            keep(f"{steps:09d}", steps, actor, step_key)
        if not stages:
            return
        previous = steps
    stage, when = stages[0]
    raise ConfigError(f"--seed={seed}: {stage} was expected at {when}, never found; try another")


def save(
    environment: Environment | HostEnvironment,
    seed: int,
    evaluate: Evaluate,
    out: Path,
    stage: str,
    steps: int,
    actor: policies.Params,
    key: chex.PRNGKey,
) -> None:
    """Evaluate a policy as it is stored, rounding included, and save it with what it reached.

    Args:
        environment: where it was trained.
        seed: of the training.
        evaluate: a function that evaluates policies.
        out: folder for the file.
        stage: names the file.
        steps: environment steps it was trained for.
        actor: its weights.
        key: typed PRNG key.
    """
    path = out / policies.file_name(environment.name, stage)
    policies.write_weights(path, actor)
    actor = policies.read_weights(path)
    facts = evaluate(actor, key)
    policies.write_weights(
        path,
        actor,
        env_steps=steps,
        **facts,
        scenario=environment.name.partition("/")[2],
        versions=json.dumps(dict(environment.versions)),
        command=f"python experiments/train_behaviour.py --environment={shlex.quote(environment.name)} --seed={seed}",
    )
    print(f"saved {path}: steps {steps:,}", *(f"{fact} {value:.3f}" for fact, value in facts.items()), flush=True)


def progress(
    environment: Environment | HostEnvironment, recipe: Recipe, key: chex.PRNGKey
) -> Iterator[tuple[int, policies.Params]]:
    """Train through a recipe's phases, printing a line now and then.

    Args:
        environment: where the recipe leads.
        recipe: the phases.
        key: typed PRNG key.

    Yields:
        After each update: environment steps so far, over all phases, and the policy.
    """
    began, sums, previous = time.monotonic(), collections.Counter(), 0
    for steps, actor, metrics in phases(environment, recipe, key):
        sums.update(metrics)
        if steps // LOG_EVERY > previous // LOG_EVERY:
            episodes = max(sums.pop("episodes"), 1)
            means = " ".join(f"{name} {total / episodes:.3f}" for name, total in sums.items())
            rate = steps / (time.monotonic() - began)
            print(f"{environment.name} steps {steps:,} {means} {rate:,.0f} steps/s", flush=True)
            sums.clear()
        previous = steps
        yield steps, actor


def phases(
    environment: Environment | HostEnvironment, recipe: Recipe, key: chex.PRNGKey
) -> Iterator[tuple[int, policies.Params, dict[str, float]]]:
    """Train through a recipe's phases, each from the weights of the one before.

    Args:
        environment, recipe, key: as of `progress`.

    Yields:
        After each update: environment steps so far, over all phases, the policy, and sums over the episodes that ended.
    """
    if isinstance(environment, HostEnvironment):
        (phase,) = recipe.phases
        yield from mappo_continuous.train(environment, phase.settings, jax.random.fold_in(key, 0))
        return
    params, before, steps = None, 0, 0
    for index, phase in enumerate(recipe.phases):
        game = smax.make(environment.name.removeprefix("smax/"), **phase.starts)
        updates = mappo.train(game, phase.settings, jax.random.fold_in(key, index), params)
        for steps, params, metrics in updates:
            yield before + steps, params["actor"], metrics
        before += steps
