"""The result of a run: a table on the screen, a plot if matplotlib is installed, and a page if plotly is.

    python experiments/report.py DIRECTORY

prints the table of a finished run again and writes its page, report.html, which needs no network. `omcda-jax report`
does the same. The directory is that of a run, of trials, of a comparison or of a sweep. A sweep's tables are collected
too, and a run's plot is drawn again.
"""

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import jax
from absl import flags

from omcda_jax.envs.versions import installed
from omcda_jax.metrics import learned_value, overestimates, standard_deviation
from omcda_jax.runner import frame, plots
from omcda_jax.runner.evaluation import without_returns
from omcda_jax.runner.jobs import share_folder
from omcda_jax.runner.outcomes import load
from omcda_jax.system import new_flags
from omcda_jax.types import ConfigError

AGENT_COLUMNS = {
    "budget": "allocation/budget",
    "alpha": "allocation/alpha",
    "influence": "allocation/influence",
    "policy KL": "policy/divergence",
    "weight divergence": "allocation/weight_divergence",
}
WINS = "win rate"  # a column's heading
# the file that shows what a directory is, if it is not a run's
KINDS = {"comparison": "comparison.json", "sweep": "manifest.jsonl"}
PACKAGES = ("omcda-jax", "jax", "jaxlib", "flax", "optax", "chex", "orbax-checkpoint", "numpy")


