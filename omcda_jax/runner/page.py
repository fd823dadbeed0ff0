"""The report page: everything about a run, a population or a comparison in one HTML file.

The file needs no network. It contains Plotly, which draws the figures.
"""

import base64
import functools
import gzip
import importlib.resources
import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import plotly.graph_objects as go
import plotly.io
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from omcda_jax.config import assignments, differences, to_dict, written
from omcda_jax.files import replacing
from omcda_jax.metrics import VALUES
from omcda_jax.runner import figures, report
from omcda_jax.runner.outcomes import Trial, best, by_setting, load, trials_of
from omcda_jax.runner.presets import PRESETS, resolve
from omcda_jax.runner.replay import Replay, replay
from omcda_jax.types import ConfigError

NAME = "report.html"
Part = dict[str, Any]

# metrics that are shown elsewhere on the page, or say nothing about learning
ELSEWHERE = ("step", "evaluation/return_mean", "evaluation/return_se", "evaluation/return_sd", "evaluation/episodes")
AGENTS = {
    "allocation/budget": ("Shares of the budget", "share"),
    "allocation/alpha": ("Levels, scaled reward per nat: what the last nat earns", "level"),
    "allocation/influence": ("Influence, scaled reward per nat", "influence"),
    "policy/divergence": ("Divergence of the policies, nats per step", "nats"),
}
# what bounds a metric of the agents, and its name; an agent whose curve lies on it is bound by it
LIMITS = {"allocation/alpha": ("allocation/price", "price"), "policy/divergence": ("allocation/budget", "budget")}
MOVES = "Circles are filled by health, lines go from a unit to the one it attacks."
FLOWS = "Return so far, and below it the action of every agent at every step."


class Section(NamedTuple):
    """A part of a page. A folded section opens when its title is clicked; two half sections share a row."""

    title: str
    parts: Sequence[Part]
    folded: bool = False
    half: bool = False


class Page(NamedTuple):
    """The contents of a page."""

    title: str
    subtitle: str
    sections: Sequence[Section]


