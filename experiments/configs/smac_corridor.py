"""OMCDA on SMAX corridor: six zealots against 24 zerglings, episodes of about 50 steps."""

from configs import _smac
from omcda_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    return _smac.base("smac_corridor", "corridor", updates=30_000)
