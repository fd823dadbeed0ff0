"""A run's dataset: read early or collected, checked, and placed where the training call needs it."""

import contextlib
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from omcda_jax import data
from omcda_jax.config import DataConfig, ExperimentConfig
from omcda_jax.data import formats, manifest
from omcda_jax.envs.base import Environment, HostEnvironment
from omcda_jax.learner import Layout
from omcda_jax.runner.jobs import Job
from omcda_jax.runner.processes import by_first, say
from omcda_jax.runner.sweep.machine import free_memory
from omcda_jax.types import ConfigError, DatasetError, EnvSpec, Normaliser


class Source(NamedTuple):
    """A dataset as a job draws from it.

    Attributes:
        path: the file's path.
        spec: sizes of the task it was made in.
        metadata: as `data.load` returns it, with the largest return-to-go.
        normaliser: normaliser of its observations and states, if the settings ask for one.
        opened: a context manager that gives a function from the number of updates done to the data that the next
            training call draws from, as `Layout.place_dataset` returns them.
    """

    path: str
    spec: EnvSpec
    metadata: dict[str, Any]
    normaliser: Normaliser | None
    opened: contextlib.AbstractContextManager[Callable[[int], Any]]


def read_if_there(job: Job) -> Source | None:
    """Read the dataset of a new job without needing a simulator; None if it has yet to be collected.

    Raises:
        ConfigError, DatasetError: as in `read`.
    """
    path = path_of(job.config.data)
    return read(job, path, begins=True) if job.config.data.path or os.path.exists(path) else None


def ready(job: Job, environment: Environment | HostEnvironment, source: Source | None, *, begins: bool) -> Source:
    """Collect the job's dataset if it is missing, read it if that was not done yet, and check it against the simulator.

    Args:
        job: the job.
        environment: the simulator.
        source: the dataset, if it was read before.
        begins: no update was done yet.

    Raises:
        ConfigError, DatasetError: as in `data.ensure` and `read`; or the simulator has other sizes.
    """
    settings = job.config.data
    path = path_of(job.config.data)
    if settings.path is None:
        # all processes call this, whatever is on their own disks; if the file exists, nothing is done
        sizes = {"episodes": settings.episodes, "transitions": settings.transitions}
        ensure = lambda: os.fspath(
            data.ensure(settings.environment, settings.quality, seed=settings.seed, log=say, **sizes)
        )
        collected = by_first(ensure)
        if source is None and not os.path.exists(path):
            raise DatasetError(
                f"{collected}: expected the dataset that the first process collected, found nothing there"
            )
    source = source or read(job, path, begins=begins)
    data.require_spec(source.path, environment.spec, source.spec)
    warn_of_versions("the data", source.metadata.get("versions", {}), environment)
    return source


def warn_of_versions(what: str, versions: Mapping[str, str], environment: Environment | HostEnvironment) -> None:
    """Warn if something was made with other versions of the simulator than the ones here, or does not say with which.

    Args:
        what: what was made, in the plural.
        versions: the versions it was made with, by package; empty if it does not say.
        environment: the simulator.
    """
    if environment.versions and not versions:
        used = ", ".join(f"{package} {version}" for package, version in environment.versions.items())
        say(f"note: {what} do not say which simulator made them; evaluation uses {used}")
    for package, version in versions.items():
        here = environment.versions.get(package, version)
        if here != version:
            say(f"warning: {what} were made with {package} {version}, evaluation uses {here}")


def path_of(settings: DataConfig) -> str:
    """Return the path of the dataset: the given one or the default."""
    if settings.path is not None:
        return settings.path
    sizes = {"episodes": settings.episodes, "transitions": settings.transitions}
    return os.fspath(data.default_path(settings.environment, settings.quality, seed=settings.seed, **sizes))


def load(config: ExperimentConfig, path: str) -> tuple[data.Dataset, dict[str, Any]]:
    """Return a dataset as `data.load` does; print its size before it is read, and then what it contains.

    Args:
        config: the settings; their `data` says how to read it.
        path: the file's path.

    Raises:
        ConfigError, DatasetError: as in `data.load`; or it has another quality, or the device has no room for it.
    """
    settings = config.data
    require_room(path, settings.placement)
    sums = manifest.verify_beside(path)
    if sums:
        say(f"data {path}: matches {sums}")
    dataset, metadata = data.load(
        path,
        environment=settings.environment,
        reward_scale=settings.reward_scale,
        repairs=settings.repairs,
        placement=settings.placement,
    )
    for note in metadata["notes"]:
        say(f"note: {path}: {note}")
    if metadata.get("quality", settings.quality) != settings.quality:
        found = metadata["quality"]
        raise DatasetError(
            f"{path}: quality: expected {settings.quality!r}, found {found!r}; --config.data.quality={found} accepts it"
        )
    totals = metadata["statistics"]
    wins = f", win rate {totals['win_rate']:.3f}" if totals["win_rate"] else ""
    say(
        f"data {path}: {totals['transitions']} transitions in {totals['episodes']} episodes, return "
        f"{totals['return_mean']:.3f} ± {totals['return_sd']:.3f} (sd){wins}, "
        f"{data.memory_bytes(dataset) / 1e6:.1f} MB on the {settings.placement}"
    )
    return dataset, metadata


