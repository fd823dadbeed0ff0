"""Plotly figures of a report, in colours that colour-blind readers can tell apart."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from omcda_jax.runner.outcomes import Curve, Trial, curve, series
from omcda_jax.runner.plots import MANY

# Okabe and Ito's palette; further curves repeat the colours with other dashes
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C8C8C")
DASHES = ("solid", "dash", "dot", "dashdot")
LARGEST = 2_000  # points of one curve at most
TOGETHER = 200_000  # points of all curves of a figure at most

Groups = Mapping[str, Sequence[Trial]]


def returns(groups: Groups, data: Mapping[str, Any]) -> go.Figure | None:
    """Draw the return of the greedy policies over training, with a line at the mean of the data.

    Args:
        groups: trials by what they have in common.
        data: statistics of the dataset.
    """
    curves = {name: curve(trials, "evaluation/return_mean", "evaluation/return_se") for name, trials in groups.items()}
    figure = _curves(curves, "return")
    if figure is not None:
        _level(figure, data["return_mean"], "mean of the data")
    return figure


def metric(groups: Groups, key: str, title: str) -> go.Figure | None:
    """Draw one metric over training, a curve for every group; None if no group has it.

    Args:
        groups: trials by what they have in common.
        key: the metric's key.
        title: title of its axis.
    """
    return _curves({name: curve(trials, key) for name, trials in groups.items()}, title)


def values(groups: Groups, keys: Sequence[str], scale: float, largest: float | None) -> go.Figure | None:
    """Draw the learned value of the data's states and actions, against the largest return-to-go in the data.

    Args:
        groups: trials by what they have in common.
        keys: possible keys of the value; the first that a group has is used.
        scale: reward scale; the value is divided by it.
        largest: largest return-to-go, in the environment's units, or None if it is not known.
    """
    curves = {
        name: next(filter(None, (curve(trials, key, scale=scale) for key in keys)), None)
        for name, trials in groups.items()
    }
    figure = _curves(curves, "value")
    if figure is not None and largest is not None:
        _level(figure, largest, "largest return-to-go")
    return figure


def agents(
    groups: Groups, key: str, title: str, *, shares: bool = False, limit: tuple[str, str] | None = None
) -> go.Figure | None:
    """Draw a metric of every agent over training, with a menu of the groups if there are several.

    None if no group has two rows. Each agent is a curve or, with more than `MANY` agents, a row of a heat map.

    Args:
        groups: trials by what they have in common; each group shows its mean over trials.
        key: the metric's key.
        title: title of its axis.
        shares: draw shares of the sum; curves are stacked.
        limit: key and name of a metric that bounds this one, of every agent or of all; dotted beside the curves.
    """
    found = {name: series(trials, key) for name, trials in groups.items()}
    found = {name: one for name, one in found.items() if one is not None and len(one[0]) > 1}
    if not found:
        return None
    figure = go.Figure()
    agents = [values.shape[1] for _, values in found.values()]
    draw, counts = _rows if max(agents) > MANY else _stack if shares else _lines, []
    curves = sum(agents) * (1 if limit is None else 2)
    for place, (name, (steps, values)) in enumerate(found.items()):
        values = values / values.sum(axis=1, keepdims=True) if shares else values
        kept = thinned(len(steps), curves)
        traces = draw(small(steps[kept]), small(values[kept]), place == 0)
        if limit is not None and draw is _lines:
            traces += _limits(groups[name], limit, curves, place == 0)
        figure.add_traces(traces)
        counts.append(len(traces))
    lay_out(figure, title)
    if draw is _rows:
        figure.update_traces(colorbar={"title": {"text": title, "side": "right"}})
        figure.update_yaxes(title={"text": "agent"}, autorange="reversed")
        figure.update_layout(height=120 + 14 * max(agents))
    elif draw is _stack:
        figure.update_yaxes(range=[0, 1])
    if len(found) > 1:
        shown = np.repeat(np.arange(len(counts)), counts)
        buttons = [
            {"label": name, "method": "restyle", "args": [{"visible": (shown == place).tolist()}]}
            for place, name in enumerate(found)
        ]
        menu = {"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "showactive": False}
        figure.update_layout(updatemenus=[menu], margin={"t": 60})
    return figure


def intervals(entries: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Draw the interquartile means of a task's algorithms with their intervals, and the mean of the data.

    Args:
        entries: the entries of one task, as in comparison.json.
    """
    figure = go.Figure()
    for place, entry in enumerate(entries):
        low, high = entry["interval"]
        figure.add_scatter(
            x=[entry["iqm"]],
            y=[entry["algorithm"]],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [high - entry["iqm"]],
                "arrayminus": [entry["iqm"] - low],
            },
            mode="markers",
            marker={"size": 9},
            line=_line(place),
            name=entry["algorithm"],
        )
    figure.add_vline(x=entries[0]["data_mean"], line={"color": "#8C8C8C", "dash": "dash", "width": 1.5})
    lay_out(figure, "", "return")
    figure.update_layout(showlegend=False, height=120 + 32 * len(entries))
    return figure


