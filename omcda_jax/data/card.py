"""What is in a dataset, as numbers, a Markdown page and a picture."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omcda_jax.config import Repairs
from omcda_jax.data.episodes import Episodes, final_rows, returns, statistics
from omcda_jax.types import ConfigError, DatasetError, EnvSpec

BINS = 20
FITTED = 1_000  # number of vectors to which principal directions are fitted
QUANTILES = (0, 5, 25, 50, 75, 95, 100)


def describe(spec: EnvSpec, episodes: Episodes, totals: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a dataset's numbers, JSON-ready; returns are undiscounted and in the environment's own units.

    Coverage is the share of distinct pairs among all transitions, as OG-MARL reports it: pairs of state and joint
    action, and of each agent's observation and action. It is 1 if no pair comes twice. Entropy is that of an agent's
    actions over the dataset in nats; for continuous actions, the mean over dimensions in `BINS` equal bins of [-1, 1].

    Args:
        spec: the task's sizes.
        episodes: the data, checked.
        totals: their statistics as their reader knows them, who won for instance; None: those of `statistics`.
    """
    steps = np.delete(np.arange(len(episodes.reward)), final_rows(episodes.length))
    obs, state, action = episodes.obs[steps], episodes.global_state[steps], episodes.action[steps]
    # a dimension that an agent does not have says nothing about the agent
    own = episodes.avail[steps].any(axis=0)
    earned = returns(episodes)
    return {
        "spec": {
            "agents": spec.num_agents,
            "observation": spec.obs_dim,
            "state": spec.state_dim,
            "actions": spec.action_dim,
            "discrete": spec.discrete,
        },
        "statistics": dict(totals) if totals else statistics(episodes),
        "return_quantiles": {str(q): float(np.percentile(earned, q)) for q in QUANTILES},
        "return_histogram": _histogram(earned),
        "length_histogram": _histogram(episodes.length.astype(np.float64)),
        "coverage": {
            "joint": _distinct(state, action),
            "agents": [_distinct(obs[:, agent], action[:, agent]) for agent in range(spec.num_agents)],
        },
        "action_entropy": [_entropy(action[:, agent], own[agent], spec.discrete) for agent in range(spec.num_agents)],
        "largest_entropy": float(np.log(spec.action_dim if spec.discrete else BINS)),
    }


def principal(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Project vectors onto the two directions in which they vary most.

    Args:
        values: [K, D]; every feature is brought to zero mean and unit spread, and constant features are left out.

    Returns:
        The coordinates [K, 2], and the shares [2] of the total variance in these directions; zeros if there are fewer
        than two.
    """
    spread = values.std(axis=0, dtype=np.float64)
    varying = spread > 1e-6 * np.abs(values).max(axis=0, initial=1e-30)
    scaled = (values[:, varying] - values[:, varying].mean(axis=0, dtype=np.float64)) / spread[varying]
    points, shares = np.zeros((len(values), 2)), np.zeros(2)
    if varying.any():
        # fit the directions to a sample, because the cost grows with the number of vectors
        sample = scaled[np.linspace(0, len(scaled) - 1, min(len(scaled), FITTED)).astype(int)]
        _, size, directions = np.linalg.svd(sample, full_matrices=False)
        count = min(2, len(size))
        points[:, :count] = scaled @ directions[:count].T
        shares[:count] = size[:count] ** 2 / (size**2).sum()
    return points, shares


def write(
    path: str | os.PathLike, name: str, numbers: Mapping[str, Any], metadata: Mapping[str, Any], notes: Sequence[str]
) -> list[Path]:
    """Write card.md, card.json and, if matplotlib is installed, card.png.

    Args:
        path: a folder, made if missing.
        name: name of the dataset, for instance that of its file.
        numbers: as `describe` returns them.
        metadata: the file's own attributes.
        notes: notes of the file's reader.

    Returns:
        The paths of the written files.

    Raises:
        DatasetError: the folder cannot be written.
        ConfigError: matplotlib is not installed; card.md and card.json are written nevertheless.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "card.md").write_text(markdown(name, numbers, metadata, notes))
        plain = {key: value for key, value in metadata.items() if key != "statistics"}
        content = {"name": name, **numbers, "metadata": plain, "notes": list(notes)}
        (folder / "card.json").write_text(json.dumps(content, indent=2))
        _plot(folder / "card.png", name, numbers)
    except OSError as error:
        raise DatasetError(f"{folder}: expected a folder to write to, found: {error.strerror}") from error
    except ImportError as error:
        raise ConfigError(f"card.png needs a package ({error}): pip install 'omcda-jax[plot]'") from error
    return [folder / f"card.{kind}" for kind in ("md", "json", "png")]


