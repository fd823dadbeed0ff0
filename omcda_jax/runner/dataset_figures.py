"""Figures of a dataset: returns and lengths, rewards, actions, visited states, and episodes over time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from omcda_jax.runner.figures import COLOURS, lay_out, small, thinned

BINS = 40
SCALE = "Viridis"
CELLS = 240  # a larger grid shows no numbers in its cells
ROW = 22  # height of a grid's row in pixels


def histogram(values: np.ndarray, title: str, counted: str, groups: Sequence[tuple[str, np.ndarray]] = ()) -> go.Figure:
    """Draw a histogram.

    Args:
        values: [K].
        title: what the values are.
        counted: what is counted.
        groups: names and masks [K] of groups, which are stacked; empty: all values are one group.
    """
    low, high = float(values.min()), float(values.max())
    if low == high or values.dtype.kind in "iu":
        # whole numbers share bins evenly
        width = (high - low) // BINS + 1
        edges = np.arange(low, high + width + 1, width) - 0.5
    else:
        edges = np.linspace(low, high, BINS + 1)
    figure = go.Figure()
    for place, (name, own) in enumerate(groups or [("", np.ones(len(values), bool))]):
        counts = np.histogram(values[own], edges)[0]
        figure.add_bar(
            x=small((edges[1:] + edges[:-1]) / 2),
            y=small(counts),
            width=float(edges[1] - edges[0]),
            name=name,
            marker={"color": COLOURS[place], "line": {"width": 0}},
        )
    lay_out(figure, counted, title)
    figure.update_layout(barmode="stack", bargap=0, showlegend=len(groups) > 1)
    return figure


def order(values: np.ndarray, title: str) -> go.Figure:
    """Draw a number of every episode in the order of the file, and its mean over each hundredth of the episodes.

    Args:
        values: [E].
        title: what the values are.
    """
    kept, width = thinned(len(values), 100), max(1, len(values) // 100)
    edges = np.arange(0, len(values) - width + 1, width)
    figure = go.Figure()
    marker = {"color": COLOURS[0], "size": 5, "opacity": 0.6}
    figure.add_scatter(x=small(kept), y=small(values[kept]), mode="markers", marker=marker, name="episode")
    if width > 1:
        means = [values[edge : edge + width].mean() for edge in edges]
        line = {"color": COLOURS[3], "width": 2}
        figure.add_scatter(
            x=small(edges + width // 2), y=small(means), mode="lines", line=line, name=f"mean of {width}"
        )
    lay_out(figure, title, "episode, in the order of the file")
    figure.update_layout(showlegend=width > 1)
    return figure


def over_time(values: np.ndarray, counts: np.ndarray, title: str) -> go.Figure:
    """Draw a mean for every step of an episode.

    Args:
        values: [L] the means.
        counts: [L] how many episodes last that long.
        title: what the values are.
    """
    kept = thinned(len(values), 1)
    figure = go.Figure()
    figure.add_scatter(
        x=small(kept),
        y=small(values[kept]),
        customdata=counts[kept],
        hovertemplate="step %{x}: %{y:.4g}, of %{customdata} episodes<extra></extra>",
        mode="lines",
        line={"color": COLOURS[0], "width": 2},
    )
    lay_out(figure, title, "step of the episode")
    return figure


def grid(values: np.ndarray, rows: Sequence[str], columns: Sequence[Any], below: str, top: float | None) -> go.Figure:
    """Draw a table of shares as a heat map.

    Args:
        values: [R, C]; nan stays blank.
        rows: names of the rows.
        columns: names of the columns, or the numbers they stand for.
        below: title below the columns.
        top: the share at the end of the colour scale; None: the largest.
    """
    written = values.size <= CELLS and values.shape[1] <= 20
    figure = go.Figure(
        go.Heatmap(
            z=[[None if np.isnan(cell) else round(float(cell), 4) for cell in row] for row in values],
            x=list(columns),
            y=list(rows),
            xgap=1,
            ygap=1,
            colorscale=SCALE,
            zmin=0,
            zmax=top,
            texttemplate="%{z:.2f}" if written else None,
            hovertemplate=f"%{{y}}, {below} %{{x}}: %{{z:.3f}}<extra></extra>",
            colorbar={"thickness": 10, "len": 1.0},
        )
    )
    lay_out(figure, "", below)
    figure.update_layout(yaxis={"autorange": "reversed", "type": "category"}, height=130 + ROW * max(4, len(rows)))
    if written:
        figure.update_xaxes(type="category")
    return figure


def cloud(points: np.ndarray, shares: np.ndarray, values: np.ndarray, title: str) -> go.Figure:
    """Draw the visited points along their two directions of largest variance.

    Args:
        points: [K, 2].
        shares: [2] share of the variance along each direction.
        values: [K] floats, drawn on a colour scale; or integers, with one colour and legend entry each.
        title: title of the colour scale; for integers, the word before each number in the legend.
    """
    figure = go.Figure()
    if values.dtype.kind == "f":
        bar = {"title": {"text": title, "side": "right"}, "thickness": 10}
        marker = {"size": 4, "opacity": 0.6, "color": small(values), "colorscale": SCALE, "colorbar": bar}
        figure.add_scatter(x=small(points[:, 0]), y=small(points[:, 1]), mode="markers", marker=marker)
    for number in np.unique(values) if values.dtype.kind != "f" else ():
        own = values == number
        marker = {"size": 4, "opacity": 0.6, "color": COLOURS[number % len(COLOURS)]}
        where = {"x": small(points[own, 0]), "y": small(points[own, 1])}
        figure.add_scatter(**where, mode="markers", marker=marker, name=f"{title} {number}")
    lay_out(figure, f"direction 2: {shares[1]:.0%}", f"direction 1: {shares[0]:.0%} of the variance")
    figure.update_layout(legend={"itemsizing": "constant"})
    return figure


def timeline(reward: np.ndarray, action: np.ndarray) -> go.Figure:
    """Draw the return so far over the action of every agent, step by step.

    Args:
        reward: [L].
        action: [L, N] indices, or [L, N, A] in [-1, 1].
    """
    kept = thinned(len(reward), max(4, action[0].size))
    total, discrete = np.cumsum(reward), action.ndim == 2
    flat = action[kept].reshape(len(kept), -1)
    figure = go.Figure()
    line = {"color": COLOURS[0], "width": 2}
    hover = "after step %{x}: %{y:.4g}<extra></extra>"
    figure.add_scatter(x=small(kept), y=small(total[kept]), mode="lines", line=line, hovertemplate=hover)
    figure.add_heatmap(
        x=small(kept),
        y=labels(*action.shape[1:]),
        z=small(flat.T if discrete else np.round(flat.T, 3)),
        colorscale=SCALE if discrete else "RdBu",
        zmin=None if discrete else -1,
        zmax=None if discrete else 1,
        yaxis="y2",
        colorbar={"thickness": 10, "len": 0.6, "y": 0, "yanchor": "bottom"},
        hovertemplate="step %{x}, %{y}: action %{z}<extra></extra>",
    )
    lay_out(figure, "return", "step")
    height = 250 + ROW * max(3, flat.shape[1])
    share = ROW * max(3, flat.shape[1]) / height
    figure.update_layout(
        height=height,
        yaxis={"domain": [share + 0.08, 1]},
        yaxis2={"domain": [0, share], "autorange": "reversed", "type": "category", "automargin": True},
        xaxis={"anchor": "y2"},
        showlegend=False,
    )
    return figure


def labels(agents: int, dimensions: int = 1) -> list[str]:
    """Return names for the agents, or for all dimensions of their actions.

    Args:
        agents: N.
        dimensions: A.
    """
    if dimensions == 1:
        return [f"agent {agent}" for agent in range(agents)]
    return [f"agent {agent}: {dimension}" for agent in range(agents) for dimension in range(dimensions)]
