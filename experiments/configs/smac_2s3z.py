"""OMCDA on SMAX 2s3z: two stalkers and three zealots on each side, episodes of about 65 steps."""

import dataclasses

from configs import _smac
from omcda_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    config = _smac.base("smac_2s3z", "2s3z")
    return dataclasses.replace(
        config,
        # Credit travels one step in about 200 updates, hence the longer warm-up for longer episodes.
        algorithm=dataclasses.replace(config.algorithm, critic_warmup=10_000),
        learner=dataclasses.replace(config.learner, updates=30_000),
    )
