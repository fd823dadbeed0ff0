"""OMCDA and its relatives as pure JAX functions; see README.md for a ten-line training loop."""

from omcda_jax.algorithms import ALGORITHMS, act, init, update
from omcda_jax.algorithms.bc import BcConfig
from omcda_jax.algorithms.bcq import BcqConfig
from omcda_jax.algorithms.cfcql import CfcqlConfig
from omcda_jax.algorithms.comadice import ComadiceConfig
from omcda_jax.algorithms.cql import CqlConfig
from omcda_jax.algorithms.icq import IcqConfig
from omcda_jax.algorithms.omar import OmarConfig
from omcda_jax.algorithms.omcda import OmcdaConfig
from omcda_jax.algorithms.omiga import OmigaConfig
from omcda_jax.allocation import allocate, influence
from omcda_jax.envs.base import Environment, HostEnvironment, TimeStep
from omcda_jax.types import Algorithm, Batch, ConfigError, DatasetError, EnvSpec, Metrics, Normaliser, TrainState

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "Batch",
    "BcConfig",
    "BcqConfig",
    "CqlConfig",
    "IcqConfig",
    "OmarConfig",
    "OmigaConfig",
    "CfcqlConfig",
    "ComadiceConfig",
    "ConfigError",
    "DatasetError",
    "EnvSpec",
    "Environment",
    "HostEnvironment",
    "Metrics",
    "Normaliser",
    "OmcdaConfig",
    "TimeStep",
    "TrainState",
    "act",
    "allocate",
    "influence",
    "init",
    "update",
]