def read(job: Job, path: str, *, begins: bool) -> Source:
    """Read a dataset and place it for the training call; only what was placed stays in memory.

    Args:
        job: the job that learns from it.
        path: the file's path.
        begins: no update was done yet, so a normaliser may be needed.

    Raises:
        ConfigError, DatasetError: as in `load`.
    """
    config, settings = job.config, job.config.data
    dataset, metadata = load(config, path)
    # one bound for all trials; if rewards are negative, the largest discount factor does not give the largest sum
    gammas = sorted({getattr(trial.algorithm, "gamma", 1.0) for trial in job.configs})
    largest = float(np.fmax.reduce([data.max_return_to_go(dataset, gamma) for gamma in gammas]))
    metadata["max_return_to_go"] = None if math.isnan(largest) else largest / settings.reward_scale
    if getattr(config.algorithm, "priming", 0):
        dataset = data.returns_to_go(dataset, sorted({trial.algorithm.gamma for trial in job.configs}))
    if settings.held_out:
        dataset, left_out = data.split(dataset, settings.held_out, settings.seed)
        say(f"data {path}: {len(left_out.rows)} transitions are held out, data.held_out={settings.held_out:g}")
    normaliser = data.normaliser(dataset) if settings.normalise and begins else None
    return Source(path, dataset.spec, metadata, normaliser, place(config, dataset, job.layout()))


def require_room(path: str, placement: str) -> None:
    """Print how large the data are, and refuse them if the device, or the host, has no room for them.

    Args:
        path: the file's path.
        placement: as in `DataConfig`.

    Raises:
        ConfigError: there is no room where they are placed.
    """
    stored, own, devices = data.stored_bytes(path), formats.sniff(path) == "omcda", jax.local_devices()
    on_cpu = devices[0].platform == "cpu"
    free = free_bytes(devices[0] if placement == "device" else None)
    # the devices of a CPU share its memory
    copies = len(devices) if on_cpu and placement == "device" else 1
    room = "" if free is None else f", {free / 1e6:.0f} MB free on the {placement}"
    say(f"data {path}: {stored / 1e6:.1f} MB to read{room}")
    stays_on_disk = own and placement == "host"
    if not stays_on_disk and free is not None and stored * copies > free:
        each = f" for each of {copies} devices" if copies > 1 else ""
        remedy = "--config.data.placement=host keeps them on the host"
        if not own and (on_cpu or placement == "host"):
            remedy = "omcda-jax data convert, on a larger machine, makes a file that placement=host leaves on the disk"
        raise ConfigError(
            f"data.placement: expected data that the {placement} has room for, found {stored / 1e6:.1f} MB{each} in "
            f"{path} and {free / 1e6:.1f} MB free; {remedy}"
        )


def free_bytes(device: jax.Device | None) -> int | None:
    """Return the free memory of a device, or of the host for a CPU and for None; None if unknown."""
    memory = {} if device is None else device.memory_stats() or {}
    if "bytes_limit" in memory:
        return memory["bytes_limit"] - memory.get("bytes_in_use", 0)
    free = free_memory()
    return int(free) if free < math.inf else None


def place(
    config: ExperimentConfig, dataset: data.Dataset, layout: Layout
) -> contextlib.AbstractContextManager[Callable[[int], Any]]:
    """Return the `Source.opened` of a dataset that was read.

    Args:
        config: the settings; `data` says where to place it, and `learner` how much is drawn from it.
        dataset: the data.
        layout: the layout of the training call.

    Raises:
        ConfigError: as in `data.shard`.
    """
    shards, process, processes = config.data.shards, jax.process_index(), jax.process_count()
    if shards > 1:
        owners = [device.process_index for device in jax.devices()]
        if owners != sorted(owners):
            raise ConfigError(f"data.shards: expected 1, because devices are not in process order, found {shards}")
    if config.data.placement == "device":
        own = data.shard(dataset, shards, process, processes) if shards > 1 else dataset
        placed = layout.place_dataset(own)
        return contextlib.nullcontext(lambda step: placed)
    # without shards every process draws from the same windows
    process, processes = (process, processes) if shards > 1 else (0, 1)
    share = {"process": process, "processes": processes, "place": layout.place_dataset}
    windows = data.Windows(dataset, config.data, config.learner, **share)
    say(f"windows of the data: {windows.count} per epoch, each for {windows.updates} updates")
    return windows
