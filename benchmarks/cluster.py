"""A real Slurm cluster of one node on this machine, and rows of a sweep that it preempts.

The daemons need no systemd and no cgroups. They are started from a folder of their own and end with the block.
"""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping

from benchmarks import swept
from omcda_jax.system import cores

PROGRAMS = ("munged", "slurmctld", "slurmd")
ROWS, UPDATES, LOGGED = 2, 20_000, 1000
PATIENCE = 1200  # seconds to wait for what takes a minute on an idle machine

CONFIG = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=preempt_send_user_signal,sched_interval=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=1000 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES PriorityTier=1 GraceTime=60 State=UP
PartitionName=high Nodes={host} PriorityTier=10 PreemptMode=OFF State=UP
"""


class NotThere(Exception):
    """Slurm is not available here."""


def install() -> None:
    """Install Debian's Slurm unless it is there.

    Raises:
        NotThere: it is not installed and cannot be installed.
    """
    if all(shutil.which(program) for program in PROGRAMS):
        return
    if os.geteuid() or not shutil.which("apt-get"):
        raise NotThere("needs Slurm, or root and Debian's slurm-wlm")
    surroundings = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "-y", "slurm-wlm", "munge"]):
        done = subprocess.run(["apt-get", *words], env=surroundings, capture_output=True, text=True)
        if done.returncode:
            raise NotThere(f"apt-get {words[0]}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")


@contextlib.contextmanager
def slurm(place: pathlib.Path) -> Iterator[Mapping[str, str]]:
    """Run a cluster of this one machine during the block, and yield the variables by which programs find it.

    Partition `high` preempts jobs of partition `low`, which get a signal 60 seconds before.

    Args:
        place: an empty folder for its state.

    Raises:
        NotThere: as in `install`; or the user is not root, or the daemons do not start.
    """
    install()
    if os.geteuid():
        raise NotThere("must be root to start Slurm's daemons")
    host = os.uname().nodename.partition(".")[0]
    for name in ("state", "spool"):
        (place / name).mkdir()
    (place / "slurm.conf").write_text(CONFIG.format(host=host, place=place, cores=os.cpu_count()))
    key = place / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    files = {"socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log", "seed-file": "munged.seed"}
    munged = ["munged", "--force", "--foreground", f"--key-file={key}"]
    munged += [f"--{flag}={place / name}" for flag, name in files.items()]
    surroundings = os.environ | {"SLURM_CONF": str(place / "slurm.conf")}
    daemons = []
    try:
        for words in (munged, ["slurmctld", "-D"], ["slurmd", "-D", "-N", host]):
            output = subprocess.DEVNULL
            daemons.append(subprocess.Popen(words, env=surroundings, stdout=output, stderr=output))
            if words is munged:
                _started(lambda: (place / "munge.socket").exists(), "munged to answer")
        _started(lambda: "idle" in said(surroundings, "sinfo", "-h", "-o", "%t"), "an idle node")
        yield surroundings
    finally:
        if len(daemons) == len(PROGRAMS):
            said(surroundings, "scancel", "--user=root")
            with contextlib.suppress(TimeoutError):
                until(lambda: not said(surroundings, "squeue", "--noheader"), "jobs to end", 60)
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait()


def _started(met: Callable[[], object], what: str) -> None:
    try:
        until(met, what)
    except TimeoutError as error:
        raise NotThere(str(error)) from error


def until(met: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: it is not met in time; `what` says what was waited for.
    """
    deadline = time.monotonic() + patience
    while not met():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {patience:.0f} s for {what}")
        time.sleep(0.2)


def said(surroundings: Mapping[str, str], *words: str) -> str:
    """Return what a Slurm program prints; an empty string if it fails."""
    return subprocess.run(words, env=surroundings, capture_output=True, text=True).stdout


