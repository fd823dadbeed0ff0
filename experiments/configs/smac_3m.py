"""OMCDA on SMAX 3m: three marines against three, the quick one."""

from configs import _smac
from omcda_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    return _smac.base("smac_3m", "3m", critic_warmup=4_000, updates=15_000)
