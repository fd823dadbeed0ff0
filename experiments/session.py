"""What run.py and compare.py share: directories, data, processes, and training that can be stopped and goes on."""

import contextlib
import functools
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np

from omcda_jax import data
from omcda_jax.algorithms import ALGORITHMS
from omcda_jax.checkpoint import Checkpoints, StorageError, digest
from omcda_jax.config import RESUMABLE, ExperimentConfig, differences, to_dict
from omcda_jax.envs.base import Environment, HostEnvironment
from omcda_jax.evaluate import make_evaluate, summarise
from omcda_jax.learner import (
    Guard,
    Interrupted,
    Interruption,
    Layout,
    NonFiniteMetrics,
    broadcast,
    initial_state,
    make_debug_step,
    make_train_step,
    train,
)
from omcda_jax.metrics import MetricsFile, Progress, read
from omcda_jax.system import exclusive, replacing
from omcda_jax.types import ConfigError, DatasetError, TrainState, updates_done

PROGRESS_METRICS = ("policy/loss", "critic/q_return", "policy/divergence")
# Seconds without a sign of life after which a process counts as gone; the others then end, to be started again.
HEARTBEAT = 20
TIMES = ("seconds", "updates_per_second")
# What every evaluation leaves in the metrics of a population.
SHOWN = ("return_mean", "return_sd", "win_rate", "length_mean", "episodes")

Simulator = Environment | HostEnvironment


class Switches(NamedTuple):
    """Ways to look into training: a trace of calls 2 to 4 for the profiler, a stop at the first not-a-number."""

    profile: bool = False
    debug_nans: bool = False


class Job(NamedTuple):
    """One training call's worth of trials.

    Attributes:
        configs: one per trial, alike but for seeds and numbers of the algorithm.
        directory: of the run.
        environment: the simulator they are judged in.
        population: a stack of trials, even of one; False is a single trial over all devices of all processes.
        flag: that chooses another directory, for messages.
        switches: ways to look into it.
    """

    configs: Sequence[ExperimentConfig]
    directory: str
    environment: Simulator
    population: bool = False
    flag: str = "--workdir"
    switches: Switches = Switches()

    @property
    def config(self) -> ExperimentConfig:
        """The first trial's."""
        return self.configs[0]

    @property
    def algorithm(self) -> Any:
        """Of all trials."""
        return ALGORITHMS[self.config.algorithm.name]

    def fresh(self) -> TrainState:
        """The state before any update, with a normaliser that changes nothing where the config asks for one.

        Raises:
            ConfigError: where the algorithm refuses the settings for this task.
        """
        states = [
            initial_state(
                self.algorithm,
                config.seed,
                self.environment.spec,
                config.algorithm,
                normalised=config.data.normalise,
            )
            for config in self.configs
        ]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states) if self.population else states[0]

    def layout(self) -> Layout:
        """All devices for one trial; for a population as many local ones as share it evenly."""
        if not self.population:
            return Layout(tuple(jax.devices()))
        devices, trials = tuple(jax.local_devices()), len(self.configs)
        return Layout(devices[: max(n for n in range(1, len(devices) + 1) if trials % n == 0)], population=True)


def say(*words: Any) -> None:
    """Prints, in the first process only."""
    if is_first():
        print(*words, flush=True)


def is_first() -> bool:
    """Whether this process writes files and talks; asks for no device."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def by_first(work: Callable[[], Any]) -> Any:
    """Returns in every process what `work()` came to in the first: a JSON value, or the mistake it raised.

    Raises:
        ConfigError: `work` raised it, or DatasetError, in the first process.
    """
    if jax.process_count() == 1:
        return work()
    said = {}
    if is_first():
        try:
            said = {"value": work()}
        except (ConfigError, DatasetError) as error:
            said = {"error": str(error)}
    text = np.frombuffer(json.dumps(said).encode(), np.uint8)
    size = int(broadcast(np.array(len(text))))
    text = np.asarray(broadcast(text if is_first() else np.zeros(size, np.uint8)))
    said = json.loads(text.tobytes())
    if "error" in said:
        raise ConfigError(said["error"])
    return said["value"]


def join(coordinator: str | None, processes: int | None, index: int | None, interruption: Interruption) -> None:
    """Makes this process one of several that train one trial, unless whoever started it did so already.

    Args:
        coordinator: host:port of process 0; like the others None where the cluster's environment says it.
        processes: how many there are.
        index: which one this is.
        interruption: its handlers are set again, for JAX sets its own.

    Raises:
        ConfigError: neither the arguments nor the environment tell what to join.
    """
    if not jax.distributed.is_initialized():
        try:
            jax.distributed.initialize(coordinator, processes, index, heartbeat_timeout_seconds=HEARTBEAT)
        except (ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"--distributed: no cluster found to join ({reason}); give --coordinator=HOST:PORT --num_processes=N "
                "--process_id=I"
            ) from error
    interruption.renew()
    say(f"{jax.process_count()} processes, {jax.device_count()} devices")


def write_json(path: str, value: Any) -> None:
    """Writes a JSON file in one piece: it is the old one or the new one, never half of either."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=2))


