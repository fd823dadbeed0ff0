"""Evaluations of a job's trials, and the best policy during training."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from omcda_jax.checkpoint import Checkpoints
from omcda_jax.config import to_dict
from omcda_jax.envs.base import Environment, HostEnvironment
from omcda_jax.evaluate import make_evaluate, summarise
from omcda_jax.runner.jobs import Job
from omcda_jax.runner.processes import is_first
from omcda_jax.system import compiler_options
from omcda_jax.types import ConfigError, EnvSpec, TrainState

# The keys of every evaluation in the metrics of a population.
SUMMARY = ("return_mean", "return_sd", "win_rate", "length_mean", "episodes")

EPISODES_AT_ONCE = 256  # of a population; on the host, this many simulators are open

Judge = Callable[[TrainState], list[dict[str, Any]]]


def make_judge(job: Job, environment: Environment | HostEnvironment) -> Judge:
    """Return a function of the job's state: for every trial, the summary of its greedy episodes with their returns.

    It raises ConfigError if no trial has only finite returns: then the environment's rewards are not finite.
    """
    evaluation = job.config.evaluation
    options = compiler_options(job.layout().devices[0].platform)
    play = make_evaluate(
        job.algorithm.act, environment, evaluation.episodes, population=job.population, compiler_options=options
    )
    together = max(1, EPISODES_AT_ONCE // evaluation.episodes)

    def played(state):
        key, episodes = jax.random.key(evaluation.seed), []
        if not job.population:
            return [jax.device_get(play(state, key))]
        for first in range(0, len(job.configs), together):
            some = jax.tree.map(lambda leaf: leaf[first : first + together], state)  # noqa: B023 called at once
            results = jax.device_get(play(some, key))
            episodes += [jax.tree.map(lambda rows: rows[trial], results) for trial in range(len(results[0]))]  # noqa: B023 called at once
        return episodes

    def judge(state):
        trials = played(state)
        _require_finite([np.asarray(episodes.returns) for episodes in trials], environment.name)
        return [{**summarise(episodes), "returns": np.asarray(episodes.returns).tolist()} for episodes in trials]

    return judge


def _require_finite(returns: Sequence[np.ndarray], name: str) -> None:
    odd = [own[~np.isfinite(own)] for own in returns]
    if all(map(len, odd)):
        raise ConfigError(f"environment {name}: expected finite rewards, found an episode with return {odd[0][0]}")


def without_returns(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return a summary without the returns of single episodes."""
    return {key: value for key, value in summary.items() if key != "returns"}


class Best:
    """The checkpoint of a single trial with the highest mean return in an evaluation so far; a context manager.

    Args:
        job: the job; for a population nothing is kept.
        spec: sizes of its task.
    """

    def __init__(self, job: Job, spec: EnvSpec):
        self._checkpoints = None
        self._highest = -np.inf
        if not job.population and is_first():
            # on disk before its evaluation has a row in the metrics, which tells a later start that it is done
            self._checkpoints = Checkpoints(job.checkpoints("best"), keep=1, wait=True)
            _, metadata = self._checkpoints.restore(job.template(spec)) or (None, None)
            # only evaluations on the same episodes are comparable
            if metadata and metadata["config"]["evaluation"] == to_dict(job.config)["evaluation"]:
                self._highest = metadata["evaluation"]["return_mean"]

    def offer(self, state: TrainState, summary: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        """Keep the state if it is the best so far."""
        if self._checkpoints and summary["return_mean"] > self._highest:
            self._highest = summary["return_mean"]
            self._checkpoints.save(state, {**metadata, "evaluation": without_returns(summary)}, replace=True)

    def __enter__(self) -> "Best":
        return self

    def __exit__(self, *unused: Any) -> None:
        if self._checkpoints:
            self._checkpoints.close()
