"""OMCDA's variants and behaviour cloning on several tasks: one table from full runs of `experiments/run.py`.

    python -m benchmarks.study                                        # SMAX, everything: many hours on 2 cores
    python -m benchmarks.study --presets=smac_3m --variants=bc,softmax --seeds=0
    python -m benchmarks.study --presets=mujoco_hopper_medium,mujoco_hopper_medium_expert --variants=bc,softmax \\
        --overrides=learner.updates=100000

Each cell is one run in its own directory, pinned to one core, and a row of --csv when it is done. A cell with a row
there is not run again, even on another machine, and an interrupted cell resumes, so the same command continues a study.
The exit status is 1 if a run failed. Prints Markdown. The columns are the greedy policy's return (mean over seeds ±
standard deviation over seeds) and win rate, with those of the data, and the return averaged over the evaluations of the
last half of the training. The average says more where single checkpoints swing, as on MuJoCo. The other columns are
bounded in a healthy run:

    Q^r / bound     largest |mean Q^r| ever logged over the data's largest return-to-go (healthy: below 2)
    max Q^c         largest mean Q^{c,i} ever logged, in nats (healthy: not above a small tolerance)
    spent / budget  mean over agents of the weights' divergence over d_i, at the end: 1 if the budget decides the
                    level, less if the price does
    KL / budget     the same for the policy network's divergence from the behaviour policy
"""

import hashlib
import json
import os
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import flags

from benchmarks.children import Child, run_all
from benchmarks.command import check_data, main
from benchmarks.rows import Row, check_writable, put, read
from omcda_jax.config import require, to_dict
from omcda_jax.metrics import standard_deviation
from omcda_jax.runner.compare import read_seeds
from omcda_jax.runner.presets import resolve
from omcda_jax.system import new_flags, printing
from omcda_jax.types import ConfigError

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
    "two_critics": ["algorithm.critics=2"],
    "weighted": ["algorithm.extraction=weighted"],
    "gradient": ["algorithm.extraction=gradient"],
    "unpriced": ["algorithm.price=0"],
    "paper": re.findall("^--config.(.*)$", (ROOT / "experiments" / "paper.flags").read_text(), re.MULTILINE),
}

KEY = ("task", "variant", "overrides", "seed")
HEALTH = ("q_bound", "q_deviation", "spent", "divergence")
NUMBERS = ("return_mean", "late_return", "win_rate", "data_return", "data_win_rate", *HEALTH)
COLUMNS = (*KEY, "updates", *NUMBERS)

FLAGS, define = new_flags()  # flags of its own: tests import several benchmarks
define("list", "presets", ["smac_3m", "smac_2s3z", "smac_5m6m"], "presets of experiments/run.py")
define("list", "variants", ["bc", "softmax", "uniform", "projected", "in_sample"], f"among {', '.join(VARIANTS)}")
define("list", "seeds", ["0", "1", "2"], "seeds of the algorithm; the dataset is the same for all")
define("string", "quality", None, "quality of the datasets; by default that of the presets")
define("list", "overrides", [], "further settings for every cell, for instance algorithm.d_tot=1.8")
define("string", "directory", "runs/study", "folder for the cells' runs")
define("string", "csv", "benchmarks/results/study.csv", "file for the row of every cell")
define("integer", "jobs", os.cpu_count(), "cells at a time, one core each", lower_bound=1)
define("boolean", "run", True, "False: only the table of the cells that have a row")


class Cell(NamedTuple):
    """One run: a preset, a variant and a seed, under the settings of the command line."""

    preset: str
    variant: str
    seed: str

    @property
    def directory(self) -> pathlib.Path:
        """The directory of the run; other overrides have another directory."""
        text = " ".join(FLAGS.overrides)
        place = f"overrides_{hashlib.sha256(text.encode()).hexdigest()[:8]}" if text else ""
        parts = (self.preset, FLAGS.quality or "", self.variant, place, f"seed_{self.seed}")
        return pathlib.Path(FLAGS.directory, *parts)

    @property
    def settings(self) -> list[str]:
        """The settings that differ from the preset."""
        quality = [f"data.quality={FLAGS.quality}"] if FLAGS.quality else []
        return [*VARIANTS[self.variant], *FLAGS.overrides, f"seed={self.seed}", *quality]

    @property
    def key(self) -> tuple[str, ...]:
        """The key of its row."""
        task = f"{self.preset}:{FLAGS.quality}" if FLAGS.quality else self.preset
        return task, self.variant, " ".join(FLAGS.overrides), self.seed


def numbers_of(row: Row) -> Row:
    """A written row of the CSV, with its numbers as numbers."""
    for name in NUMBERS:
        float(row[name])
    return row


def key_of(row: Row) -> tuple[str, ...]:
    """The key of a row of the CSV, as `Cell.key`."""
    return tuple(row[name] for name in KEY)


def child_of(cell: Cell) -> Child:
    """The run of a cell; its output goes to a log next to it, and its row to the CSV."""
    command = [sys.executable, str(ROOT / "experiments" / "run.py")]
    command += [f"--config={cell.preset}", f"--workdir={cell.directory}"]
    command += [f"--config.{setting}" for setting in cell.settings]
    return Child(" ".join(cell), command, cell.directory / "log.txt", lambda: keep(cell))


