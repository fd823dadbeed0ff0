"""What a budget buys: one task under many splits of the deviation budget, as a figure and in words.

    python -m benchmarks.analysis --preset=mujoco_hopper_medium_replay --config.learner.updates=8000 \\
        --config.learner.batch_size=64 --config.algorithm.hidden_sizes=128,128
    python -m benchmarks.analysis --preset=ring
    python -m benchmarks.analysis --preset=ring --report_only

There are two sweeps. In the first, each agent's own budget takes the multiples --own of the even share, while the
others keep that share. In the second, the total takes the multiples --totals of algorithm.d_tot under each of --rules.
All trials of one structure are one population by vmap: given budgets (rule `fixed`, which includes the uniform and the
random split), `softmax` and `projected`. Running the same command again resumes a stopped analysis and skips what is
finished.

The ring is the problem of `benchmarks/exact.py`; `ring_continuous` has continuous actions. Its return is the exact
value of the policy that acts, and the exact curves are drawn next to the learned ones.

Writes the rows to analysis_NAME.csv and the figure to analysis_NAME.png in --results, and prints Markdown; see
`benchmarks/sweeps.py`. The exit status is as in experiments/run.py.
"""

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from benchmarks import exact, probe, sweeps
from benchmarks.rows import check_writable
from omcda_jax import data, envs
from omcda_jax.config import (
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    LearnerConfig,
    apply_overrides,
    replace_settings,
    require,
    to_dict,
)
from omcda_jax.envs.base import Environment, HostEnvironment
from omcda_jax.metrics import read
from omcda_jax.runner.command import read_settings
from omcda_jax.runner.compare import trained
from omcda_jax.runner.evaluation import Judge, make_judge
from omcda_jax.runner.jobs import Job, claimed, refuse_other_settings, write_json
from omcda_jax.runner.outcomes import load
from omcda_jax.runner.presets import resolve
from omcda_jax.runner.processes import ordered, say
from omcda_jax.system import Interruption, new_flags, printing
from omcda_jax.types import ConfigError, EnvSpec, TrainState, check_seed, updates_done

# short calls, because a stop signal waits for a call of the whole population
DEFAULTS = ("learner.evaluate_every=0", "learner.updates_per_call=20", "evaluation.episodes=32")
RINGS = {"ring": "discrete", "ring_continuous": "continuous"}
# settings that differ from trial to trial, and the flags that set them
OWN = {"seed": "--seeds", "algorithm.allocation": "--rules"} | dict.fromkeys(
    ("learner.mode", "learner.trials"), "--seeds, --own, --totals and --rules"
)
GIVEN = ("uniform", "random")  # rules with budgets that are known in advance
RULES = ("softmax", "projected", *GIVEN)


class Point(NamedTuple):
    """One trial's place in a sweep.

    Attributes:
        sweep, rule, swept, seed, total: as the columns of `sweeps`; `total` is d_tot.
        budget: every agent's budget, nats; None if the rule decides.
    """

    sweep: str
    rule: str
    swept: int | None
    seed: int
    total: float
    budget: tuple[float, ...] | None

    @property
    def trial(self) -> tuple[Any, ...]:
        """The key of the point's trial; points of two sweeps may be one trial."""
        if self.budget is None:
            return self.rule, self.seed, self.total
        return "fixed", self.seed, *(round(nats, 9) for nats in self.budget)


class Command(NamedTuple):
    """What the command line asks for.

    Attributes:
        name: name of the results.
        config: settings of every trial, without seeds and budgets.
        own, totals: multiples of the even share and of the total.
        rules: rules under which the total is varied.
        seeds: seeds of the algorithm; the dataset is the same for all.
        directory: folder of the runs.
        results: folder of the CSV and the figure.
        report_only: train nothing.
    """

    name: str
    config: ExperimentConfig
    own: tuple[float, ...]
    totals: tuple[float, ...]
    rules: tuple[str, ...]
    seeds: tuple[int, ...]
    directory: str
    results: str
    report_only: bool

    @property
    def csv(self) -> str:
        """Path of the rows."""
        return os.path.join(self.results, f"analysis_{self.name}.csv")


