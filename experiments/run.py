"""Trains an offline algorithm, evaluates it and reports.

    python experiments/run.py --config=smac_5m6m
    python experiments/run.py --config=smac_5m6m --config.data.quality=good --config.seed=1
    python experiments/run.py --config=list

The same command goes on where an earlier one stopped; a finished run is evaluated again. Exit status: 0 done, 75
stopped by a signal and saved (run the same command again), 78 a setting or a file to mend, 1 anything else.
"""

import ast
import functools
import importlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import absl.logging
import jax
import report
from absl import flags
from configs._baselines import BASELINES

from omcda_jax import data, envs
from omcda_jax.algorithms import ALGORITHMS
from omcda_jax.checkpoint import Checkpoints
from omcda_jax.config import RESUMABLE, ExperimentConfig, apply_overrides, differences, suggestion, to_dict
from omcda_jax.evaluate import check_video, make_evaluate, record_video, summarise
from omcda_jax.learner import (
    Interrupted,
    Interruption,
    Layout,
    NonFiniteMetrics,
    initial_state,
    make_train_step,
    train,
)
from omcda_jax.metrics import MetricsFile, Progress, read
from omcda_jax.types import Algorithm, ConfigError, DatasetError, Environment, HostEnvironment, TrainState

CONFIGS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "configs")
PROGRESS_METRICS = ("policy/loss", "critic/q_return", "policy/divergence")

say = functools.partial(print, flush=True)


class Command(NamedTuple):
    """What the command line asks for: a resolved config, train or eval, the run's directory, a file for a video."""

    config: ExperimentConfig
    mode: str
    directory: str
    video: str | None = None


class Run(NamedTuple):
    """What a run works with; `state` is None where nothing was saved yet, `saved` the metadata of its checkpoint."""

    command: Command
    algorithm: Algorithm
    environment: Environment | HostEnvironment
    checkpoints: Checkpoints
    state: TrainState | None
    saved: dict[str, Any]


def presets() -> dict[str, str]:
    """Returns the description of every preset by name, without importing any."""
    found = {}
    for file in sorted(os.listdir(CONFIGS)):
        name, extension = os.path.splitext(file)
        if extension == ".py" and not name.startswith("_"):
            with open(os.path.join(CONFIGS, file), encoding="utf-8") as source:
                found[name] = (ast.get_docstring(ast.parse(source.read())) or "").partition("\n")[0]
    return found


def parse(argv: Sequence[str]) -> Command | None:
    """Reads the command line; None where it only asked for help or the list of presets, which is printed.

    Raises:
        ConfigError: for anything unknown, misspelt or of another type.
    """
    values = flags.FlagValues()
    flags.DEFINE_string("config", None, "preset, or `list` to see them all", flag_values=values)
    flags.DEFINE_enum("mode", "train", ["train", "eval"], "eval: no training", flag_values=values)
    flags.DEFINE_string("workdir", None, "run directory, instead of one named after the config", flag_values=values)
    flags.DEFINE_string("video", None, "film one greedy episode into this .gif or .mp4", flag_values=values)
    flags.DEFINE_boolean("help", False, "show this", short_name="h", flag_values=values)
    try:
        rest = values(list(argv), known_only=True)[1:]
    except flags.Error as error:
        raise ConfigError(" ".join(str(error).split())) from error
    if values.help or values.config == "list":
        if values.help:
            say(f"{__doc__}\n{values.get_help()}\nConfigs (any key is a flag, as in --config.learner.updates=2000):")
        for name, description in presets().items():
            say(f"  {name:<32} {description}")
        return None
    known = ["--config", "--config.KEY", "--mode", "--workdir", "--video"]
    assignments = [assignment(argument, known) for argument in rest]
    config = resolve(values.config, assignments)
    parts = (config.directory, config.name, config.data.quality, config.algorithm.name, f"seed_{config.seed}")
    return Command(config, values.mode, os.path.abspath(values.workdir or os.path.join(*parts)), values.video)


def resolve(name: str | None, assignments: Sequence[str], flag: str = "--config") -> ExperimentConfig:
    """Returns a preset with `key=value` assignments applied.

    Args:
        name: of the preset.
        assignments: as of `apply_overrides`.
        flag: that named the preset.

    Raises:
        ConfigError: for an unknown name or key or a value that is refused.
    """
    config = _preset(name, flag)
    algorithms = {name: algorithm.config for name, algorithm in ALGORITHMS.items()}
    family = config.data.environment.partition("/")[0]
    return apply_overrides(config, assignments, algorithms, BASELINES.get(family))


def assignment(argument: str, known: Sequence[str]) -> str:
    """Returns `key=value` of an argument `--config.key=value`.

    Args:
        argument: of the command line.
        known: flags there are, to name the nearest one.

    Raises:
        ConfigError: it is none.
    """
    prefix = "--config."
    if argument.startswith(prefix) and "=" in argument:
        return argument[len(prefix) :]
    if argument.startswith(prefix):
        raise ConfigError(f"{argument}: expected {argument}=VALUE")
    name = argument.partition("=")[0]
    raise ConfigError(f"{name}: no such flag; {suggestion(name, known)}")


