"""What a run survives: every fault is done to real runs of `omcda-jax run`, and the outcome is recorded.

    python -m benchmarks.faults                   # full counts: about half an hour on 2 cores
    python -m benchmarks.faults --short           # one or a few of each
    python -m benchmarks.faults --faults=F1,F7

The runs train on the simulator of `benchmarks/toy.py`, which costs nothing, so only the machinery is tested. A row
passes if there was at least one try and all tries passed. Prints Markdown; the exit status is 1 if a row fails. F9
mounts a small file system, which needs root. F18c starts Slurm on this machine, and installs Debian's if there is none.
Other file systems, NCCL and TPU networks can only be tested on clusters.
"""

import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging

from benchmarks import cluster, quick, swept, toy
from benchmarks.command import main
from omcda_jax import data
from omcda_jax.algorithms import ALGORITHMS
from omcda_jax.checkpoint import SCHEMA, Checkpoints, digest
from omcda_jax.config import require
from omcda_jax.learner import Guard, NonFiniteMetrics, initial_state, make_train_step
from omcda_jax.system import new_flags, printing
from omcda_jax.types import DatasetError

ROOT = pathlib.Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
LONG = 3000  # updates of a run that is long enough to be interrupted
KEYS = ("state_sha256", "metrics_sha256")


class Outcome(NamedTuple):
    """How many tries passed, how many there were, and a remark."""

    passed: int
    tried: int
    note: str = ""


class NotRun(Exception):
    """What a fault needs is not available here."""


class Run:
    """Processes of one run in one directory, and their output."""

    program = ("-m", "benchmarks.toy", "run")

    def __init__(self, directory: pathlib.Path, *more: str, updates: int = LONG, processes: int = 1, devices: int = 1):
        self.directory = directory
        self._more, self._updates, self._processes, self._devices = more, updates, processes, devices
        self.codes: list[int] = []
        self.out: list[str] = []
        self.err: list[str] = []

    def start(self, *first: str) -> list[subprocess.Popen]:
        """Start the processes; `first` goes before the runner's own arguments."""
        flags = f"--xla_force_host_platform_device_count={self._devices} {quick.flags()}"
        environment = os.environ | {
            "XLA_FLAGS": flags,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", "")))),
        }
        coordinator = f"localhost:{_free_port()}"
        base = [sys.executable, *self.program, *first]
        base += toy.arguments(self.directory.parent / "data.h5", f"--workdir={self.directory}", updates=self._updates)
        base += ["--config.data.shards=4", "--config.learner.log_every=100", "--config.learner.checkpoint_every=20"]
        base += ["--config.learner.evaluate_every=1000", *self._more]
        started = []
        for index in range(self._processes):
            joint = [f"--coordinator={coordinator}", f"--num_processes={self._processes}", f"--process_id={index}"]
            line = [*base, *(joint if self._processes > 1 else [])]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            started.append(subprocess.Popen(line, env=environment, cwd=ROOT, **pipes))
        return started

    def end(self, started: list[subprocess.Popen]) -> "Run":
        """Wait for the processes and keep their output."""
        said = [process.communicate(timeout=300) for process in started]
        self.codes = [process.returncode for process in started]
        self.out, self.err = ([one[place] for one in said] for place in (0, 1))
        return self

    def go(self, *first: str) -> "Run":
        """Run to the end."""
        return self.end(self.start(*first))

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints on disk that are whole by name."""
        latest = self.directory / "checkpoints" / "latest"
        return sorted(int(path.name) for path in latest.iterdir() if path.name.isdigit()) if latest.is_dir() else []

    @property
    def resumed_at(self) -> int:
        """The step from which the last start resumed."""
        return _resumed_at(self.out[0])

    def same_end_as(self, other: "Run") -> bool:
        """Whether both ended well and bit-equal."""
        ends = [json.loads((run.directory / "result.json").read_text()) for run in (self, other)]
        return set(self.codes) == {0} and all(ends[0][key] == ends[1][key] for key in KEYS)

    def losses(self) -> list[float]:
        """The losses of the logged updates."""
        rows = map(json.loads, (self.directory / "metrics.jsonl").read_text().splitlines())
        return [row["policy/loss"] for row in rows if "policy/loss" in row]


def _free_port() -> int:
    """A free port below those for outgoing connections: one of those may be taken when the server starts."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("localhost", port))
            return port


