"""Updates per second on 1, 2, 4, 8 devices, one trial spread over them and a population shared among them.

    python -m benchmarks.scaling                      # fake devices on the CPU
    python -m benchmarks.scaling --algorithm=omiga --trials=1,8,64 --devices=1
    python -m benchmarks.scaling --platform=cuda --devices=1 --trials=1,8,64

Every row is a process of its own on SMAX 5m_vs_6m's sizes with random data. On the CPU the devices are threads over the
same cores: the column to read there is the ratio to one device, the price of spreading, and it says nothing of what
real devices gain. Trial-updates per second count every trial of the population.
"""

import json
import os
import pathlib
import subprocess
import sys
import time

from absl import app, flags

ROOT = pathlib.Path(__file__).resolve().parents[1]
FLAGS = flags.FLAGS
flags.DEFINE_string("algorithm", "omcda", "which one")
flags.DEFINE_list("devices", ["1", "2", "4", "8"], "how many")
flags.DEFINE_list("trials", ["8"], "sizes of the population")
flags.DEFINE_integer("batch_size", 128, "rows of the whole batch")
flags.DEFINE_integer("updates", 100, "of every measurement")
flags.DEFINE_string("platform", "cpu", "of JAX")
flags.DEFINE_string("measure", None, "one row, as JSON: what this program asks of itself")


def measure(mode: str, devices: int, trials: int) -> float:
    """Returns updates per second, of a population trial-updates per second, the best of three calls."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from omcda_jax import EnvSpec, data
    from omcda_jax.algorithms import ALGORITHMS
    from omcda_jax.learner import Layout, initial_state, make_train_step

    spec = EnvSpec(num_agents=5, obs_dim=140, state_dim=110, action_dim=11, discrete=True)
    algorithm, rng, length, count = ALGORITHMS[FLAGS.algorithm], np.random.default_rng(0), 30, 100
    rows = count * (length + 1)
    final = np.arange(count) * (length + 1) + length
    action = rng.integers(0, 11, (rows, 5)).astype(np.int32)
    reward = rng.random(rows).astype(np.float32)
    action[final], reward[final] = 0, 0.0
    dataset = data.from_arrays(
        spec,
        data.Episodes(
            obs=rng.standard_normal((rows, 5, 140)).astype(np.float32),
            global_state=rng.standard_normal((rows, 110)).astype(np.float32),
            avail=np.ones((rows, 5, 11), bool),
            action=action,
            reward=reward,
            length=np.full(count, length, np.int32),
            terminated=np.ones(count, bool),
            won=np.zeros(count, bool),
        ),
    )
    layout = Layout(tuple(jax.devices()[:devices]), population=mode == "trials")
    states = [initial_state(algorithm, seed, spec, algorithm.config()) for seed in range(trials)]
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states) if mode == "trials" else states[0]
    state, dataset = layout.place(state), layout.place_dataset(dataset)
    step = make_train_step(algorithm, data.sample, FLAGS.batch_size, FLAGS.updates, layout)
    best = 0.0
    for call in range(4):
        began = time.perf_counter()
        state, report = step(state, dataset)
        jax.block_until_ready((state, report))
        best = max(best, FLAGS.updates * trials / (time.perf_counter() - began)) if call else 0.0
    return best


def main(_) -> None:
    """Prints the table."""
    if FLAGS.measure:
        print(json.dumps(measure(**json.loads(FLAGS.measure))))
        return
    print("| mode | devices | trials | (trial-)updates/s | of one device |\n|---|---|---|---|---|", flush=True)
    populations = [int(trials) for trials in FLAGS.trials]
    for mode, trials in [("data", 1), *(("trials", trials) for trials in populations)]:
        single = None
        for devices in map(int, FLAGS.devices):
            if mode == "trials" and trials % devices:
                continue
            environment = os.environ | {"JAX_PLATFORMS": FLAGS.platform, "PYTHONPATH": str(ROOT)}
            if FLAGS.platform == "cpu":
                environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
            asked = json.dumps({"mode": mode, "devices": devices, "trials": trials})
            line = [sys.executable, "-m", "benchmarks.scaling", f"--measure={asked}", *sys.argv[1:]]
            done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
            rate = json.loads(done.stdout.splitlines()[-1])
            single = single or rate
            print(f"| {mode} | {devices} | {trials} | {rate:.1f} | {rate / single:.2f} |", flush=True)


if __name__ == "__main__":
    app.run(main)
