"""OMCDA on Hopper, three agents with one joint each, medium-expert data."""

from configs import _mujoco
from omcda_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    return _mujoco.base("mujoco_hopper_medium_expert", "Hopper_3x1", "medium_expert")
