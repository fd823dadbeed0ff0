"""The command that makes an offline dataset from rollouts of a policy in a simulator.

    python experiments/collect.py --environment=smax/5m_vs_6m --quality=medium --episodes=1000 --seed=0
    python experiments/collect.py --environment=mamujoco/Hopper_3x1 --quality=expert --transitions=1000000
    python experiments/collect.py --environment=my_module/easy --policy=random
    python experiments/collect.py --environment=my_module/easy --weights=weights --quality=medium_replay
    python experiments/collect.py --environment=my_module/easy --policy=runs/mine --random_share=0.3

--quality names a dataset of the policies that come with the package or, with --weights=FOLDER, of the stages that
train_behaviour.py saved there: expert, medium, medium_replay, medium_expert, or the name of a stage or snapshot.
--policy is any other policy: `random`, the directory of a finished run, the folder of a saved policy, an npz file of
train_behaviour.py, or `module:function`, a function of your own. function(obs [N, O], avail [N, A], key) returns
actions [N], or [N, A] in [-1, 1]. Write it in JAX. If the simulator runs on the host, NumPy works too, and `key` is
two integers to seed a generator with. With --policy, --quality gives the dataset any name.

An existing file is not made again: it is fully checked and described.
"""

import os
import time
from collections.abc import Sequence

from absl import flags

from omcda_jax import data
from omcda_jax.behaviour.acts import Behaviour
from omcda_jax.behaviour.policies import QUALITIES
from omcda_jax.envs.base import task
from omcda_jax.runner import frame
from omcda_jax.runner.behaviours import behaviour
from omcda_jax.system import new_flags
from omcda_jax.types import ConfigError, DatasetError


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status.

    Args:
        argv: the program's name and flags.
    """
    return frame.main(argv, __doc__, _flags(), _collect)


def _collect(values: flags.FlagValues) -> None:
    request = {key: values[key].value for key in ("environment", "quality", "episodes", "transitions", "seed")}
    if request["episodes"] is None and request["transitions"] is None:
        by_transitions = task(request["environment"]).startswith("mamujoco/")
        request |= {"transitions": 100_000} if by_transitions else {"episodes": 1000}
    options = {key: values[key].value for key in ("policy", "weights", "checkpoint", "greedy", "random_share")}
    is_own = request["quality"] and (task(request["environment"]), request["quality"]) not in QUALITIES
    plain = all(options[key] == values[key].default for key in options)
    if is_own and plain and os.path.exists(values.out or data.default_path(**request)):
        run(request, None, values.out)
        return
    request["quality"], found = behaviour(request["environment"], request["quality"], **options)
    own = next((key for key in ("policy", "weights") if options[key] is not None), None)
    if own and values.out is None and (task(request["environment"]), request["quality"]) in QUALITIES:
        path = data.default_path(**request)
        raise ConfigError(
            f"--{own}: expected another --quality, or --out, because {path} is for policies that come with the package"
        )
    run(request, found, values.out)


def summary(path: os.PathLike, metadata: dict, seconds: float) -> str:
    """Describe a dataset in a few lines of text.

    Args:
        path: the file.
        metadata: as `data.read` returns it.
        seconds: wall-clock seconds that making or checking it took.
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


def run(request: dict, found: Behaviour | None, out: str | None = None) -> None:
    """Make a dataset, or check an existing one, and print what it contains.

    Args:
        request: `environment`, `quality`, `episodes` or `transitions`, and `seed`, see `data.ensure`.
        found: the policies to collect with; None if the file exists and says itself what made it.
        out: the file; None: `data.default_path`.

    Raises:
        ConfigError: a wrong value or a missing package.
        DatasetError: the existing file is damaged or is another dataset, or the file cannot be written.
    """
    began = time.monotonic()
    path = out or data.default_path(**request)
    if os.path.exists(path):
        print(f"{path} exists: checking it")
    path = data.ensure(**request, path=path, behaviour=found)
    _, _, metadata = data.read(path)
    holds = {**metadata, "episodes": metadata["statistics"]["episodes"]}
    for key, value in {**request, **(found.facts if found else {})}.items():
        if value is not None and holds.get(key) != value:
            raise DatasetError(f"{path}: {key}: expected {value!r}, found {holds.get(key)!r}; name another --out")
    print(summary(path, metadata, time.monotonic() - began))


def _flags() -> flags.FlagValues:
    values, define = new_flags()
    define("string", "environment", "smax/3m", "Family and scenario, or your module and scenario.")
    define(
        "string",
        "quality",
        None,
        "A stage (medium by default) or random; with --policy, any name for the dataset.",
    )
    define("string", "weights", None, "Folder of the stages, as train_behaviour.py made it; by default the package's.")
    define("string", "policy", None, "random, a run, a saved policy, an npz file or module:function; see above.")
    define("enum", "checkpoint", "latest", ["latest", "best"], "Which checkpoint of a run.")
    define("boolean", "greedy", False, "Take the likeliest actions instead of drawing them.")
    define("float", "random_share", 0.0, "Chance that an agent acts at random in a step.")
    define("integer", "episodes", None, "Episodes to keep; 1000 if no size is given, except for MuJoCo.")
    define("integer", "transitions", None, "Transitions to keep at least, in whole episodes; for MuJoCo 100000.")
    define("integer", "seed", 0, "Seed of the rollouts.")
    define("string", "out", None, "The file; by default a name under datasets/.")
    return values