def setting(name: str, values: Sequence[Any], groups: Sequence[str], outcomes: Sequence[float]) -> go.Figure:
    """Draw the returns of trials against a setting: a point for each trial, and the means of each group.

    Args:
        name: the setting's name.
        values: the setting's value in each trial: all numbers, or all names.
        groups: the group of each trial.
        outcomes: the return of each trial.
    """
    figure = go.Figure()
    for place, group in enumerate(dict.fromkeys(groups)):
        own = [i for i, other in enumerate(groups) if other == group]
        means = {
            value: np.mean([outcomes[i] for i in own if values[i] == value]) for value in {values[i]: 0 for i in own}
        }
        steps = sorted(means)
        style = {"legendgroup": group, "name": group}
        figure.add_scatter(
            x=[values[i] for i in own],
            y=[outcomes[i] for i in own],
            mode="markers",
            marker={"color": COLOURS[place % len(COLOURS)], "opacity": 0.5},
            showlegend=False,
            **style,
        )
        means_style = {"mode": "lines", "line": _line(place)}
        if isinstance(steps[0], str):
            means_style = {
                "mode": "markers",
                "marker": {"color": _line(place)["color"], "size": 12, "symbol": "diamond"},
            }
        figure.add_scatter(x=steps, y=[means[step] for step in steps], **means_style, **style)
    lay_out(figure, "return", name)
    numbers = [value for value in values if not isinstance(value, str)]
    if numbers and min(numbers) > 0 and max(numbers) / min(numbers) > 30:
        figure.update_xaxes(type="log")
    figure.update_layout(showlegend=len(set(groups)) > 1)
    return figure


def course(metric: str, points: Sequence[tuple[int, float, float]]) -> go.Figure:
    """Draw the course of a search: its trials in order, and the best so far.

    Args:
        metric: the metric that the search optimises.
        points: number, value and best value so far of each trial.
    """
    numbers, values, best = zip(*points, strict=True)
    figure = go.Figure()
    figure.add_scatter(x=numbers, y=values, mode="markers", name="trial", marker={"color": COLOURS[0], "opacity": 0.6})
    figure.add_scatter(x=numbers, y=best, mode="lines", name="best so far", line={**_line(1), "shape": "hv"})
    lay_out(figure, metric, "trial")
    return figure


def profile(shares: Mapping[str, np.ndarray], thresholds: np.ndarray) -> go.Figure:
    """Draw performance profiles with their intervals.

    Args:
        shares: profiles by algorithm, as `tables.performance_profile` returns them.
        thresholds: [K].
    """
    curves = {name: Curve(thresholds, *rows) for name, rows in shares.items()}
    figure = _curves(curves, "share of runs above")
    figure.update_layout(xaxis={"title": {"text": "score"}}, showlegend=True)
    return figure


def improvement(names: Sequence[str], chances: Mapping[tuple[str, str], tuple[float, float, float]]) -> go.Figure:
    """Draw the probability that the algorithm of a row beats the algorithm of a column.

    Args:
        names: the algorithms' names.
        chances: probability and ends of its interval, by pair; a pair without a common task stays blank.
    """
    blank = (None, None, None)
    cells = [[chances.get((ours, theirs), blank) for theirs in names] for ours in names]
    texts = [["" if cell == blank else f"{cell[0]:.2f}" for cell in row] for row in cells]
    spans = [
        ["" if cell == blank else f"95 % interval {cell[1]:.2f} to {cell[2]:.2f}" for cell in row] for row in cells
    ]
    figure = go.Figure(
        go.Heatmap(
            z=[[cell[0] for cell in row] for row in cells],
            x=list(names),
            y=list(names),
            text=texts,
            customdata=spans,
            texttemplate="%{text}",
            textfont={"color": "#000000"},
            hovertemplate="%{y} beats %{x}: %{text}, %{customdata}<extra></extra>",
            colorscale=[[0, "#E69F00"], [0.5, "#FFFFFF"], [1, "#56B4E9"]],
            zmin=0,
            zmax=1,
            showscale=False,
        )
    )
    lay_out(figure, "", "")
    figure.update_layout(yaxis={"autorange": "reversed"}, height=120 + 40 * len(names))
    return figure


def as_dict(figure: go.Figure) -> dict[str, Any]:
    """Return a figure as Plotly's JSON values. It has no template: the page has one for light and one for dark."""
    drawn = figure.to_plotly_json()
    drawn.get("layout", {}).pop("template", None)
    return drawn


