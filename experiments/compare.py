"""Compares algorithms on tasks over seeds: one command, one table.

    python experiments/compare.py --tasks=smac_5m6m:good,smac_5m6m:medium --seeds=0,1,2 --config.learner.updates=20000
    python experiments/compare.py --tasks=mujoco_hopper_medium --algorithms=bc,omiga,omcda
    python experiments/compare.py --report_only

A task is a preset, with `:quality` for another dataset. A cell is one algorithm on one task; its seeds train together,
by vmap, each on the batches that `run.py` gives that seed. Cells are evaluated at their last update only, greedily. The
same command goes on where an earlier one stopped and skips what is finished; it writes comparison.md, comparison.csv
and comparison.json into --directory. Exit status as of run.py.
"""

import csv
import functools
import io
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import report
import run
from absl import flags

from omcda_jax import data, envs
from omcda_jax.algorithms import ALGORITHMS
from omcda_jax.checkpoint import Checkpoints
from omcda_jax.config import ExperimentConfig, suggestion, to_dict
from omcda_jax.evaluate import make_evaluate, summarise
from omcda_jax.learner import (
    Interruption,
    initial_state,
    make_train_step,
    train,
)
from omcda_jax.metrics import MetricsFile, Progress
from omcda_jax.types import ConfigError, Environment, HostEnvironment, updates_done

DEFAULTS = ("learner.evaluate_every=0", "evaluation.episodes=32")
RESAMPLES = 2_000


class Cell(NamedTuple):
    """One algorithm on one task, all seeds."""

    task: str
    algorithm: str
    config: ExperimentConfig
    seeds: tuple[int, ...]
    directory: str


class Command(NamedTuple):
    """What the command line asks for."""

    cells: list[Cell]
    directory: str
    report_only: bool


def parse(argv: Sequence[str]) -> Command | None:
    """Reads the command line and resolves every cell's settings; None where it only asked for help.

    Raises:
        ConfigError: for anything unknown, misspelt or of another type.
    """
    values = flags.FlagValues()
    define = functools.partial(flags.DEFINE_list, flag_values=values)
    define("tasks", ["smac_5m6m:good", "smac_5m6m:medium", "smac_5m6m:poor"], "presets, each with an optional :quality")
    define("algorithms", list(ALGORITHMS), "algorithms to compare")
    define("seeds", ["0", "1", "2"], "seeds of each cell; the dataset is the same for all")
    flags.DEFINE_string("directory", "runs/compare", "where cells and tables lie", flag_values=values)
    flags.DEFINE_boolean("report_only", False, "only the tables of what is finished", flag_values=values)
    flags.DEFINE_boolean("help", False, "show this", short_name="h", flag_values=values)
    try:
        rest = values(list(argv), known_only=True)[1:]
    except flags.Error as error:
        raise ConfigError(" ".join(str(error).split())) from error
    if values.help:
        run.say(f"{__doc__}\n{values.get_help()}")
        return None
    known = ["--tasks", "--algorithms", "--seeds", "--directory", "--report_only", "--config.KEY"]
    assignments = [*DEFAULTS, *(run.assignment(argument, known) for argument in rest)]
    for name in values.algorithms:
        if name not in ALGORITHMS:
            raise ConfigError(f"--algorithms: no algorithm {name!r}; {suggestion(name, ALGORITHMS)}")
    try:
        seeds = tuple(int(seed) for seed in values.seeds)
    except ValueError:
        raise ConfigError(f"--seeds: expected numbers separated by commas, found {','.join(values.seeds)!r}") from None
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds: expected different numbers of at least 0, found {','.join(values.seeds)!r}")
    cells = []
    for task in values.tasks:
        preset, _, quality = task.partition(":")
        chosen = [*assignments, f"data.quality={quality}"] if quality else assignments
        for name in values.algorithms:
            config = run.resolve(preset, [f"algorithm.name={name}", *chosen, f"seed={seeds[0]}"])
            label = "-".join(map(str, seeds))
            folder = os.path.join(os.path.abspath(values.directory), task.replace(":", "_"), name, f"seeds_{label}")
            cells.append(Cell(task, name, config, seeds, folder))
    return Command(cells, os.path.abspath(values.directory), values.report_only)