def write(directory: str, page: Page, name: str = NAME) -> str:
    """Write a page into a directory and return the file's path.

    Args:
        directory: folder for the page.
        page: the page's contents.
        name: name of the file.

    Raises:
        ConfigError: the file cannot be written.
    """
    template = importlib.resources.files("omcda_jax.runner").joinpath("page.html").read_text(encoding="utf-8")
    html = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(template)
    path = os.path.join(directory, name)
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with replacing(path) as partial:
            partial.write_text(html.render(page=page, library=Markup(_library())), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot write the page: {error.strerror}") from error
    return path


@functools.cache
def _library() -> str:
    """Plotly's source, compressed."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def of_run(directory: str, result: Mapping[str, Any], *, with_replay: bool = True) -> Page:
    """Return the page of a run or of a population.

    Args:
        directory: the run's directory; for a population shared among processes, the directory with the shares.
        result: its result, from result.json or `report.shares`.
        with_replay: play an episode.
    """
    folders = report.share_folders(directory)
    parts = [(folder, load(os.path.join(folder, "result.json"))) for folder in folders] or [(directory, result)]
    trials = [trial for folder, own in parts for trial in trials_of(folder, own)]
    population, config = "trials" in result, result["config"]
    groups = by_setting(trials)
    tables = trial_tables(result) if population else outcome_tables(result)
    sections = [Section("Result", tables, half=not population)]
    if with_replay:
        shown = best(trials)
        own_config = next(own["config"] for folder, own in parts if folder == shown.directory)
        sections.append(Section("An episode", episode(shown, own_config), half=not population))
    sections.append(Section("Training", training(groups, result)))
    others = other_metrics(groups)
    if others:
        sections.append(Section("All other metrics", [others], folded=True))
    sections += [
        Section("Settings", [settings(config)], folded=True),
        Section("How it was made", made(result, command(config))),
    ]
    size = f"{len(trials)} trials" if population else f"seed {config['seed']}"
    return Page(report.title(config), f"{size}, {result['step']} updates", sections)


def outcome_tables(result: Mapping[str, Any]) -> list[Part]:
    """Return the tables of a run: its policy compared with the data, and its agents."""
    parts = [outcome_table(result)]
    agents = report.agent_rows(result["metrics"])
    if agents:
        scale = result["config"]["data"]["reward_scale"]
        units = f"Budgets and divergences in nats per step, levels and influence in reward × {scale:g} per nat."
        parts.append(table(agents[0], agents[1:], units))
    return parts


def outcome_table(result: Mapping[str, Any]) -> Part:
    """Return the table that compares a policy with its data, from a run's result or one with the same keys."""
    final, data = result["evaluation"], result["data"]["statistics"]
    rows = [
        _outcome(result["config"]["algorithm"]["name"], final["return_mean"], final["return_se"], final),
        _outcome("data", data["return_mean"], data["return_sd"] / data["episodes"] ** 0.5, data),
    ]
    heading = ["", "return", "95 % from", "to", report.WINS, "episode length", "episodes"]
    heading, *rows = report.without_empty_wins([heading, *rows])
    return table(heading, rows, "Greedy policy after the last update, and the data: mean return over episodes.")


def _outcome(label: str, mean: float, error: float, source: Mapping[str, Any]) -> list[str]:
    numbers = [f"{value:.3f}" for value in (mean, mean - 1.96 * error, mean + 1.96 * error)]
    return [label, *numbers, report.win_rate(source), f"{source['length_mean']:.1f}", str(source["episodes"])]


def trial_tables(result: Mapping[str, Any]) -> list[Part]:
    """Return the tables of a population: its trials, and groups of trials that differ only in their seed."""
    rows, grouped = report.trial_rows(result), report.group_rows(result)
    episodes = result["trials"][0]["evaluation"]["episodes"]
    parts = [table(rows[0], rows[1:], f"Every trial: {episodes} greedy episodes after the last update.")]
    if grouped:
        parts.insert(0, table(grouped[0], grouped[1:], "Trials that differ only in their seed."))
    return parts


def training(groups: figures.Groups, result: Mapping[str, Any]) -> list[Part]:
    """Return the figures of training: returns, win rate, what every agent was given, and the learned value.

    Args:
        groups: trials by what they have in common.
        result: the result of one of them, for the data and settings.
    """
    scale, data = result["config"]["data"]["reward_scale"], result["data"]
    alone = {len(trials) == 1 for trials in groups.values()}
    spread = "; ".join(
        text
        for text, is_shown in (
            ("lowest to highest seed", False),
            ("of one seed, the 95 % interval over episodes", True),
        )
        if is_shown in alone
    )
    drawn = [
        (f"Return of the greedy policy ({spread}) and mean of the data", figures.returns(groups, data["statistics"])),
        ("Win rate", figures.metric(groups, "evaluation/win_rate", "win rate") if _has_goal(groups) else None),
    ]
    drawn += [
        (title, figures.agents(groups, key, axis, shares=key == "allocation/budget", limit=LIMITS.get(key)))
        for key, (title, axis) in AGENTS.items()
    ]
    title = "Learned value of the data, and the largest return-to-go in it: a value above it is too high"
    drawn.append((title, figures.values(groups, VALUES, scale, data.get("max_return_to_go"))))
    return [{"kind": "figures", "figures": [drawing(*one) for one in drawn if one[1] is not None]}]


def _has_goal(groups: figures.Groups) -> bool:
    return any(trial.final["win_rate"] for trials in groups.values() for trial in trials)


def other_metrics(groups: figures.Groups) -> Part | None:
    """Return a figure for every metric that is not shown elsewhere on the page, or None if there is no such metric."""
    keys = sorted({key for trials in groups.values() for trial in trials for row in trial.rows for key in row})
    own = {*ELSEWHERE, *AGENTS, *VALUES, "evaluation/win_rate"}
    drawn = [(key, _any(groups, key)) for key in keys if key not in own]
    drawn = [drawing(key, figure) for key, figure in drawn if figure is not None]
    return {"kind": "figures", "figures": drawn} if drawn else None


def _any(groups: figures.Groups, key: str) -> go.Figure | None:
    values = (row[key] for trials in groups.values() for trial in trials for row in trial.rows if key in row)
    if isinstance(next(values, None), list):
        return figures.agents(groups, key, key)
    return figures.metric(groups, key, key)


def episode(trial: Trial, config: Mapping[str, Any], name: str = "") -> list[Part]:
    """Return an episode of a trial, or words on why there is none.

    Args:
        trial: the trial.
        config: its settings.
        name: name of the group that the trial is in.
    """
    shown = replay(trial, config)
    label = ", ".join(filter(None, [name, *(f"{key}={value}" for key, value in trial.label.items())]))
    return looked_at(shown._replace(words=f"{label}: {shown.words}") if label else shown)


def looked_at(shown: Replay) -> list[Part]:
    """Return the parts that show an episode: words, and a figure or a film.

    Args:
        shown: the episode.
    """
    parts: list[Part] = [words(shown.words)]
    if shown.figure is not None:
        parts.append({"kind": "figures", "figures": [drawing(MOVES if shown.figure.frames else FLOWS, shown.figure)]})
    if shown.film is not None:
        parts.append({"kind": "film", "source": Markup(shown.film), "text": "film of the episode"})
    return parts


def settings(config: Mapping[str, Any]) -> Part:
    """Return the table of all settings, with the preset's value where it differs."""
    usual = {key: value for key, (value, _) in _changed(config).items()}
    rows = [
        [key, written(value), written(usual[key]) if key in usual else ""]
        for key, (_, value) in differences({}, config).items()
    ]
    return table(["setting", "value", "the preset's, where it differs"], rows, "")


def _changed(config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that differ from those of the preset for the algorithm; all settings if there is no such preset."""
    if config["name"] not in PRESETS:
        return differences({}, config)
    usual = resolve(config["name"], [f"algorithm.name={config['algorithm']['name']}"])
    return differences(to_dict(usual), config)


def command(config: Mapping[str, Any]) -> str:
    """Return a command line for a run with these settings."""
    default = PRESETS[config["name"]].algorithm if config["name"] in PRESETS else None
    changed = {*_changed(config)} | ({"algorithm.name"} if config["algorithm"]["name"] != default else set())
    chosen = [text for text in assignments(config) if text.partition("=")[0] in changed]
    return shlex.join(["omcda-jax", "run", f"--config={config['name']}", *(f"--config.{text}" for text in chosen)])


def made(result: Mapping[str, Any], line: str) -> list[Part]:
    """Return the command and the versions that a run was made with.

    Args:
        result: the run's result.
        line: the command.
    """
    return [words("This command makes it:"), {"kind": "code", "text": line}, made_with(result)]


def made_with(result: Mapping[str, Any]) -> Part:
    """Return the table of versions, device and data of a result."""
    data, changes = result["data"], " with changes" if result["git_dirty"] else ""
    versions = result["versions"] | result["environment_versions"]
    rows = [
        ["commit", f"{result['git'] or 'unknown'}{changes}"],
        ["device", result["device"]],
        ["platform", result["platform"]],
        *([name, version or "unknown"] for name, version in versions.items()),
        *([f"data: {key}", str(data[key])] for key in ("environment", "quality", "digest") if data.get(key)),
        ["seconds of training", f"{result['training_seconds']:.0f}"],
    ]
    return table(["fact", "value"], rows, "")


def words(text: str) -> Part:
    """Return a paragraph."""
    return {"kind": "words", "text": text}


def table(heading: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> Part:
    """Return a table that the reader can sort by any column."""
    return {"kind": "table", "heading": heading, "rows": rows, "caption": caption}


def drawing(caption: str, figure: go.Figure) -> Part:
    """Return a figure with a caption."""
    text = plotly.io.json.to_json_plotly(figures.as_dict(figure))
    # nothing in it may close the element that contains it
    return {
        "caption": caption,
        "json": Markup(text.replace("<", "\\u003c")),
        "height": figure.layout.height,
        "moves": bool(figure.frames),
    }
