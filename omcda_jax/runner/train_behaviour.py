"""The command that trains behaviour policies, to collect datasets with.

    python experiments/train_behaviour.py --environment=my_module/easy --out=weights
    python experiments/train_behaviour.py --environment=smax/3m --out=omcda_jax/behaviour/weights

Any environment works, in JAX or on the host, with discrete or continuous actions. MAPPO trains for --steps. A snapshot
is taken after the first update, and then --snapshots more at equal intervals. Each is evaluated with sampled actions
and saved. Then the stages are named. expert is the snapshot with the highest mean return. medium is the first snapshot
that is at least --medium_share of the way from random play to expert. The snapshots before medium are replay_1,
replay_2, ... Collect datasets with `collect --weights=FOLDER --quality=expert|medium|medium_replay|medium_expert`.

The environments with policies that come with the package have recipes of their own, see omcda_jax/behaviour/recipes.py.
A recipe has training phases, one after the other on the same weights, and says when the stages (poor, medium, good; or
those named in `omcda_jax.behaviour.policies.QUALITIES`) are taken. The same seed gives other weights on another machine
or with another version of JAX or of the simulator; expect similar figures, not the same numbers.
"""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags

from omcda_jax import data, envs
from omcda_jax.behaviour import acts, mappo, training
from omcda_jax.behaviour.policies import Quality
from omcda_jax.behaviour.recipes import GENERAL, RECIPES
from omcda_jax.behaviour.settings import Settings
from omcda_jax.data.collect import collect
from omcda_jax.data.rollouts import Request, player
from omcda_jax.envs.base import Environment, HostEnvironment
from omcda_jax.files import require_folder
from omcda_jax.runner import frame
from omcda_jax.runner.settings import meanings
from omcda_jax.system import new_flags
from omcda_jax.types import ConfigError

RULE = tuple(field.name for field in dataclasses.fields(training.Rule) if field.name != "episodes")


def make_evaluate(environment: Environment | HostEnvironment, episodes: int) -> training.Evaluate:
    """Return `evaluate(actor, key)`, which returns the facts that are stored with the weights of a recipe's policy.

    It plays with sampled actions, and on the host with greedy actions too.

    Args:
        environment: where to play.
        episodes: how many.
    """
    if isinstance(environment, HostEnvironment):
        return lambda actor, key: _on_host(environment, episodes, actor, int(jax.random.bits(key)))
    play = mappo.make_evaluate(environment, episodes)

    def evaluate(actor, key):
        means = play(actor, key)
        return {"win_rate": means["won"], "return_mean": means["return"], "length_mean": means["length"]}

    return evaluate


def _on_host(environment: HostEnvironment, episodes: int, actor, seed: int) -> dict[str, float]:
    facts = {}
    for prefix, quality in (("", Quality(("sampled",))), ("greedy_", Quality(("greedy",), temperature=0.0))):
        played, _ = collect(environment, [actor], quality, seed=seed, episodes=episodes)
        statistics = data.statistics(played)
        facts |= {f"{prefix}{name}": statistics[name] for name in ("return_mean", "return_sd", "length_mean")}
    return facts