def preempted(place: pathlib.Path, rounds: int) -> tuple[int, int, str]:
    """Let Slurm preempt the rows of a sweep repeatedly, and see how they end.

    Two kinds of preemption alternate: a job of higher priority takes the node, and the administrator requeues the jobs.
    The two minutes for which Slurm makes requeued jobs wait are cut short.

    Args:
        place: folder with the data.
        rounds: number of preemptions.

    Returns:
        How many rows ended well and equal to undisturbed rows, how many there are, and what was done to them.

    Raises:
        NotThere: as in `slurm`.
        TimeoutError: the jobs do not continue or do not end.
    """
    lasting = {"updates": UPDATES, "logged": LOGGED}
    options = ["--engine=slurm", "--cores=1", "--engine_options=slurm_partition=low,timeout_min=60"]
    (place / "slurm").mkdir()
    with slurm(place / "slurm") as surroundings:
        alone = swept.start(place / "alone", ROWS, f"--jobs={min(ROWS, len(cores()))}", **lasting).wait()
        submitted = swept.start(place / "sweep", ROWS, *options, **lasting, surroundings=surroundings).wait()
        if alone or submitted:
            return 0, ROWS, f"the sweeps ended with {alone} and {submitted}"
        undisturbed = sorted((place / "alone" / "runs").iterdir())
        runs = [place / "sweep" / "runs" / run.name for run in undisturbed]
        taken = 0
        for turn in range(rounds):
            step = max(map(_saved, runs))
            until(lambda: max(map(_saved, runs)) > step or not _jobs(surroundings), "a checkpoint")  # noqa: B023 at once
            taken += _take_away(surroundings, by_priority=turn % 2 == 0)
        until(lambda: not _hurried(surroundings), "the jobs' end")
    passed = sum(map(_end_alike, runs, undisturbed))
    resumed = sum(_resumptions(place / "sweep" / "logs" / run.name) for run in runs)
    return passed, ROWS, f"the node taken away {taken} times, rows resumed {resumed} times"


def _take_away(surroundings: Mapping[str, str], *, by_priority: bool) -> bool:
    """Get the running jobs requeued, and let them start again; False if there are none."""
    jobs = _jobs(surroundings, "RUNNING")
    if by_priority:
        all_cores = f"--cpus-per-task={os.cpu_count()}"
        said(surroundings, "sbatch", "--partition=high", all_cores, "--output=/dev/null", "--wrap=sleep 1")
    else:
        for job in jobs:
            said(surroundings, "scontrol", "requeue", job)
    until(lambda: not set(jobs) & set(_jobs(surroundings, "RUNNING")), "the jobs to leave")
    until(lambda: _jobs(surroundings, "RUNNING") or not _hurried(surroundings), "the jobs to return")
    return bool(jobs)


def _jobs(surroundings: Mapping[str, str], *states: str) -> list[str]:
    """The sweep's jobs in these states, or in any."""
    words = ["squeue", "--array", "--noheader", "--partition=low", "--format=%i"]
    return said(surroundings, *words, *(f"--states={state}" for state in states)).split()


def _hurried(surroundings: Mapping[str, str]) -> list[str]:
    """The sweep's jobs; those that Slurm makes wait may now start at once."""
    for job in _jobs(surroundings, "PENDING"):
        said(surroundings, "scontrol", "update", f"JobId={job}", "StartTime=now")
    return _jobs(surroundings)


def _saved(run: pathlib.Path) -> int:
    """The newest step of a run on disk, or 0."""
    latest = run / "checkpoints" / "latest"
    steps = [int(path.name) for path in latest.iterdir() if path.name.isdigit()] if latest.is_dir() else []
    return max(steps, default=0)


def _resumptions(log: pathlib.Path) -> int:
    return (log / "output.txt").read_text().count("resumed at step")


def _end_alike(run: pathlib.Path, undisturbed: pathlib.Path) -> bool:
    """Whether a run ended well and bit-equal to another run."""
    if not swept.whole(run, UPDATES, LOGGED):
        return False
    first, second = (json.loads((path / "result.json").read_text()) for path in (run, undisturbed))
    return all(first[key] == second[key] for key in ("state_sha256", "metrics_sha256"))
