"""OMCDA and its relatives as pure JAX functions; see README.md for a ten-line training loop."""

from omcda_jax.algorithms import ALGORITHMS, act, init, update
from omcda_jax.algorithms.bc import BcConfig
from omcda_jax.algorithms.omcda import OmcdaConfig
from omcda_jax.allocation import allocate, influence
from omcda_jax.types import Algorithm, Batch, ConfigError, DatasetError, EnvSpec, Metrics, Normaliser, TrainState

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "Batch",
    "BcConfig",
    "ConfigError",
    "DatasetError",
    "EnvSpec",
    "Metrics",
    "Normaliser",
    "OmcdaConfig",
    "TrainState",
    "act",
    "allocate",
    "influence",
    "init",
    "update",
]
