"""The common frame of benchmarks with work that can fail."""

import os
from collections.abc import Callable, Sequence

from absl import flags

from omcda_jax import data
from omcda_jax.behaviour import policies
from omcda_jax.config import DataConfig
from omcda_jax.runner import frame


def main(argv: Sequence[str], usage: str, values: flags.FlagValues, work: Callable[[flags.FlagValues], bool]) -> int:
    """Run one command line as `frame.main` does, and return 1 if `work` returns False."""
    succeeded: list[bool] = []
    status = frame.main(argv, usage, values, lambda values: succeeded.append(work(values)))
    return status or int(succeeded == [False])


def check_data(settings: DataConfig) -> None:
    """Refuse data that are missing and cannot be collected, before anything is trained.

    Raises:
        ConfigError: as in `policies.quality`.
    """
    sizes = settings.episodes, settings.seed, settings.transitions
    path = settings.path or data.default_path(settings.environment, settings.quality, *sizes)
    if settings.quality != "random" and not os.path.exists(path):
        policies.quality(settings.environment, settings.quality)
