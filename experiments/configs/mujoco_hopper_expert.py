"""OMCDA on Hopper, three agents with one joint each, expert data."""

from configs import _mujoco
from omcda_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    return _mujoco.base("mujoco_hopper_expert", "Hopper_3x1", "expert")
