"""OMCDA on SMAX 6h_vs_8z: six hydralisks against eight zealots, episodes of about 40 steps."""

from configs import _smac
from omcda_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    return _smac.base("smac_6h8z", "6h_vs_8z")