def checkpoints_of(directory: str, which: str = "latest") -> str:
    """Where a run's checkpoints lie, the latest or the best."""
    return os.path.join(directory, "checkpoints", which)


@contextlib.contextmanager
def claimed(directory: str, config: ExperimentConfig, flag: str = "--workdir") -> Iterator[None]:
    """Makes the run directory, holds it alone and writes its config.json.

    Args:
        directory: of the run.
        config: what it is to be.
        flag: that chooses another directory.

    Raises:
        ConfigError: another process is at work there, it has checkpoints of a run with other settings, which are
            named, or it cannot be written.
    """
    with contextlib.ExitStack() as held:

        def claim():
            try:
                os.makedirs(directory, exist_ok=True)
                held.enter_context(exclusive(directory, flag))
                refuse_other_settings(directory, config, flag)
                write_json(os.path.join(directory, "config.json"), to_dict(config))
            except OSError as error:
                raise ConfigError(f"{directory}: cannot write the run directory: {error.strerror}") from error

        by_first(claim)
        yield


def refuse_other_settings(directory: str, config: ExperimentConfig, flag: str = "--workdir") -> None:
    """Compares a run directory's config.json with the settings at hand; nothing saved there, nothing to compare.

    Raises:
        ConfigError: naming the settings that differ and alter an update already done.
    """
    path = os.path.join(directory, "config.json")
    if os.path.exists(path) and os.path.isdir(checkpoints_of(directory)):
        with open(path, encoding="utf-8") as file:
            _refuse(directory, json.load(file), to_dict(config), flag)


def _refuse(directory: str, saved: Mapping[str, Any], current: Mapping[str, Any], flag: str) -> None:
    changed = differences(saved, current)
    listed = [f"{key} was {was!r}, is {now!r}" for key, (was, now) in changed.items() if key not in RESUMABLE]
    if listed:
        raise ConfigError(f"{directory}: holds a run with other settings ({'; '.join(listed)}); choose another {flag}")


class Loaded(NamedTuple):
    """A dataset as it was read.

    Attributes:
        path: where from.
        dataset: on the device or the host, as the settings say.
        metadata: as `data.load` gives it.
    """

    path: str
    dataset: data.Dataset
    metadata: dict[str, Any]


def read_data(config: ExperimentConfig) -> Loaded | None:
    """Reads the dataset without asking for a simulator; None where it is still to be collected.

    Says how large it is before it is read.

    Raises:
        ConfigError, DatasetError: as `data.load`; or it is larger than the device's free memory.
    """
    asked = config.data
    path = asked.path
    if path is None:
        sizes = {"episodes": asked.episodes, "transitions": asked.transitions}
        path = os.fspath(data.default_path(asked.environment, asked.quality, seed=asked.seed, **sizes))
        if not os.path.exists(path):
            return None
    _require_room(path, asked.placement)
    found = data.load(
        path,
        environment=asked.environment,
        reward_scale=asked.reward_scale,
        repairs=asked.repairs,
        placement=asked.placement,
    )
    return Loaded(path, *found)


