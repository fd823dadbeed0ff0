"""Train behaviour policies and save their stages: by an environment's recipe or, without a recipe, by one rule.

The rule: a snapshot is taken after the first update and then every `1 / snapshots` of the training, and each is
evaluated. Expert is the snapshot with the highest return. Medium is the first with a return at least `medium_share` of
the way from random play to expert. The snapshots before medium are replay_1, replay_2, ...
"""

import collections
import dataclasses
import functools
import itertools
import json
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import chex
import jax

from omcda_jax import envs
from omcda_jax.behaviour import mappo, mappo_separate, policies
from omcda_jax.behaviour.recipes import RECIPES, Recipe
from omcda_jax.behaviour.settings import Settings
from omcda_jax.config import require
from omcda_jax.envs import smax
from omcda_jax.envs.base import Environment, HostEnvironment
from omcda_jax.files import replacing
from omcda_jax.types import ConfigError

LOG_EVERY = 100_000  # environment steps

# returns facts about a policy, by name, from episodes with sampled actions
Evaluate = Callable[[policies.Params, chex.PRNGKey], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Rule:
    """How a training without a recipe is split into stages.

    Attributes:
        snapshots: number of snapshots at equal intervals, in addition to one after the first update.
        medium_share: medium is the first snapshot at least this share of the way from random play to expert.
        episodes: number of episodes to evaluate a snapshot or random play on.
    """

    snapshots: int = 20
    medium_share: float = 0.5
    episodes: int = 100

    def __post_init__(self):
        require(self.snapshots >= 1, "--snapshots", "at least 1", self.snapshots)
        require(0 < self.medium_share < 1, "--medium_share", "a number between 0 and 1", self.medium_share)
        require(self.episodes >= 1, "--episodes", "at least 1", self.episodes)


def train(
    name: str,
    out: Path,
    make_evaluate: Callable[[Environment | HostEnvironment, int], Evaluate],
    *,
    seed: int = 0,
    every: int = 0,
    episodes: int = 0,
) -> None:
    """Run an environment's recipe until its last stage, print the progress, and save the stages.

    Args:
        name: a key of `RECIPES`.
        out: folder for the files, made if missing.
        make_evaluate: `make_evaluate(environment, episodes)` returns a function that evaluates policies. If a stage is
            taken by its win rate, the function's facts include `win_rate`.
        seed: seed of the training.
        every: environment steps between two additional snapshots, 0 for none.
        episodes: number of episodes to evaluate a snapshot on; 0: the recipe's number.

    Raises:
        ConfigError: there is no recipe for the environment, its simulator is not installed, or a stage was never
            reached.
    """
    if name not in RECIPES:
        raise ConfigError(f"--environment: expected one of {', '.join(RECIPES)}, found {name!r}")
    recipe, environment, key = RECIPES[name], envs.make(name), jax.random.key(seed)
    check = make_evaluate(environment, recipe.check_episodes)
    evaluate, command = make_evaluate(environment, episodes or recipe.episodes), f"{command_of(name)} --seed={seed}"
    keep = functools.partial(save, environment, command, evaluate, out)
    stages, previous = list(recipe.stages.items()), 0
    for steps, actor in progress(name, phases(environment, recipe, key)):
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
    raise ConfigError(f"--seed={seed}: expected stage {stage} at {when}, which was never reached; try another seed")


def train_by_rule(
    environment: Environment | HostEnvironment,
    settings: Settings,
    out: Path,
    evaluate: Evaluate,
    chance: float,
    rule: Rule,
    *,
    seed: int = 0,
    command: str = "",
) -> dict[str, str]:
    """Train in any environment, save snapshots, and name those that are expert, medium and before medium.

    Args:
        environment: where to learn.
        settings: the trainer's settings.
        out: folder for the files, made if missing.
        evaluate: evaluates policies; its facts include `return_mean`.
        chance: the mean return of random play.
        rule: how many snapshots there are, and which is medium.
        seed: seed of the training.
        command: the command that remakes the policies, stored with them.

    Returns:
        The snapshot of each stage.

    Raises:
        ConfigError: as in `cut`.
    """
    total = settings.total_steps
    keep = functools.partial(save, environment, command, evaluate, out, random_return=chance)
    key, taken, passed = jax.random.key(seed), [], -1
    for steps, actor in progress(environment.name, mappo_separate.train(environment, settings, key)):
        mark = steps * rule.snapshots // total
        if mark > passed:
            facts = keep(f"{steps:09d}", steps, actor, jax.random.fold_in(key, steps))
            taken.append((f"{steps:09d}", facts["return_mean"]))
            passed = mark
    named = cut(taken, chance, rule.medium_share)
    place = lambda stage: out / policies.file_name(environment.name, stage)
    for index in itertools.takewhile(lambda k: place(f"replay_{k}").exists(), itertools.count(1)):
        place(f"replay_{index}").unlink()  # from an earlier training
    for stage, snapshot in named.items():
        with replacing(place(stage)) as partial:
            shutil.copyfile(place(snapshot), partial)
    return named


def cut(snapshots: Sequence[tuple[str, float]], chance: float, medium_share: float) -> dict[str, str]:
    """Say which snapshot is which stage.

    Args:
        snapshots: name and mean return, in the order of training.
        chance: the mean return of random play.
        medium_share: least share of the way from random play to expert that medium has made, from 0 to 1.

    Returns:
        The snapshot of expert, of medium, and of replay_1, replay_2, ..., which are all snapshots before medium.

    Raises:
        ConfigError: no snapshot is better than random play.
    """
    names, returns = zip(*snapshots, strict=True)
    highest = max(returns)
    if not highest > chance:
        raise ConfigError(
            f"training: expected a snapshot better than random play, with return {chance:.3f}, found"
            f" {highest:.3f} at best; train longer (--steps) or with other settings"
        )
    enough = chance + medium_share * (highest - chance)
    medium = next(index for index, value in enumerate(returns) if value >= enough)
    replay = {f"replay_{index + 1}": name for index, name in enumerate(names[:medium])}
    return {"expert": names[returns.index(highest)], "medium": names[medium], **replay}


def command_of(name: str) -> str:
    """Return the command that trains an environment's policies, without further options.

    Args:
        name: the environment's name.
    """
    return f"python experiments/train_behaviour.py --environment={shlex.quote(name)}"


def save(
    environment: Environment | HostEnvironment,
    command: str,
    evaluate: Evaluate,
    out: Path,
    stage: str,
    steps: int,
    actor: policies.Params,
    key: chex.PRNGKey,
    **more: float,
) -> dict[str, float]:
    """Evaluate a policy as stored, rounding included, save it with the facts of the evaluation, and return the facts.

    Args:
        environment: where it was trained.
        command: the command that remakes it.
        evaluate: a function that evaluates policies.
        out: folder for the file.
        stage: name of the stage, for the file name.
        steps: environment steps it was trained for.
        actor: its weights.
        key: typed PRNG key.
        **more: further facts to store.
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
        **more,
        scenario=environment.name.partition("/")[2],
        versions=json.dumps(dict(environment.versions)),
        command=command,
    )
    print(f"saved {path}: steps {steps:,}", *(f"{fact} {value:.3f}" for fact, value in facts.items()), flush=True)
    return facts


def progress(
    name: str, updates: Iterator[tuple[int, policies.Params, dict[str, float]]]
) -> Iterator[tuple[int, policies.Params]]:
    """Pass on a training's policies, and print a line at intervals.

    Args:
        name: the environment's name.
        updates: after each update, environment steps so far, the policy, and sums over the episodes that ended.

    Yields:
        After each update: environment steps so far and the policy.
    """
    began, sums, previous = time.monotonic(), collections.Counter(), 0
    for steps, actor, metrics in updates:
        sums.update(metrics)
        if steps // LOG_EVERY > previous // LOG_EVERY:
            episodes = max(sums.pop("episodes"), 1)
            means = " ".join(f"{metric} {sum_ / episodes:.3f}" for metric, sum_ in sums.items())
            rate = steps / (time.monotonic() - began)
            print(f"{name} steps {steps:,} {means} {rate:,.0f} steps/s", flush=True)
            sums.clear()
        previous = steps
        yield steps, actor


def phases(
    environment: Environment | HostEnvironment, recipe: Recipe, key: chex.PRNGKey
) -> Iterator[tuple[int, policies.Params, dict[str, float]]]:
    """Train through a recipe's phases, each from the weights of the previous phase.

    Args:
        environment: the recipe's environment.
        recipe: the phases.
        key: typed PRNG key.

    Yields:
        After each update: environment steps so far over all phases, the policy, and sums over the episodes that ended.
    """
    if isinstance(environment, HostEnvironment):
        (phase,) = recipe.phases
        yield from mappo_separate.train(environment, phase.settings, jax.random.fold_in(key, 0))
        return
    params, before, steps = None, 0, 0
    for index, phase in enumerate(recipe.phases):
        game = smax.make(environment.name.removeprefix("smax/"), **phase.starts)
        updates = mappo.train(game, phase.settings, jax.random.fold_in(key, index), params)
        for steps, params, metrics in updates:
            yield before + steps, params["actor"], metrics
        before += steps