@contextlib.contextmanager
def evaluating(environment: Environment | HostEnvironment, act: acts.Act, episodes: int) -> Iterator[training.Evaluate]:
    """Yield `evaluate(params, key)`, which plays episodes and compiles once for all policies.

    Args:
        environment: where to play.
        act: as in `acts.Behaviour`.
        episodes: how many.
    """
    with player(environment, act, episodes) as play:

        def evaluate(params, key):
            played = play(Request(params, int(jax.random.bits(key)), enough=episodes))
            joined = (np.concatenate(field) for field in zip(*itertools.islice(played, episodes), strict=True))
            statistics = data.statistics(data.Episodes(*joined))
            return {name: statistics[name] for name in ("return_mean", "return_sd", "length_mean", "win_rate")}

        yield evaluate


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status.

    Args:
        argv: the program's name and flags.
    """
    return frame.main(argv, __doc__, _flags(), _train)


def _train(values: flags.FlagValues) -> None:
    name = values.environment if "/" in values.environment else f"smax/{values.environment}"
    own = {key: values[key].value for key in (*meanings(Settings), *RULE) if values[key].value is not None}
    if name not in RECIPES:
        if values.every:
            raise ConfigError(f"--every: expected --snapshots for {name}, which has no recipe, found {values.every}")
        train_anywhere(name, Path(values.out), own, seed=values.seed, episodes=values.episodes)
        return
    if own:
        raise ConfigError(f"--{next(iter(own))}: expected no such flag for {name}, which has a recipe of its own")
    require_folder(Path(values.out))
    options = {key: values[key].value for key in ("seed", "every", "episodes")}
    training.train(name, Path(values.out), make_evaluate, **options)


def train_anywhere(name: str, out: Path, own: dict[str, float], *, seed: int, episodes: int = 0) -> None:
    """Train in an environment without a recipe, and print what each stage reached.

    Args:
        name: the environment's name.
        out: folder for the files.
        own: fields of `behaviour.settings.Settings` and `training.Rule` that differ from their defaults.
        seed: seed of the training.
        episodes: episodes to evaluate a snapshot on; 0: the default.

    Raises:
        ConfigError: a value is wrong, or no snapshot is better than random play.
    """
    rule = training.Rule(**{key: value for key, value in own.items() if key in RULE} | _given(episodes))
    settings = dataclasses.replace(GENERAL, **{key: value for key, value in own.items() if key not in RULE})
    environment = envs.make(name)
    require_folder(out)
    words = [f"--{key}={value}" for key, value in (own | _given(episodes)).items()]
    command = " ".join([training.command_of(name), *words, f"--seed={seed}"])
    discrete, key = environment.spec.discrete, jax.random.key(seed)
    with evaluating(environment, acts.uniform(discrete), rule.episodes) as evaluate:
        chance = evaluate((), key)["return_mean"]
    print(f"random play: return_mean {chance:.3f}", flush=True)
    sizes = f"{settings.num_updates} updates of {settings.num_envs} environments x {settings.rollout} steps"
    print(f"training for {settings.total_steps:,} steps: {sizes}", flush=True)
    with evaluating(environment, acts.sampler(1.0), rule.episodes) as evaluate:
        options = {"seed": seed, "command": command}
        named = training.train_by_rule(environment, settings, out, evaluate, chance, rule, **options)
    for stage, snapshot in named.items():
        print(f"{stage:<10} is the snapshot {snapshot}")
    if named["medium"] == named["expert"]:
        print("note: medium and expert are the same snapshot; take more --snapshots to tell them apart")


def _given(episodes: int) -> dict[str, int]:
    return {"episodes": episodes} if episodes else {}


def _flags() -> flags.FlagValues:
    values, define = new_flags()
    define("string", "environment", "smax/3m", "Family and scenario, or your module and scenario.")
    define("alias", "scenario", "environment")
    define("string", "out", "weights", "Folder for the npz files, created if it does not exist.")
    define("integer", "seed", 0, "Seed of the training.")
    whole = functools.partial(define, "integer", lower_bound=0)
    whole("episodes", 0, "Episodes a snapshot is evaluated on; 0: as the recipe says, or 100.")
    whole("every", 0, "With a recipe: about how many environment steps lie between additional snapshots.")
    for settings, shown in ((training.Rule(), RULE), (GENERAL, tuple(meanings(Settings)))):
        texts = meanings(type(settings))
        for name in shown:
            value = getattr(settings, name)
            kind = {bool: "boolean", int: "integer", float: "float"}[type(value)]
            define(kind, name, None, f"Without a recipe: {texts[name]}; {value} by default.")
    return values
