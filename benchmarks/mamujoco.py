"""How fast multi-agent MuJoCo steps.

    python -m benchmarks.mamujoco

Prints a Markdown table: steps per second of 32 copies under the same random actions, where an episode restarts when the
robot falls, and in brackets the ratio to gymnasium-robotics' own environments. All ways are measured in one run and
alternate every ten steps; the median counts.

    wrapper    gymnasium-robotics' multi-agent environments, one after the other
    gymnasium  its single-agent environments, one after the other: no local observations
    processes  the same, divided among one process per core
    physics    MuJoCo's own two functions, called from Python in one thread per core: no rewards, no endings
    omcda_jax  envs.make(...).open(32)
"""

import concurrent.futures
import contextlib
import itertools
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
from absl import flags

from omcda_jax import envs
from omcda_jax.envs import mamujoco
from omcda_jax.runner.frame import main
from omcda_jax.system import new_flags, printing

SCENARIOS = ("Hopper_3x1", "HalfCheetah_6x1", "Ant_2x4")
COPIES = 32
TURNS = 40
STEPS_PER_TURN = 10
CORES = os.cpu_count() or 1


def wrapper(scenario: str) -> Callable[[np.ndarray], None]:
    """Step gymnasium-robotics' environments with actions [COPIES, nu]."""
    copies = [mamujoco.build(scenario) for _ in range(COPIES)]
    for seed, env in enumerate(copies):
        env.reset(seed=seed)

    def step(actions):
        for env, action in zip(copies, actions, strict=True):
            _, _, terminated, _, _ = env.step(env.map_global_action_to_local_actions(action))
            if terminated[env.possible_agents[0]]:
                env.reset()

    return step


def gymnasium(scenario: str, copies: int = COPIES) -> Callable[[np.ndarray], None]:
    """Step Gymnasium's single-agent environments with actions [copies, nu]."""
    bodies = [mamujoco.build(scenario).single_agent_env.unwrapped for _ in range(copies)]
    for seed, body in enumerate(bodies):
        body.reset(seed=seed)

    def step(actions):
        for body, action in zip(bodies, actions, strict=True):
            _, _, terminated, _, _ = body.step(action)
            if terminated:
                body.reset()

    return step


def _serve(pipe, scenario: str, copies: int) -> None:
    step = gymnasium(scenario, copies)
    pipe.send(None)
    while (actions := pipe.recv()) is not None:
        step(actions)
        # about the size of what would have to be sent: states, rewards, endings
        pipe.send(np.zeros((copies, 32)))


@contextlib.contextmanager
def processes(scenario: str) -> Iterator[Callable[[np.ndarray], None]]:
    """Step Gymnasium's single-agent environments in processes."""
    context = multiprocessing.get_context("spawn")
    workers = []
    for part in np.array_split(np.arange(COPIES), CORES):
        here, there = context.Pipe()
        worker = context.Process(target=_serve, args=(there, scenario, len(part)), daemon=True)
        worker.start()
        workers.append((here, worker, part))
    for pipe, _, _ in workers:
        pipe.recv()

    def step(actions):
        for pipe, _, part in workers:
            pipe.send(actions[part])
        for pipe, _, _ in workers:
            pipe.recv()

    yield step
    for pipe, worker, _ in workers:
        pipe.send(None)
        worker.join()


def physics(scenario: str) -> Callable[[np.ndarray], None]:
    """Advance MuJoCo's data alone; a copy restarts every 50 steps instead of when it falls."""
    from mujoco import mj_resetData, mj_rnePostConstraint, mj_step

    bodies = [mamujoco.build(scenario).single_agent_env.unwrapped for _ in range(COPIES)]
    pool = concurrent.futures.ThreadPoolExecutor(CORES)
    parts = np.array_split(np.arange(COPIES), CORES)
    count = itertools.count(1)

    def step(actions):
        done = next(count)

        def advance(part):
            for copy in part:
                body = bodies[copy]
                if done % 50 == 0:
                    mj_resetData(body.model, body.data)
                body.data.ctrl[:] = actions[copy]
                mj_step(body.model, body.data, nstep=body.frame_skip)
                mj_rnePostConstraint(body.model, body.data)

        list(pool.map(advance, parts))

    return step


def ours(scenario: str) -> Callable[[np.ndarray], None]:
    """Step the library's simulators with the same actions, divided among the agents."""
    env = mamujoco.build(scenario)
    joints = np.array([[node.act_ids for node in part] for part in env.agent_action_partitions])
    simulators, index = envs.make(f"mamujoco/{scenario}").open(COPIES), np.arange(COPIES)
    simulators.reset(index, index)

    def step(actions):
        fallen = np.flatnonzero(simulators.step(index, actions[:, joints]).terminated)
        simulators.reset(fallen, fallen)

    return step


def stepping(scenario: str) -> dict[str, float]:
    """Steps per second of every way."""
    random = np.random.default_rng(0)
    width = mamujoco.build(scenario).single_agent_env.action_space.shape[0]
    actions = random.uniform(-1, 1, (STEPS_PER_TURN, COPIES, width)).astype(np.float32)
    with processes(scenario) as in_processes:
        ways = {
            "wrapper": wrapper(scenario),
            "gymnasium": gymnasium(scenario),
            "processes": in_processes,
            "physics": physics(scenario),
            "omcda_jax": ours(scenario),
        }
        seconds = {name: [] for name in ways}
        for _ in range(TURNS):
            for name, step in ways.items():
                began = time.perf_counter()
                for action in actions:
                    step(action)
                seconds[name].append(time.perf_counter() - began)
    return {name: STEPS_PER_TURN * COPIES / statistics.median(taken) for name, taken in seconds.items()}


def work(values: flags.FlagValues) -> None:
    """Print the table."""
    print(f"{CORES} cores, load {os.getloadavg()[0]:.1f}\n")
    for row, scenario in enumerate(SCENARIOS):
        rates = stepping(scenario)
        if row == 0:
            print(f"| steps/s | {' | '.join(rates)} |\n|{'---|' * (len(rates) + 1)}")
        cells = (f"{rate:,.0f} ({rate / rates['wrapper']:.2f})" for rate in rates.values())
        print(f"| {scenario} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    sys.exit(printing(lambda: main(sys.argv, __doc__, new_flags()[0], work)))
