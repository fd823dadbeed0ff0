"""OMCDA on SMAX corridor: six zealots against 24 zerglings, episodes of about 50 steps."""

import dataclasses

from configs import _smac
from omcda_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    config = _smac.base("smac_corridor", "corridor")
    return dataclasses.replace(
        config,
        algorithm=dataclasses.replace(config.algorithm, critic_warmup=10_000),
        learner=dataclasses.replace(config.learner, updates=30_000),
    )