def _resumed_at(said: str) -> int:
    """The step from which a start resumed; a start that finds all updates done only evaluates."""
    found = re.search(r"(?:resumed at|evaluating) step (\d+)", said)
    return int(found[1]) if found else 0


def _until(process: subprocess.Popen, words: str, surely: bool = True) -> str:
    """The output of a process up to a line with these words; without `surely` they may not come, then all output."""
    said = ""
    for line in process.stdout:
        said += line
        if words in line:
            return said
    if not surely:
        return said
    raise RuntimeError(f"{words!r} was never printed: {process.stderr.read()}")


def _whole(place: pathlib.Path, **sizes: int) -> Run:
    """An undisturbed run with these sizes, made once."""
    run = Run(place / f"whole_{'_'.join(map(str, sizes.values()))}", **sizes)
    if not (run.directory / "result.json").exists():
        run.go()
    run.codes = [0]
    return run


def killed(place: pathlib.Path, full: bool) -> Outcome:
    """F1 kill -9 at random points of training and saving: ends bit-equal, resumes from the newest step on disk."""
    updates = LONG if full else LONG // 2
    whole, tries = _whole(place, updates=updates), 200 if full else 4
    rng, passed, done, runs = random.Random(0), 0, 0, 0
    while done < tries:
        runs += 1
        run, kills, behind = Run(place / f"killed_{runs}", updates=updates), 0, False
        while run.codes != [0]:
            newest = run.steps[-1:]
            [process] = run.start()
            said = ""
            if done + kills < tries:
                # a run killed after its last update has nothing left to compile
                said = _until(process, f"of {updates}, in" if rng.random() < 0.2 else "the update for", surely=False)
                time.sleep(rng.uniform(0, 1.0))
                process.kill()
            run.end([process])
            kills += run.codes == [-signal.SIGKILL]
            behind = behind or bool(newest and _resumed_at(said + run.out[0]) < newest[0])
        done += kills
        passed += 0 if behind or not run.same_end_as(whole) else kills
    return Outcome(passed, done, f"over {runs} runs")


def signalled(place: pathlib.Path, full: bool) -> Outcome:
    """F2 SIGTERM in data, compile, train, evaluate, save, result: exit 75 within 10 s, no update lost, same end."""
    whole, passed, tried, slowest = _whole(place, updates=200), 0, 0, 0.0
    for phase in ("data", "compile", "train", "evaluate", "save", "result"):
        for delay in (0.0, 0.02, 0.05, 0.1) if full else (0.02,):
            run = Run(place / f"signalled_{phase}_{delay}", "--config.learner.evaluate_every=100", updates=200)
            began = time.monotonic()
            run.go(f"signal={phase}:{delay}")
            slowest = max(slowest, time.monotonic() - began)
            fine = run.codes == [75] or (phase == "result" and run.codes == [0])
            saved = run.out[0].split("stopped and saved at step ")[1:]
            reached = int(saved[0].split()[0]) if saved else None
            run.go()
            # if the signal saved no step, there was nothing to lose
            fine = fine and (reached is None or run.resumed_at == reached)
            passed += fine and _equal_state(run, whole)
            tried += 1
    return Outcome(passed, tried, f"longest from start to exit {slowest:.1f} s")


def _equal_state(run: Run, other: Run) -> bool:
    ends = [json.loads((one.directory / "result.json").read_text())["state_sha256"] for one in (run, other)]
    return run.codes == [0] and ends[0] == ends[1]


class OwnRun(Run):
    """A run that is started as users start theirs: nothing is imported before the program's own first line."""

    program = (os.fspath(ROOT / "experiments" / "run.py"),)

    def __init__(self, directory: pathlib.Path):
        named, path = "benchmarks.toy/any", directory.parent / "own.h5"
        if not path.exists():
            toy.write(path, named)
        own = [
            f"--config.data.environment={named}",
            f"--config.data.path={path}",
            "--config.learner.evaluate_every=100",
        ]
        super().__init__(directory, *own, updates=200)


