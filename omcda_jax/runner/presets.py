"""The presets: a task, how long to learn on it, and the settings that suit each algorithm there.

The algorithms' defaults are published values; their files name the sources. The SMAX presets scale rewards by ten, so
that returns reach 20 as they do on SMAC. The MuJoCo presets scale them by a tenth. Temperatures in units of return are
therefore a tenth of the published ones there, and distances that are added to returns have a tenth of the weight: for
OMIGA, ComaDICE, ICQ's policy and OMAR's actor. The loss is the same up to a factor. Penalties, and alpha on SMAX, are
the best of three values a factor of ten apart; on MuJoCo all penalties are CQL's.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from omcda_jax.algorithms import find
from omcda_jax.config import (
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    LearnerConfig,
    apply_overrides,
    replace_settings,
)
from omcda_jax.types import ConfigError, suggestion


class Preset(NamedTuple):
    """One task and how to learn it.

    Attributes:
        description: one line.
        data: which dataset.
        learner: how long to learn.
        evaluation: how to evaluate the policy.
        settings: settings that differ from the defaults, by algorithm.
        shared: settings for every algorithm that has such a field, whatever its default.
        algorithm: the algorithm to train unless another is named.
    """

    description: str
    data: DataConfig
    learner: LearnerConfig
    evaluation: EvaluationConfig
    settings: Mapping[str, Mapping[str, Any]]
    shared: Mapping[str, Any] = {}
    algorithm: str = "omcda"


def _smac(
    scenario: str,
    description: str,
    *,
    priming: int = 4_000,
    updates: int = 8_000,
    episodes: int = 1000,
    batch_size: int = 256,
) -> Preset:
    """Episodes of the medium behaviour policy. Critics see them about 20 times or more before a policy follows them."""
    return Preset(
        description=f"SMAX {scenario}: {description}",
        # SMAX returns are at most 2, SMAC's 20
        data=DataConfig(environment=f"smax/{scenario}", quality="medium", episodes=episodes, reward_scale=10.0),
        learner=LearnerConfig(updates=updates, batch_size=batch_size),
        evaluation=EvaluationConfig(episodes=256),
        settings={
            "omcda": dict(d_tot=0.6, price=0.006, critic_warmup=priming, critics=1),
            "cql": dict(penalty=100.0),
            "omar": dict(penalty=100.0),
            "omiga": dict(alpha=1.0),
            # the critic waits for the behaviour clone
            "cfcql": dict(penalty=500.0, behaviour_updates=2_000),
            "comadice": dict(alpha=1.0),
        },
        # the average of some 300 policies is steadier than the newest policy, and no worse
        shared=dict(priming=priming, policy_average_rate=0.003),
    )


def _mujoco(scenario: str, quality: str, description: str) -> Preset:
    """100,000 transitions, with rewards on SMAC's scale, which suits the critics' initial values."""
    return Preset(
        description=f"MuJoCo {description}, {quality.replace('_', '-')} data",
        data=DataConfig(
            environment=f"mamujoco/{scenario}",
            quality=quality,
            episodes=None,
            transitions=100_000,
            reward_scale=0.1,
            normalise=True,
        ),
        learner=LearnerConfig(updates=30_000, batch_size=128, evaluate_every=2_000, checkpoint_every=2_000),
        evaluation=EvaluationConfig(episodes=20),
        settings={
            "omcda": dict(d_tot=1.2, d_min=0.001, price=0.006, critic_warmup=3_000, num_samples=2),
            "cql": dict(penalty=10.0),
            "icq": dict(policy_temperature=10.0),
            # published c = .7: .7 |pi - a*|^2 - .3 q. Here q has ten times the weight; the weights' sum is divided out
            "omar": dict(coefficient=0.7 / 3.7, penalty=10.0),
            "omiga": dict(alpha=1.0),
            # equally weighted agents need no behaviour clone
            "cfcql": dict(penalty=10.0, temperature=0.0, behaviour_updates=0),
            "comadice": dict(alpha=1.0),
        },
        shared=dict(
            priming=3_000,
            # quicker targets than SMAC's: credit has to travel about 100 steps
            target_rate=0.01,
            # a single policy's return swings by half from one checkpoint to the next; the averaged policy's does not
            policy_average_rate=0.001,
            critic_layer_norm=True,
        ),
    )


def _mpe(environment: str, description: str, *, normalise: bool = True) -> Preset:
    """1000 episodes of 25 steps; returns are about as large as SMAC's."""
    return Preset(
        description=f"MPE {description}",
        data=DataConfig(environment=environment, quality="medium_replay", normalise=normalise),
        learner=LearnerConfig(updates=10_000, evaluate_every=2_000, checkpoint_every=2_000),
        evaluation=EvaluationConfig(episodes=256),
        settings={"omcda": dict(critic_warmup=3_000)},
    )


