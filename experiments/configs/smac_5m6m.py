"""OMCDA on SMAX 5m_vs_6m: five marines against six, episodes of 15 to 40 steps."""

import dataclasses

from configs import _smac
from omcda_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    config = _smac.base("smac_5m6m", "5m_vs_6m")
    return dataclasses.replace(config, algorithm=dataclasses.replace(config.algorithm, critic_warmup=10_000))
