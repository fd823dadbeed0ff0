"""OMCDA's variants and behaviour cloning on several tasks: one table from full runs of `experiments/run.py`.

    python -m benchmarks.study                                        # SMAX, everything: many hours on 2 cores
    python -m benchmarks.study --presets=smac_3m --variants=bc,softmax --seeds=0
    python -m benchmarks.study --presets=mujoco_hopper_medium,mujoco_hopper_medium_expert --variants=bc,softmax \\
        --overrides=learner.updates=100000

Each cell is one run in its own directory, pinned to one core; a finished cell is not run again and an interrupted one
goes on, so the same command continues a study. Prints Markdown. Columns: the greedy policy's return (mean over seeds
± standard deviation over seeds) and win rate, with the data's own; the return averaged over the evaluations of the
last half of the training as well, which says more where single checkpoints swing, as on MuJoCo; then what a healthy
run keeps bounded:

    Q^r / bound     largest |mean Q^r| ever logged over the data's largest return-to-go (healthy: below 2)
    max Q^c         largest mean Q^{c,i} ever logged, in nats (healthy: not above a small tolerance)
    spent / budget  mean over agents of the weights' divergence over d_i, at the end (1 by construction)
    KL / budget     the same for the policy network's divergence from the behaviour
"""

import json
import os
import pathlib
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import numpy as np
from absl import app, flags

from omcda_jax.metrics import standard_deviation

ROOT = pathlib.Path(__file__).resolve().parent.parent
VARIANTS = {
    "bc": ["algorithm.name=bc"],
    "softmax": [],
    "uniform": ["algorithm.allocation=uniform"],
    "projected": ["algorithm.allocation=projected"],
    "random": ["algorithm.allocation=random"],
    "not_decoupled": ["algorithm.decoupled=False"],
    "in_sample": ["algorithm.value_target=in_sample"],
    "unprimed": ["algorithm.priming=0"],
    "one_critic": ["algorithm.critics=1"],
    "weighted": ["algorithm.extraction=weighted"],
    "gradient": ["algorithm.extraction=gradient"],
    "unpriced": ["algorithm.price=0"],
    "paper": re.findall("^--config.(.*)$", (ROOT / "experiments" / "paper.flags").read_text(), re.MULTILINE),
}

FLAGS = flags.FLAGS
flags.DEFINE_list("presets", ["smac_3m", "smac_2s3z", "smac_5m6m"], "presets of experiments/run.py")
flags.DEFINE_list("variants", ["bc", "softmax", "uniform", "projected", "in_sample"], f"among {', '.join(VARIANTS)}")
flags.DEFINE_list("seeds", ["0", "1", "2"], "seeds of the algorithm; the dataset is the same for all")
flags.DEFINE_string("quality", None, "of the datasets, instead of the presets' own")
flags.DEFINE_list("overrides", [], "further settings for every cell, for instance algorithm.d_tot=1.8")
flags.DEFINE_string("directory", "runs/study", "where the cells' run directories lie")
flags.DEFINE_integer("jobs", os.cpu_count(), "cells at a time, one core each")
flags.DEFINE_boolean("run", True, "False: only the table of the cells already finished")


def cell_directory(preset: str, variant: str, seed: str) -> pathlib.Path:
    """Run directory of one cell."""
    return pathlib.Path(FLAGS.directory) / preset / (FLAGS.quality or "") / variant / f"seed_{seed}"


def run_cell(preset: str, variant: str, seed: str, cores: SimpleQueue) -> None:
    """Runs one cell to its end on a free core, unless it is finished; its output goes to a log beside it."""
    directory = cell_directory(preset, variant, seed)
    if read_result(directory):
        return
    directory.mkdir(parents=True, exist_ok=True)
    settings = [*VARIANTS[variant], *FLAGS.overrides, f"seed={seed}"]
    settings += [f"data.quality={FLAGS.quality}"] if FLAGS.quality else []
    command = [sys.executable, str(ROOT / "experiments" / "run.py"), f"--config={preset}", f"--workdir={directory}"]
    command += [f"--config.{setting}" for setting in settings]
    core = cores.get()
    try:
        with open(directory / "log.txt", "a") as log:
            code = subprocess.run(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=lambda: os.sched_setaffinity(0, {core}),
                check=False,
            ).returncode
    finally:
        cores.put(core)
    print(f"{preset} {variant} seed {seed}: exit {code}", file=sys.stderr, flush=True)


