"""Reading a dataset compared with plain h5py, and learning from data on the device compared with data on the host.

    python -m benchmarks.loading                    # collects what is missing: a few minutes the first time
    python -m benchmarks.loading --data=FILE.h5     # any HDF5 file

The first table has time and peak memory of `omcda_jax.data.load`, checks and placement included, and of h5py when it
reads the same arrays into NumPy. Each runs in a process of its own; the runs alternate, and the best of `--repeats`
counts. Memory is what a process takes above what it had before it began. For `host` the rows are already unpacked;
`unpack` is the first time. A copy in OMIGA's layout stands for foreign files.

The second table has batches drawn per second, without updates, and updates per second of OMCDA, from data on the device
and from windows of about an eighth of the data on the host. It runs on whatever device JAX finds. A CPU shares the
host's memory, so there the ratio is the price of reading and copying windows.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

from absl import flags

from omcda_jax.config import require
from omcda_jax.runner.frame import main
from omcda_jax.system import new_flags, printing

ROOT = pathlib.Path(__file__).resolve().parents[1]
WAYS = ("h5py", "device", "unpack", "host")
FLAGS, define = new_flags()
define("list", "data", [], "files to read; none: a million transitions of Hopper, 1,000 episodes of two SMAX tasks")
define("integer", "repeats", 3, "repetitions of every measurement", lower_bound=1)
define("integer", "batch_size", 128, "transitions of a batch", lower_bound=1)
define("integer", "updates", 400, "updates of every measurement of throughput", lower_bound=1)
define("string", "measure", None, "print one row as JSON; the program calls itself with this")


def load(path: str, way: str) -> dict[str, float]:
    """Return the seconds that one way of reading took, and its peak memory in megabytes."""
    import h5py
    import jax

    from omcda_jax import data

    jax.block_until_ready(jax.numpy.zeros(3))
    # reset the peak
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before, began = _megabytes("VmRSS"), time.perf_counter()
    if way == "h5py":
        with h5py.File(path) as file:
            held = {key: file[key][()] for key in file}
    else:
        held = jax.block_until_ready(data.load(path, placement="device" if way == "device" else "host")[0])
    seconds, peak = time.perf_counter() - began, _megabytes("VmHWM") - before
    del held
    return {"seconds": seconds, "megabytes": peak}


def throughput(path: str, placement: str) -> dict[str, float]:
    """Return batches drawn and updates made per second over all calls except the first."""
    import jax

    from omcda_jax import data
    from omcda_jax.algorithms import ALGORITHMS
    from omcda_jax.config import DataConfig, LearnerConfig
    from omcda_jax.learner import initial_state, make_train_step

    dataset, _ = data.load(path, placement=placement)
    size = data.memory_bytes(dataset)
    per_call = 50
    learner = LearnerConfig(updates=10**9, batch_size=FLAGS.batch_size, updates_per_call=per_call)
    omcda = ALGORITHMS["omcda"]
    # sum the batch, so that all of it is read
    look = lambda state, batch, *, axis_name=None: (state, {"sum": sum(x.sum() for x in jax.tree.leaves(batch))})
    found = {}
    for name, algorithm in {"batches": omcda._replace(update=look), "updates": omcda}.items():
        windows = data.Windows(dataset, DataConfig("any/data", window=size / 8e6), learner)
        # long enough for several windows
        calls = max(FLAGS.updates if name == "updates" else 20_000, 3 * windows.updates) // per_call
        state = initial_state(algorithm, 0, dataset.spec, algorithm.config())
        step = make_train_step(algorithm, data.sample, FLAGS.batch_size, per_call)
        with windows:
            at = windows if placement == "host" else lambda step: dataset
            state, report = step(state, at(0))
            jax.block_until_ready(report)
            began = time.perf_counter()
            for call in range(1, calls + 1):
                state, report = step(state, at(call * per_call))
                jax.block_until_ready(report)
        found[name] = calls * per_call / (time.perf_counter() - began)
    return found | {"megabytes": size / 1e6, "windows": windows.count, "each": windows.updates}


def _megabytes(key: str) -> float:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1e3


def _ask(**what: str) -> dict[str, float]:
    line = [sys.executable, "-m", "benchmarks.loading", f"--measure={json.dumps(what)}"]
    line += [f"--batch_size={FLAGS.batch_size}", f"--updates={FLAGS.updates}"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def work(values: flags.FlagValues) -> None:
    """Print both tables."""
    if values.measure:
        asked = json.loads(values.measure)
        print(json.dumps(load(**asked) if "way" in asked else throughput(**asked)))
        return
    for file in values.data:
        require(os.path.exists(file), "--data", "files that are there", file)
    from omcda_jax import data
    from omcda_jax.data import formats

    show = lambda *cells: print(f"| {' | '.join(str(cell) for cell in cells)} |", flush=True)
    told = lambda line: print(line, file=sys.stderr)
    files = FLAGS.data or [
        data.ensure("mamujoco/Hopper_3x1", "medium", transitions=1_000_000, log=told),
        data.ensure("smax/5m_vs_6m", "medium", episodes=1000, log=told),
        data.ensure("smax/2s3z", "medium", episodes=1000, log=told),
    ]
    if not FLAGS.data:
        foreign = files[0].with_name(f"{files[0].stem}_omiga.h5")
        if not foreign.exists():
            spec, episodes, _ = data.read(files[0])
            formats.write(foreign, "omiga", spec, episodes, {})
        files.insert(1, foreign)
    files = [os.path.abspath(file) for file in files]
    show("file", "MB stored", "MB of arrays", "read by", "seconds", "of h5py's", "peak MB", "of h5py's")
    show(*["---"] * 8)
    for file in files:
        own = formats.sniff(file) == "omcda"
        rows = {way: [] for way in (WAYS if own else WAYS[:2])}
        for _ in range(FLAGS.repeats):
            if own:
                shutil.rmtree(f"{file}.rows", ignore_errors=True)
            for way in rows:
                rows[way].append(_ask(path=file, way=way))
        best = {way: {key: min(row[key] for row in rows[way]) for key in rows[way][0]} for way in rows}
        name = "/".join(pathlib.Path(file).with_suffix("").parts[-3:])
        facts = (name, f"{os.path.getsize(file) / 1e6:.0f}", f"{data.stored_bytes(file) / 1e6:.0f}")
        for way in rows:
            ratio = {key: best[way][key] / best["h5py"][key] for key in best[way]}
            seconds, megabytes = best[way]["seconds"], best[way]["megabytes"]
            figures = (f"{seconds:.2f}", f"{ratio['seconds']:.2f}", f"{megabytes:.0f}", f"{ratio['megabytes']:.2f}")
            show(*(facts if way == "h5py" else [""] * 3), way, *figures)
    print()
    show("file", "placement", "windows", "updates each", "batches/s", "of the device's", "updates/s", "of the device's")
    show(*["---"] * 8)
    for file in (file for file in files if formats.sniff(file) == "omcda"):
        found = {}
        for _ in range(FLAGS.repeats):
            for placement in ("device", "host"):
                row = _ask(path=file, placement=placement)
                for key in ("batches", "updates"):
                    row[key] = max(row[key], found.get(placement, row)[key])
                found[placement] = row
        name = "/".join(pathlib.Path(file).with_suffix("").parts[-3:])
        for placement, row in found.items():
            ratio = {key: row[key] / found["device"][key] for key in ("batches", "updates")}
            windows = (row["windows"], row["each"]) if placement == "host" else ("", "")
            figures = [f"{row[key]:.0f} | {ratio[key]:.2f}" for key in ("batches", "updates")]
            show(name if placement == "device" else "", placement, *windows, *figures)


if __name__ == "__main__":
    sys.exit(printing(lambda: main(sys.argv, __doc__, FLAGS, work)))
