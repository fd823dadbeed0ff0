"""OMCDA on SMAX 2s3z: two stalkers and three zealots on each side, episodes of about 65 steps."""

from configs import _smac
from omcda_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    return _smac.base("smac_2s3z", "2s3z", updates=30_000)
