"""The page of a dataset: what it contains, how its episodes went, what its agents did and where they were."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from omcda_jax.data import card
from omcda_jax.data.episodes import Episodes, final_rows, returns
from omcda_jax.data.formats import Contents
from omcda_jax.envs.base import Environment, HostEnvironment
from omcda_jax.runner import dataset_figures as figures
from omcda_jax.runner.page import Page, Part, Section, drawing, looked_at, table, words
from omcda_jax.runner.replay import recorded, show

POINTS = 2_000  # number of points in a cloud
PLACES = {"the lowest": 0.0, "the median": 0.5, "the highest": 1.0}  # shown episodes, by the rank of their return


def of_dataset(name: str, contents: Contents, environment: Environment | HostEnvironment | None = None) -> Page:
    """Return the page of a dataset.

    Args:
        name: the dataset's name, for instance its file.
        contents: as `formats.read` returns them.
        environment: the environment it was made in, to draw its episodes; None if that is not known.
    """
    spec, episodes, metadata = contents.spec, contents.episodes, contents.metadata
    numbers = card.describe(spec, episodes, metadata.get("statistics"))
    steps = np.delete(np.arange(len(episodes.reward)), final_rows(episodes.length))
    facts = [[key, str(value)] for key, value in card.facts(numbers, metadata).items()]
    notes = [words(f"Note: {note}.") for note in contents.notes]
    sections = [
        Section("What it contains", [*notes, table(["fact", "value"], facts, f"Format {contents.format}.")]),
        Section("Episodes", [_figures(_outcomes(episodes))]),
        Section("Rewards", [_figures(_rewards(episodes, steps))]),
        Section("Actions", _actions(episodes, steps, spec.discrete, numbers)),
        Section("Where the team was", [words(CLOUD), _figures(_clouds(episodes, steps))]),
        *_examples(episodes, environment),
        Section("How it was made", [_metadata(metadata)], folded=True),
    ]
    totals = numbers["statistics"]
    return Page(name, f"{totals['episodes']} episodes, {totals['transitions']} transitions", sections)


CLOUD = (
    "Principal components: every point is one of the data's moments, projected onto the two directions in which the "
    "moments, brought to unit spread in every feature, vary most. Where there is no point, the data say nothing; "
    "differences in other directions are not visible."
)


def _figures(drawn: Mapping[str, Any]) -> Part:
    return {"kind": "figures", "figures": [drawing(caption, figure) for caption, figure in drawn.items()]}


def _outcomes(episodes: Episodes) -> dict[str, Any]:
    total, ended = returns(episodes), episodes.terminated
    kinds = [("won", episodes.won), ("ended by the task", ended & ~episodes.won), ("cut", ~ended & ~episodes.won)]
    kinds = [(kind, own) for kind, own in kinds if own.any()]
    return {
        "Returns, undiscounted and in the environment's units": figures.histogram(total, "return", "episodes", kinds),
        "Lengths": figures.histogram(episodes.length, "steps", "episodes", kinds),
        "Return in the order of the file": figures.order(total, "return"),
    }


def _rewards(episodes: Episodes, steps: np.ndarray) -> dict[str, Any]:
    reward = episodes.reward[steps]
    time = np.concatenate([np.arange(length) for length in episodes.length])
    counts = np.bincount(time)
    each = figures.histogram(reward, "reward of a step", "steps")
    each.update_yaxes(type="log")
    mean = np.bincount(time, reward) / counts
    return {
        f"Rewards, on a logarithmic scale; {np.mean(reward == 0):.1%} of them are 0": each,
        "Mean reward of every step, over the episodes that last as long": figures.over_time(mean, counts, "reward"),
    }


def _actions(episodes: Episodes, steps: np.ndarray, discrete: bool, numbers: Mapping[str, Any]) -> list[Part]:
    action, avail = episodes.action[steps], episodes.avail[steps]
    drawn = _chosen(action, avail) if discrete else _spread(action, avail)
    rows = [
        [str(agent), f"{distinct:.3f}", f"{entropy:.3f}"]
        for agent, (distinct, entropy) in enumerate(
            zip(numbers["coverage"]["agents"], numbers["action_entropy"], strict=True)
        )
    ]
    caption = (
        f"Share of distinct pairs among all steps, 1 if no pair occurs twice; for state and joint action it is "
        f"{numbers['coverage']['joint']:.3f}. Entropy in nats, at most {numbers['largest_entropy']:.3f}."
    )
    heading = ["agent", "distinct pairs of observation and action", "entropy of its actions"]
    return [_figures(drawn), table(heading, rows, caption)]


def _chosen(action: np.ndarray, avail: np.ndarray) -> dict[str, Any]:
    """How often every agent took each discrete action, and how often it could."""
    agents, actions = avail.shape[1:]
    taken = np.stack([np.bincount(own, minlength=actions) for own in action.T]) / len(action)
    legal = avail.mean(axis=0)
    names = figures.labels(agents)
    show = lambda values, top: figures.grid(values, names, list(range(actions)), "action", top)
    caption = "Share of the steps at which an agent took an action"
    if (legal == 1).all():
        return {f"{caption}; all are legal at all times": show(taken, None)}
    drawn = {caption: show(taken, None)}
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(legal > 0, taken / legal, np.nan)
    drawn["Share of the steps at which an action was legal"] = show(legal, 1.0)
    drawn["Share of the steps at which an action was taken, among those at which it was legal"] = show(ratio, 1.0)
    return drawn


def _spread(action: np.ndarray, avail: np.ndarray) -> dict[str, Any]:
    """Histograms of the continuous actions, for each dimension that an agent has."""
    own = avail.any(axis=0)
    edges = np.linspace(-1, 1, figures.BINS + 1)
    shares = [np.histogram(action[:, agent, k], edges)[0] / len(action) for agent, k in np.argwhere(own)]
    names = [name for name, is_own in zip(figures.labels(*own.shape), own.flat, strict=True) if is_own]
    middles = np.round((edges[1:] + edges[:-1]) / 2, 3)
    shown = figures.grid(np.array(shares), names, middles.tolist(), "value", None)
    at_bounds = np.mean(np.abs(action[:, own]) > 0.99)
    caption = "A histogram in every row: share of the steps at which a dimension of an agent's action had a value"
    return {f"{caption}; {at_bounds:.1%} of all values lie within 0.01 of a bound": shown}


def _clouds(episodes: Episodes, steps: np.ndarray) -> dict[str, Any]:
    """Global states by the return of their episode, observations by agent."""
    random, agents = np.random.default_rng(0), episodes.obs.shape[1]
    some = np.sort(random.permutation(len(steps))[:POINTS])
    rows = steps[some]
    total = np.repeat(returns(episodes), episodes.length)[some]
    states = card.principal(episodes.global_state[rows])
    fewer = rows[:: max(1, agents * len(rows) // POINTS)]
    seen = card.principal(episodes.obs[fewer].reshape(-1, episodes.obs.shape[2]))
    who = np.tile(np.arange(agents), len(fewer))
    return {
        "Global states, by the return of their episode": figures.cloud(*states, total, "return"),
        "Observations, by the agent who made them": figures.cloud(*seen, who, "agent"),
    }


def _examples(episodes: Episodes, environment: Environment | HostEnvironment | None) -> list[Section]:
    """The episodes with the lowest, the median and the highest return."""
    ranked = np.argsort(returns(episodes), kind="stable")
    chosen = {name: int(ranked[round(share * (len(ranked) - 1))]) for name, share in PLACES.items()}
    map = environment.map if isinstance(environment, Environment) else None
    sections, shown = [], set()
    for name, place in chosen.items():
        if place not in shown:
            parts = looked_at(show(recorded(episodes, place, map), environment))
            sections.append(Section(f"Episode {place}, with {name} return", parts, half=True))
            shown.add(place)
    return sections


def _metadata(metadata: Mapping[str, Any]) -> Part:
    plain = {key: value for key, value in metadata.items() if key not in ("statistics", "spec")}
    rows = [[key, value if isinstance(value, str) else json.dumps(value)] for key, value in sorted(plain.items())]
    return table(["attribute", "value"], rows, "What is written in the file.")