def signalled_any_time(place: pathlib.Path, full: bool) -> Outcome:
    """F2b a signal at a random moment from the process's start, every other run resumed after kill -9: 75, same end."""
    whole = OwnRun(place / "whole")
    began = time.monotonic()
    whole.go()
    lasts, begun = time.monotonic() - began, OwnRun(place / "begun")
    [process] = begun.start()
    _until(process, "updates/s")
    process.kill()
    begun.end([process])
    rng, passed, tries, ends, early = random.Random(0), 0, range(40) if full else [3], [], 0
    for index in tries:
        run = OwnRun(place / f"any_time_{index}")
        if index % 2:
            shutil.copytree(begun.directory, run.directory)
        number = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)[index % 3]
        [process] = run.start()
        time.sleep(rng.uniform(0, lasts))
        process.send_signal(number)
        [code], error = run.end([process]).codes, run.err[0]
        # until Python has read its own start-up files, no other code can handle the signal
        before = not run.out[0] and (code == -number or "import site" in error)
        early += before
        ends.append(code)
        fine = before or (code in (75, 0) and "Traceback" not in error and "ignored" not in error)
        passed += fine and _equal_state(run.go(), whole)
    counts = ", ".join(f"{ends.count(code)} with {code}" for code in sorted(set(ends)))
    return Outcome(passed, len(tries), f"ended {counts}; {early} before Python was up; a whole run lasts {lasts:.1f} s")


def one_signalled(place: pathlib.Path, full: bool) -> Outcome:
    """F3 SIGTERM to any one of 2 and of 4 processes: all stop after the same update with 75, and end bit-equal."""
    passed = tried = 0
    updates = 600 if full else 300
    for count in (2, 4) if full else (2,):
        whole = _whole(place, updates=updates, processes=count)
        for index in range(5) if full else (count - 1,):
            run = Run(place / f"one_signalled_{count}_{index}", updates=updates, processes=count)
            processes = run.start()
            _until(processes[0], "updates/s")
            processes[index % count].send_signal(signal.SIGTERM)
            run.end(processes)
            stopped = run.codes == [75] * count
            saved = run.steps[-1:]
            run.go()
            passed += stopped and [run.resumed_at] == saved and run.same_end_as(whole)
            tried += 1
    return Outcome(passed, tried)


def one_killed(place: pathlib.Path, full: bool) -> Outcome:
    """F4 SIGKILL to one of 2 processes: the other ends non-zero within 30 s, the pair goes on and ends bit-equal."""
    updates = 600 if full else 300
    whole, passed, tries, slowest = _whole(place, updates=updates, processes=2), 0, 5 if full else 1, 0.0
    codes = set()
    for index in range(tries):
        run = Run(place / f"one_killed_{index}", updates=updates, processes=2)
        processes = run.start()
        _until(processes[0], "updates/s")
        processes[1 - index % 2].kill()
        began = time.monotonic()
        run.end(processes)
        waited, left = time.monotonic() - began, run.codes[index % 2]
        slowest = max(slowest, waited)
        codes.add(left)
        run.go()
        passed += left != 0 and waited < 30 and run.same_end_as(whole)
    return Outcome(passed, tries, f"survivors ended after at most {slowest:.1f} s with {sorted(codes)}")


def moved(place: pathlib.Path, full: bool) -> Outcome:
    """F5 2 processes x 2 devices go on as 1 x 1, 1 x 4, 4 x 2: leaves bit-equal at the start, losses to 1e-5."""
    whole, passed = _whole(place, updates=400, processes=2, devices=2), 0
    shapes = ((1, 1), (1, 4), (4, 2)) if full else ((1, 4),)
    start = Run(place / "moved", updates=200, processes=2, devices=2).go()
    kept = json.loads((start.directory / "result.json").read_text())["state_sha256"]
    for processes, devices in shapes:
        directory = place / f"moved_{processes}_{devices}"
        shutil.copytree(start.directory, directory)
        again = Run(directory, "--mode=eval", updates=200, processes=processes, devices=devices).go()
        same = json.loads((directory / "result.json").read_text())["state_sha256"] == kept
        run = Run(directory, updates=400, processes=processes, devices=devices).go()
        close = np.allclose(run.losses(), whole.losses(), rtol=1e-5)
        passed += same and again.codes == [0] * processes and close and run.resumed_at == 200
    return Outcome(passed, len(shapes))


