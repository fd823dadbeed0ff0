"""OMCDA and related algorithms as pure JAX functions; see README.md for a ten-line training loop.

A name is imported only when it is used, so that commands answer signals before JAX is loaded.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omcda_jax.algorithms import ALGORITHMS, act, export, init, policy, update
    from omcda_jax.algorithms.bc import BcConfig
    from omcda_jax.algorithms.bcq import BcqConfig
    from omcda_jax.algorithms.cfcql import CfcqlConfig
    from omcda_jax.algorithms.comadice import ComadiceConfig
    from omcda_jax.algorithms.cql import CqlConfig
    from omcda_jax.algorithms.icq import IcqConfig
    from omcda_jax.algorithms.omar import OmarConfig
    from omcda_jax.algorithms.omcda import OmcdaConfig
    from omcda_jax.algorithms.omiga import OmigaConfig
    from omcda_jax.allocation import allocate, conservatism_level, influence
    from omcda_jax.envs.base import Environment, HostEnvironment, TimeStep
    from omcda_jax.types import (
        Actor,
        Algorithm,
        Batch,
        BatchError,
        ConfigError,
        DatasetError,
        EnvSpec,
        Metrics,
        Normaliser,
        Params,
        TrainState,
    )

    __version__: str

__all__ = [
    "ALGORITHMS",
    "Actor",
    "Algorithm",
    "Batch",
    "BatchError",
    "BcConfig",
    "BcqConfig",
    "CfcqlConfig",
    "ComadiceConfig",
    "ConfigError",
    "CqlConfig",
    "DatasetError",
    "EnvSpec",
    "Environment",
    "HostEnvironment",
    "IcqConfig",
    "Metrics",
    "Normaliser",
    "OmarConfig",
    "OmcdaConfig",
    "TimeStep",
    "OmigaConfig",
    "Params",
    "TrainState",
    "act",
    "allocate",
    "conservatism_level",
    "export",
    "influence",
    "init",
    "policy",
    "update",
]

# modules that define the names; the first one that has a name counts
_PLACES = (
    "algorithms",
    "allocation",
    "envs.base",
    "types",
    *(f"algorithms.{name}" for name in ("bc", "bcq", "cfcql", "comadice", "cql", "icq", "omar", "omcda", "omiga")),
)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        metadata = importlib.import_module("importlib.metadata")
        try:
            return metadata.version("omcda-jax")
        except metadata.PackageNotFoundError:
            return "0+unknown"  # a checkout that was never installed
    if name in __all__:
        for place in _PLACES:
            module = importlib.import_module(f"omcda_jax.{place}")
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module 'omcda_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