def parse(argv: Sequence[str]) -> Command | None:
    """Read the command line; None if it only asks for help.

    Raises:
        ConfigError: anything is unknown, misspelt or of the wrong type.
    """
    values = _flags()
    given = read_settings(values, argv, OWN)
    if values.help:
        say(f"{__doc__}\n{values.get_help()}")
        return None
    require(values.preset, "--preset", f"one of experiments/run.py, or {' or '.join(RINGS)}", values.preset)
    key = "algorithm.name="
    names = [text.removeprefix(key) for text in given if text.startswith(key)]
    # checked here, before the ring's settings, which have no such key, refuse it with another message
    require(set(names) <= {"omcda"}, "--config.algorithm.name", "omcda, which has budgets", ",".join(names))
    assignments = [*DEFAULTS, *(text for text in given if not text.startswith(key))]
    name = values.name or values.preset
    directory = os.path.join(os.path.abspath(values.directory), name)
    if values.preset in RINGS:
        config = apply_overrides(ring_config(RINGS[values.preset], directory), assignments)
    else:
        config = resolve(values.preset, assignments, "--preset")
    unknown = [rule for rule in values.rules if rule not in RULES]
    if unknown:
        raise ConfigError(f"--rules: expected some of {', '.join(RULES)}, found {unknown[0]!r}")
    seeds = _numbers(values, "seeds", int)
    for seed in seeds:
        check_seed(seed, "--seeds")
    own, totals = (_numbers(values, flag, float) for flag in ("own", "totals"))
    varied = {"own": own, "totals": totals, "rules": values.rules, "seeds": seeds}
    text = "; ".join(f"{key}={','.join(map(str, listed))}" for key, listed in varied.items())
    learner = dataclasses.replace(config.learner, mode="trials", trials=text)
    config = dataclasses.replace(config, learner=learner)
    return Command(name, config, own, totals, tuple(values.rules), seeds, directory, values.results, values.report_only)


def _flags() -> flags.FlagValues:
    values, define = new_flags()
    define("string", "preset", None, f"a preset of experiments/run.py, or one of {', '.join(RINGS)}")
    define("string", "name", None, "name for the results and the run's folder; by default the preset's")
    define("list", "own", ["0.25", "0.5", "1", "2", "4"], "an agent's own budget, in even shares; empty: not varied")
    define(
        "list",
        "totals",
        ["0.25", "0.5", "1", "2", "4"],
        "the team's budget, in units of algorithm.d_tot; empty: not varied",
    )
    define("list", "rules", list(RULES), "allocation rules under which the total is varied")
    define("list", "seeds", ["0", "1", "2"], "seeds of the algorithm")
    define("string", "directory", "runs/analysis", "folder for the runs")
    define("string", "results", "benchmarks/results", "folder of the CSV and the figure")
    define("boolean", "report_only", False, "only the text and the figure of the existing CSV")
    return values


def _numbers(values: flags.FlagValues, flag: str, kind: type) -> tuple:
    try:
        numbers = tuple(kind(word) for word in values[flag].value)
    except ValueError:
        numbers = (-1,)
    distinct = len(set(numbers)) == len(numbers) and (numbers or flag != "seeds")
    least = 0 if kind is int else 1e-9
    if not distinct or not all(least <= number < float("inf") for number in numbers):
        kinds = "whole numbers" if kind is int else "positive numbers"
        raise ConfigError(f"--{flag}: expected different {kinds}, found {','.join(values[flag].value)!r}")
    return numbers


def points(command: Command, agents: int) -> list[Point]:
    """Return every point of both sweeps.

    Raises:
        ConfigError: there is no point, or a budget is below the minimum that every agent keeps.
    """
    settings, found = command.config.algorithm, []
    for seed in command.seeds:
        for agent in range(agents):
            for factor in command.own:
                budget = [settings.d_tot / agents] * agents
                budget[agent] *= factor
                found.append(Point("own", "fixed", agent, seed, sum(budget), tuple(budget)))
        for factor in command.totals:
            total = factor * settings.d_tot
            for rule in command.rules:
                found.append(Point("total", rule, None, seed, total, _given(rule, seed, total, agents, settings.d_min)))
    if not found:
        raise ConfigError("--own, --totals, --rules: expected something to vary, found nothing")
    for point in found:
        least = min(point.budget or [point.total / agents])
        if least < settings.d_min or point.total <= agents * settings.d_min:
            expected = f"budgets above algorithm.d_min={settings.d_min:g}"
            raise ConfigError(f"--own, --totals: expected {expected}, found {least:g} nats for an agent")
    return found


def _given(rule: str, seed: int, total: float, agents: int, floor: float) -> tuple[float, ...] | None:
    """The budgets of a rule that measures nothing; "random" is one point of the simplex for each seed."""
    if rule not in GIVEN:
        return None
    share = np.full(agents, 1 / agents)
    if rule == "random":
        share = np.random.default_rng(seed).dirichlet(np.ones(agents))
    return tuple(float(nats) for nats in floor + (total - agents * floor) * share)


def trial_config(config: ExperimentConfig, point: Point) -> ExperimentConfig:
    """Return a point's settings."""
    changes: dict[str, Any] = {"d_tot": point.total, "allocation": point.rule}
    if point.budget is not None:
        floor = config.algorithm.d_min
        spread = point.total - len(point.budget) * floor
        changes |= {"allocation": "fixed", "shares": tuple((nats - floor) / spread for nats in point.budget)}
    return dataclasses.replace(config, algorithm=replace_settings(config.algorithm, changes), seed=point.seed)


