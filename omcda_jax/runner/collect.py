"""The command that makes an offline dataset by rolling a behaviour policy out in a simulator.

    python experiments/collect.py --environment=smax/5m_vs_6m --quality=medium --episodes=1000 --seed=0
    python experiments/collect.py --environment=mamujoco/Hopper_3x1 --quality=expert --transitions=1000000

An existing file is not made again: it is checked from end to end and described.
"""

import functools
import os
import time
from collections.abc import Sequence

from absl import flags, logging

from omcda_jax import data
from omcda_jax.system import exit_status, read_flags
from omcda_jax.types import ConfigError, DatasetError


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status.

    Args:
        argv: the program's name and flags.
    """
    # absl's default makes jax report every accelerator it does not find
    logging.set_verbosity(logging.WARNING)
    return exit_status(functools.partial(_collect, argv))


def _collect(argv: Sequence[str]) -> None:
    values = _flags()
    extra = read_flags(values, argv)
    if values.help:
        print(f"{__doc__.strip()}\n{values.get_help()}")
        return
    if extra:
        raise ConfigError(f"expected flags only, found {' '.join(extra)!r}")
    request = {key: values[key].value for key in ("environment", "quality", "episodes", "transitions", "seed")}
    if request["episodes"] is None and request["transitions"] is None:
        by_transitions = request["environment"].startswith("mamujoco/")
        request |= {"transitions": 100_000} if by_transitions else {"episodes": 1000}
    run(request, values.out)


def summary(path: os.PathLike, metadata: dict, seconds: float) -> str:
    """Describe a dataset in a few lines of text.

    Args:
        path: the file.
        metadata: as `data.read` returns it.
        seconds: wall-clock seconds it took to get.
    """
    numbers = metadata["statistics"]
    lines = {
        "file": f"{path} ({os.path.getsize(path) / 1e6:.1f} MB)",
        "dataset": f"{metadata['environment']} {metadata['quality']}: {metadata['description']}",
        "transitions": f"{numbers['transitions']}",
        "episodes": f"{numbers['episodes']} kept of {metadata['rollouts']} played",
        "return": f"{numbers['return_mean']:.3f} ± {numbers['return_sd']:.3f} (sd),"
        f" from {numbers['return_min']:.3f} to {numbers['return_max']:.3f}",
        **({"win rate": f"{numbers['win_rate']:.3f}"} if "max_return" in metadata else {}),
        "length": f"{numbers['length_mean']:.1f}, from {numbers['length_min']} to {numbers['length_max']},"
        f" ended by the time limit {1 - numbers['terminated_rate']:.3f}",
        "seconds": f"{seconds:.1f}",
    }
    return "\n".join(f"{key:<12} {value}" for key, value in lines.items())


def run(request: dict, out: str | None = None) -> None:
    """Make a dataset, or check the one that is there, and print what it holds.

    Args:
        request: `environment`, `quality`, `episodes` or `transitions`, and `seed`, see `data.ensure`.
        out: the file; None is `data.default_path`.

    Raises:
        ConfigError: a wrong value or a missing package.
        DatasetError: the file is there and is damaged or another dataset, or cannot be written.
    """
    began = time.monotonic()
    path = out or data.default_path(**request)
    if os.path.exists(path):
        print(f"{path} exists: checking it")
    path = data.ensure(**request, path=path)
    _, _, metadata = data.read(path)
    holds = {**metadata, "episodes": metadata["statistics"]["episodes"]}
    for key, value in request.items():
        if value is not None and holds.get(key) != value:
            raise DatasetError(f"{path}: {key}: expected {value!r}, found {holds.get(key)!r}; name another --out")
    print(summary(path, metadata, time.monotonic() - began))


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    text = functools.partial(flags.DEFINE_string, flag_values=values)
    number = functools.partial(flags.DEFINE_integer, flag_values=values)
    text("environment", "smax/3m", "Family and scenario.")
    text("quality", "medium", "Which of the environment's datasets, medium or expert for instance.")
    number("episodes", None, "Episodes to keep; 1000 for SMAX if no size is given.")
    number("transitions", None, "Transitions to keep at least, in whole episodes; 100000 for MuJoCo by default.")
    number("seed", 0, "Seed of the rollouts.")
    text("out", None, "The file; by default a name under datasets/.")
    flags.DEFINE_boolean("help", False, "Show this.", short_name="h", flag_values=values)
    return values
