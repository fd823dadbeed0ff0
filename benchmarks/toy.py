"""The runner on a simulator that is small enough to be stopped, killed and damaged a hundred times.

    python -m benchmarks.toy write DATA.h5
    python -m benchmarks.toy run [signal=PHASE:DELAY] --config=smac_3m ...

`run` is `omcda-jax run` with this simulator instead of SMAX. With `signal`, the process gets SIGTERM DELAY seconds
after it first enters a phase: data, compile, train, evaluate, save or result. `omcda-jax run` itself accepts the
simulator by the name `benchmarks.toy/any`, with a dataset of that name.
"""

import dataclasses
import functools
import os
import signal
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np

from omcda_jax import data, envs
from omcda_jax.checkpoint import Checkpoints
from omcda_jax.envs.base import Environment, TimeStep
from omcda_jax.metrics import Progress
from omcda_jax.runner import evaluation, run
from omcda_jax.runner.main import main as main_of_package
from omcda_jax.types import EnvSpec

SPEC = EnvSpec(num_agents=2, obs_dim=3, state_dim=2, action_dim=3, discrete=True)
LENGTH = 4
VERSIONS = {"toysim": "1.0"}


def environment() -> Environment:
    """Four steps; each pays a quarter for every agent that plays action 1. Won if all of them always did."""

    def show(time, reward, total):
        return TimeStep(
            obs=jnp.broadcast_to(time / LENGTH, (2, 3)),
            global_state=jnp.broadcast_to(time / LENGTH, (2,)),
            avail=jnp.ones((2, 3), bool),
            reward=reward,
            terminated=time == LENGTH,
            truncated=jnp.array(False),
            won=total == 2.0,
        )

    def reset(key):
        nothing = (jnp.float32(0), jnp.float32(0))
        return nothing, show(jnp.float32(0), jnp.float32(0), jnp.float32(0))

    def step(key, env_state, action):
        reward = 0.25 * (action == 1).sum().astype(jnp.float32)
        time, total = env_state[0] + 1, env_state[1] + reward
        return (time, total), show(time, reward, total)

    return Environment("smax/toy", SPEC, LENGTH, 2.0, VERSIONS, reset, step)


def make(scenario: str) -> Environment:
    """The simulator, for a run that names it `benchmarks.toy/any`."""
    return dataclasses.replace(environment(), name=f"benchmarks.toy/{scenario}")


def episodes(count: int = 6) -> data.Episodes:
    """Agent 0 always plays 1, agent 1 every other step: every return is 4 x 0.25 + 2 x 0.25 = 1.5."""
    rows = count * (LENGTH + 1)
    time = np.tile(np.arange(LENGTH + 1, dtype=np.float32), count)
    playing = time < LENGTH
    second = np.where((np.arange(rows) % 2) == 0, 1, 2)
    action = np.stack([np.where(playing, 1, 0), np.where(playing, second, 0)], axis=1).astype(np.int32)
    return data.Episodes(
        obs=np.broadcast_to((time / LENGTH)[:, None, None], (rows, 2, 3)).astype(np.float32),
        global_state=np.broadcast_to((time / LENGTH)[:, None], (rows, 2)).astype(np.float32),
        avail=np.ones((rows, 2, 3), bool),
        action=action,
        reward=(0.25 * (action == 1).sum(axis=1) * playing).astype(np.float32),
        length=np.full(count, LENGTH, np.int32),
        terminated=np.ones(count, bool),
        won=np.zeros(count, bool),
    )


def write(path: str | os.PathLike, name: str = "smax/toy") -> None:
    """Write the simulator's dataset, as if made in an environment of this name."""
    data.write(path, SPEC, episodes(), {"environment": name, "quality": "medium", "versions": VERSIONS})


def arguments(path: str | os.PathLike, *more: str, updates: int = 60) -> list[str]:
    """A command line of a run on the dataset at `path`: behaviour cloning with a tiny network."""
    return [
        "--config=smac_3m",
        "--config.algorithm.name=bc",
        "--config.algorithm.hidden_sizes=8",
        "--config.algorithm.learning_rate=0.01",
        "--config.data.environment=smax/toy",
        f"--config.data.path={path}",
        f"--config.learner.updates={updates}",
        "--config.learner.updates_per_call=10",
        "--config.learner.log_every=10",
        "--config.learner.checkpoint_every=20",
        "--config.learner.evaluate_every=30",
        "--config.learner.batch_size=8",
        "--config.evaluation.episodes=4",
        *more,
    ]


def _signal_in(phase: str, delay: float) -> None:
    places = {
        "data": (data, "load"),
        "compile": (jax.stages.Lowered, "compile"),
        "train": (Progress, "update"),
        "evaluate": (evaluation, "summarise"),
        "save": (Checkpoints, "save"),
        "result": (run, "fingerprints"),
    }
    owner, name = places[phase]
    original, entered = getattr(owner, name), []

    @functools.wraps(original)
    def wrapped(*arguments, **options):
        if not entered:
            entered.append(phase)
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGTERM)).start()
        return original(*arguments, **options)

    setattr(owner, name, wrapped)


def main(argv: list[str]) -> None:
    """Do what the module's docstring says; `run` ends the process."""
    if argv[1] == "write":
        write(argv[2])
        return
    envs.make = lambda name: environment()
    rest = argv[2:]
    if rest and rest[0].startswith("signal="):
        phase, _, delay = rest.pop(0).partition("=")[2].partition(":")
        _signal_in(phase, float(delay))
    main_of_package(["run", *rest])


if __name__ == "__main__":
    main(sys.argv)