def _preset(name: str | None, flag: str) -> ExperimentConfig:
    names = presets()
    if name not in names:
        problem = f"no config {name!r}" if name else "expected a config, found none"
        raise ConfigError(f"{flag}: {problem}; {suggestion(name or '', names)}")
    return importlib.import_module(f"configs.{name}").get_config()


def claim(command: Command, flag: str = "--workdir") -> None:
    """Makes the run directory and writes its config.json; refuses one with checkpoints of a run with other settings.

    Args:
        command: what is asked for.
        flag: that chooses another directory.

    Raises:
        ConfigError: naming the settings that differ, or that the directory cannot be written.
    """
    path = os.path.join(command.directory, "config.json")
    current = to_dict(command.config)
    if os.path.exists(path) and os.path.isdir(_checkpoints(command)):
        with open(path, encoding="utf-8") as file:
            changed = differences(json.load(file), current)
        listed = [f"{key} was {was!r}, is {now!r}" for key, (was, now) in changed.items() if key not in RESUMABLE]
        if listed:
            raise ConfigError(
                f"{command.directory}: holds a run with other settings ({'; '.join(listed)}); choose another {flag}"
            )
    elif command.mode == "eval":
        raise ConfigError(f"{command.directory}: expected a run to evaluate, found none; train first")
    try:
        os.makedirs(command.directory, exist_ok=True)
        write_json(path, current)
    except OSError as error:
        raise ConfigError(f"{command.directory}: cannot write the run directory: {error.strerror}") from error


def _checkpoints(command: Command) -> str:
    return os.path.join(command.directory, "checkpoints")


def write_json(path: str, value: Any) -> None:
    """Writes a JSON file in one piece: it is the old one or the new one, never half of either."""
    temporary = f"{path}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
    os.replace(temporary, path)


def load_data(
    config: ExperimentConfig, environment: Environment | HostEnvironment
) -> tuple[data.Dataset, dict[str, Any]]:
    """Returns the dataset on the device and its metadata, collecting it if it is missing; says what it holds.

    Raises:
        ConfigError, DatasetError: as `data.ensure` and `data.load`.
    """
    asked = config.data
    path = asked.path
    if path is None:
        sizes = {"episodes": asked.episodes, "transitions": asked.transitions}
        path = data.ensure(asked.environment, asked.quality, seed=asked.seed, log=say, **sizes)
    dataset, metadata = data.load(
        path, spec=environment.spec, environment=asked.environment, reward_scale=asked.reward_scale
    )
    if metadata.get("quality", asked.quality) != asked.quality:
        raise DatasetError(f"{path}: quality: expected {asked.quality!r}, found {metadata['quality']!r}")
    found = metadata["statistics"]
    say(
        f"data {path}: {found['transitions']} transitions in {found['episodes']} episodes, return "
        f"{found['return_mean']:.3f} ± {found['return_sd']:.3f} (sd), win rate {found['win_rate']:.3f}, "
        f"{data.memory_bytes(dataset) / 1e6:.1f} MB in memory"
    )
    for package, version in metadata.get("versions", {}).items():
        here = environment.versions.get(package, version)
        if here != version:
            say(f"warning: the data were made with {package} {version}, evaluation uses {here}")
    discount = getattr(config.algorithm, "discount", 1.0)
    metadata["max_return_to_go"] = float(data.max_return_to_go(dataset, discount)) / asked.reward_scale
    return dataset, metadata


def _fresh_state(command: Command, algorithm: Algorithm, environment: Environment | HostEnvironment) -> TrainState:
    config = command.config
    return initial_state(algorithm, config.seed, environment.spec, config.algorithm, normalised=config.data.normalise)