def facts(numbers: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that take one line each, by name.

    Args:
        numbers, metadata: as in `write`.
    """
    spec, totals = numbers["spec"], numbers["statistics"]
    usual = dataclasses.asdict(Repairs())
    known = {
        "made from": metadata.get("description"),
        "policies": ", ".join(f"{stage} (SHA-256 {sha!s:.12})" for stage, sha in _group(metadata, "weights").items()),
        "made by": metadata.get("generator"),
        "environment": metadata.get("environment"),
        "quality": metadata.get("quality"),
        "versions": ", ".join(f"{key} {value}" for key, value in _group(metadata, "versions").items()),
        "repaired": ", ".join(
            f"{key}={value}" for key, value in _group(metadata, "repairs").items() if value != usual.get(key)
        ),
        "sizes": f"{spec['agents']} agents, {spec['observation']} observation and {spec['state']} state features,"
        f" {spec['actions']} {'discrete actions' if spec['discrete'] else 'action dimensions'}",
        "episodes": totals["episodes"],
        "transitions": totals["transitions"],
        "return": f"{totals['return_mean']:.4g} ± {totals['return_sd']:.4g} (sd)",
        "length": f"{totals['length_mean']:.4g}, {totals['length_min']} to {totals['length_max']}",
        "ended by the task": f"{totals['terminated_rate']:.1%}",
        "won": None if totals["win_rate"] is None else f"{totals['win_rate']:.1%}",
    }
    return {key: value for key, value in known.items() if value not in (None, "")}


def _group(metadata: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A mapping of the metadata; a writer of one's own may have put something else there."""
    group = metadata.get(key)
    return group if isinstance(group, Mapping) else {}


def markdown(name: str, numbers: Mapping[str, Any], metadata: Mapping[str, Any], notes: Sequence[str]) -> str:
    """Return the card as Markdown.

    Args:
        name, numbers, metadata, notes: as in `write`.
    """
    quantiles = numbers["return_quantiles"]
    row = lambda *cells: f"| {' | '.join(str(cell) for cell in cells)} |"
    agents = zip(numbers["coverage"]["agents"], numbers["action_entropy"], strict=True)
    lines = [
        f"# {name}",
        "",
        *(f"- {key}: {value}" for key, value in facts(numbers, metadata).items()),
        "",
        row("return at percentile", *quantiles),
        row("---", *("---" for _ in quantiles)),
        row("", *(f"{value:.4g}" for value in quantiles.values())),
        "",
        f"Distinct pairs of state and joint action: {numbers['coverage']['joint']:.3f} of all transitions.",
        "",
        row("agent", "distinct pairs of observation and action", "entropy of its actions"),
        row("---", "---", "---"),
        *(
            row(agent, f"{distinct:.3f}", f"{entropy:.3f} of {numbers['largest_entropy']:.3f} nats")
            for agent, (distinct, entropy) in enumerate(agents)
        ),
    ]
    if notes:
        lines += ["", "Notes:", "", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def _histogram(values: np.ndarray) -> dict[str, list[float]]:
    counts, edges = np.histogram(values, BINS)
    return {"counts": counts.tolist(), "edges": edges.tolist()}


def _distinct(seen: np.ndarray, action: np.ndarray) -> float:
    parts = [np.ascontiguousarray(values.reshape(len(values), -1)) for values in (seen, action)]
    pairs = np.concatenate([part.view(np.uint8) for part in parts], axis=1)
    return len(np.unique(pairs.view(np.dtype((np.void, pairs.shape[1]))))) / len(pairs)


def _entropy(action: np.ndarray, own: np.ndarray, discrete: bool) -> float:
    if discrete:
        return _entropy_of(np.bincount(action))
    dimensions = [np.histogram(action[:, k], BINS, (-1, 1))[0] for k in np.flatnonzero(own)]
    return float(np.mean([_entropy_of(counts) for counts in dimensions]))


def _entropy_of(counts: np.ndarray) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum()) + 0.0


def _plot(path: Path, name: str, numbers: Mapping[str, Any]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, key in zip(axes, ("return", "length"), strict=False):
        histogram = numbers[f"{key}_histogram"]
        axis.stairs(histogram["counts"], histogram["edges"], fill=True)
        axis.set(xlabel=key, ylabel="episodes")
    entropy = numbers["action_entropy"]
    axes[2].bar(range(len(entropy)), entropy)
    axes[2].axhline(numbers["largest_entropy"], linestyle=":", color="black")
    axes[2].set(xlabel="agent", ylabel="entropy of its actions (nats)", xticks=range(len(entropy)))
    figure.suptitle(name)
    figure.savefig(path, dpi=120)
