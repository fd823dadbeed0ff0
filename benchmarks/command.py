"""The common frame of benchmarks with work that can fail."""

import os
from collections.abc import Callable, Sequence

from absl import flags

from omcda_jax.behaviour import policies
from omcda_jax.config import DataConfig
from omcda_jax.runner import datasets, frame
from omcda_jax.types import ConfigError


def main(argv: Sequence[str], usage: str, values: flags.FlagValues, work: Callable[[flags.FlagValues], bool]) -> int:
    """Run one command line as `frame.main` does, and return 1 if `work` returns False."""
    succeeded: list[bool] = []
    status = frame.main(argv, usage, values, lambda values: succeeded.append(work(values)))
    return status or int(succeeded == [False])


def check_data(settings: DataConfig) -> None:
    """Refuse data that are missing and cannot be collected, before anything is trained.

    Raises:
        ConfigError: there is nothing at `data.path`, or as in `policies.quality`.
    """
    path = datasets.path_of(settings)
    if os.path.exists(path):
        return
    if settings.path is not None:
        raise ConfigError(f"{path}: expected a dataset file, found nothing there")
    if settings.quality != "random":
        policies.quality(settings.environment, settings.quality)