def load_data(
    config: ExperimentConfig, environment: Simulator, loaded: Loaded | None = None
) -> tuple[data.Dataset, dict[str, Any]]:
    """Returns the dataset, where its placement has it, and its metadata, collecting it if it is missing.

    Says what it holds.

    Args:
        config: the settings.
        environment: the simulator it must fit.
        loaded: what `read_data` found, if it was asked.

    Raises:
        ConfigError, DatasetError: as `data.ensure` and `read_data`; or the simulator has other sizes.
    """
    asked = config.data
    if asked.path is None:
        # all processes ask, whatever they found themselves; where the file is there nothing is done
        sizes = {"episodes": asked.episodes, "transitions": asked.transitions}
        collect = lambda: os.fspath(data.ensure(asked.environment, asked.quality, seed=asked.seed, log=say, **sizes))
        where = by_first(collect)
    loaded = loaded or read_data(config)
    if loaded is None:
        raise DatasetError(f"{where}: expected the dataset that the first process collected, found nothing there")
    path, dataset, metadata = loaded
    data.require_spec(path, environment.spec, dataset.spec)
    for note in metadata["notes"]:
        say(f"note: {path}: {note}")
    if metadata.get("quality", asked.quality) != asked.quality:
        raise DatasetError(f"{path}: quality: expected {asked.quality!r}, found {metadata['quality']!r}")
    found = metadata["statistics"]
    say(
        f"data {path}: {found['transitions']} transitions in {found['episodes']} episodes, return "
        f"{found['return_mean']:.3f} ± {found['return_sd']:.3f} (sd), win rate {found['win_rate']:.3f}, "
        f"{data.memory_bytes(dataset) / 1e6:.1f} MB on the {asked.placement}"
    )
    for package, version in metadata.get("versions", {}).items():
        here = environment.versions.get(package, version)
        if here != version:
            say(f"warning: the data were made with {package} {version}, evaluation uses {here}")
    discount = getattr(config.algorithm, "discount", 1.0)
    metadata["max_return_to_go"] = float(data.max_return_to_go(dataset, discount)) / asked.reward_scale
    return dataset, metadata


def _require_room(path: str, placement: str) -> None:
    """Says how large the data are, and refuses those that the device has no room for."""
    stored, device = data.stored_bytes(path), jax.local_devices()[0]
    free = free_bytes(device)
    # devices of a CPU share its memory
    copies = len(jax.local_devices()) if device.platform == "cpu" else 1
    room = "" if free is None else f", {free / 1e6:.0f} MB free on the device"
    say(f"data {path}: {stored / 1e6:.1f} MB to read{room}")
    if placement == "device" and free is not None and stored * copies > free:
        each = f" for each of {copies} devices" if copies > 1 else ""
        raise ConfigError(
            f"data.placement: expected data that the device has room for, found {stored / 1e6:.1f} MB{each} in {path} "
            f"and {free / 1e6:.1f} MB free; --config.data.placement=host keeps them on the host"
        )


def free_bytes(device: jax.Device) -> int | None:
    """Returns the memory that is free on a device, of a CPU what the system says is available; None: unknown."""
    found = device.memory_stats() or {}
    if "bytes_limit" in found:
        return found["bytes_limit"] - found.get("bytes_in_use", 0)
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


def make_judge(job: Job) -> Callable[[TrainState], list[dict[str, Any]]]:
    """Returns a function of the job's state: for every trial the summary of its greedy episodes, with their returns."""
    evaluation = job.config.evaluation
    play = make_evaluate(job.algorithm.act, job.environment, evaluation.episodes)

    def judge(state):
        found = []
        for trial in range(len(job.configs)):
            one = jax.tree.map(lambda leaf: leaf[trial], state) if job.population else state  # noqa: B023 called at once
            episodes = jax.device_get(play(one, jax.random.key(evaluation.seed)))
            found.append({**summarise(episodes), "returns": np.asarray(episodes.returns).tolist()})
        return found

    return judge