def populations(command: Command, found: Iterable[Point]) -> list[tuple[Job, list[tuple]]]:
    """Return a job for every structure, with the keys of its trials."""
    trials: dict[str, dict[tuple, ExperimentConfig]] = {}
    for point in found:
        trials.setdefault(point.trial[0], {}).setdefault(point.trial, trial_config(command.config, point))
    return [
        (
            Job(list(alike.values()), os.path.join(command.directory, structure), population=True, flag="--directory"),
            list(alike),
        )
        for structure, alike in trials.items()
    ]


def measured(job: Job, summaries: Sequence[dict[str, Any]], diverged: Sequence[str | None]) -> list[dict | None]:
    """Return every trial's return, and means over the last quarter of its updates; None for a trial that diverged."""
    settings = job.config
    rows = [row for row in read(job.metrics) if "allocation/budget" in row]
    late = [row for row in rows if 4 * row["step"] > 3 * settings.learner.updates] or rows[-1:]
    mean = lambda key, scale=1.0: np.mean([row[key] for row in late], axis=0) / scale
    scale = settings.data.reward_scale
    columns = {
        "allowed": mean("allocation/budget"),
        "spent": mean("policy/divergence"),
        "alpha": mean("allocation/alpha", scale),
        "price": mean("allocation/price", scale),
        "influence": mean("allocation/influence", scale),
    }
    return [
        None
        if diverged[trial]
        else {key: summary[key] for key in ("return_mean", "return_se")}
        | {"steps": summary["length_mean"]}
        | {key: column[trial].tolist() for key, column in columns.items()}
        for trial, summary in enumerate(summaries)
    ]


def finished(job: Job) -> list[dict | None] | None:
    """Return the outcomes of a job's trials, or None if it is not trained and evaluated as its settings require."""
    path = os.path.join(job.directory, "result.json")
    if not os.path.exists(path):
        return None
    result = load(path)
    done = result["step"] >= job.config.learner.updates
    return result["trials"] if done and result["evaluation"] == to_dict(job.config.evaluation) else None


def execute(command: Command, interruption: Interruption) -> int:
    """Train and evaluate what is missing, write rows and figure, and return the exit status.

    Raises:
        ConfigError, DatasetError: a mistake that the user can fix.
    """
    if command.report_only:
        return report(command, sweeps.load(_there(command.csv)))
    check_writable(command.csv)
    environment, judge = task(command)
    found = points(command, environment.spec.num_agents)
    jobs = populations(command, found)
    for job, _ in jobs:
        job.template(environment.spec)
        refuse_other_settings(job)
    results = {}
    for place, (job, keys) in enumerate(jobs):
        outcomes = finished(job)
        if outcomes is None:
            say(f"population {place + 1} of {len(jobs)}: {len(keys)} trials, {job.config.algorithm.allocation} budgets")
            outcomes = run(job, environment, judge(job), interruption)
        if outcomes is None:
            say("stopped and saved; the same command resumes")
            return os.EX_TEMPFAIL
        results |= zip(keys, outcomes, strict=True)
    rows = [row for point in found for row in rows_of(command, point, results[point.trial])]
    if not rows:
        raise ConfigError(f"{command.csv}: expected rows to write, found none; every trial diverged")
    if command.config.name in RINGS:
        rows += exact_rows(command, found)
    sweeps.store(command.csv, rows)
    return report(command, sweeps.load(command.csv))


def run(
    job: Job, environment: Environment | HostEnvironment, judge: Judge, interruption: Interruption
) -> list[dict | None] | None:
    """Train and evaluate a population; return the outcomes of its trials, or None if a signal stopped it."""
    with claimed(job):
        saved = trained(job, environment, judge, interruption)
        step = updates_done(saved.state)
        if step < job.config.learner.updates:
            return None
        say(f"evaluating {len(job.configs)} policies")
        outcomes = measured(job, judge(saved.state), saved.metadata["guard"]["culprits"])
        evaluation = to_dict(job.config.evaluation)
        write_json(
            os.path.join(job.directory, "result.json"), {"step": step, "evaluation": evaluation, "trials": outcomes}
        )
    return outcomes


def rows_of(command: Command, point: Point, outcome: dict | None, source: str = "learned") -> list[dict[str, Any]]:
    """Return a point's rows, one for each agent; none for a trial that diverged."""
    if outcome is None:
        say(f"left out, diverged: {point.sweep} {point.rule}, seed {point.seed}, {point.total:g} nats")
        return []
    shared = {"task": command.name, "source": source, "sweep": point.sweep, "rule": point.rule, "swept": point.swept}
    shared |= {"seed": point.seed, "d_tot": point.total}
    agents = len(outcome["allowed"])
    columns = {key: np.broadcast_to(value, agents) for key, value in outcome.items()}
    return [
        shared | {"agent": agent} | {key: column[agent] for key, column in columns.items()} for agent in range(agents)
    ]


