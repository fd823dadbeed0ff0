"""How well trials are chosen by the data alone: estimates of `--select` compared with true returns, task by task.

    python -m benchmarks.selection --presets=smac_5m6m,mujoco_hopper_medium_replay \\
        --trials='seed=0..1; algorithm.d_tot=0.3,1.2,3; algorithm.price=0,0.006' --overrides=learner.updates=12000

A preset may have `:quality` for another dataset. Each population is one run of `experiments/run.py` in its own
directory, with its output in log.txt there. A finished run is not run again and an interrupted run resumes, so the same
command continues a study. It writes one row for every trial to --csv, where rows of other tasks and algorithms stay.
The exit status is 1 if a run failed. Prints Markdown, with a row for each estimate and task:

    rank correlation   Spearman's, of the estimate with the mean greedy return in the simulator
    regret             return of the best trial minus that of the trial with the highest estimate
    of the range       the regret as a share of the best return minus the worst
    by chance          mean regret of a trial drawn at random

A trial that diverged counts nowhere; an estimate without a value for a trial ranks the others. Put an override with a
comma in double quotes: --overrides='"algorithm.hidden_sizes=128,128",learner.batch_size=64'.
"""

import functools
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats
from absl import flags

from benchmarks.children import Child, run_all
from benchmarks.command import check_data, main
from benchmarks.rows import check_writable, put, read
from benchmarks.table import TASKS
from omcda_jax.config import to_dict
from omcda_jax.runner.command import parse
from omcda_jax.runner.presets import resolve
from omcda_jax.runner.run import job_of
from omcda_jax.runner.select import ESTIMATES
from omcda_jax.selection import LARGEST_DEPARTURE
from omcda_jax.system import new_flags, printing

ROOT = pathlib.Path(__file__).resolve().parent.parent
COLUMNS = (
    "task",
    "algorithm",
    "update",
    "trial",
    "return_mean",
    "return_se",
    "gamma",
    *ESTIMATES,
    "departure",
    "effective_share",
    "recorded",
)

FLAGS, define = new_flags()  # flags of its own: tests import several benchmarks
define(
    "list",
    "presets",
    list(TASKS),
    "presets of experiments/run.py, each with an optional :quality; by default the tasks of benchmarks.table",
)
define("string", "algorithm", "omcda", "algorithm of the trials")
define("string", "trials", "seed=0..1; algorithm.d_tot=0.3,1.2,3; algorithm.price=0,0.006", "the population")
define("list", "overrides", [], "further settings of every run, for instance learner.updates=12000")
define("enum", "select", "dr", ESTIMATES, "the costliest estimate")
define("integer", "select_updates", 10_000, "updates to fit critics for")
define("float", "select_gamma", None, "discount factor of fitted critics; by default the largest of the trials'")
define("string", "directory", "runs/selection", "folder for the runs")
define("string", "csv", "benchmarks/results/selection.csv", "file for the row of every trial")
define("boolean", "run", True, "False: only the table of what is finished")


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation; equal values share their mean rank; nan if all values of one side are equal."""
    equal = np.ptp(x) == 0 or np.ptp(y) == 0
    return float("nan") if equal else float(scipy.stats.spearmanr(x, y).statistic)


def read_finished(
    directory: pathlib.Path,
    task: str,
    by: str,
    updates: int,
    gamma: float | None = None,
    settings: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]] | None:
    """The rows of a run's trials, without those that diverged; None if the run is not finished as requested."""
    paths = [directory / name for name in ("result.json", "selection.json")]
    if not all(path.exists() for path in paths):
        return None
    result, selection = (json.loads(path.read_text()) for path in paths)
    ordered = (selection["by"], selection["updates"]) == (by, updates) and gamma in (None, selection["gamma"])
    if not (result["finished"] and ordered and selection["step"] == result["step"]):
        return None
    if settings is not None and result["config"] != settings:
        return None
    if by != "critic" and "departure" not in selection["trials"][0]:
        return None  # an older version chose, which gave every trial an estimate
    return [
        {
            "task": task,
            "algorithm": result["config"]["algorithm"]["name"],
            "update": result["step"],
            "trial": " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in true["trial"].items()),
            "return_mean": true["evaluation"]["return_mean"],
            "return_se": true["evaluation"]["return_se"],
            "gamma": selection["gamma"],
            **{name: judged[name]["value"] for name in ESTIMATES if name in judged},
            **{name: judged.get(name) for name in ("departure", "effective_share")},
            "recorded": selection["recorded"],
        }
        for true, judged in zip(result["trials"], selection["trials"], strict=True)
        if not true["diverged"]
    ]


