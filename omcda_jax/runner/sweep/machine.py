"""How rows share a machine's cores, accelerators and memory, and how machines share the rows."""

import math
import os
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from omcda_jax.system import cores
from omcda_jax.types import ConfigError

CHIPS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}  # blocks of a TPU host's chips, by number of chips


class Options(NamedTuple):
    """How rows share this machine, and how it shares the rows with other machines.

    Attributes:
        jobs: rows at a time; 0 leaves it to an engine that places them itself.
        cores: cores per row; 0 shares this machine's cores evenly.
        memory: gigabytes per row; a row starts when they are free, and is stopped if it takes more. 0: no limit.
        devices: accelerators per row; 0: all.
        retries: how often a row that was killed or crashed is started again.
        host: index of this host; it takes the rows with number modulo `hosts` equal to it.
        hosts: number of hosts that share the rows.
        claim: after its own rows, take any row that no process is working on.
        coordinator: host:port of host 0, for rows over all hosts if JAX finds no cluster.
        engine: other options of the engine, by key.
    """

    jobs: int = 1
    cores: int = 0
    memory: float = 0.0
    devices: int = 0
    retries: int = 2
    host: int = 0
    hosts: int = 1
    claim: bool = False
    coordinator: str | None = None
    engine: Mapping[str, Any] = MappingProxyType({})


def shares_of_cores(jobs: int, each: int) -> list[tuple[int, ...]]:
    """Return the cores of each of `jobs` rows at a time; an empty tuple stands for any core.

    Args:
        jobs: rows at a time.
        each: cores per row; 0 shares all cores evenly, and a single row at a time has them all.

    Raises:
        ConfigError: there are fewer cores.
    """
    there = cores()
    if not there or (jobs == 1 and not each):
        return [()] * jobs
    each = each or max(1, len(there) // jobs)
    if each * jobs > len(there):
        raise ConfigError(f"--jobs={jobs}: expected {each * jobs} cores, {each} each, found {len(there)}")
    return [tuple(there[index * each : (index + 1) * each]) for index in range(jobs)]


def shares_of_devices(jobs: int, each: int) -> list[dict[str, str]]:
    """Return, for each of `jobs` rows at a time, the environment variables that give it its own accelerators.

    Args:
        jobs: rows at a time.
        each: accelerators per row; 0 gives every row all of them.

    Raises:
        ConfigError: CUDA_VISIBLE_DEVICES lists fewer accelerators.
    """
    if not each:
        return [{}] * jobs
    listed = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if listed and len(listed) < each * jobs:
        found = f"CUDA_VISIBLE_DEVICES={','.join(listed)}"
        raise ConfigError(f"--devices={each}: expected {each * jobs} devices for --jobs={jobs}, found {found}")
    names = listed or [str(index) for index in range(each * jobs)]
    shares = [",".join(names[index * each : (index + 1) * each]) for index in range(jobs)]
    tpu = {"TPU_CHIPS_PER_PROCESS_BOUNDS": CHIPS[each], "TPU_PROCESS_BOUNDS": "1,1,1"} if each in CHIPS else {}
    return [{"CUDA_VISIBLE_DEVICES": own, "TPU_VISIBLE_CHIPS": own} | tpu for own in shares]


def free_memory() -> float:
    """Return the bytes that processes can still take, or infinity if the system does not say."""
    free = _number("/proc/meminfo", r"MemAvailable:\s+(\d+) kB", 1024)
    # a container may have less than its machine
    limit, taken = (_number(f"/sys/fs/cgroup/memory.{name}", r"(\d+)", 1) for name in ("max", "current"))
    if not limit < math.inf > taken:
        return free
    # files that were read count as taken until another process needs the memory
    files = _number("/sys/fs/cgroup/memory.stat", r"(?m)^inactive_file (\d+)", 1)
    return min(free, limit - taken + (files if files < math.inf else 0))


def memory_of(pid: int) -> float:
    """Return the bytes of memory that a process has, or 0 if the system does not say."""
    held = _number(f"/proc/{pid}/status", r"VmRSS:\s+(\d+) kB", 1024)
    return held if held < math.inf else 0.0


def _number(path: str, pattern: str, unit: int) -> float:
    try:
        with open(path, encoding="utf-8") as file:
            found = re.search(pattern, file.read())
    except OSError:
        return math.inf
    return int(found[1]) * unit if found else math.inf