def population(cell: Cell, environment: Environment | HostEnvironment) -> Any:
    """The cell's states before any update, stacked: leaves [P, ...], P seeds.

    Raises:
        ConfigError: where the algorithm refuses the settings for this task.
    """
    config, algorithm = cell.config, ALGORITHMS[cell.algorithm]
    states = [
        initial_state(algorithm, seed, environment.spec, config.algorithm, normalised=config.data.normalise)
        for seed in cell.seeds
    ]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def train_cell(
    cell: Cell, environment: Environment | HostEnvironment, loaded: tuple[Any, dict], interruption: Interruption
) -> tuple[Any, float]:
    """Trains a cell to its end or to a signal, from its checkpoint if there is one.

    Returns:
        The stacked state and the seconds its training took, over all starts.

    Raises:
        ConfigError: the cell's directory holds a run with other settings or on other data.
        NonFiniteMetrics: if training diverged.
    """
    config, algorithm, (dataset, description) = cell.config, ALGORITHMS[cell.algorithm], loaded
    run.claim(run.Command(config, "train", cell.directory))
    with Checkpoints(os.path.join(cell.directory, "checkpoints")) as checkpoints:
        state, saved = checkpoints.restore(jax.eval_shape(lambda: population(cell, environment))) or (None, {})
        if saved and saved["data"].get("digest") != description.get("digest"):
            raise ConfigError(
                f"{cell.directory}: began on other data than the file now holds; choose another directory"
            )
        if state is None:
            state = population(cell, environment)
            if config.data.normalise:
                scale = jax.tree.map(lambda x: jnp.stack([x] * len(cell.seeds)), data.normaliser(dataset))
                state = state.replace(normaliser=scale)
        start, settings, began = updates_done(state), config.learner, time.monotonic() - saved.get("seconds", 0.0)
        if start >= settings.updates:
            return state, saved["seconds"]
        step = make_train_step(algorithm, data.sample, settings.batch_size, settings.updates_per_call, population=True)
        step = step.lower(state, dataset).compile()
        progress = Progress(settings.updates, start, run.PROGRESS_METRICS)
        elapsed = lambda: time.monotonic() - began
        record = {"config": to_dict(config), "data": description}
        with MetricsFile(os.path.join(cell.directory, "metrics.jsonl"), start) as rows:
            interruption.deferred = True
            state = train(
                step,
                state,
                dataset,
                settings,
                on_call=progress.update,
                log=lambda step, metrics, rate: rows.write(
                    step, {"seconds": elapsed(), "updates_per_second": rate} | metrics
                ),
                save=lambda state: checkpoints.save(state, record | {"seconds": elapsed()}),
                stop=lambda: interruption.requested,
            )
            interruption.deferred = False
        progress.close()
    return state, elapsed()


def evaluate_cell(cell: Cell, environment: Environment | HostEnvironment, state: Any) -> list[dict[str, Any]]:
    """Greedy episodes of every seed's policy: summaries with the returns of the episodes."""
    play = make_evaluate(ALGORITHMS[cell.algorithm].act, environment, cell.config.evaluation.episodes)
    found = []
    for place, seed in enumerate(cell.seeds):
        one = jax.tree.map(lambda leaf, place=place: leaf[place], state)
        episodes = jax.device_get(play(one, jax.random.key(cell.config.evaluation.seed)))
        found.append({"seed": seed, **summarise(episodes), "returns": np.asarray(episodes.returns).tolist()})
    return found


def read_result(cell: Cell) -> dict[str, Any] | None:
    """What a cell came to, whatever its settings were, or None."""
    path = os.path.join(cell.directory, "result.json")
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def is_finished(cell: Cell) -> bool:
    """Whether a cell trained to its end.

    Raises:
        ConfigError: it did with other settings.
    """
    result = read_result(cell)
    if result:
        run.claim(run.Command(cell.config, "train", cell.directory))
    return result is not None and result["step"] == cell.config.learner.updates


def interquartile_mean(values: np.ndarray) -> float:
    """Mean of the middle half of the values, the two at the edges counted in part."""
    ordered, count = np.sort(np.ravel(values)), np.size(values)
    edges = np.clip(np.arange(count + 1), count / 4, 3 * count / 4)
    return float(np.diff(edges) @ ordered / (count / 2))


