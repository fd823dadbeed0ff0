"""OMCDA on SMAX 5m_vs_6m: five marines against six, episodes of 15 to 40 steps."""

from configs import _smac
from omcda_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    return _smac.base("smac_5m6m", "5m_vs_6m")
