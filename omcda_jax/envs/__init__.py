"""Simulators written in JAX (`Environment`) or outside it (`HostEnvironment`); see `base`.

Each family is imported only when it is needed. Any other family is a module of the user's own with a function
`make(scenario)`, see experiments/examples.
"""

import importlib
import importlib.util
import os
import traceback

from omcda_jax.envs.base import Environment, HostEnvironment
from omcda_jax.envs.contract import check
from omcda_jax.system import one_line
from omcda_jax.types import ConfigError, suggestion

FAMILIES = {
    "smax": "omcda_jax.envs.smax",
    "mamujoco": "omcda_jax.envs.mamujoco",
    "mjx": "omcda_jax.envs.mjx",
    "smac": "omcda_jax.envs.smac",
    "mpe": "omcda_jax.envs.mpe",
    "pettingzoo": "omcda_jax.envs.pettingzoo",
}


def make(name: str) -> Environment | HostEnvironment:
    """Return the environment called `family/scenario`, for instance `smax/3m` or `mamujoco/Hopper_3x1`.

    Args:
        name: a family of `FAMILIES` or an importable module, a slash, and one of the family's scenarios.

    Raises:
        ConfigError: there is no such family or scenario, the family's optional package is not installed, or a module
            of the user's own does not return what `contract.check` expects.
    """
    family, slash, scenario = name.partition("/")
    module = FAMILIES.get(family, family)
    if not slash or not scenario or (family not in FAMILIES and not _importable(family)):
        meant = f"; {suggestion(family, FAMILIES)}" if family not in FAMILIES else ""
        known = ", ".join(f"{known}/<scenario>" for known in FAMILIES)
        raise ConfigError(f"environment: expected {known} or <your module>/<scenario>, found {name!r}{meant}")
    if family in FAMILIES:
        return importlib.import_module(module).make(scenario)
    try:
        builder = getattr(importlib.import_module(module), "make", None)
    except Exception as error:  # any error of the module
        raise ConfigError(f"environment {name}: cannot import {module}: {_placed(error, module)}") from error
    if builder is None:
        raise ConfigError(f"environment {name}: expected a function make(scenario) in {module}, found none")
    try:
        environment = builder(scenario)
        check(environment, name)
    except ConfigError:
        raise
    except Exception as error:  # any error of the module
        raise ConfigError(f"environment {name}: {_placed(error, module)}") from error
    return environment


def _placed(error: Exception, module: str) -> str:
    """Return an error on one line, with its place in the user's module if it passed through that module."""
    origin = importlib.util.find_spec(module).origin
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == origin]
    place = f" ({os.path.basename(origin)}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {one_line(error)}{place}"


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