def bootstrap_interval(returns: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Interval of the interquartile mean: seeds are drawn with replacement, and from each seed drawn its episodes.

    Args:
        returns: [P, E] of every seed's episodes.
        level: of confidence.
    """
    rng = np.random.default_rng(0)
    seeds, episodes = returns.shape
    drawn = []
    for _ in range(RESAMPLES):
        rows = rng.integers(seeds, size=(seeds, 1))
        drawn.append(interquartile_mean(returns[rows, rng.integers(episodes, size=(seeds, episodes))]))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def statistics(result: Mapping[str, Any]) -> dict[str, Any]:
    """What the table shows of one cell."""
    returns = np.array([seed["returns"] for seed in result["evaluation"]])
    low, high = bootstrap_interval(returns)
    return {
        "mean": float(returns.mean()),
        "sd": float(returns.mean(axis=1).std()),
        "iqm": interquartile_mean(returns),
        "interval": [low, high],
        "win_rate": float(np.mean([seed["win_rate"] for seed in result["evaluation"]])),
        "seeds": len(returns),
        "episodes": returns.shape[1],
        "updates": result["step"],
        "updates_per_second": result["step"] / result["training_seconds"],
    }


def markdown(results: Mapping[tuple[str, str], Mapping[str, Any]], cells: Sequence[Cell]) -> str:
    """The table: mean ± standard deviation over seeds, then the interquartile mean with its interval."""
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    algorithms = list(dict.fromkeys(cell.algorithm for cell in cells))
    lines = [f"| algorithm | {' | '.join(tasks)} |", f"|---|{'---|' * len(tasks)}"]
    places = {task: 1 for task in tasks}
    for (task, _), result in results.items():
        places[task] = 3 if abs(result["data"]["statistics"]["return_mean"]) < 100 else 0

    def entry(task, algorithm):
        if (task, algorithm) not in results:
            return "-"
        s, p = statistics(results[task, algorithm]), places[task]
        low, high = s["interval"]
        return f"{s['mean']:.{p}f} ± {s['sd']:.{p}f}<br>{s['iqm']:.{p}f} [{low:.{p}f}, {high:.{p}f}]"

    for algorithm in algorithms:
        lines.append(f"| {algorithm} | {' | '.join(entry(task, algorithm) for task in tasks)} |")
    behaviour = []
    for task in tasks:
        known = [result["data"]["statistics"] for (name, _), result in results.items() if name == task]
        p = places[task]
        behaviour.append(f"{known[0]['return_mean']:.{p}f} ± {known[0]['return_sd']:.{p}f}" if known else "-")
    lines.append(f"| data | {' | '.join(behaviour)} |")
    seen = [statistics(result) for result in results.values()]
    spans = {key: sorted({s[key] for s in seen}) for key in ("seeds", "episodes", "updates")}
    counts = ", ".join(f"{' or '.join(map(str, span))} {key}" for key, span in spans.items() if span)
    lines += [
        "",
        f"Return of the greedy policy after the last update ({counts}): mean ± standard deviation over seeds; below it "
        "the interquartile mean of all episodes with its 95 % interval, seeds and episodes resampled. data: mean ± "
        "standard deviation over the dataset's episodes.",
    ]
    return "\n".join(lines) + "\n"


def write_tables(command: Command) -> str:
    """Writes comparison.md, .csv and .json of all cells with a result; returns the first."""
    found = [(cell, read_result(cell)) for cell in command.cells]
    results = {(cell.task, cell.algorithm): result for cell, result in found if result}
    text = io.StringIO()
    columns = [
        "task",
        "algorithm",
        "seed",
        "updates",
        "return_mean",
        "return_sd",
        "win_rate",
        "length_mean",
        "episodes",
    ]
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for (task, algorithm), result in results.items():
        for seed in result["evaluation"]:
            writer.writerow({"task": task, "algorithm": algorithm, "updates": result["step"], **seed})
    whole = [{"task": task, "algorithm": a, **statistics(result)} for (task, a), result in results.items()]
    table = markdown(results, command.cells)
    os.makedirs(command.directory, exist_ok=True)
    for extension, content in (("md", table), ("csv", text.getvalue()), ("json", json.dumps(whole, indent=2))):
        path = os.path.join(command.directory, f"comparison.{extension}")
        with open(f"{path}.tmp", "w", encoding="utf-8") as file:
            file.write(content)
        os.replace(f"{path}.tmp", path)
    return table


def execute(command: Command, interruption: Interruption) -> int:
    """Trains and evaluates what is missing, writes the tables and returns the exit status.

    Raises:
        ConfigError, DatasetError: what the user can mend; settings and data of every cell are checked first.
        NonFiniteMetrics: if a cell diverged; the others are intact.
    """
    missing = [] if command.report_only else [cell for cell in command.cells if not is_finished(cell)]
    environments = {cell.task: envs.make(cell.config.data.environment) for cell in missing}
    for cell in missing:
        jax.eval_shape(functools.partial(population, cell, environments[cell.task]))
    for task in dict.fromkeys(cell.task for cell in missing):
        example = next(cell for cell in missing if cell.task == task)
        run.load_data(example.config, environments[task])
    loaded: dict[str, Any] = {}
    for place, cell in enumerate(missing):
        run.say(f"cell {place + 1} of {len(missing)}: {cell.algorithm} on {cell.task}, seeds {cell.seeds}")
        if cell.task not in loaded:
            loaded = {cell.task: run.load_data(cell.config, environments[cell.task])}
        state, seconds = train_cell(cell, environments[cell.task], loaded[cell.task], interruption)
        if interruption.requested:
            run.say(f"stopped and saved at update {updates_done(state)}; the same command goes on")
            return 75
        result = {
            "config": to_dict(cell.config),
            "seeds": list(cell.seeds),
            "step": updates_done(state),
            "evaluation": evaluate_cell(cell, environments[cell.task], state),
            "data": loaded[cell.task][1],
            "training_seconds": seconds,
            **report.provenance(),
        }
        run.write_json(os.path.join(cell.directory, "result.json"), result)
        write_tables(command)
    run.say(write_tables(command))
    run.say(f"tables: {os.path.join(command.directory, 'comparison.{md,csv,json}')}")
    return 0


def main(argv: Sequence[str]) -> int:
    """Runs one command line, `argv[0]` being the script; returns the exit status."""

    def work(interruption):
        command = parse(argv)
        return 0 if command is None else execute(command, interruption)

    return run.guarded(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