def report(command: Command, rows: Sequence[sweeps.Row]) -> int:
    """Print the Markdown and draw the figure; return the exit status."""
    if not rows:
        raise ConfigError(f"{command.csv}: expected rows, found none")
    say(sweeps.markdown(rows))
    say(f"\nrows: {command.csv}")
    try:
        say(f"figure: {sweeps.draw(command.csv.removesuffix('.csv') + '.png', rows)}")
    except ConfigError as error:
        say(error)
    return os.EX_OK


def _there(path: str) -> str:
    if not os.path.isfile(path):
        raise ConfigError(f"{path}: expected the rows of an analysis, found nothing; run it without --report_only")
    return path


def task(command: Command) -> tuple[Environment | HostEnvironment, Callable[[Job], Judge]]:
    """Return the simulator and a function from a job to its judge; for the ring, also write its data."""
    config = command.config
    if config.name not in RINGS:
        environment = envs.make(config.data.environment)
        return environment, lambda job: make_judge(job, environment)
    problem = probe.PROBLEMS[RINGS[config.name]]()
    spec, episodes = probe.play(problem)
    if not os.path.exists(config.data.path):
        metadata = {"environment": config.data.environment, "quality": config.data.quality}
        data.write(config.data.path, spec, episodes, metadata)
    return ring_environment(config, spec), lambda job: functools.partial(judge_exactly, job, problem)


def ring_config(kind: str, directory: str) -> ExperimentConfig:
    """Return the ring as a preset: small networks, a policy that acts on average, no simulator."""
    name = next(name for name, of in RINGS.items() if of == kind)
    learner = LearnerConfig(updates=3_000, batch_size=128, log_every=100, checkpoint_every=1_000)
    path = os.path.join(directory, "data.h5")
    return ExperimentConfig(
        name,
        probe.settings("softmax", learner.updates, hidden_sizes=(32,), policy_average_rate=0.005),
        DataConfig(f"ring/{kind}", quality="random", episodes=probe.NUM_EPISODES, path=path),
        learner,
        EvaluationConfig(),
    )


def ring_environment(config: ExperimentConfig, spec: EnvSpec) -> Environment:
    """Return a stand-in for a simulator with what a job needs; the ring is never played."""
    never = lambda *_: None
    return Environment(config.data.environment, spec, exact.EPISODE_STEPS, None, {}, never, never)


def judge_exactly(job: Job, problem: list[exact.Ring], state: TrainState) -> list[dict[str, Any]]:
    """Return for every trial the exact value of the policy that acts, instead of an evaluation."""
    summaries = []
    for trial in range(len(job.configs)):
        table = probe.policy_table(jax.tree.map(lambda leaf: leaf[trial], state), problem[0].actions)  # noqa: B023
        value = sum(exact.true_value(ring, policy) for ring, policy in zip(problem, table, strict=True))
        summaries.append(
            {"return_mean": value, "return_se": 0.0, "return_sd": 0.0}
            | {"win_rate": 0.0, "length_mean": 1 / (1 - exact.DISCOUNT), "episodes": 0}
        )
    return summaries


def exact_rows(command: Command, found: Sequence[Point]) -> list[dict[str, Any]]:
    """Return the rows that perfect values would give at every point of a ring."""
    kind, base = RINGS[command.config.name], command.config.algorithm
    table = exact.frontier(probe.PROBLEMS[kind](), probe.account(base, kind == "discrete"), base.influence_epsilon)
    rows, known = [], {}
    for point in found:
        key = (point.rule, point.total, point.budget)
        if key not in known:
            settings = trial_config(command.config, point).algorithm
            known[key] = exact.at_budget(table, point.budget) if point.budget else probe.exact_split(table, settings)
        split = known[key]
        outcome = {
            "allowed": np.array(point.budget or split.budget),
            "spent": split.divergence,
            "alpha": split.alpha,
            "price": 0.0,
            "influence": split.influence,
            "return_mean": float(split.value.sum()),
            "return_se": 0.0,
            "steps": 1 / (1 - exact.DISCOUNT),
        }
        rows += rows_of(command, point, outcome, "exact")
    return rows


def main(argv: Sequence[str]) -> int:
    """Run one command line, with the program's name in `argv[0]`; return the exit status."""
    return ordered(argv, parse, execute)


if __name__ == "__main__":
    sys.exit(printing(lambda: main(sys.argv)))
