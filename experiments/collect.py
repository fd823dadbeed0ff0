"""Makes an offline dataset by rolling a behaviour policy out in a simulator.

python experiments/collect.py --environment=smax/5m_vs_6m --quality=medium --episodes=1000 --seed=0
python experiments/collect.py --environment=mamujoco/Hopper_3x1 --quality=expert --transitions=1000000

An existing file is not made again: it is checked from end to end and described.
"""

import os
import sys
import time

from absl import app, flags, logging

from omcda_jax import data
from omcda_jax.types import ConfigError, DatasetError


def summary(path: os.PathLike, metadata: dict, seconds: float) -> str:
    """Describes a dataset in a few lines of text.

    Args:
        path: the file.
        metadata: as `data.read` returns it.
        seconds: wall-clock seconds it took to get.
    """
    found = metadata["statistics"]
    lines = {
        "file": f"{path} ({os.path.getsize(path) / 1e6:.1f} MB)",
        "dataset": f"{metadata['environment']} {metadata['quality']}: {metadata['description']}",
        "transitions": f"{found['transitions']}",
        "episodes": f"{found['episodes']} kept of {metadata['rollouts']} played",
        "return": f"{found['return_mean']:.3f} ± {found['return_sd']:.3f} (sd),"
        f" from {found['return_min']:.3f} to {found['return_max']:.3f}",
        **({"win rate": f"{found['win_rate']:.3f}"} if "max_return" in metadata else {}),
        "length": f"{found['length_mean']:.1f}, from {found['length_min']} to {found['length_max']},"
        f" ended by the time limit {1 - found['terminated_rate']:.3f}",
        "seconds": f"{seconds:.1f}",
    }
    return "\n".join(f"{key:<12} {value}" for key, value in lines.items())


def run(asked: dict, out: str | None = None) -> None:
    """Makes a dataset, or checks the one that is there, and prints what it holds.

    Args:
        asked: `environment`, `quality`, `episodes` or `transitions`, and `seed`, see `data.ensure`.
        out: the file; None is `data.default_path`.

    Raises:
        ConfigError: a wrong value or a missing package.
        DatasetError: the file is there and is damaged or another dataset, or cannot be written.
    """
    start = time.monotonic()
    path = out or data.default_path(**asked)
    if os.path.exists(path):
        print(f"{path} exists: checking it")
    path = data.ensure(**asked, path=path)
    _, _, metadata = data.read(path)
    holds = {**metadata, "episodes": metadata["statistics"]["episodes"]}
    for key, value in asked.items():
        if value is not None and holds.get(key) != value:
            raise DatasetError(f"{path}: {key}: expected {value!r}, found {holds.get(key)!r}; name another --out")
    print(summary(path, metadata, time.monotonic() - start))


def main(_) -> None:
    """Runs the script with absl's flags; exit status 78 is an error of the user's to mend."""
    # absl's default makes jax tell of every accelerator it does not find
    logging.set_verbosity(logging.WARNING)
    asked = {key: flags.FLAGS[key].value for key in ("environment", "quality", "episodes", "transitions", "seed")}
    if asked["episodes"] is None and asked["transitions"] is None:
        by_transitions = asked["environment"].startswith("mamujoco/")
        asked |= {"transitions": 100_000} if by_transitions else {"episodes": 1000}
    try:
        run(asked, flags.FLAGS.out)
    except (ConfigError, DatasetError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(78)


def define_flags() -> None:
    """Defines the script's flags."""
    flags.DEFINE_string("environment", "smax/3m", "Family and scenario.")
    flags.DEFINE_string("quality", "medium", "Which of the environment's datasets, medium or expert for instance.")
    flags.DEFINE_integer("episodes", None, "Episodes to keep; 1000 for SMAX if no size is given.")
    flags.DEFINE_integer(
        "transitions",
        None,
        "Transitions to keep at least, in whole episodes; 100000 for MuJoCo if no size is given.",
    )
    flags.DEFINE_integer("seed", 0, "Seed of the rollouts.")
    flags.DEFINE_string("out", None, "The file; by default a name under datasets/.")


if __name__ == "__main__":
    define_flags()
    app.run(main)