def keep(cell: Cell) -> bool:
    """Write a finished cell's row into the CSV; return whether the cell is finished."""
    result = read_result(cell)
    if result is not None:
        put(FLAGS.csv, COLUMNS, [row_of(cell, result)], key_of)
    return result is not None


def read_result(cell: Cell) -> dict | None:
    """The finished result of a cell, or None; a run with other settings in its directory does not count."""
    path = cell.directory / "result.json"
    if not path.exists():
        return None
    result = json.loads(path.read_text())
    asked = json.loads(json.dumps(to_dict(resolve(cell.preset, cell.settings, "--presets"))))
    return result if result["finished"] and result["config"] == asked else None


def row_of(cell: Cell, result: dict) -> Row:
    """The row of a finished cell."""
    rows = [json.loads(line) for line in (cell.directory / "metrics.jsonl").read_text().splitlines()]
    data, last = result["data"]["statistics"], result["evaluation"]
    numbers = (last["return_mean"], late_return(rows, result), last["win_rate"], data["return_mean"], data["win_rate"])
    shown = zip(NUMBERS, (*numbers, *health(rows, result)), strict=True)
    return dict(zip(KEY, cell.key, strict=True)) | {"updates": result["step"]} | {k: f"{x:.6g}" for k, x in shown}


def late_return(rows: Sequence[Row], result: dict) -> float:
    """Mean return over the evaluations of the last half of the training, the final one included."""
    rows = [row for row in rows if "evaluation/return_mean" in row and 2 * row["step"] >= result["step"]]
    late = [row["evaluation/return_mean"] for row in rows if row["step"] < result["step"]]
    return float(np.mean([*late, result["evaluation"]["return_mean"]]))


def health(rows: Sequence[Row], result: dict) -> list[float]:
    """The four bounded quantities of the module docstring; nan for an algorithm without them."""
    rows = [row for row in rows if "critic/q_return" in row]
    if not rows:
        return [float("nan")] * len(HEALTH)
    bound = (result["data"]["max_return_to_go"] or float("nan")) * result["config"]["data"]["reward_scale"]
    budget = np.array(rows[-1]["allocation/budget"])
    return [
        max(abs(row["critic/q_return"]) for row in rows) / bound,
        max(np.max(row.get("critic/q_deviation", np.nan)) for row in rows),
        np.mean(rows[-1]["allocation/weight_divergence"] / budget),
        np.mean(rows[-1]["policy/divergence"] / budget),
    ]


def line(rows: Sequence[Row]) -> str:
    """One line of the table, over the seeds of one variant."""
    numbers = {name: np.array([float(row[name]) for row in rows]) for name in NUMBERS}
    spread = lambda values: f"{values.mean():.3f} ± {standard_deviation(values):.3f}"
    mean = {name: values.mean() for name, values in numbers.items()}
    cells = [rows[0]["task"], rows[0]["variant"], str(len(rows))]
    cells += [spread(numbers["return_mean"]), spread(numbers["late_return"]), f"{mean['win_rate']:.3f}"]
    cells.append(f"{mean['data_return']:.3f} ({mean['data_win_rate']:.3f})")
    cells += ["" if np.isnan(mean[name]) else f"{mean[name]:.2f}" for name in HEALTH]
    return f"| {' | '.join(cells)} |"


def work(values: flags.FlagValues) -> bool:
    """Run what is missing and print the table; return whether every started run finished."""
    for variant in values.variants:
        require(variant in VARIANTS, "--variants", f"some of {', '.join(VARIANTS)}", variant)
    seeds = list(map(str, read_seeds(values.seeds)))
    cells = [Cell(p, v, s) for s in seeds for p in values.presets for v in values.variants]
    if not cells:
        raise ConfigError("--presets, --variants: expected at least one of each, found none")
    for cell in cells:
        resolve(cell.preset, cell.settings, "--presets")
    there = set(map(key_of, read(values.csv, COLUMNS, numbers_of)))
    succeeded = True
    if values.run:
        check_writable(values.csv)
        missing = [cell for cell in cells if cell.key not in there and not keep(cell)]
        for cell in missing:
            check_data(resolve(cell.preset, cell.settings, "--presets").data)
        succeeded = run_all(map(child_of, missing), sorted(os.sched_getaffinity(0))[: values.jobs])
    titles = ["task", "variant", "seeds", "return", "return, last half", "win rate", "data"]
    titles += ["Q^r / bound", "max Q^c", "spent / budget", "KL / budget"]
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    found = {key_of(row): row for row in read(values.csv, COLUMNS, numbers_of)}
    for preset in values.presets:
        for variant in values.variants:
            keys = [Cell(preset, variant, seed).key for seed in seeds]
            rows = [found[key] for key in keys if key in found]
            if rows:
                print(line(rows))
    return succeeded


if __name__ == "__main__":
    sys.exit(printing(lambda: main(sys.argv, __doc__, FLAGS, work)))
