"""Simulators behind two small protocols, `types.Environment` for those written in JAX and `types.HostEnvironment`.

Each family is imported only when it is asked for.
"""

import difflib
import importlib

from omcda_jax.types import ConfigError, Environment, HostEnvironment

FAMILIES = {"smax": "omcda_jax.envs.smax", "mamujoco": "omcda_jax.envs.mamujoco"}


def make(name: str) -> Environment | HostEnvironment:
    """Builds the environment called `family/scenario`, for instance `smax/3m` or `mamujoco/Hopper_3x1`.

    Args:
        name: a family of `FAMILIES`, a slash, and one of the family's scenarios.

    Raises:
        ConfigError: no such family or scenario, or the family's optional package is not installed.
    """
    family, slash, scenario = name.partition("/")
    if family not in FAMILIES or not slash or not scenario:
        known = ", ".join(f"{known}/<scenario>" for known in FAMILIES)
        close = difflib.get_close_matches(family, FAMILIES, n=1)
        hint = f" (did you mean {close[0]}/{scenario or '<scenario>'}?)" if close else ""
        raise ConfigError(f"environment: expected one of {known}, found {name!r}{hint}")
    return importlib.import_module(FAMILIES[family]).make(scenario)
