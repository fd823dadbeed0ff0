"""The page with episodes of a policy next to those of the behaviour policy that made its data."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from omcda_jax.behaviour import acts
from omcda_jax.data import formats
from omcda_jax.data.collect import of_stages
from omcda_jax.data.hdf5 import require_spec
from omcda_jax.envs.base import Environment
from omcda_jax.evaluate import Seen
from omcda_jax.runner import datasets, page, report
from omcda_jax.runner.page import Page, Section
from omcda_jax.runner.replay import play, recorded, show
from omcda_jax.runner.watch import Watched
from omcda_jax.types import ConfigError, DatasetError


class Side(NamedTuple):
    """Episodes of a policy.

    Attributes:
        name: its name, in one word.
        text: what it is.
        episodes: its episodes, maybe none.
        note: a sentence on what is missing, or an empty string.
    """

    name: str
    text: str
    episodes: Sequence[Seen]
    note: str


def of_episodes(watched: Watched, count: int, say: Callable[[str], None]) -> Page:
    """Play the episodes and return the page.

    Args:
        watched: the policy.
        count: how many episodes of each policy.
        say: called with the table of the returns.

    Raises:
        ConfigError: a policy cannot be played.
    """
    learned = Side("policy", f"{watched.text}, greedy", *_played(watched, watched.act, watched.state, range(count)))
    behaviour = _behaviour(watched, count)
    sides = [side for side in (learned, behaviour) if side.episodes]
    rows = [["", "mean return", "returns", "won", "mean length", "what it is"], *map(_row, sides)]
    if watched.environment.max_return is None:  # no goal to win
        rows = [row[:3] + row[4:] for row in rows]
    say(report.align(rows))
    caption = f"{count} episodes say little about how good a policy is."
    parts = [page.table(rows[0], rows[1:], caption)]
    notes = [f"{side.name.capitalize()}: {side.note.strip()}" for side in (learned, behaviour) if side.note]
    for note in notes:
        say(f"note: {note}")
    parts += [page.words(note) for note in notes]
    if watched.result is not None:
        parts.append(page.outcome_table(watched.result))
    sections = [Section("Returns", parts)]
    for place in range(count):
        for side in sides:
            if place < len(side.episodes):
                shown = show(side.episodes[place], watched.environment)
                title = f"{side.name.capitalize()}, episode {place + 1}"
                sections.append(Section(title, page.looked_at(shown), half=True))
    return Page(watched.title, f"{watched.text}, beside {behaviour.text}", sections)


def _row(side: Side) -> list[str]:
    returns = [float(seen.reward.sum()) for seen in side.episodes]
    won, length = sum(seen.won for seen in side.episodes), np.mean([len(seen.reward) for seen in side.episodes])
    each = ", ".join(f"{value:.3g}" for value in returns)
    return [side.name, f"{np.mean(returns):.3f}", each, f"{won} of {len(returns)}", f"{length:.1f}", side.text]


def _played(watched: Watched, act: Callable[..., Any], state: Any, places: Sequence[int]) -> tuple[list[Seen], str]:
    """Play episodes from the initial states of an evaluation."""
    evaluation = watched.evaluation
    sizes = {"seed": evaluation.seed, "episodes": max(evaluation.episodes, max(places) + 1)}
    return play(act, watched.environment, state, places=places, **sizes)


def _behaviour(watched: Watched, count: int) -> Side:
    """What made the data: the policies that come with the package, or else episodes of the dataset."""
    data = watched.data
    if data is None:
        return Side("behaviour", "nothing", [], "not known; name one with --quality, or a dataset with --data.")
    if data.path is None:
        try:
            made = of_stages(watched.environment.name, data.quality)
        except ConfigError:
            made = None
        if made is not None:
            return _stages(watched, made, count)
    path = datasets.path_of(data)
    try:
        contents = formats.read(path, repairs=data.repairs, mapped=True)
        require_spec(path, watched.environment.spec, contents.spec)
    except (ConfigError, DatasetError) as error:
        return Side("data", f"nothing, because {path} cannot be read", [], f"none, {error}.")
    map = watched.environment.map if isinstance(watched.environment, Environment) else None
    number = len(contents.episodes.length)
    some = np.sort(np.random.default_rng(watched.evaluation.seed).permutation(number)[:count])
    seen = [recorded(contents.episodes, int(place), map) for place in some]
    return Side("data", f"episodes {', '.join(f'{place}' for place in some)} of {path}", seen, "")


def _stages(watched: Watched, made: acts.Behaviour, count: int) -> Side:
    """Play episodes with a dataset's policies, alternating between them."""
    act, several = made.act or acts.sampler(made.recipe.temperature), len(made.params)
    found: dict[int, Seen] = {}
    note = ""
    for stage, params in enumerate(made.params[:count]):
        places = range(stage, count, several)
        episodes, note = _played(watched, act, params, places)
        found |= dict(zip(places, episodes, strict=True))
    text = made.facts["description"].partition(";")[0]
    if made.recipe.won_only:
        note += " The dataset contains only the episodes that it won."
    return Side("behaviour", text, [found[place] for place in range(count)], note)
