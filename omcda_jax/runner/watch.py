"""Episodes of a learned policy next to those of the behaviour policy that made its data, animated on one page.

    omcda-jax watch runs/smac_3m/medium/omcda/seed_0
    omcda-jax watch runs/smac_3m/medium/omcda/trials --trial=2 --episodes=6 --out=third.html
    omcda-jax watch runs/smac_3m/medium/omcda/trials/selected
    omcda-jax watch POLICY --environment=smax/3m --quality=medium

The directory is that of a run, of trials or of a cell of a comparison, or the folder of a saved policy. A policy that
is neither in a run nor in the zoo needs --environment; --quality or --data adds something to compare it with. For
trials, the trial with the highest last return is shown, or the trial that --trial names. The policy acts greedily, from
the initial states of the run's evaluation. The behaviour policy is the one that comes with the package for the dataset,
from the same initial states. If there is none, the dataset's own episodes are shown.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from omcda_jax import algorithms, envs
from omcda_jax.checkpoint import load_policy
from omcda_jax.config import DataConfig, EvaluationConfig, to_dict
from omcda_jax.data.hdf5 import require_spec
from omcda_jax.envs.base import Environment, HostEnvironment
from omcda_jax.evaluate import greedily
from omcda_jax.runner import frame, report
from omcda_jax.runner.command import WHICH
from omcda_jax.runner.jobs import restore_trial, settings_of_run
from omcda_jax.runner.outcomes import Trial, best, load, trials_of
from omcda_jax.system import new_flags
from omcda_jax.types import ConfigError, updates_done


class Watched(NamedTuple):
    """A policy to watch.

    Attributes:
        title: what the policy is.
        text: which of its states this is.
        environment: where it acts.
        data: what it learned from.
        evaluation: the evaluation with the same initial states.
        act: as in `evaluate.watch`.
        state: first argument of `act`.
        result: result of its run, if the run ended with this state.
    """

    title: str
    text: str
    environment: Environment | HostEnvironment
    data: DataConfig | None
    evaluation: EvaluationConfig
    act: Callable[..., Any]
    state: Any
    result: Mapping[str, Any] | None = None


def main(argv: Sequence[str]) -> int:
    """Run one command line, with the program's name in `argv[0]`; return the exit status."""
    return frame.main(argv, __doc__, _flags(), _watch, "the directory of one run or policy")


def _watch(values: flags.FlagValues, directory: str) -> None:
    with frame.importing_pages():
        from omcda_jax.runner import page, watch_page
    watched = find(directory, values)
    made = watch_page.of_episodes(watched, values.episodes, print)
    folder, name = os.path.split(values.out or os.path.join(directory, "watch.html"))
    print(f"page: {page.write(folder, made, name)}")


def find(directory: str, values: flags.FlagValues) -> Watched:
    """Return the policy to watch.

    Args:
        directory: directory of the run or of the policy.
        values: parsed flags.

    Raises:
        ConfigError: there is no run or policy in it, or the flags do not fit it.
    """
    if os.path.isfile(os.path.join(directory, "policy.json")):
        for flag in ("trial", "checkpoint"):
            if values[flag].present:
                raise ConfigError(f"--{flag}: expected a run, found the saved policy {directory}")
        return _policy(directory, values)
    for flag in ("environment", "quality", "data"):
        if values[flag].present:
            raise ConfigError(f"--{flag}: expected a saved policy, found {directory}; a run has its own {flag}")
    if not os.path.isfile(os.path.join(directory, "config.json")):
        raise ConfigError(
            f"{directory}: expected the directory of a run, with config.json, or of a saved policy, with policy.json"
        )
    return _trial(directory, values)


def _trial(directory: str, values: flags.FlagValues) -> Watched:
    """The policy of a run, or of one of several trials."""
    path = os.path.join(directory, "result.json")
    result = load(path) if os.path.isfile(path) else None
    config = settings_of_run(directory)
    if result is None and config.learner.mode != "data":
        raise ConfigError(f"{directory}: expected finished trials, with result.json")
    trials = trials_of(directory, result) if result else [Trial({}, [], 0, {}, None, directory)]
    if values.trial is not None and values.trial >= len(trials):
        raise ConfigError(f"--trial: expected less than {len(trials)}, the trials of {directory}, found {values.trial}")
    trial = trials[values.trial] if values.trial is not None else best(trials) if len(trials) > 1 else trials[0]
    environment = envs.make(config.data.environment)
    job, state = restore_trial(trial, config, environment.spec, values.checkpoint)
    is_of_state = result and values.checkpoint == "latest" and result["step"] == updates_done(state)
    label = "".join(f", {key}={value}" for key, value in trial.label.items())
    return Watched(
        title=f"{report.title(to_dict(config))}{label}",
        text=f"{job.config.algorithm.name} after {updates_done(state)} updates",
        environment=environment,
        data=config.data,
        evaluation=config.evaluation,
        act=greedily(job.algorithm.act),
        state=state,
        result={**result, "evaluation": trial.final} if is_of_state else None,
    )


def _policy(directory: str, values: flags.FlagValues) -> Watched:
    """A saved policy; its data are those of the run that it is in, or those that flags name."""
    parent, data, evaluation = os.path.dirname(os.path.abspath(directory)), None, EvaluationConfig()
    card = os.path.join(parent, "card.json")
    if values.environment is None and os.path.isfile(os.path.join(parent, "config.json")):
        config = settings_of_run(parent)
        data, evaluation = config.data, config.evaluation
    elif values.environment is None and os.path.isfile(card):
        known = load(card)
        data = DataConfig(known["environment"], known["quality"])
    elif values.environment is None:
        raise ConfigError(f"{directory}: expected --environment, because the policy is neither in a run nor in the zoo")
    environment = envs.make(values.environment or data.environment)
    given = {"quality": values.quality, "path": values.data}
    given = {key: value for key, value in given.items() if value is not None}
    if given:
        data = dataclasses.replace(data or DataConfig(environment.name), **given)
    actor = load_policy(directory)
    require_spec(directory, environment.spec, actor.spec)
    return Watched(
        title=f"{os.path.normpath(directory)}: {actor.config.name} on {environment.name}",
        text=f"{actor.config.name} as saved",
        environment=environment,
        data=data,
        evaluation=evaluation,
        act=greedily(algorithms.act),
        state=actor,
    )


def _flags() -> flags.FlagValues:
    values, define = new_flags()
    define("integer", "episodes", 4, "Episodes of the policy and of its data.", lower_bound=1, upper_bound=32)
    define("string", "out", None, "File of the page, watch.html in the directory by default.")
    number = "Which of the trials, counted from 0."
    define("integer", "trial", None, number, lower_bound=0)
    define("enum", "checkpoint", "latest", WHICH, "Which checkpoint of a run.")
    define("string", "environment", None, "Environment of a saved policy, for instance smax/3m.")
    define("string", "quality", None, "Behaviour policy to show beside a saved policy, for instance medium.")
    define("string", "data", None, "Dataset with episodes to show beside those of a saved policy.")
    return values