def _curves(curves: Mapping[str, Curve | None], title: str) -> go.Figure | None:
    """Draw the curves that have at least two points, each with its interval; None if there is none."""
    curves = {name: one for name, one in curves.items() if one is not None and len(one.step) > 1}
    if not curves:
        return None
    figure = go.Figure()
    for place, (name, one) in enumerate(curves.items()):
        kept = thinned(len(one.step), 3 * len(curves))
        steps, colour = small(one.step[kept]), COLOURS[place % len(COLOURS)]
        if one.low is not None:
            edges = np.concatenate([one.high[kept], one.low[kept][::-1]])
            figure.add_scatter(
                x=np.concatenate([steps, steps[::-1]]),
                y=small(edges),
                mode="lines",
                fill="toself",
                fillcolor=_faint(colour),
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
                legendgroup=name,
            )
        figure.add_scatter(
            x=steps,
            y=small(one.mean[kept]),
            name=name or "policy",
            legendgroup=name,
            mode="lines+markers" if len(kept) <= 60 else "lines",
            line=_line(place),
        )
    lay_out(figure, title)
    figure.update_layout(showlegend=len(curves) > 1)
    return figure


def _lines(steps: np.ndarray, values: np.ndarray, visible: bool) -> list[go.Scatter]:
    """A curve for each agent; values [T, N]."""
    return [
        go.Scatter(x=steps, y=own, name=f"agent {agent}", mode="lines", visible=visible, line=_line(agent))
        for agent, own in enumerate(values.T)
    ]


def _limits(trials: Sequence[Trial], limit: tuple[str, str], curves: int, visible: bool) -> list[go.Scatter]:
    """A dotted curve of each agent's limit in the agent's colour, or a grey one of a limit that all share."""
    key, name = limit
    if each := series(trials, key):
        steps, values = each
        colours = [_line(agent)["color"] for agent in range(values.shape[1])]
    elif shared := curve(trials, key):
        steps, values, colours = shared.step, shared.mean[:, None], ["#8C8C8C"]
    else:
        return []
    kept = thinned(len(steps), curves)
    return [
        go.Scatter(
            x=small(steps[kept]),
            y=small(values[kept, place]),
            name=name,
            legendgroup=name,
            showlegend=place == 0,
            mode="lines",
            visible=visible,
            line={"color": colour, "dash": "dot", "width": 1.5},
        )
        for place, colour in enumerate(colours)
    ]


def _stack(steps: np.ndarray, values: np.ndarray, visible: bool) -> list[go.Scatter]:
    """The curves of `_lines`, stacked."""
    lines = _lines(steps, values, visible)
    return [line.update(stackgroup="all", line=_line(agent, 0.5)) for agent, line in enumerate(lines)]


def _rows(steps: np.ndarray, values: np.ndarray, visible: bool) -> list[go.Heatmap]:
    """A row for each agent; brighter is more."""
    hover = "agent %{y}, %{x} updates: %{z:.3g}<extra></extra>"
    return [go.Heatmap(x=steps, z=values.T, colorscale="Viridis", visible=visible, hovertemplate=hover)]


def _level(figure: go.Figure, value: float, text: str) -> None:
    """Draw a horizontal line with a name; zooming keeps it in sight."""
    figure.add_hline(
        y=value,
        line={"color": "#8C8C8C", "dash": "dash", "width": 1.5},
        annotation={"text": text, "font": {"size": 11}, "xanchor": "left", "x": 0.01},
    )


def lay_out(figure: go.Figure, title: str, below: str = "updates") -> None:
    """Give a figure the common layout.

    Args:
        figure: the figure to change.
        title: title of the vertical axis.
        below: title of the horizontal axis.
    """
    figure.update_layout(
        xaxis={"title": {"text": below}, "automargin": True},
        yaxis={"title": {"text": title}, "automargin": True},
        margin={"l": 10, "r": 10, "t": 20, "b": 10},
        legend={"orientation": "h", "y": -0.25, "yanchor": "top"},
        height=340,
        hovermode="closest",
    )


def _line(place: int, width: float = 2) -> dict[str, Any]:
    dash = DASHES[place // len(COLOURS) % len(DASHES)]
    return {"color": COLOURS[place % len(COLOURS)], "dash": dash, "width": width}


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.2)"


def thinned(count: int, curves: int) -> np.ndarray:
    """Return the indices of a curve's points that are drawn: all or, if too many, evenly spaced ones with the last.

    Args:
        count: number of the curve's points.
        curves: number of the figure's curves.
    """
    most = int(np.clip(TOGETHER // curves, 50, LARGEST))
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def small(numbers: Any) -> np.ndarray:
    """Return numbers in 32 bits, for a smaller file."""
    numbers = np.asarray(numbers)
    return numbers.astype(np.int32 if numbers.dtype.kind == "i" else np.float32)
