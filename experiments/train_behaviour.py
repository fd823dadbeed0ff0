"""Trains the behaviour policies whose rollouts are the SMAX datasets, as they come with the package.

python experiments/train_behaviour.py --scenario=3m --out=omcda_jax/data/weights

Each scenario has its recipe: training phases, one after the other on the same weights, and when the stages (poor,
medium, good) are taken. Every stage is evaluated in the simulator as it is, with sampled actions, and saved with what
it reached. Another machine or another version of JAX gives other weights from the same seed; expect about the same
win rates, not the same numbers.

5m_vs_6m needs more than practice. A team that walks up to the six enemies nearly always loses, and one trained from
the usual positions alone stays there (1-2 % won after 4 to 6 million steps, even with weakened enemies to practise
on). The scripted enemies see nine map units far and do not tell each other what they see, so a team that first moves
out of sight meets them one by one. Starting part of the training episodes with the team moved away by a random
distance lets the values of those states lead there from the usual start.
"""

import dataclasses
import functools
import json
import shlex
import sys
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags

from omcda_jax.data import mappo
from omcda_jax.envs import smax
from omcda_jax.types import ConfigError

_SCENARIO = flags.DEFINE_string("scenario", "3m", "SMAX scenario with a recipe.")
_OUT = flags.DEFINE_string("out", "weights", "Folder for the npz files, made if it is not there.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the training.")
_EVERY = flags.DEFINE_integer("every", 0, "Also save a snapshot about every so many environment steps; 0: stages only.")
_EPISODES = flags.DEFINE_integer("episodes", 2000, "Episodes a snapshot is evaluated on.")


CHECK_EPISODES = 500


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
    """How one scenario's policies are made.

    Attributes:
        phases: trained one after the other.
        stages: stage name to when it is taken, in order: after so many environment steps over all phases (an int),
            or at the first check that finds at least this win rate (a float).
        check_every: environment steps between two checks.
    """

    phases: tuple[Phase, ...]
    stages: dict[str, int | float]
    check_every: int


RECIPES = {
    "3m": Recipe(
        phases=(Phase(mappo.Settings(steps=1_500_000)),),
        stages={"poor": 49_152, "medium": 0.35, "good": 1_500_000},
        check_every=16_384,
    ),
    "2s3z": Recipe(
        phases=(Phase(mappo.Settings(steps=1_600_000)),),
        stages={"poor": 81_920, "medium": 0.35, "good": 1_600_000},
        check_every=40_960,
    ),
    "5m_vs_6m": Recipe(
        phases=(
            Phase(
                mappo.Settings(steps=3_000_000, discount=0.995, learning_rate=1e-3, final_learning_rate=5e-4),
                starts={"shift": (0.7, 12.0)},
            ),
            Phase(mappo.Settings(steps=1_500_000, discount=0.995, learning_rate=5e-4, entropy=0.005)),
        ),
        stages={"poor": 98_304, "medium": 0.35, "good": 4_500_000},
        check_every=40_960,
    ),
}


def save(path: Path, actor: tuple, **facts) -> None:
    """Writes a policy's weights and what is known of it.

    Args:
        path: the npz file.
        actor: (w [in, out], b [out]) of each layer.
        **facts: scalars and strings stored beside the weights.
    """
    arrays = {}
    for index, (w, b) in enumerate(actor):
        arrays |= {f"actor_{index}_w": np.asarray(w, np.float16), f"actor_{index}_b": np.asarray(b, np.float16)}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays, **facts)


def train(scenario: str, out: Path, seed: int, every: int, episodes: int) -> None:
    """Runs a scenario's recipe and saves its stages.

    Args:
        scenario: a key of `RECIPES`.
        out: folder for the files.
        seed: of the training.
        every: environment steps between two further snapshots, 0 for none.
        episodes: a snapshot is evaluated on.

    Raises:
        ConfigError: no recipe for the scenario, or JaxMARL is not installed.
    """
    if scenario not in RECIPES:
        raise ConfigError(f"--scenario: expected one of {', '.join(RECIPES)}, found {scenario!r}")
    recipe = RECIPES[scenario]
    environment = smax.make(scenario)
    evaluate = mappo.make_evaluate(environment, episodes)
    check = mappo.make_evaluate(environment, CHECK_EPISODES)
    key = jax.random.key(seed)
    waiting = list(recipe.stages.items())
    began = time.monotonic()
    show = functools.partial(print, flush=True)

    def keep(name, steps, params):
        # what is stored is what is evaluated, rounding included
        actor = jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), params["actor"])
        result = evaluate(actor, jax.random.fold_in(key, steps))
        path = out / f"smax_{scenario}_{name}.npz"
        save(
            path,
            actor,
            env_steps=steps,
            win_rate=result["won"],
            return_mean=result["return"],
            scenario=scenario,
            versions=json.dumps(dict(environment.versions)),
            command=f"python experiments/train_behaviour.py --scenario={shlex.quote(scenario)} --seed={seed}",
        )
        show(
            f"saved {path}: steps {steps:,} return {result['return']:.3f} won {result['won']:.3f} "
            f"length {result['length']:.1f} after {time.monotonic() - began:.0f} s"
        )

    def due(when, steps, params):
        if isinstance(when, int):
            return steps >= when
        if steps // recipe.check_every == previous // recipe.check_every:
            return False
        return check(params["actor"], jax.random.fold_in(key, steps))["won"] >= when

    params, before, previous = None, 0, 0
    for index, phase in enumerate(recipe.phases):

        def report(steps, params, before=before):
            nonlocal previous
            steps += before
            if waiting and due(waiting[0][1], steps, params):
                keep(waiting.pop(0)[0], steps, params)
            if every and steps // every > previous // every:
                keep(f"{steps:09d}", steps, params)
            previous = steps

        training = smax.make(scenario, **phase.starts)
        params = mappo.train(training, phase.settings, jax.random.fold_in(key, index), params, report=report, log=show)
        before = previous
    if waiting:
        raise ConfigError(f"--seed={seed}: {waiting[0][0]} was expected at {waiting[0][1]}, never found; try another")


def main(_) -> None:
    """Runs the script; exit status 78 is an error of the user's to mend."""
    try:
        train(_SCENARIO.value, Path(_OUT.value), _SEED.value, _EVERY.value, _EPISODES.value)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(78)


if __name__ == "__main__":
    app.run(main)
