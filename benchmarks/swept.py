"""A sweep of short runs with processes that are killed at random, and checks of what is on disk in the end."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping

from benchmarks import quick, toy
from omcda_jax.metrics import read

UPDATES, LOGGED = 1000, 50
ROOT = pathlib.Path(__file__).resolve().parents[1]


def start(
    directory: pathlib.Path,
    rows: int,
    *more: str,
    updates: int = UPDATES,
    logged: int = LOGGED,
    surroundings: Mapping[str, str] = os.environ,
) -> subprocess.Popen:
    """Start or resume a sweep of runs on the data next to its directory.

    Args:
        directory: the sweep's directory.
        rows: number of rows, one seed each.
        more: more words of its command line.
        updates: updates of each run, which is evaluated four times.
        logged: updates between two rows of metrics, and between two checkpoints.
        surroundings: environment variables of its processes.
    """
    settings = {"updates": updates, "log_every": logged, "evaluate_every": updates // 4, "checkpoint_every": logged}
    line = [sys.executable, "-m", "omcda_jax.runner.main", "sweep", *toy.arguments(directory.parent / "data.h5")]
    line += [f"--config.learner.{key}={value}" for key, value in settings.items()]
    line += ["--config.data.environment=benchmarks.toy/any", f"--grid=seed=0..{rows - 1}", "--population=1"]
    line += [f"--directory={directory}", "--retries=1000", *more]
    seen = {**surroundings, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": quick.flags()}
    return subprocess.Popen(line, env=seen, stdout=subprocess.DEVNULL, cwd=ROOT)


def killed(place: pathlib.Path, rows: int, kills: int, sweeps: int) -> tuple[int, int, str]:
    """Kill rows' processes and sometimes the sweep itself, which is then started again, until all rows are done.

    Args:
        place: an empty folder.
        rows: number of rows.
        kills: how often a random row's process is killed.
        sweeps: how often the sweep itself is killed.

    Returns:
        How many rows ended well with every row of metrics once, how many there are, and what was done to them.
    """
    toy.write(place / "data.h5", "benchmarks.toy/any")
    rng, done, restarts = random.Random(0), 0, 0
    process = start(place / "sweep", rows, "--jobs=2")
    while process.poll() is None:
        time.sleep(rng.uniform(0.5, 3))
        at_work = _children(process.pid)
        if done < kills and at_work:
            _kill(rng.choice(at_work))
            done += 1
            if restarts < sweeps and done * sweeps >= kills * (restarts + 1):
                _kill(process.pid)
                process.wait()
                restarts += 1
                process = start(place / "sweep", rows, "--jobs=2")
    ends = sorted((place / "sweep" / "runs").iterdir())
    passed = sum(map(whole, ends)) if process.returncode == os.EX_OK and len(ends) == rows else 0
    return passed, rows, f"{done} rows and {restarts} sweeps killed"


def host_lost(place: pathlib.Path, hosts: int, rows: int) -> tuple[int, int, str]:
    """Let processes share a sweep as hosts, kill the first with its row, and run its command again at the end.

    Args:
        place: an empty folder.
        hosts: number of hosts that share the rows.
        rows: number of rows, a multiple of `hosts`.

    Returns:
        How many rows ended well, if the other hosts ended theirs without the first; how many there are; and what was
        done to them.
    """
    toy.write(place / "data.h5", "benchmarks.toy/any")
    host = lambda number: start(place / "sweep", rows, f"--host={number}", f"--hosts={hosts}")
    lost, *others = map(host, range(hosts))
    while not (at_work := _children(lost.pid)) and lost.poll() is None:
        time.sleep(0.2)
    for pid in (lost.pid, *at_work):
        _kill(pid)
    lost.wait()
    without = [process.wait() for process in others] == [os.EX_OK] * (hosts - 1)
    runs = [place / "sweep" / "runs" / f"{row:05d}-smac_3m-bc" for row in range(rows)]
    theirs = sum(whole(run) for number, run in enumerate(runs) if number % hosts)
    own = sum(whole(run) for number, run in enumerate(runs) if not number % hosts)
    again = host(0).wait() == os.EX_OK
    passed = sum(map(whole, runs)) if without and again and theirs == rows - rows // hosts and not own else 0
    return passed, rows, f"{hosts} hosts, one of them killed; the others' {theirs} rows ended without it"


def _children(pid: int) -> list[int]:
    try:
        return list(map(int, pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return []


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def whole(run: pathlib.Path, updates: int = UPDATES, logged: int = LOGGED) -> bool:
    """Return whether a run of `start` finished, with every row of its metrics once."""
    result = run / "result.json"
    if not result.exists() or not json.loads(result.read_text())["finished"]:
        return False
    rows, evaluated = read(run / "metrics.jsonl"), updates // 4
    learning = [row["step"] for row in rows if "policy/loss" in row]
    evaluations = [row["step"] for row in rows if "evaluation/return_mean" in row]
    return learning == list(range(logged, updates + 1, logged)) and evaluations == list(
        range(evaluated, updates, evaluated)
    )
