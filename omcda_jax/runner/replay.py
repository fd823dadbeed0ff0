"""Episodes to look at: an animated map, a film, or rewards and actions over time."""

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import plotly.graph_objects as go

from omcda_jax import envs
from omcda_jax.config import assignments
from omcda_jax.data.episodes import Episodes, final_rows
from omcda_jax.envs.base import Environment, HostEnvironment, Map, Units
from omcda_jax.evaluate import Seen, greedily, watch
from omcda_jax.runner import dataset_figures
from omcda_jax.runner.jobs import restore_trial
from omcda_jax.runner.outcomes import Trial
from omcda_jax.runner.presets import resolve
from omcda_jax.types import ConfigError, StorageError, updates_done

FRAMES = 150  # frames in the film of an episode as long as the horizon
RATE = 15  # frames per second of a film
PACE = 180  # milliseconds per step on the map
TEAMS = ("#0072B2", "#D55E00", "#009E73", "#E69F00")
SIDE = 420  # approximate length in pixels of the longer side of the map
MARGIN = 1.5  # around the units, in the map's units of length


class Replay(NamedTuple):
    """An animated figure or a film as a data URI, with words about it; or words alone."""

    words: str
    figure: go.Figure | None = None
    film: str | None = None


def replay(trial: Trial, saved: Mapping[str, Any]) -> Replay:
    """Play the first episode of a trial's evaluation again, with its newest checkpoint.

    Args:
        trial: the trial.
        saved: its settings, from result.json.

    Returns:
        The episode; if the checkpoint or the simulator is missing, words on why there is none.
    """
    try:
        config = resolve(saved["name"], assignments(saved), "result.json")
        environment = envs.make(config.data.environment)
        job, state = restore_trial(trial, config, environment.spec)
        sizes = {"seed": config.evaluation.seed, "episodes": config.evaluation.episodes}
        (seen,), note = play(greedily(job.algorithm.act), environment, state, **sizes)
    except (ConfigError, StorageError) as error:
        return Replay(f"No replay: {error}.")
    shown, step = show(seen, environment), updates_done(state)
    other = "" if step == trial.step else f" The result was measured after {trial.step} updates."
    return shown._replace(words=f"Greedy episode after {step} updates: {shown.words}{note}{other}")


def play(
    act: Callable[..., jax.Array], environment: Environment | HostEnvironment, state: Any, **which: Any
) -> tuple[list[Seen], str]:
    """Play episodes, with a film of each if the simulator has a renderer.

    Args:
        act, environment, state: as in `evaluate.watch`.
        which: `seed`, `episodes` and `places`, as in `evaluate.watch`.

    Returns:
        The episodes, and a sentence on why there is no film, or an empty string.
    """
    if isinstance(environment, Environment):
        return watch(act, environment, state, **which), ""
    try:
        return watch(act, environment, state, every=_every(environment), **which), ""
    except ConfigError as error:
        return watch(act, environment, state, **which), f" No film: {error}."


def _every(environment: HostEnvironment) -> int:
    return math.ceil(environment.horizon / FRAMES)


def show(seen: Seen, environment: Environment | HostEnvironment | None) -> Replay:
    """Return an episode to look at: an animated map, a film, or rewards and actions over time.

    Args:
        seen: the episode.
        environment: where it took place; None if that is not known.
    """
    won = ", won" if seen.won else ""
    words = f"{len(seen.reward)} steps, return {seen.reward.sum():.3g}{won}."
    if len(seen.frames):
        return Replay(f"{words} One picture every {_every(environment)} steps.", film=_film(seen.frames))
    if seen.units is not None:
        return Replay(words, moving(environment.map, seen.units, seen.reward))
    return Replay(words, dataset_figures.timeline(seen.reward, seen.action))


def recorded(episodes: Episodes, place: int, map: Map | None) -> Seen:
    """Return an episode of a dataset.

    Args:
        episodes: the data.
        place: index of the episode in the data.
        map: the map of its environment.
    """
    length = int(episodes.length[place])
    first = int(final_rows(episodes.length[: place + 1])[-1]) - length
    state, action = episodes.global_state[first : first + length + 1], episodes.action[first : first + length]
    units = map.recorded(state, action) if map is not None and map.recorded is not None else None
    return Seen(episodes.reward[first : first + length], action, bool(episodes.won[place]), units)