def read_result(directory: pathlib.Path) -> dict | None:
    """The finished result of a cell, or None."""
    path = directory / "result.json"
    if not path.exists():
        return None
    result = json.loads(path.read_text())
    return result if result["finished"] else None


def logged(directory: pathlib.Path) -> list[dict]:
    """The rows of a cell's metrics file."""
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def late_return(directory: pathlib.Path, result: dict) -> float:
    """Mean return over the evaluations of the last half of the training, the final one included."""
    rows = [row for row in logged(directory) if "evaluation/return_mean" in row and 2 * row["step"] >= result["step"]]
    late = [row["evaluation/return_mean"] for row in rows if row["step"] < result["step"]]
    return float(np.mean([*late, result["evaluation"]["return_mean"]]))


def health(directory: pathlib.Path, result: dict) -> list[float]:
    """The four bounded quantities of the module docstring; not-a-numbers for an algorithm without them."""
    rows = logged(directory)
    rows = [row for row in rows if "critic/q_return" in row]
    if not rows:
        return [float("nan")] * 4
    bound = (result["data"]["max_return_to_go"] or float("nan")) * result["config"]["data"]["reward_scale"]
    budget = np.array(rows[-1]["allocation/budget"])
    return [
        max(abs(row["critic/q_return"]) for row in rows) / bound,
        max(np.max(row.get("critic/q_deviation", np.nan)) for row in rows),
        np.mean(rows[-1]["allocation/weight_divergence"] / budget),
        np.mean(rows[-1]["policy/divergence"] / budget),
    ]


def line(preset: str, variant: str, directories: list[pathlib.Path]) -> str:
    """One row of the table, over the finished seeds."""
    results = [read_result(directory) for directory in directories]
    returns = np.array([result["evaluation"]["return_mean"] for result in results])
    late = np.array([late_return(*pair) for pair in zip(directories, results, strict=True)])
    wins = np.array([result["evaluation"]["win_rate"] for result in results])
    data = results[0]["data"]["statistics"]
    measured = np.mean([health(*pair) for pair in zip(directories, results, strict=True)], axis=0)
    cells = [
        preset,
        variant,
        str(len(results)),
        f"{returns.mean():.3f} ± {standard_deviation(returns):.3f}",
        f"{late.mean():.3f} ± {standard_deviation(late):.3f}",
        f"{wins.mean():.3f}",
        f"{data['return_mean']:.3f} ({data['win_rate']:.3f})",
        *("" if np.isnan(value) else f"{value:.2f}" for value in measured),
    ]
    return f"| {' | '.join(cells)} |"


def main(_):
    """Runs what is missing and prints the table."""
    cells = [(p, v, s) for s in FLAGS.seeds for p in FLAGS.presets for v in FLAGS.variants]
    if FLAGS.run:
        cores = SimpleQueue()
        for core in sorted(os.sched_getaffinity(0))[: FLAGS.jobs]:
            cores.put(core)
        with ThreadPoolExecutor(FLAGS.jobs) as pool:
            list(pool.map(lambda cell: run_cell(*cell, cores), cells))
    titles = ["task", "variant", "seeds", "return", "return, last half", "win rate", "data"]
    titles += ["Q^r / bound", "max Q^c", "spent / budget", "KL / budget"]
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    for preset in FLAGS.presets:
        for variant in FLAGS.variants:
            directories = [cell_directory(preset, variant, seed) for seed in FLAGS.seeds]
            finished = [directory for directory in directories if read_result(directory)]
            if finished:
                print(line(preset, variant, finished))


if __name__ == "__main__":
    app.run(main)
