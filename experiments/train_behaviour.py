"""Trains the behaviour policies whose rollouts are the datasets, as they come with the package.

python experiments/train_behaviour.py --environment=smax/3m --out=omcda_jax/data/weights

Each environment has its recipe: training phases, one after the other on the same weights, and when the stages (poor,
medium, good; or those named in `omcda_jax.data.behaviour.QUALITIES`) are taken. Every stage is evaluated in the
simulator as it is stored, with sampled actions, and saved with what it reached. Another machine or another version of
JAX or of the simulator gives other weights from the same seed; expect about the same figures, not the same numbers.

5m_vs_6m needs more than practice. A team that walks up to the six enemies nearly always loses, and one trained from
the usual positions alone stays there (1-2 % won after 4 to 6 million steps, even with weakened enemies to practise
on). The scripted enemies see nine map units far and do not tell each other what they see, so a team that first moves
out of sight meets them one by one. Starting part of the training episodes with the team moved away by a random
distance lets the values of those states lead there from the usual start.

Six zealots lose corridor's open fight against 24 zerglings (return .27, nothing won, however long they train). What
works is to stay out of sight and draw a few out at a time. That is learnt far from the enemies and against fewer of
them first; then the starts move back, phase by phase, to the usual one.

A hopper or an ant that stands still for a whole episode is paid about 1,000, so a stage is judged by its length and
its speed too: reward per step, less the 1 for being healthy, is about the forward speed.
"""

import dataclasses
import functools
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
from absl import app, flags, logging

from omcda_jax import data, envs
from omcda_jax.data import behaviour, mappo, mappo_continuous
from omcda_jax.data.collect import collect
from omcda_jax.envs import smax
from omcda_jax.envs.base import Environment, HostEnvironment
from omcda_jax.types import ConfigError

_ENVIRONMENT = flags.DEFINE_string(
    "environment", "smax/3m", "Family and scenario, with a recipe; smax/ may be left out."
)
flags.DEFINE_alias("scenario", "environment")
_OUT = flags.DEFINE_string("out", "weights", "Folder for the npz files, made if it is not there.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the training.")
_EVERY = flags.DEFINE_integer("every", 0, "Also save a snapshot about every so many environment steps; 0: stages only.")
_EPISODES = flags.DEFINE_integer("episodes", 0, "Episodes a snapshot is evaluated on; 0: as the recipe says.")


