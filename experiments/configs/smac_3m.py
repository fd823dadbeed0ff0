"""OMCDA on SMAX 3m: three marines against three, the quick one."""

import dataclasses

from configs import _smac
from omcda_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    config = _smac.base("smac_3m", "3m")
    return dataclasses.replace(config, learner=dataclasses.replace(config.learner, updates=15_000))