def provenance() -> dict[str, Any]:
    """Return package versions, platform and device and, in a git checkout, the commit and whether it is dirty."""
    versions = {"python": platform.python_version(), **dict.fromkeys(PACKAGES), **installed(*PACKAGES)}
    # a package that is installed inside another checkout is not part of it
    commit = _git("rev-parse", "HEAD") if _git("ls-files", "--error-unmatch", os.path.abspath(__file__)) else None
    return {
        "versions": versions,
        "platform": platform.platform(),
        "device": str(jax.devices()[0].device_kind),
        "git": commit,
        "git_dirty": commit is not None and bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def _git(*arguments: str) -> str | None:
    """Return the output of one git command here, or None without git, a repository or a commit."""
    folder = os.path.dirname(os.path.abspath(__file__))
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def learning_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the last logged metrics and the best evaluation during training.

    Args:
        rows: rows of a metrics file; rows of an evaluation have `evaluation/...` keys, other rows learning metrics.
    """
    learning = [row for row in rows if "evaluation/return_mean" not in row]
    evaluations = [row for row in rows if "evaluation/return_mean" in row]
    best = max(evaluations, key=lambda row: row["evaluation/return_mean"], default=None)
    return {
        "metrics": dict(learning[-1]) if learning else {},
        "best_during_training": best and {"step": best["step"], "return_mean": best["evaluation/return_mean"]},
    }


def table(result: Mapping[str, Any]) -> str:
    """Return a result as lines of text.

    Args:
        result: what run.py writes to result.json.
    """
    config, final, data = result["config"], result["evaluation"], result["data"]["statistics"]
    algorithm = config["algorithm"]["name"]
    data_error = data["return_sd"] / data["episodes"] ** 0.5
    rows = [
        ["", "return (mean ± se)", WINS, "episode length", "episodes", ""],
        _row(algorithm, final["return_mean"], final["return_se"], final, f"greedy, after {result['step']} updates"),
        _row("data", data["return_mean"], data_error, data, "as recorded"),
    ]
    parts = [f"{title(config)}, seed {config['seed']}", align(without_empty_wins(rows))]
    agents, scale = agent_rows(result["metrics"]), config["data"]["reward_scale"]
    if agents:
        unit = "reward" if scale == 1 else f"reward x {scale:g}"
        parts += ["", align(agents), f"budget and divergences in nats per step, levels in {unit} per nat"]
    value, largest = learned_value(result["metrics"]), result["data"].get("max_return_to_go")
    if value is not None and largest is not None:
        too_high = overestimates(result["metrics"], largest, scale)
        verdict = "  <- above what any data episode earned: the critic overestimates" if too_high else ""
        parts.append(f"critic on the data {value / scale:.3f}; largest return-to-go in the data {largest:.3f}{verdict}")
    return "\n".join(parts)


def trials(
    labels: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Any],
    guard: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Return what every trial of a population varied, and its outcome.

    Args:
        labels: what each trial varied, by key.
        evaluations: the evaluation of each trial.
        metrics: the last logged row, lists over trials.
        guard: counts of the learner's guard.
    """
    return [
        {
            "trial": dict(label),
            "evaluation": without_returns(evaluation),
            "metrics": {key: value[trial] if isinstance(value, list) else value for key, value in metrics.items()},
            "skipped": guard["skipped"][trial],
            "diverged": guard["culprits"][trial],
        }
        for trial, (label, evaluation) in enumerate(zip(labels, evaluations, strict=True))
    ]


def trials_table(result: Mapping[str, Any]) -> str:
    """Return a population's result as lines of text: every trial, then means over trials that differ only in the seed.

    A trial that diverged is marked with a metric that was not finite, and left out of the means.

    Args:
        result: what run.py writes to result.json for trials, or what `shares` returns.
    """
    listed = result["trials"]
    episodes = listed[0]["evaluation"]["episodes"]
    heading = f"{title(result['config'])}, {len(listed)} trials, {episodes} greedy episodes each"
    parts, groups = [heading, align(trial_rows(result))], group_rows(result)
    return "\n".join([*parts, "", align(groups)] if groups else parts)


def trial_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Return a heading, a row for every trial of a population, and a row for the data.

    Args:
        result: as in `trials_table`.
    """
    listed, data = result["trials"], result["data"]["statistics"]
    varied = list(listed[0]["trial"])
    rows = [[*varied, "return (mean ± se)", WINS, "episode length", "skipped", ""]]
    largest, scale = result["data"].get("max_return_to_go"), result["config"]["data"]["reward_scale"]
    for one in listed:
        final = one["evaluation"]
        _, *numbers, _, _ = _row("", final["return_mean"], final["return_se"], final, "")
        note = "the critic overestimates" if overestimates(one["metrics"], largest, scale) else ""
        note = f"diverged: {one['diverged']}" if one["diverged"] else note
        rows.append([*map(text, one["trial"].values()), *numbers, str(one["skipped"]), note])
    _, *numbers, _, _ = _row("", data["return_mean"], data["return_sd"] / data["episodes"] ** 0.5, data, "")
    rows.append(["data", *[""] * (len(varied) - 1), *numbers, "", "as recorded"])
    return without_empty_wins(rows)


def group_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Return a heading and a row for each group of trials that differ only in the seed; no rows if there is no group.

    Args:
        result: as in `trials_table`.
    """
    listed = result["trials"]
    groups: dict[tuple, list] = {}
    for one in listed:
        groups.setdefault(tuple((key, value) for key, value in one["trial"].items() if key != "seed"), []).append(one)
    if len(groups) == len(listed):
        return []
    varied = [key for key in listed[0]["trial"] if key != "seed"]
    heading = [*varied, "return (mean ± sd over seeds)", WINS, "trials", "diverged"]
    return without_empty_wins([heading, *(_group_row(group, members) for group, members in groups.items())])


def _group_row(group: Sequence[tuple[str, Any]], members: Sequence[Mapping[str, Any]]) -> list[str]:
    """One row of a trials table, for trials that differ only in the seed."""
    sound = [one["evaluation"] for one in members if not one["diverged"]]
    returns, wins = ([one[key] for one in sound] for key in ("return_mean", "win_rate"))
    shown = [f"{fmean(returns):.3f} ± {standard_deviation(returns):.3f}", f"{fmean(wins):.3f}"] if sound else ["-", "-"]
    return [*(text(value) for _, value in group), *shown, str(len(sound)), str(len(members) - len(sound))]


def text(value: float | str) -> str:
    """Return a value that a trial varies as a table cell."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def title(config: Mapping[str, Any]) -> str:
    """Return in one line what was trained on which data."""
    data = config["data"]
    return f"{config['name']}: {config['algorithm']['name']} on {data['environment']} {data['quality']}"


def shares(directory: str, count: int | None = None) -> dict[str, Any] | None:
    """Return the results of all shares of a population as one, or None while some are missing.

    Args:
        directory, count: as in `share_folders`.

    Raises:
        ConfigError: as in `share_folders`.
    """
    folders = share_folders(directory, count)
    if not folders or not all(os.path.exists(os.path.join(folder, "result.json")) for folder in folders):
        return None
    results = [load(os.path.join(folder, "result.json")) for folder in folders]
    return {**results[0], "trials": [one for result in results for one in result["trials"]]}


def share_folders(directory: str, count: int | None = None) -> list[str]:
    """Return the folders of a population's shares, or none if it is not shared.

    Args:
        directory: directory that contains `share_0_of_N` and so on.
        count: N; None: taken from the folders' names.

    Raises:
        ConfigError: the folders' names have different N.
    """
    if count is None:
        names = os.listdir(directory) if os.path.isdir(directory) else []
        counts = sorted({int(match[1]) for name in names if (match := re.fullmatch(r"share_\d+_of_(\d+)", name))})
        if len(counts) > 1:
            found = " and ".join(f"share_0_of_{each}" for each in counts)
            raise ConfigError(f"{directory}: expected the shares of one run, found those of several: {found}")
        count = sum(counts)
    return [share_folder(directory, index, count) for index in range(count)]


def _row(label: str, mean: float, error: float, source: Mapping[str, Any], note: str) -> list[str]:
    spread = f"{mean:.3f} ± {error:.3f}"
    return [label, spread, win_rate(source), f"{source['length_mean']:.1f}", str(source["episodes"]), note]


def win_rate(source: Mapping[str, Any]) -> str:
    """Return a win rate as a table cell: a dash for data that do not say who won.

    Args:
        source: statistics of a dataset, or the summary of an evaluation.
    """
    return "-" if source["win_rate"] is None else f"{source['win_rate']:.3f}"


def without_empty_wins(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return a table without its column WINS if nobody won, as in all tasks without a goal.

    Args:
        rows: the heading, then the other rows.
    """
    place = rows[0].index(WINS)
    if any(row[place].strip("0.-") for row in rows[1:]):
        return [list(row) for row in rows]
    return [[*row[:place], *row[place + 1 :]] for row in rows]


def agent_rows(values: Mapping[str, Any]) -> list[list[str]]:
    """Return a heading and one row per agent, or no rows if the algorithm has no per-agent metrics.

    Args:
        values: metrics of a logged row.
    """
    columns = {title: values[key] for title, key in AGENT_COLUMNS.items() if isinstance(values.get(key), list)}
    if not columns:
        return []
    count = len(next(iter(columns.values())))
    body = [[str(agent), *(f"{column[agent]:.4f}" for column in columns.values())] for agent in range(count)]
    if "alpha" not in columns or "allocation/price" not in values:
        return [["agent", *columns], *body]
    spent = columns.get("policy KL", [None] * count)
    binds = [_bound(*each, values["allocation/price"]) for each in zip(columns["alpha"], spent, strict=True)]
    return [["agent", *columns, "bound by"], *([*row, bound] for row, bound in zip(body, binds, strict=True))]


def _bound(alpha: float, divergence: float | None, price: float) -> str:
    """What keeps an agent's policy near the behaviour policy; nothing while the policy is a behaviour clone."""
    if divergence == 0:
        return "-"
    # metrics are means over a training call, during which a level may have left its floor
    return "price" if alpha <= 1.01 * price else "budget"


def align(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as lines of text with aligned columns."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def main(argv: Sequence[str]) -> int:
    """Run one command line, with the program's name in `argv[0]`; return the exit status."""
    values, define = new_flags()
    define("boolean", "replay", True, "Play an episode of the policy for the page; it takes a simulator and a minute.")
    return frame.main(argv, __doc__, values, _show_again, "one directory of a finished run")


def _show_again(values: flags.FlagValues, directory: str) -> None:
    kind = next((kind for kind, name in KINDS.items() if os.path.isfile(os.path.join(directory, name))), "run")
    result = None
    if kind == "sweep":
        from omcda_jax.runner.sweep import collect, manifest

        rows = manifest.read(directory)
        print(collect.collect(directory, rows))
    elif kind == "comparison":
        with open(os.path.join(directory, "comparison.md"), encoding="utf-8") as file:
            print(file.read())
    else:
        result = _shown(directory)
    with frame.importing_pages():
        from omcda_jax.runner import comparison_page, page, sweep_page
    if kind == "sweep":
        made = sweep_page.of_sweep(directory, rows, with_replay=values.replay)
    elif kind == "comparison":
        made = comparison_page.of_comparison(directory, with_replay=values.replay)
    else:
        made = page.of_run(directory, result, with_replay=values.replay)
    print(f"page: {page.write(directory, made)}")


def _shown(directory: str) -> dict[str, Any]:
    """Print the table of a run or of trials, draw a run's plot, and return the result."""
    result = shares(directory)
    if result is None:
        path = os.path.join(directory, "result.json")
        if not os.path.isfile(path):
            raise ConfigError(
                f"{directory}: expected the directory of a finished run, with result.json, of a comparison, with "
                "comparison.json, or of a sweep, with manifest.jsonl"
            )
        result = load(path)
    if "seeds" in result:
        raise ConfigError(f"{directory}: expected a run, a comparison or a sweep, found one cell of a comparison")
    if "trials" in result:
        print(trials_table(result))
        return result
    print(table(result))
    try:
        print(f"plot: {plots.plot(directory, result)}")
    except ConfigError as error:
        print(error)
    return result