_BODIES = {
    "ant": ("Ant_2x4", "Ant, two agents with four joints each"),
    "halfcheetah": ("HalfCheetah_6x1", "HalfCheetah, six agents with one joint each"),
    "hopper": ("Hopper_3x1", "Hopper, three agents with one joint each"),
}

PRESETS: dict[str, Preset] = {
    "smac_3m": _smac("3m", "three marines against three, the quick one", priming=3_000),
    "smac_2s3z": _smac(
        "2s3z",
        "two stalkers and three zealots on each side, episodes of about 65 steps",
        priming=6_000,
        updates=14_000,
    ),
    "smac_5m6m": _smac("5m_vs_6m", "five marines against six, episodes of 15 to 40 steps"),
    "smac_6h8z": _smac(
        "6h_vs_8z", "six hydralisks against eight zealots, episodes of about 40 steps", priming=5_000, updates=10_000
    ),
    "smac_corridor": _smac(
        "corridor", "six zealots against 24 zerglings, episodes of about 50 steps", priming=6_000, updates=14_000
    ),
    "smac_8m": _smac("8m", "eight marines against eight, episodes of about 17 steps"),
    "smac_3s5z": _smac(
        "3s5z",
        "three stalkers and five zealots on each side, episodes of about 77 steps",
        priming=6_000,
        updates=14_000,
    ),
    # 32 steps of 27 agents are as many rows as 288 steps of three agents
    "smac_27m30m": _smac("27m_vs_30m", "27 marines against 30, the test of scale", episodes=300, batch_size=32),
    "mpe_spread": _mpe("mpe/simple_spread", "simple spread: three agents share out three landmarks"),
    "mpe_tag": _mpe("mpe/simple_tag", "simple tag: three predators chase a prey that follows a rule"),
    "pettingzoo_spread": _mpe(
        "pettingzoo/mpe2.simple_spread_v3",
        "simple spread, discrete actions, on a dataset that you collect",
        normalise=False,
    ),
    "pettingzoo_spread_continuous": _mpe(
        "pettingzoo/mpe2.simple_spread_v3?continuous_actions=True",
        "simple spread, continuous actions, on a dataset that you collect",
    ),
} | {
    f"mujoco_{name}_{quality}": _mujoco(scenario, quality, description)
    for name, (scenario, description) in _BODIES.items()
    for quality in ("expert", "medium", "medium_expert", "medium_replay")
}


def algorithm_settings(preset: Preset, name: str) -> Any:
    """Return an algorithm's settings in a preset: its defaults, then the shared settings, then its own.

    Args:
        preset: the preset.
        name: the algorithm's name, see `omcda_jax.algorithms.find`.

    Raises:
        ConfigError: there is no such algorithm.
    """
    defaults = find(name).config()
    fields = {field.name for field in dataclasses.fields(defaults)}
    shared = {key: value for key, value in preset.shared.items() if key in fields}
    return replace_settings(defaults, shared | dict(preset.settings.get(name, {})))


def resolve(name: str | None, assignments: Sequence[str], flag: str = "--config") -> ExperimentConfig:
    """Return a preset with `key=value` assignments applied; `algorithm.name=NAME` takes another algorithm.

    Args:
        name: the preset's name.
        assignments: as in `apply_overrides`.
        flag: the flag that named the preset.

    Raises:
        ConfigError: a name or a key is unknown, or a value is refused.
    """
    if name not in PRESETS:
        problem = f"no config {name!r}" if name else "expected a config, found none"
        raise ConfigError(f"{flag}: {problem}; {suggestion(name or '', PRESETS)}")
    for text in assignments:
        if text.startswith("algorithm="):
            raise ConfigError(f"algorithm: expected algorithm.name=NAME or a setting of it, found {text!r}")
    preset, key = PRESETS[name], "algorithm.name="
    algorithms = [text.removeprefix(key) for text in assignments if text.startswith(key)]
    settings = algorithm_settings(preset, algorithms[-1] if algorithms else preset.algorithm)
    config = ExperimentConfig(name, settings, preset.data, preset.learner, preset.evaluation)
    return apply_overrides(config, [text for text in assignments if not text.startswith(key)])