@dataclasses.dataclass(frozen=True)
class Phase:
    """One stretch of training.

    Attributes:
        settings: of the trainer.
        starts: options of `smax.make` for the training episodes' starts.
    """

    settings: mappo.Settings
    starts: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one environment's policies are made.

    Attributes:
        phases: trained one after the other; where the simulator runs on the host there is one, which ends with the
            last stage.
        stages: stage name to when it is taken, in order: after so many environment steps over all phases (an int),
            or at the first check that finds at least this win rate (a float).
        check_every: environment steps between two checks.
        episodes: a snapshot is evaluated on.
        check_episodes: a check plays.
    """

    phases: tuple[Phase, ...]
    stages: dict[str, int | float]
    check_every: int = 0
    episodes: int = 2000
    check_episodes: int = 500


MUJOCO = mappo.Settings(
    num_envs=32,
    rollout=128,
    epochs=8,
    minibatches=16,
    learning_rate=3e-4,
    discount=0.99,
    trace=0.95,
    entropy=0.0,
    hidden=64,
    log_std_floor=-2.0,
)


RECIPES = {
    "smax/3m": Recipe(
        phases=(Phase(mappo.Settings(steps=1_500_000)),),
        stages={"poor": 49_152, "medium": 0.35, "good": 1_500_000},
        check_every=16_384,
    ),
    "smax/2s3z": Recipe(
        phases=(Phase(mappo.Settings(steps=1_600_000)),),
        stages={"poor": 81_920, "medium": 0.35, "good": 1_600_000},
        check_every=40_960,
    ),
    "smax/5m_vs_6m": Recipe(
        phases=(
            Phase(
                mappo.Settings(steps=3_000_000, discount=0.995, learning_rate=1e-3, final_learning_rate=5e-4),
                starts={"shift": (0.7, 0.0, 12.0)},
            ),
            Phase(mappo.Settings(steps=1_500_000, discount=0.995, learning_rate=5e-4, entropy=0.005)),
        ),
        stages={"poor": 98_304, "medium": 0.35, "good": 4_500_000},
        check_every=40_960,
    ),
    # the last stage is not the end: a team trained on wins nearly always
    "smax/6h_vs_8z": Recipe(
        phases=(Phase(mappo.Settings(steps=1_000_000)),),
        stages={"poor": 0.05, "medium": 0.3, "good": 0.8},
        check_every=8_192,
    ),
    "smax/corridor": Recipe(
        phases=tuple(
            Phase(mappo.Settings(steps, discount=0.995, trace=0.97, final_learning_rate=final), starts)
            for steps, final, starts in (
                (800_000, 8e-4, {"shift": (1.0, 8.0, 12.0), "fewer": (0.7, 0.7)}),
                (600_000, 7e-4, {"shift": (1.0, 3.0, 10.0)}),
                (700_000, 6e-4, {"shift": (0.9, 0.0, 7.0)}),
                (1_050_000, 6e-4, {"shift": (0.6, 0.0, 4.0)}),
                (1_300_000, 1e-4, {"shift": (0.4, 0.0, 4.0)}),
            )
        ),
        stages={"poor": 0.04, "medium": 0.3, "good": 4_450_000},
        check_every=81_920,
        check_episodes=200,
    ),
    # a hopper with the shorter horizon, or with a narrower policy, stays with short hops
    "mamujoco/Hopper_3x1": Recipe(
        phases=(Phase(dataclasses.replace(MUJOCO, steps=1_200_000, discount=0.995, trace=0.97, log_std_floor=-1.6)),),
        stages={
            "replay_1": 53_248,
            "replay_2": 102_400,
            "replay_3": 352_256,
            "replay_4": 450_560,
            "medium": 503_808,
            "expert": 1_200_000,
        },
        episodes=20,
    ),
    "mamujoco/HalfCheetah_6x1": Recipe(
        phases=(Phase(dataclasses.replace(MUJOCO, steps=700_000)),),
        stages={
            "replay_1": 53_248,
            "replay_2": 77_824,
            "replay_3": 102_400,
            "replay_4": 126_976,
            "medium": 151_552,
            "expert": 700_000,
        },
        episodes=20,
    ),
    # the learning rate falls as in a training twice as long
    "mamujoco/Ant_2x4": Recipe(
        phases=(Phase(dataclasses.replace(MUJOCO, steps=2_500_000, initial_log_std=-1.0)),),
        stages={
            "replay_1": 102_400,
            "replay_2": 200_704,
            "replay_3": 303_104,
            "replay_4": 503_808,
            "medium": 602_112,
            "expert": 1_200_128,
        },
        episodes=20,
    ),
}


def evaluate_smax(environment: Environment, episodes: int) -> Callable:
    """Builds a function that plays battles with sampled actions.

    Args:
        environment: where to play.
        episodes: how many.

    Returns:
        `evaluate(actor, key)`, which gives the facts that are stored beside a policy's weights.
    """
    play = mappo.make_evaluate(environment, episodes)

    def evaluate(actor, key):
        found = play(actor, key)
        return {"win_rate": found["won"], "return_mean": found["return"], "length_mean": found["length"]}

    return evaluate


def evaluate_host(environment: HostEnvironment, episodes: int) -> Callable:
    """Builds a function that plays whole episodes, with sampled actions and with greedy ones.

    Args:
        environment: where to play.
        episodes: how many of each.

    Returns:
        `evaluate(actor, key)`, which gives the facts that are stored beside a policy's weights.
    """

    def evaluate(actor, key):
        seed = int(jax.random.bits(key))
        found = [
            data.statistics(collect(environment, [actor], quality, seed=seed, episodes=episodes)[0])
            for quality in (behaviour.Quality(("sampled",)), behaviour.Quality(("greedy",), temperature=0.0))
        ]
        sampled = {name: found[0][name] for name in ("return_mean", "return_sd", "length_mean")}
        return sampled | {f"greedy_{name}": found[1][name] for name in sampled}

    return evaluate


def train(name: str, out: Path, seed: int, every: int, episodes: int) -> None:
    """Runs an environment's recipe and saves its stages.

    Args:
        name: a key of `RECIPES`.
        out: folder for the files.
        seed: of the training.
        every: environment steps between two further snapshots, 0 for none.
        episodes: a snapshot is evaluated on, 0 for the recipe's own number.

    Raises:
        ConfigError: no recipe for the environment, or its simulator is not installed.
    """
    if name not in RECIPES:
        raise ConfigError(f"--environment: expected one of {', '.join(RECIPES)}, found {name!r}")
    recipe = RECIPES[name]
    environment = envs.make(name)
    on_host = isinstance(environment, HostEnvironment)
    make_evaluate = evaluate_host if on_host else evaluate_smax
    evaluate = make_evaluate(environment, episodes or recipe.episodes)
    check = make_evaluate(environment, recipe.check_episodes)
    key = jax.random.key(seed)
    waiting = list(recipe.stages.items())
    began = time.monotonic()
    show = functools.partial(print, flush=True)

    def keep(stage, steps, actor):
        path = out / behaviour.file_name(name, stage)
        # what is stored is what is evaluated, rounding included
        behaviour.write_weights(path, actor)
        actor = behaviour.read_weights(path)
        facts = evaluate(actor, jax.random.fold_in(key, steps))
        behaviour.write_weights(
            path,
            actor,
            env_steps=steps,
            **facts,
            scenario=name.partition("/")[2],
            versions=json.dumps(dict(environment.versions)),
            command=f"python experiments/train_behaviour.py --environment={shlex.quote(name)} --seed={seed}",
        )
        found = " ".join(f"{fact} {value:.3f}" for fact, value in facts.items())
        show(f"saved {path}: steps {steps:,} {found} after {time.monotonic() - began:.0f} s")

    def due(when, steps, actor):
        if isinstance(when, int):
            return steps >= when
        if steps // recipe.check_every == previous // recipe.check_every:
            return False
        return check(actor, jax.random.fold_in(key, steps))["win_rate"] >= when

    params, before, previous = None, 0, 0
    for index, phase in enumerate(recipe.phases):

        def report(steps, params, before=before):
            nonlocal previous
            steps += before
            actor = params if on_host else params["actor"]
            if waiting and due(waiting[0][1], steps, actor):
                keep(waiting.pop(0)[0], steps, actor)
            if every and steps // every > previous // every:
                keep(f"{steps:09d}", steps, actor)
            previous = steps
            return not waiting

        phase_key = jax.random.fold_in(key, index)
        if on_host:
            params = mappo_continuous.train(environment, phase.settings, phase_key, report=report, log=show)
        else:
            training = smax.make(name.removeprefix("smax/"), **phase.starts)
            params = mappo.train(training, phase.settings, phase_key, params, report=report, log=show)
        before = previous
    if waiting:
        raise ConfigError(f"--seed={seed}: {waiting[0][0]} was expected at {waiting[0][1]}, never found; try another")


def main(_) -> None:
    """Runs the script; exit status 78 is an error of the user's to mend."""
    # absl's default makes jax tell of every accelerator it does not find
    logging.set_verbosity(logging.WARNING)
    name = _ENVIRONMENT.value if "/" in _ENVIRONMENT.value else f"smax/{_ENVIRONMENT.value}"
    try:
        train(name, Path(_OUT.value), _SEED.value, _EVERY.value, _EPISODES.value)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(78)


if __name__ == "__main__":
    app.run(main)
