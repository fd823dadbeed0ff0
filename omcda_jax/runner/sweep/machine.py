"""How rows share a machine, its cores, accelerators and memory, and machines the rows."""

import math
import os
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from omcda_jax.system import cores
from omcda_jax.types import ConfigError

CHIPS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}  # of a TPU host, by their number, as a block


class Options(NamedTuple):
    """How rows share this machine, and this machine the rows with others.

    Attributes:
        jobs: rows at a time; 0 leaves it to an engine that places them itself.
        cores: of each row; 0 shares this machine's evenly.
        memory: gigabytes of each row; a row starts when they are free, and is stopped beyond them. 0: no limit.
        devices: accelerators of each row; 0: all that there are.
        retries: how often a row that was killed or crashed is started again.
        host: which of `hosts` this is; it takes the rows whose number leaves it when divided by `hosts`.
        hosts: that share the rows.
        claim: after its own rows, take any that no process is at work on.
        coordinator: host:port of host 0, for rows over all hosts where JAX finds no cluster.
        engine: what else the engine is told, by key.
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
    """Return the cores of each of `jobs` rows at a time; none stands for any core.

    Args:
        jobs: rows at a time.
        each: cores of a row; 0 shares those there are evenly, and one row at a time has them all.

    Raises:
        ConfigError: there are fewer.
    """
    there = cores()
    if not there or (jobs == 1 and not each):
        return [()] * jobs
    each = each or max(1, len(there) // jobs)
    if each * jobs > len(there):
        raise ConfigError(f"--jobs={jobs}: expected {each * jobs} cores, {each} each, found {len(there)}")
    return [tuple(there[index * each : (index + 1) * each]) for index in range(jobs)]


def shares_of_devices(jobs: int, each: int) -> list[dict[str, str]]:
    """Return for each of `jobs` rows at a time the variables that give it accelerators of its own.

    Args:
        jobs: rows at a time.
        each: accelerators of a row; 0 leaves every row all of them.

    Raises:
        ConfigError: CUDA_VISIBLE_DEVICES lists fewer.
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
    """Return the bytes that processes can still take, or infinity where the system does not say."""
    free = _number("/proc/meminfo", r"MemAvailable:\s+(\d+) kB", 1024)
    # a container may have less than its machine
    limit, taken = (_number(f"/sys/fs/cgroup/memory.{name}", r"(\d+)", 1) for name in ("max", "current"))
    return min(free, limit - taken if limit < math.inf > taken else math.inf)


def memory_of(pid: int) -> float:
    """Return the bytes of memory that a process holds, or 0 where the system does not say."""
    held = _number(f"/proc/{pid}/status", r"VmRSS:\s+(\d+) kB", 1024)
    return held if held < math.inf else 0.0


def _number(path: str, pattern: str, unit: int) -> float:
    try:
        with open(path, encoding="utf-8") as file:
            found = re.search(pattern, file.read())
    except OSError:
        return math.inf
    return int(found[1]) * unit if found else math.inf
