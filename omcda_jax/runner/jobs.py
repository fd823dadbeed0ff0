"""A training job and its directory: which process holds it, its first settings, and how far it is."""

import contextlib
import dataclasses
import functools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from omcda_jax import envs
from omcda_jax.algorithms import find
from omcda_jax.checkpoint import Checkpoints, digest, steps_in
from omcda_jax.config import (
    RESUMABLE,
    DataConfig,
    ExperimentConfig,
    LearnerConfig,
    apply_overrides,
    assignments,
    differences,
    expand_trials,
    keys,
    replace_settings,
    to_dict,
)
from omcda_jax.files import check_free, exclusive, replacing
from omcda_jax.learner import Layout, broadcast, initial_population, initial_state
from omcda_jax.metrics import read
from omcda_jax.runner.outcomes import Trial, load
from omcda_jax.runner.processes import by_first, is_first
from omcda_jax.system import one_line
from omcda_jax.types import Algorithm, ConfigError, EnvSpec, TrainState, updates_done

TIMES = ("seconds", "updates_per_second")
# settings of the learner: how long a run is, and how often it is logged, saved and evaluated
LENGTHS = ("updates", "updates_per_call", "log_every", "checkpoint_every", "evaluate_every")


class Switches(NamedTuple):
    """Debugging and logging switches of training.

    Attributes:
        profile: trace calls 2 to 4 for the profiler.
        debug_nans: stop at the first nan.
        log: names of the sinks that also get the rows of metrics, see `sinks`.
    """

    profile: bool = False
    debug_nans: bool = False
    log: tuple[str, ...] = ()


class Job(NamedTuple):
    """The trials that are trained together.

    Attributes:
        configs: one per trial; they differ only in the seed and in numbers of the algorithm.
        directory: the run's directory.
        population: True: a stack of trials, even of one; False: a single trial over all devices of all processes.
        flag: the flag that chooses another directory, for messages.
        switches: debugging and logging switches.
    """

    configs: Sequence[ExperimentConfig]
    directory: str
    population: bool = False
    flag: str = "--workdir"
    switches: Switches = Switches()

    @property
    def config(self) -> ExperimentConfig:
        """The first trial's settings."""
        return self.configs[0]

    @property
    def algorithm(self) -> Algorithm:
        """The algorithm of all trials."""
        return find(self.config.algorithm.name)

    def fresh(self, spec: EnvSpec) -> TrainState:
        """Return the state before any update; if the config asks for a normaliser, it is the identity.

        Raises:
            ConfigError: the algorithm refuses the settings for this task.
        """
        first, normalised = self.config, self.config.data.normalise
        if not self.population:
            return initial_state(self.algorithm, first.seed, spec, first.algorithm, normalised=normalised)
        seeds, settings = zip(*((config.seed, config.algorithm) for config in self.configs), strict=True)
        return initial_population(self.algorithm, seeds, spec, settings, normalised=normalised)

    def template(self, spec: EnvSpec) -> TrainState:
        """Return the shapes and dtypes of `fresh`, without computing anything."""
        return jax.eval_shape(lambda: self.fresh(spec))

    def layout(self) -> Layout:
        """Return all devices for one trial; for a population, as many local devices as divide it evenly."""
        if not self.population:
            return Layout(tuple(jax.devices()))
        devices, trials = tuple(jax.local_devices()), len(self.configs)
        return Layout(devices[: max(n for n in range(1, len(devices) + 1) if trials % n == 0)], population=True)

    def checkpoints(self, which: str = "latest") -> str:
        """Return the folder of the checkpoints, the latest or the best."""
        return os.path.join(self.directory, "checkpoints", which)

    @property
    def metrics(self) -> str:
        """The file of the logged rows."""
        return os.path.join(self.directory, "metrics.jsonl")


class Saved(NamedTuple):
    """How far a job is on disk.

    Attributes:
        state: state of the newest whole checkpoint; None before the first.
        metadata: its metadata: settings, data, the guard's counts, seconds of training; empty before the first.
    """

    state: TrainState | None
    metadata: Mapping[str, Any]


def write_json(path: str, value: Any) -> None:
    """Write a JSON file atomically: readers see the old file or the new one, never a part."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=2))


def place_in_run(directory: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the run that has a directory among its checkpoints, and the folders from there on; None outside a run."""
    path = Path(os.path.abspath(directory))
    for parent in (path, *path.parents):
        if parent.name == "checkpoints" and (parent.parent / "config.json").is_file():
            return os.fspath(parent.parent), path.relative_to(parent).parts
    return None