def without_returns(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A summary's numbers alone."""
    return {key: value for key, value in summary.items() if key != "returns"}


class Best:
    """The checkpoint of a single trial with the highest mean return of an evaluation so far; a context manager."""

    def __init__(self, job: Job, template: TrainState):
        self._checkpoints = None
        self._highest = -np.inf
        if not job.population and is_first():
            self._checkpoints = Checkpoints(checkpoints_of(job.directory, "best"), keep=1)
            _, saved = self._checkpoints.restore(template) or (None, None)
            self._highest = saved["evaluation"]["return_mean"] if saved else -np.inf

    def offer(self, state: TrainState, summary: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        """Keeps the state if none was better."""
        if self._checkpoints and summary["return_mean"] > self._highest:
            self._highest = summary["return_mean"]
            self._checkpoints.save(state, {**metadata, "evaluation": without_returns(summary)}, replace=True)

    def __enter__(self) -> "Best":
        return self

    def __exit__(self, *unused: Any) -> None:
        if self._checkpoints:
            self._checkpoints.close()


def restore(job: Job, which: str = "latest") -> tuple[TrainState | None, dict[str, Any]]:
    """Returns the newest whole checkpoint's state and metadata, the first process's in all; (None, {}) without one.

    Raises:
        ConfigError: it is no state of this job, or of a run with other settings.
    """
    template = jax.eval_shape(job.fresh)
    found = []

    def read_it():
        with Checkpoints(checkpoints_of(job.directory, which)) as checkpoints:
            found.extend(checkpoints.restore(template) or ())
        if found and which == "latest":
            _refuse(job.directory, found[1]["config"], to_dict(job.config), job.flag)
        return found[1] if found else None

    saved = by_first(read_it)
    if saved is None:
        return None, {}
    return broadcast(found[0] if found else job.fresh()), saved


def learn(
    job: Job,
    state: TrainState | None,
    saved: Mapping[str, Any],
    judge: Callable[[TrainState], list[dict[str, Any]]],
    interruption: Interruption,
    loaded: Loaded | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """Trains to the end or to a signal; every state saved carries what a later start needs.

    Args:
        job: what to train; its directory is claimed.
        state: from `restore`, or None to begin.
        saved: likewise.
        judge: from `make_judge`.
        interruption: polled between calls.
        loaded: as of `load_data`.

    Returns:
        The state, and what its checkpoint holds beside it: settings, data, guard's counts, seconds of training.

    Raises:
        ConfigError: if the data are not those the run began with.
        DatasetError, NonFiniteMetrics, StorageError: as `load_data`, `learner.train` and `Checkpoints.save`.
    """
    config, directory, settings = job.config, job.directory, job.config.learner
    dataset, description = load_data(config, job.environment, loaded)
    del loaded
    if saved and saved["data"].get("digest") != description.get("digest"):
        raise ConfigError(f"{directory}: began on other data than the file now holds; choose another {job.flag}")
    state = _begin(job, dataset) if state is None else state
    start, layout = updates_done(state), job.layout()
    say(f"resumed at step {start}" if saved else "starting at step 0", f"of {settings.updates}, in {directory}")

    guard = Guard(len(job.configs), saved.get("guard"))
    latest = {"config": to_dict(config), "data": description, "seconds": 0.0, "guard": guard.counts}
    metrics_path = os.path.join(directory, "metrics.jsonl")
    template = jax.eval_shape(job.fresh)
    with contextlib.ExitStack() as opened:
        dataset_at = opened.enter_context(_feed(config, dataset, layout))
        # what is placed may be a part or a copy; the whole is not to stay beside it
        del dataset
        step, state = _compiled(job, layout, state, dataset_at(start))
        began = time.monotonic() - saved.get("seconds", 0.0)
        progress = Progress(settings.updates, start, PROGRESS_METRICS)
        first = is_first()
        rows = opened.enter_context(MetricsFile(metrics_path, start)) if first else None
        checkpoints = opened.enter_context(Checkpoints(checkpoints_of(directory)))
        best = opened.enter_context(Best(job, template))
        evaluated = {row["step"] for row in read(metrics_path) if "evaluation/return_mean" in row}
        evaluated = set(by_first(lambda: sorted(evaluated)))
        trace = opened.enter_context(_trace(directory if job.switches.profile else None))

        def on_call(step, metrics):
            trace()
            if first:
                progress.update(step, metrics)

        def write(step, values):
            if first:
                rows.write(step, values)

        def log(step, metrics, rate):
            write(step, {"seconds": time.monotonic() - began, "updates_per_second": rate} | metrics)

        def save(state):
            latest.update(seconds=time.monotonic() - began, guard=guard.counts)
            if first:
                checkpoints.save(state, latest)

        def look(state):
            step = updates_done(state)
            if step in evaluated:
                return
            found = []
            with interruption.at_once():
                found = judge(state)
            if found:
                best.offer(state, found[0], latest)
                values = {key: [one[key] for one in found] for key in SHOWN} if job.population else found[0]
                write(step, {f"evaluation/{key}": value for key, value in without_returns(values).items()})

        hooks = {"layout": layout, "guard": guard, "on_call": on_call, "log": log, "save": save, "evaluate": look}
        interruption.deferred = True
        try:
            state = train(step, state, dataset_at, settings, **hooks, stop=lambda: interruption.requested)
            checkpoints.wait()
        finally:
            interruption.deferred = False
    if first:
        progress.close()
    return state, latest


def _begin(job: Job, dataset: data.Dataset) -> TrainState:
    """The state before any update, with the data's normaliser where the config asks for one."""
    state = job.fresh()
    if not job.config.data.normalise:
        return state
    spread = lambda x: jnp.stack([x] * len(job.configs)) if job.population else x
    return state.replace(normaliser=jax.tree.map(spread, data.normaliser(dataset)))


@contextlib.contextmanager
def _feed(config: ExperimentConfig, dataset: data.Dataset, layout: Layout) -> Iterator[Callable[[int], Any]]:
    """Gives the function of the number of updates done that returns what the training call is to draw from."""
    shards, process, processes = config.data.shards, jax.process_index(), jax.process_count()
    if shards > 1:
        owners = [device.process_index for device in jax.devices()]
        if owners != sorted(owners):
            raise ConfigError(f"data.shards: expected 1 where devices do not follow their processes, found {shards}")
    if config.data.placement == "device":
        placed = layout.place_dataset(data.shard(dataset, shards, process, processes) if shards > 1 else dataset)
        del dataset
        yield lambda step: placed
        return
    # without shards every process draws from the same windows
    process, processes = (process, processes) if shards > 1 else (0, 1)
    share = {"process": process, "processes": processes, "place": layout.place_dataset}
    windows = data.Windows(dataset, config.data, config.learner, **share)
    say(f"windows of the data: {windows.count} an epoch, each for {windows.updates} updates")
    with windows:
        yield windows


def _compiled(job: Job, layout: Layout, state: TrainState, dataset: Any) -> tuple[Any, TrainState]:
    """The training call for data like these, and the state as it takes it."""
    settings, began = job.config.learner, time.monotonic()
    sizes = (settings.batch_size, settings.updates_per_call)
    if job.switches.debug_nans:
        if job.population or jax.device_count() > 1:
            raise ConfigError("--debug_nans: expected one trial on one device, found more")
        return make_debug_step(job.algorithm, data.sample, *sizes), state
    step = make_train_step(job.algorithm, data.sample, *sizes, layout)
    state = layout.place(state)
    if jax.process_count() > 1:
        # ahead of time pmap takes global arrays only, at the call each process's own
        say(f"training on {len(layout.devices)} devices; the first call compiles the update")
    else:
        step = step.lower(state, dataset).compile()
        say(f"compiled the update for {len(layout.devices)} device(s) in {time.monotonic() - began:.1f} s")
    return step, state


@contextlib.contextmanager
def _trace(directory: str | None) -> Iterator[Callable[[], None]]:
    """Gives what is to be called after every training call; calls 2 to 4 are traced into DIRECTORY/profile."""
    calls, path = [], directory and os.path.join(directory, "profile")

    def count():
        calls.append(None)
        if path and len(calls) == 1:
            jax.profiler.start_trace(path)
        if path and len(calls) == 4:
            jax.profiler.stop_trace()
            say(f"profile of calls 2 to 4: {path}")

    yield count
    if path and 1 <= len(calls) < 4:
        jax.profiler.stop_trace()


def fingerprints(directory: str, state: TrainState) -> dict[str, str]:
    """Returns the SHA-256 of a state and of the metrics on the way to it, times left out: equal for equal runs."""
    rows = [
        {key: value for key, value in row.items() if key not in TIMES}
        for row in read(os.path.join(directory, "metrics.jsonl"))
    ]
    return {"state_sha256": digest(state), "metrics_sha256": digest(_as_arrays(rows))}


def _as_arrays(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, np.ndarray]]:
    return [{key: np.asarray(value) for key, value in row.items()} for row in rows]


def guarded(work: Callable[[Interruption], int]) -> int:
    """Does `work` and returns its exit status, or that of what stopped it, told in one line.

    One of several processes that goes alone, or is left alone, ends here: an orderly end would wait for the others.
    """
    # orbax logs as errors, with tracebacks, what it raises as well; asyncio likewise
    absl.logging.set_verbosity(absl.logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    tell = functools.partial(print, file=sys.stderr, flush=True)
    try:
        with warnings.catch_warnings(), Interruption() as interruption:
            warnings.showwarning = lambda message, *_: tell(f"warning: {message}")
            sys.unraisablehook = _unraisable
            return work(interruption)
    except (ConfigError, DatasetError) as error:
        tell(f"error: {error}")
        return 78
    except NonFiniteMetrics as error:
        tell(f"error: training diverged: {error}; what was saved before is intact")
        return 1
    except StorageError as error:
        tell(f"error: {error}")
        return 1
    except Interrupted as signal_name:
        tell(f"stopped by {signal_name} with nothing more to save; the same command goes on")
        if jax.distributed.is_initialized():
            os._exit(75)
        return 75
    except jax.errors.JaxRuntimeError as error:
        if not jax.distributed.is_initialized() or jax.process_count() == 1:
            raise
        tell(
            f"error: another process is gone ({str(error).splitlines()[0][:200]}); the same commands go on from the "
            "latest checkpoint"
        )
        os._exit(75)


def _unraisable(found: Any) -> None:
    # what orbax leaves behind where a read or a write failed, which is told as an error of its own
    if "Event loop is closed" not in str(found.exc_value):
        sys.__unraisablehook__(found)


def leave(status: int) -> NoReturn:
    """Ends the process; one that a signal stopped at once, for an orderly end trips over a compilation broken off."""
    if status == 75 and not jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(75)
    sys.exit(status)