def learn(run: Run, evaluate: Any, interruption: Interruption) -> Run:
    """Trains to the end or to a signal; every state saved carries what a later start needs.

    Raises:
        ConfigError: if the data are not those the run began with.
        DatasetError, NonFiniteMetrics: as `load_data` and `learner.train`.
    """
    config, directory = run.command.config, run.command.directory
    dataset, description = load_data(config, run.environment)
    if run.saved and run.saved["data"].get("digest") != description.get("digest"):
        raise ConfigError(f"{directory}: began on other data than the file now holds; choose another --workdir")
    state = run.state
    if state is None:
        state = _fresh_state(run.command, run.algorithm, run.environment)
        if config.data.normalise:
            state = state.replace(normaliser=data.normaliser(dataset))
    start, settings = int(state.step), config.learner
    say(f"resumed at step {start}" if run.saved else "starting at step 0", f"of {settings.updates}, in {directory}")
    began = time.monotonic()
    layout = Layout(tuple(jax.local_devices()))
    step = make_train_step(run.algorithm, data.sample, settings.batch_size, settings.updates_per_call, layout)
    state, dataset = layout.place(state), layout.place_dataset(dataset)
    step = step.lower(state, dataset).compile()
    say(f"compiled the update for {len(layout.devices)} device(s) in {time.monotonic() - began:.1f} s")

    began = time.monotonic() - run.saved.get("seconds", 0.0)
    progress = Progress(settings.updates, start, PROGRESS_METRICS)
    latest = {"config": to_dict(config), "data": description, "seconds": 0.0}

    metrics_path = os.path.join(directory, "metrics.jsonl")
    with MetricsFile(metrics_path, start) as rows:
        evaluated = {row["step"] for row in read(metrics_path) if "evaluation/return_mean" in row}

        def log(step, metrics, rate):
            rows.write(step, {"seconds": time.monotonic() - began, "updates_per_second": rate} | metrics)

        def save(state):
            latest["seconds"] = time.monotonic() - began
            run.checkpoints.save(state, latest)

        def look(state):
            if int(state.step) not in evaluated:
                summary = evaluate(state)
                rows.write(int(state.step), {f"evaluation/{key}": value for key, value in summary.items()})

        interruption.deferred = True
        stop = lambda: interruption.requested
        state = train(
            step,
            state,
            dataset,
            settings,
            layout=layout,
            on_call=progress.update,
            log=log,
            save=save,
            evaluate=look,
            stop=stop,
        )
    progress.close()
    return run._replace(state=state, saved=latest)


def finish(run: Run, evaluate: Any) -> dict[str, Any]:
    """Evaluates the state, writes result.json and returns what it holds."""
    began = time.monotonic()
    evaluation = evaluate(run.state)
    learning = report.learning_summary(read(os.path.join(run.command.directory, "metrics.jsonl")))
    result = {
        "config": to_dict(run.command.config),
        "step": int(run.state.step),
        "finished": int(run.state.step) >= run.command.config.learner.updates,
        "evaluation": evaluation,
        **learning,
        "data": run.saved["data"],
        "environment_versions": dict(run.environment.versions),
        "training_seconds": run.saved["seconds"],
        "evaluation_seconds": time.monotonic() - began,
        **report.provenance(),
    }
    write_json(os.path.join(run.command.directory, "result.json"), result)
    return result


def execute(command: Command, interruption: Interruption) -> int:
    """Does what the command asks for and returns the exit status.

    Raises:
        ConfigError, DatasetError: what the user can mend, before anything is compiled.
        NonFiniteMetrics: if training diverged.
    """
    config, directory = command.config, command.directory
    algorithm = ALGORITHMS[config.algorithm.name]
    environment = envs.make(config.data.environment)
    if command.video:
        check_video(environment, command.video)
    template = jax.eval_shape(lambda: _fresh_state(command, algorithm, environment))
    claim(command)
    with Checkpoints(_checkpoints(command)) as checkpoints:
        state, saved = checkpoints.restore(template) or (None, {})
        run = Run(command, algorithm, environment, checkpoints, state, saved)
        play = make_evaluate(algorithm.act, environment, config.evaluation.episodes)
        evaluate = lambda state: summarise(jax.device_get(play(state, jax.random.key(config.evaluation.seed))))
        if command.mode == "train" and (state is None or int(state.step) < config.learner.updates):
            run = learn(run, evaluate, interruption)
        elif state is None:
            raise ConfigError(f"{directory}: expected a checkpoint to evaluate, found none; train first")
        else:
            say(f"{directory}: evaluating step {int(state.step)}, no training")
        result = None if interruption.requested else finish(run, evaluate)
    if interruption.requested:
        say(f"stopped and saved at step {int(run.state.step)} of {config.learner.updates}; the same command goes on")
        return 75
    say(report.table(result))
    try:
        say(f"plot: {report.plot(directory, result)}")
    except ConfigError as error:
        say(error)
    say(f"result: {os.path.join(directory, 'result.json')}")
    if command.video:
        record_video(algorithm.act, environment, run.state, command.video, seed=config.evaluation.seed)
        say(f"video: {command.video}")
    return 0


def guarded(work: Callable[[Interruption], int]) -> int:
    """Does `work` and returns its exit status, or that of what stopped it, told in one line."""
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        with warnings.catch_warnings(), Interruption() as interruption:
            warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
            return work(interruption)
    except (ConfigError, DatasetError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 78
    except NonFiniteMetrics as error:
        print(f"error: training diverged: {error}; what was saved before is intact", file=sys.stderr)
        return 1
    except Interrupted as signal_name:
        print(f"stopped by {signal_name} with nothing to save; the same command starts again", file=sys.stderr)
        return 75


def main(argv: Sequence[str]) -> int:
    """Runs one command line, `argv[0]` being the script; returns the exit status."""

    def work(interruption):
        command = parse(argv)
        return 0 if command is None else execute(command, interruption)

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