def settings_of_run(directory: str, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Return the settings in a run's config.json, with overrides applied.

    Args:
        directory: the run's directory.
        overrides: `key=value` settings that differ.

    Raises:
        ConfigError: there is no such file, its settings are not those of this version, or an override is refused.
    """
    path = os.path.join(directory, "config.json")
    if not os.path.isfile(path):
        raise ConfigError(f"{directory}: expected the directory of a run, found no config.json in it")
    saved = load(path)
    try:
        algorithm = find(saved["algorithm"]["name"]).config()
        # all of these values are replaced
        bare = ExperimentConfig(saved["name"], algorithm, DataConfig("family/scenario"), LearnerConfig(updates=100))
        begun = apply_overrides(bare, [each for each in assignments(saved) if not each.startswith("algorithm.name=")])
    except (LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: expected the settings of a run: {one_line(error)}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: expected the settings of a run of this version of omcda-jax: {error}") from None
    return apply_overrides(begun, overrides)


def as_begun(job: Job) -> Job:
    """Return a job with the length and the intervals stored in its directory; an evaluation ignores the given ones."""
    path = os.path.join(job.directory, "config.json")
    saved = by_first(lambda: load(path).get("learner", {}) if os.path.exists(path) else {})
    learner = replace_settings(job.config.learner, {key: saved[key] for key in LENGTHS if key in saved})
    return job._replace(configs=[dataclasses.replace(each, learner=learner) for each in job.configs])


def check_directory(job: Job) -> None:
    """Refuse a directory that the job cannot have, before costly work; nothing is written.

    Raises:
        ConfigError: another process is working there, or it is inside another run's checkpoints.
    """
    inside = place_in_run(job.directory)
    if inside:
        raise ConfigError(
            f"{job.directory}: expected a directory of its own for the run, found one among the checkpoints of "
            f"{inside[0]}; choose another {job.flag}"
        )
    check_free(job.directory, job.flag)


@contextlib.contextmanager
def claimed(job: Job, *, trains: bool = True) -> Iterator[None]:
    """Make the run directory, lock it and write its config.json.

    Args:
        job: the job.
        trains: False leaves config.json as it is, for an evaluation.

    Raises:
        ConfigError: as in `check_directory`; or the directory has checkpoints of a run with other settings, which the
            error names, or it cannot be written.
    """
    with contextlib.ExitStack() as held:

        def claim():
            check_directory(job)
            try:
                os.makedirs(job.directory, exist_ok=True)
                held.enter_context(exclusive(job.directory, job.flag))
                refuse_other_settings(job)
                if trains:
                    write_json(os.path.join(job.directory, "config.json"), to_dict(job.config))
            except OSError as error:
                raise ConfigError(f"{job.directory}: cannot write the run directory: {error.strerror}") from error

        by_first(claim)
        yield


def refuse_fewer_updates(job: Job) -> None:
    """Refuse a run of fewer updates than its newest checkpoint has: the settings would not match the state.

    Raises:
        ConfigError: more updates are done than the settings ask for.
    """
    wanted, done = job.config.learner.updates, max(steps_in(job.checkpoints()), default=0)
    if done > wanted:
        raise ConfigError(
            f"{job.directory}: learner.updates: expected at least {done}, which are already done, found {wanted}; "
            f"--mode=eval evaluates what is there, and another {job.flag} starts a new run"
        )


def refuse_other_settings(job: Job) -> None:
    """Compare the directory's config.json with the job's settings, if the directory has checkpoints.

    Raises:
        ConfigError: settings differ that affect updates already done; the error names them.
    """
    path = os.path.join(job.directory, "config.json")
    if os.path.exists(path) and any(os.path.isdir(job.checkpoints(which)) for which in ("latest", "best")):
        _refuse_changes(job, load(path))


def _refuse_changes(job: Job, saved: Mapping[str, Any]) -> None:
    current = to_dict(job.config)
    changed = differences(saved, current)
    same_algorithm = saved["algorithm"].get("name") == current["algorithm"]["name"]
    if same_algorithm and keys(saved) != keys(current):
        unknown = ", ".join(sorted(keys(saved) ^ keys(current)))
        raise ConfigError(
            f"{job.directory}: was started by another version of omcda-jax, whose settings differ ({unknown}); finish "
            f"it with that version, or choose another {job.flag}"
        )
    listed = [f"{key} was {was!r}, is {now!r}" for key, (was, now) in changed.items() if key not in RESUMABLE]
    if listed:
        raise ConfigError(
            f"{job.directory}: holds a run with other settings ({'; '.join(listed)}); choose another {job.flag}"
        )


def restore(job: Job, spec: EnvSpec, which: str = "latest", step: int | None = None) -> Saved:
    """Return the newest whole checkpoint; all processes get the first one's.

    Args:
        job: the job.
        spec: sizes of its task.
        which: latest or best.
        step: step of the checkpoint; None: the newest.

    Raises:
        ConfigError: the checkpoint is not a state of this job, or is of a run with other settings, or all that were
            there are damaged.
        StorageError: as in `Checkpoints.restore`.
    """

    @functools.cache
    def newest():
        with Checkpoints(job.checkpoints(which)) as checkpoints:
            found = checkpoints.restore(job.template(spec), step)
            aside = checkpoints.put_aside()
        if found is None and step is None and aside and which == "latest" and os.path.isdir(job.checkpoints()):
            # to begin again would erase the metrics of the updates that were done
            raise ConfigError(
                f"{job.directory}: every checkpoint is damaged and put aside in {os.path.dirname(aside[0])}; "
                f"bring back a copy, or remove {job.checkpoints()} to start again"
            )
        return found or (None, None)

    metadata = by_first(lambda: newest()[1])
    if metadata is None:
        return Saved(None, {})
    if which == "latest":
        _refuse_changes(job, metadata["config"])
    return Saved(broadcast(newest()[0] if is_first() else job.fresh(spec)), metadata)


def restore_trial(
    trial: Trial, config: ExperimentConfig, spec: EnvSpec, which: str = "latest"
) -> tuple[Job, TrainState]:
    """Return the job of a trial's directory, and the trial's state.

    Args:
        trial: the trial.
        config: its settings.
        spec: sizes of its task.
        which: which checkpoint, latest or best.

    Raises:
        ConfigError: a process is working there, there is no such checkpoint, or it has other settings.
    """
    place, count = trial.place or (0, 1)
    job = Job([config] * count, trial.directory, population=trial.place is not None)
    check_free(trial.directory)
    refuse_other_settings(job)
    state, _ = restore(job, spec, which)
    if state is None:
        raise ConfigError(f"{trial.directory}: expected a checkpoint, found none")
    return job, jax.tree.map(lambda leaf: leaf[place], state) if job.population else state


def share(trials: Sequence[Any], index: int, count: int) -> Sequence[Any]:
    """Return the trials of one of several processes: consecutive, and split as evenly as possible."""
    own = np.array_split(np.arange(len(trials)), count)[index]
    return [trials[place] for place in own]


def share_folder(directory: str, index: int, count: int) -> str:
    """Return the folder in which one of several processes keeps its share of a directory's trials."""
    return os.path.join(directory, f"share_{index}_of_{count}")


def place_of_share(directory: str) -> tuple[int, int] | None:
    """Return the process index and the number of processes of a share's directory; None if it is not a share."""
    found = re.fullmatch(r"share_(\d+)_of_(\d+)", os.path.basename(os.path.normpath(directory)))
    return (int(found[1]), int(found[2])) if found and int(found[1]) < int(found[2]) else None


def job_of_run(directory: str) -> Job:
    """Return the job of a directory: a run's, trials', one process's share of trials, or a comparison's cell.

    Raises:
        ConfigError: as in `settings_of_run`.
    """
    config, name = settings_of_run(directory), os.path.basename(os.path.normpath(directory))
    of_cell, of_share = re.fullmatch(r"seeds_(\d+(?:-\d+)*)", name), place_of_share(directory)
    if config.learner.mode == "trials":
        configs = [each for _, each in expand_trials(config)]
        if of_share:
            configs = share(configs, *of_share)
        return Job(configs, directory, population=True)
    if of_cell:
        configs = [dataclasses.replace(config, seed=int(seed)) for seed in of_cell[1].split("-")]
        return Job(configs, directory, population=True)
    return Job([config], directory)


def load_run(directory: str, *, checkpoint: str = "latest", trial: int = 0) -> tuple[ExperimentConfig, TrainState]:
    """Return the settings and the state of a run, to act with it, evaluate it or continue training.

    Args:
        directory: as in `job_of_run`.
        checkpoint: which checkpoint, latest or best.
        trial: index of the trial in a population.

    Raises:
        ConfigError: the directory is not a run's, the run is still training, or has no such checkpoint or trial.
    """
    job = job_of_run(directory)
    if not 0 <= trial < len(job.configs):
        raise ConfigError(f"{directory}: trial: expected less than {len(job.configs)}, its trials, found {trial}")
    place = (trial, len(job.configs)) if job.population else None
    spec = envs.make(job.config.data.environment).spec
    _, state = restore_trial(Trial({}, [], 0, {}, None, directory, place), job.config, spec, checkpoint)
    return job.configs[trial], state


def fingerprints(job: Job, state: TrainState) -> dict[str, str]:
    """Return the SHA-256 of a state and of the metrics up to it, without times: equal runs have equal fingerprints."""
    done = updates_done(state)
    rows = [
        {key: np.asarray(row[key]) for key in row if key not in TIMES}
        for row in read(job.metrics)
        if row["step"] <= done
    ]
    return {"state_sha256": digest(state), "metrics_sha256": digest(rows)}
