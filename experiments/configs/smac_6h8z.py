"""OMCDA on SMAX 6h_vs_8z: six hydralisks against eight zealots, episodes of about 40 steps."""

import dataclasses

from configs import _smac
from omcda_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    config = _smac.base("smac_6h8z", "6h_vs_8z")
    return dataclasses.replace(config, algorithm=dataclasses.replace(config.algorithm, critic_warmup=10_000))