def words(task: str, directory: pathlib.Path, values: flags.FlagValues) -> list[str]:
    """The command line of `experiments/run.py` for one task's population."""
    preset, _, quality = task.partition(":")
    resolve(preset, [], "--presets")  # the run would name the flag --config
    settings = [f"data.quality={quality}"] if quality else []
    settings += [f"algorithm.name={values.algorithm}", "learner.mode=trials", f"learner.trials={values.trials}"]
    found = [f"--config={preset}", f"--workdir={directory}"]
    found += [f"--select={values.select}", f"--select_updates={values.select_updates}"]
    found += [f"--select_gamma={values.select_gamma}"] if values.select_gamma is not None else []
    return found + [f"--config.{setting}" for setting in [*settings, *values.overrides]]


def lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table's rows of one task."""
    returns = np.array([row["return_mean"] for row in rows])
    best, scale = returns.max(), np.ptp(returns) or np.nan
    found = []
    for name in ESTIMATES:
        has = [index for index, row in enumerate(rows) if row.get(name) is not None]
        if not has:
            if why := _why_none(name, rows):
                found.append(f"| {rows[0]['task']} | {name} | 0, {why} |")
            continue
        estimates = np.array([rows[index][name] for index in has])
        chosen = has[int(estimates.argmax())]
        regret = best - returns[chosen]
        cells = [rows[0]["task"], name, str(len(has)), f"{rank_correlation(estimates, returns[has]):.2f}"]
        cells += [rows[chosen]["trial"], f"{returns[chosen]:.2f}", f"{best:.2f}", f"{regret:.2f}"]
        cells += [f"{regret / scale:.0%}", f"{(best - returns.mean()) / scale:.0%}"]
        found.append(f"| {' | '.join(cells)} |")
    return found


def _why_none(name: str, rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Why no trial has an estimate: by how much the nearest one misses the limit; None if this is not known."""
    departures, shares = (
        [row[key] for row in rows if row.get(key) is not None] for key in ("departure", "effective_share")
    )
    if name != "critic" and departures and min(departures) > LARGEST_DEPARTURE:
        return f"at least {min(departures):.1%} of the actions leave the data"
    return f"weights of {max(shares):.1%} of the episodes at most" if name == "dr" and shares else None


def work(values: flags.FlagValues) -> bool:
    """Run what is missing, write the CSV and print the table; return whether every run finished."""
    orders, children = {}, []
    for task in dict.fromkeys(values.presets):
        directory = pathlib.Path(values.directory) / task.replace(":", "-") / values.algorithm
        given = words(task, directory, values)
        job, _ = job_of(parse(["run.py", *given]))
        ordered = (directory, task, values.select, values.select_updates, values.select_gamma, to_dict(job.config))
        orders[task] = functools.partial(read_finished, *ordered)
        command = [sys.executable, str(ROOT / "experiments" / "run.py"), *given]
        is_done = lambda order=orders[task]: order() is not None
        children.append(Child(task, command, directory / "log.txt", is_done))
        if values.run and not is_done():
            check_data(job.config.data)
    read(values.csv, COLUMNS)
    check_writable(values.csv)
    succeeded = not values.run or run_all(child for child in children if not child.done())
    finished = [found for order in orders.values() if (found := order())]
    of = lambda row: (row["task"], row["algorithm"])
    put(values.csv, COLUMNS, [row for found in finished for row in found], of)
    titles = ["task", "estimate", "trials", "rank correlation", "chosen", "its return", "best return", "regret"]
    titles += ["of the range", "by chance"]
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    print("\n".join(line for found in finished for line in lines(found)))
    return succeeded


if __name__ == "__main__":
    sys.exit(printing(lambda: main(sys.argv, __doc__, FLAGS, work)))
