"""The command that trains the behaviour policies whose rollouts are the datasets.

    python experiments/train_behaviour.py --environment=smax/3m --out=omcda_jax/behaviour/weights

Each environment has its recipe, see omcda_jax/behaviour/recipes.py: training phases, one after the other on the same
weights, and when the stages (poor, medium, good; or those named in `omcda_jax.behaviour.policies.QUALITIES`) are taken.
Every stage is evaluated in the simulator as it is stored, with sampled actions, and saved with what it reached. Another
machine or another version of JAX or of the simulator gives other weights from the same seed; expect about the same
figures, not the same numbers.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags, logging

from omcda_jax import data
from omcda_jax.behaviour import mappo, training
from omcda_jax.behaviour.policies import Quality
from omcda_jax.data.collect import collect
from omcda_jax.envs.base import Environment, HostEnvironment
from omcda_jax.system import exit_status, read_flags
from omcda_jax.types import ConfigError


def make_evaluate(environment: Environment | HostEnvironment, episodes: int) -> training.Evaluate:
    """Return `evaluate(actor, key)`, which gives the facts that are stored beside a policy's weights.

    It plays with sampled actions, and on the host with greedy ones too.

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


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status.

    Args:
        argv: the program's name and flags.
    """
    # absl's default makes jax report every accelerator it does not find
    logging.set_verbosity(logging.WARNING)
    return exit_status(functools.partial(_train, argv))


def _train(argv: Sequence[str]) -> None:
    values = _flags()
    extra = read_flags(values, argv)
    if values.help:
        print(f"{__doc__.strip()}\n{values.get_help()}")
        return
    if extra:
        raise ConfigError(f"expected flags only, found {' '.join(extra)!r}")
    name = values.environment if "/" in values.environment else f"smax/{values.environment}"
    options = {key: values[key].value for key in ("seed", "every", "episodes")}
    training.train(name, Path(values.out), make_evaluate, **options)


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    text = functools.partial(flags.DEFINE_string, flag_values=values)
    number = functools.partial(flags.DEFINE_integer, flag_values=values)
    text("environment", "smax/3m", "Family and scenario, with a recipe; smax/ may be left out.")
    flags.DEFINE_alias("scenario", "environment", flag_values=values)
    text("out", "weights", "Folder for the npz files, made if it is not there.")
    number("seed", 0, "Seed of the training.")
    number("every", 0, "Also save a snapshot about every so many environment steps; 0: stages only.")
    number("episodes", 0, "Episodes a snapshot is evaluated on; 0: as the recipe says.")
    flags.DEFINE_boolean("help", False, "Show this.", short_name="h", flag_values=values)
    return values
