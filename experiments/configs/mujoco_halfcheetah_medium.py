"""OMCDA on HalfCheetah, six agents with one joint each, medium data."""

from configs import _mujoco
from omcda_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    return _mujoco.base("mujoco_halfcheetah_medium", "HalfCheetah_6x1", "medium")