def _film(frames: Sequence[np.ndarray]) -> str:
    """Return a film as a data URI."""
    try:
        from PIL import Image
    except ImportError:
        raise ConfigError("a film needs a package: pip install pillow") from None
    first, *others = map(Image.fromarray, frames)
    file = io.BytesIO()
    first.save(file, "WEBP", save_all=True, append_images=others, duration=1000 // RATE, loop=0, quality=50)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def moving(map: Map, units: Units, rewards: np.ndarray) -> go.Figure:
    """Draw an episode on its map: outlines of the units, filled by their health, and lines to their targets.

    Args:
        map: where it took place; only the part in which units were is shown.
        units: arrays [L + 1, U, ...].
        rewards: [L].
    """
    low, high = units.position.min(axis=(0, 1)) - MARGIN, units.position.max(axis=(0, 1)) + MARGIN
    (left, bottom), (right, top), pixels = low.tolist(), high.tolist(), SIDE / (high - low).max()
    moments = [_moment(map, Units(*(values[time] for values in units)), pixels) for time in range(len(rewards) + 1)]
    totals = np.concatenate([[0.0], np.cumsum(rewards)])
    titles = [f"step {time}, return {total:.2f}" for time, total in enumerate(totals)]
    frames = [
        go.Frame(data=traces, name=str(time), layout={"title": {"text": titles[time]}})
        for time, traces in enumerate(moments)
    ]
    now = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}
    on = {"frame": {"duration": PACE, "redraw": True}, "transition": {"duration": 0}, "fromcurrent": True}
    buttons = [
        {"label": label, "method": "animate", "args": [frames, how]}
        for label, frames, how in (("play", None, on), ("pause", [None], now))
    ]
    steps = [{"args": [[frame.name], now], "label": frame.name, "method": "animate"} for frame in frames]
    menu = {"type": "buttons", "direction": "right", "buttons": buttons, "showactive": False}
    figure = go.Figure(data=moments[0], frames=frames)
    figure.update_layout(
        title={"text": titles[0], "font": {"size": 13}, "x": 0.02},
        xaxis={"range": [left, right], "visible": False, "constrain": "domain"},
        yaxis={"range": [bottom, top], "visible": False, "scaleanchor": "x", "constrain": "domain"},
        updatemenus=[menu | {"x": 0, "xanchor": "left", "y": -0.02, "yanchor": "top"}],
        sliders=[{"steps": steps, "y": -0.1, "len": 1, "currentvalue": {"visible": False}}],
        legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 1, "xanchor": "right", "itemsizing": "constant"},
        margin={"l": 10, "r": 10, "t": 50, "b": 10},
        height=(top - bottom) * pixels + 160,
    )
    return figure


def _moment(map: Map, units: Units, pixels: float) -> list[go.Scatter]:
    """The traces of one step, three for each team; `pixels` is the length on the screen of one unit of length."""
    traces, teams = [], np.unique(units.team)
    for team in teams:
        own, colour = np.flatnonzero(units.team == team), TEAMS[team % len(TEAMS)]
        acting = own[(units.health[own] > 0) & (units.target[own] != own)]
        ends = np.stack([units.position[acting], units.position[units.target[acting]]], axis=1)  # [K, 2, 2]
        # nan makes a gap after every line
        lines = np.concatenate([ends, np.full((len(ends), 1, 2), np.nan)], axis=1).reshape(-1, 2)
        size = np.where(units.health[own] > 0, 2 * units.radius[own] * pixels, 0)
        words = [f"{map.kinds[units.kind[unit]]}, health {units.health[unit]:.0%}" for unit in own]
        unseen = {"hoverinfo": "skip", "showlegend": False}
        rim = {"size": size, "color": "rgba(0,0,0,0)", "line": {"color": colour, "width": 1.5}}
        body = {"size": size * np.sqrt(units.health[own]), "color": colour, "opacity": 0.8, "line": {"width": 0}}
        name = "team" if team == 0 else "enemies" if len(teams) == 2 else f"team {team}"
        there = _at(units.position[own])
        traces += [
            go.Scatter(**_at(lines), mode="lines", line={"color": colour, "width": 1}, **unseen),
            go.Scatter(**there, mode="markers", marker=rim, **unseen),
            go.Scatter(**there, mode="markers", marker=body, text=words, hoverinfo="text", name=name),
        ]
    return traces


def _at(points: np.ndarray) -> dict[str, np.ndarray]:
    """Points [K, 2] as coordinates of a trace."""
    return {"x": np.float32(points[:, 0]), "y": np.float32(points[:, 1])}