def _state(step: int = 0):
    algorithm = ALGORITHMS["bc"]
    state = initial_state(algorithm, step, toy.SPEC, algorithm.config(hidden_sizes=(8,)))
    return state.replace(step=jnp.int32(step))


def _fill(directory: pathlib.Path) -> dict[int, str]:
    with Checkpoints(directory) as kept:
        for step in (10, 20):
            kept.save(_state(step), {})
    return {step: digest(_state(step)) for step in (10, 20)}


def _restored(directory: pathlib.Path) -> tuple[int, str, str]:
    """Step, digest and warning of what a new process would restore, read without a subprocess."""
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Checkpoints(directory) as kept:
            found = kept.restore(jax.eval_shape(_state))
    said = " ".join(str(one.message) for one in caught if "put aside" in str(one.message))
    return (int(found[0].step), digest(found[0]), said) if found else (-1, "", said)


def _copies(place: pathlib.Path, name: str) -> Iterator[pathlib.Path]:
    index = 0
    while True:
        target = place / f"{name}_{index}" / "c"
        shutil.copytree(place / name, target)
        yield target
        index += 1


def damaged(place: pathlib.Path, full: bool) -> Outcome:
    """F6 every file of the newest step deleted, halved, zeroed: an older whole step and a warning, or no harm done."""
    digests = _fill(place / "damaged")
    files = [path.relative_to(place / "damaged") for path in (place / "damaged" / "20").rglob("*") if path.is_file()]
    copies, passed, tried, harmless = _copies(place, "damaged"), 0, 0, 0
    for file in files if full else files[::4]:
        for harm in ("deleted", "halved", "zeroed"):
            path = next(copies) / file
            content = path.read_bytes()
            if harm == "deleted":
                path.unlink()
            else:
                path.write_bytes(content[: len(content) // 2] if harm == "halved" else bytes(len(content)))
            step, found, said = _restored(path.parents[len(file.parts) - 1])
            right = digests.get(step) == found and (step == 20 or f"/{20} is damaged" in said)
            passed, tried, harmless = passed + right, tried + 1, harmless + (right and step == 20)
    return Outcome(passed, tried, f"{harmless} of them harmless")


def flipped(place: pathlib.Path, full: bool) -> Outcome:
    """F7 a random bit of a checkpoint's files flipped: never a wrong number restored."""
    digests = _fill(place / "flipped")
    files = sorted(path for path in (place / "flipped" / "20").rglob("*") if path.is_file() and path.stat().st_size)
    copies, rng, passed, noticed = _copies(place, "flipped"), random.Random(0), 0, 0
    tries = 100 if full else 10
    weights = [path.stat().st_size for path in files]
    for _ in range(tries):
        file = rng.choices(files, weights)[0].relative_to(place / "flipped")
        path = next(copies) / file
        content = bytearray(path.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        step, found, said = _restored(path.parents[len(file.parts) - 1])
        passed += digests.get(step) == found
        noticed += bool(said)
    return Outcome(passed, tries, f"{noticed} noticed, the others in bytes that no read needs")


def left_over(place: pathlib.Path, full: bool) -> Outcome:
    """F8 a half-written step's folder and an empty step: passed over and cleaned, the next save works."""
    digests = _fill(place / "left_over")
    stale = place / "left_over" / "30.orbax-checkpoint-tmp-0"
    (stale / "state").mkdir(parents=True)
    (place / "left_over" / "40").mkdir()
    step, found, _ = _restored(place / "left_over")
    passed = digests.get(step) == found and step == 20
    with Checkpoints(place / "left_over") as kept:
        kept.restore(jax.eval_shape(_state))
        kept.save(_state(40), {})
    clean = not stale.exists() and _restored(place / "left_over")[0] == 40
    return Outcome(int(passed) + int(clean), 2)


def full_disk(place: pathlib.Path, full: bool) -> Outcome:
    """F9 the disk fills up: one line with path and bytes, no step told of that is not there, the last one restores."""
    disk = place / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", disk], capture_output=True).returncode:
        raise NotRun("no right to mount a file system")
    try:
        toy.write(disk / "data.h5")
        # layers so wide that two checkpoints fit and a third does not
        wide = ("--config.algorithm.hidden_sizes=192,192",)
        run = Run(disk / "run", *wide, updates=600).go()
        line = run.err[0].strip()
        told = run.codes == [1] and str(disk) in line and "bytes" in line and "\n" not in line
        named = int(line.split("step ")[-1].split()[0]) if "is safe" in line and "no step" not in line else 0
        honest = named in run.steps
        shutil.copytree(disk / "run", place / "run")
        again = Run(place / "run", *wide, f"--config.data.path={disk / 'data.h5'}", updates=600).go()
        resumed = again.codes == [0] and again.resumed_at == named
        return Outcome(int(told) + int(honest) + int(resumed), 3, "" if told and honest and resumed else line)
    finally:
        subprocess.run(["umount", disk], check=False)


def left_at_once(place: pathlib.Path, full: bool) -> Outcome:
    """F10 a program that ends right after `save`, by return or exception: the step is on disk."""
    program = (
        "import sys; from benchmarks import faults; from omcda_jax.checkpoint import Checkpoints\n"
        "with Checkpoints(sys.argv[1]) as kept:\n"
        "    kept.save(faults._state(10), {})\n"
        "    if sys.argv[2] == 'raise': raise SystemExit(3)\n"
    )
    passed, tries = 0, 20 if full else 2
    for index in range(tries):
        directory = place / f"left_{index}"
        line = [sys.executable, "-c", program, str(directory), ("return", "raise")[index % 2]]
        subprocess.run(line, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, check=False)
        passed += _restored(directory)[:2] == (10, digest(_state(10)))
    return Outcome(passed, tries)


def broken_data(place: pathlib.Path, full: bool) -> Outcome:
    """F11 truncated file, web page, missing key, wrong type or agents, nan, empty: one line, 78, before work."""
    import h5py

    def edited(change: Callable) -> Callable:
        def harm(path):
            with h5py.File(path, "r+") as file:
                change(file)

        return harm

    def retyped(file):
        values = file["reward"][:].astype("f8")
        del file["reward"]
        file["reward"] = values

    def fewer_agents(file):
        values = file["obs"][:, :1]
        del file["obs"]
        file["obs"] = values

    def spoilt(value):
        def change(file):
            file["obs"][3, 0, 0] = value

        return change

    def emptied(file):
        del file["length"]
        file["length"] = np.zeros(0, np.int32)

    harms = {
        "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
        "web page": lambda path: path.write_text("<!DOCTYPE html><title>404</title>"),
        "missing key": edited(lambda file: file.pop("obs")),
        "wrong type": edited(retyped),
        "wrong agents": edited(fewer_agents),
        "nan": edited(spoilt(np.nan)),
        "inf": edited(spoilt(-np.inf)),
        "empty": edited(emptied),
        "no bytes": lambda path: path.write_bytes(b""),
    }
    passed, slowest = 0, 0.0
    for name, harm in harms.items():
        path = place / f"{name.replace(' ', '_')}.h5"
        toy.write(path)
        harm(path)
        began = time.monotonic()
        try:
            data.load(path, spec=toy.SPEC, environment="smax/toy")
        except DatasetError as error:
            passed += str(path) in str(error) and "\n" not in str(error)
        slowest = max(slowest, time.monotonic() - began)
    run = Run(place / "bad", f"--config.data.path={place / 'nan.h5'}").go()
    lines = run.err[0].splitlines()
    passed += run.codes == [78] and len(lines) == 1 and "nan.h5" in lines[0] and "the update for" not in run.out[0]
    return Outcome(passed, len(harms) + 1, f"found within {slowest:.2f} s")


def flipped_data(place: pathlib.Path, full: bool) -> Outcome:
    """F12 a random bit of the dataset's file flipped: refused, or the very same arrays."""
    path, rng, passed, refused = place / "data.h5", random.Random(0), 0, 0
    content = path.read_bytes()
    right, tries = data.read(path)[1], 400 if full else 60
    for _ in range(tries):
        copy = bytearray(content)
        copy[rng.randrange(len(copy))] ^= 1 << rng.randrange(8)
        (place / "flip.h5").write_bytes(copy)
        try:
            found = data.read(place / "flip.h5")[1]
        except DatasetError:
            refused += 1
            continue
        passed += all(np.array_equal(a, b) for a, b in zip(found, right, strict=True))
    return Outcome(passed + refused, tries, f"{refused} refused, the others in bytes that no read needs")


def not_a_number(place: pathlib.Path, full: bool) -> Outcome:
    """F13 a batch without numbers at update k: skipped, state bit-unchanged, counted; ten in a row end the run."""
    bc = ALGORITHMS["bc"]

    def spoil(updates):
        def update(state, batch, *, axis_name=None):
            bad = jnp.isin(state.step, jnp.array(updates))
            return bc.update(state, batch.replace(obs=jnp.where(bad, jnp.nan, batch.obs)), axis_name=axis_name)

        return bc._replace(update=update)

    dataset, passed = data.load(place / "data.h5", spec=toy.SPEC, environment="smax/toy")[0], 0
    for bad in (0, 3, 7):
        before, report = make_train_step(spoil([bad]), data.sample, 8, bad + 1)(_state(), dataset)
        good, _ = make_train_step(bc, data.sample, 8, bad)(_state(), dataset) if bad else (_state(), None)
        same = digest(before.params) == digest(good.params) and digest(before.opt_state) == digest(good.opt_state)
        passed += same and report.skipped.tolist() == [False] * bad + [True] and int(before.step) == bad + 1
    guard = Guard()
    _, report = make_train_step(spoil(list(range(5, 15))), data.sample, 8, 20)(_state(), dataset)
    try:
        guard.look(20, jax.device_get(report))
    except NonFiniteMetrics as error:
        passed += "policy/loss was not finite in 10 updates in a row" in str(error)
    return Outcome(passed, 4)


def same_order(place: pathlib.Path, full: bool) -> Outcome:
    """F14 the next 200 batches, in 1, 2 or 4 parts of as many processes, across the data's end: byte-equal."""
    whole = data.shard(data.load(place / "data.h5", spec=toy.SPEC, environment="smax/toy")[0], 4, 0, 1)
    passed = 0
    for processes in (1, 2, 4):
        shares = [data.shard(_unsharded(place), 4, index, processes) for index in range(processes)]
        same = True
        for step in range(200 if full else 20):
            key = jax.random.fold_in(jax.random.key(0), step)
            expected = jax.tree.leaves(data.sample(whole, key, 8))
            parts = [data.sample(share, key, 8, index, processes) for index, share in enumerate(shares)]
            found = jax.tree.leaves(jax.tree.map(lambda *rows: jnp.concatenate(rows), *parts))
            same = same and all(a.tobytes() == b.tobytes() for a, b in zip(found, expected, strict=True))
        passed += same
    return Outcome(passed, 3)


def _unsharded(place: pathlib.Path) -> data.Dataset:
    return data.load(place / "data.h5", spec=toy.SPEC, environment="smax/toy")[0]


def repeated(place: pathlib.Path, full: bool) -> Outcome:
    """F15 the same seed twice: the same bits and metrics."""
    runs = [Run(place / f"repeated_{index}", updates=200).go() for index in range(3 if full else 2)]
    return Outcome(sum(run.same_end_as(runs[0]) for run in runs[1:]), len(runs) - 1)


def second_run(place: pathlib.Path, full: bool) -> Outcome:
    """F16 a second run in the same directory: refused, host and process named; a dead one's lock is no obstacle."""
    run = Run(place / "taken", updates=100_000)
    first = run.start()
    _until(first[0], "the update for")
    second = Run(place / "taken", updates=100_000).go()
    refused = (
        second.codes == [78] and f"process {first[0].pid}" in second.err[0] and socket.gethostname() in second.err[0]
    )
    first[0].kill()
    run.end(first)
    third = Run(place / "taken", updates=100_000)
    process = third.start()
    _until(process[0], "the update for")
    process[0].send_signal(signal.SIGTERM)
    recovered = third.end(process).codes == [75]
    return Outcome(int(refused) + int(recovered), 2)


def no_place(place: pathlib.Path, full: bool) -> Outcome:
    """F17 a parent directory that cannot be written or is a file: 78 before the first update."""
    file = place / "a_file"
    file.write_text("")
    passed = 0
    for parent in (file, pathlib.Path("/proc")):
        run = Run(parent / "run", f"--config.data.path={place / 'data.h5'}").go()
        passed += (
            run.codes == [78] and "cannot write the run directory" in run.err[0] and "the update for" not in run.out[0]
        )
    return Outcome(passed, 2)


def sweep_killed(place: pathlib.Path, full: bool) -> Outcome:
    """F18 rows of a sweep killed at random, and the sweep itself: all rows end, every row of metrics is there once."""
    return Outcome(*swept.killed(place, *((12, 24, 2) if full else (3, 2, 1))))


def host_lost(place: pathlib.Path, full: bool) -> Outcome:
    """F18b one of several hosts is killed: the others end their rows, and its command, issued again, ends its own."""
    return Outcome(*swept.host_lost(place, *((8, 32) if full else (2, 4))))


def preempted(place: pathlib.Path, full: bool) -> Outcome:
    """F18c Slurm takes the node away from rows of a sweep: they save, are requeued, resume, and end bit-equal."""
    toy.write(place / "data.h5", "benchmarks.toy/any")
    try:
        return Outcome(*cluster.preempted(place, 6 if full else 2))
    except cluster.NotThere as reason:
        raise NotRun(str(reason)) from reason
    except TimeoutError as error:
        return Outcome(0, cluster.ROWS, str(error))


def earlier_schema(place: pathlib.Path, full: bool) -> Outcome:
    """F19 a checkpoint of an earlier schema: refused with what to do, and left as it is."""
    directory = place / "schema" / "latest"
    shutil.copytree(FIXTURES / "checkpoint_schema_1", directory)
    try:
        with Checkpoints(directory) as kept:
            kept.restore(jax.eval_shape(_state))
    except ValueError as error:
        right = f"schema: expected {SCHEMA}, found 1; finish the run with the version" in str(error)
        return Outcome(int(right and any(directory.iterdir())), 1)
    return Outcome(0, 1)


FAULTS: dict[str, Callable[[pathlib.Path, bool], Outcome]] = {
    "F1": killed,
    "F2": signalled,
    "F2b": signalled_any_time,
    "F3": one_signalled,
    "F4": one_killed,
    "F5": moved,
    "F6": damaged,
    "F7": flipped,
    "F8": left_over,
    "F9": full_disk,
    "F10": left_at_once,
    "F11": broken_data,
    "F12": flipped_data,
    "F13": not_a_number,
    "F14": same_order,
    "F15": repeated,
    "F16": second_run,
    "F17": no_place,
    "F18": sweep_killed,
    "F18b": host_lost,
    "F18c": preempted,
    "F19": earlier_schema,
}

FLAGS, define = new_flags()
define("list", "faults", list(FAULTS), "which faults to try")
define("boolean", "short", False, "only one or a few tries of each")


def do(name: str, full: bool) -> Outcome:
    """Do one fault in a directory of its own.

    Raises:
        NotRun: what it needs is not available here.
    """
    with tempfile.TemporaryDirectory() as directory:
        place = pathlib.Path(directory)
        toy.write(place / "data.h5")
        return FAULTS[name](place, full)


def work(values: flags.FlagValues) -> bool:
    """Print the table row by row; return whether no row failed."""
    for name in values.faults:
        require(name in FAULTS, "--faults", f"some of {', '.join(FAULTS)}", name)
    logging.set_verbosity(logging.ERROR)
    print("| | fault and what must come of it | passed | took | |\n|---|---|---|---|---|", flush=True)
    failed = False
    for name in values.faults:
        began = time.monotonic()
        what = FAULTS[name].__doc__.partition(" ")[2].rstrip(".")
        try:
            outcome = do(name, not values.short)
        except NotRun as reason:
            print(f"| {name} | {what} | not run | | {reason} |", flush=True)
            continue
        failed = failed or not 0 < outcome.passed == outcome.tried
        took = f"{time.monotonic() - began:.0f} s"
        print(f"| {name} | {what} | {outcome.passed} of {outcome.tried} | {took} | {outcome.note} |", flush=True)
    return not failed


if __name__ == "__main__":
    sys.exit(printing(lambda: main(sys.argv, __doc__, FLAGS, work)))
