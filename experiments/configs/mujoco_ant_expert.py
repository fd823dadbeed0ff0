"""OMCDA on Ant, two agents with four joints each, expert data."""

from configs import _mujoco
from omcda_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    return _mujoco.base("mujoco_ant_expert", "Ant_2x4", "expert")
