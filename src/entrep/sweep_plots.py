"""Figures of a sweep's table: data and `ax` in, `ax` out.

Runs are coloured by their metric, from pale (worst) to dark (best); what colour says, position
says, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.patheffects import withStroke

from entrep.plots import CHOSEN, COARSE, FINE

_SHADES = LinearSegmentedColormap.from_list("metric", [COARSE, FINE])
_TICKS = 6  # values of a parameter that get a place of their own on its axis


def plot_parallel(table: pd.DataFrame, names: Sequence[str], metric: str, ax: Axes) -> Axes:
    """Draw each run as a line through its parameters' values, and the metric at the right end.

    Every axis goes from its least value at the bottom to its greatest on top. The best run is
    drawn in red. Few values stand at equal distances, so that 0.0001 and 0.001 can be told
    apart; many, and the metric, at their true ones.

    Args:
        table: one row a run, with columns of these names, none of them empty.
        names: parameters, one axis each, from left to right.
        metric: column of the last axis; higher is better.
        ax: where to draw.
    """
    columns = [*names, metric]
    heights = np.column_stack([_heights(table[name], name == metric) for name in columns])
    shade = Normalize(table[metric].min(), table[metric].max())
    best = int(table[metric].to_numpy().argmax())
    for row, line in enumerate(heights):
        colour = CHOSEN if row == best else _SHADES(shade(table[metric].iloc[row]))
        width, order = (2.4, 3) if row == best else (1.2, 2)
        ax.plot(range(len(columns)), line, color=colour, linewidth=width, zorder=order)
    for place, name in enumerate(columns):
        ax.axvline(place, color="#8a8f98", linewidth=0.8, zorder=1)
        for value, height in _ticks(table[name], heights[:, place]):
            text = f" {value:.4g}" if isinstance(value, float) else f" {value}"
            label = ax.text(place, height, text, va="center", fontsize=8, parse_math=False)
            label.set_zorder(4)
            label.set_path_effects([withStroke(linewidth=3, foreground="white")])
    ax.set_xticks(range(len(columns)), [name.replace(".", "\n") for name in columns])
    ax.set_xlim(-0.1, len(columns) - 0.6)
    ax.set_yticks([])
    ax.spines[["left", "bottom"]].set_visible(False)
    return ax


def _heights(values: pd.Series, true_distances: bool) -> np.ndarray:
    """(N,) places on an axis, 0 at the bottom to 1 on top; in the middle if all are equal."""
    places = pd.factorize(values, sort=True)[0].astype(float)
    if values.nunique() > _TICKS or true_distances:
        places = pd.to_numeric(values, errors="coerce").fillna(pd.Series(places, values.index))
        places = places.to_numpy(float)
    width = np.ptp(places)
    return (places - places.min()) / width if width else np.full(len(values), 0.5)


def _ticks(values: pd.Series, heights: np.ndarray) -> list[tuple[object, float]]:
    """Values to write on an axis: all if they are few, else the ends."""
    pairs = dict(sorted(zip(heights, values.tolist(), strict=True), key=lambda pair: pair[0]))
    found = [(value, height) for height, value in pairs.items()]
    return found if len(found) <= _TICKS else [found[0], found[-1]]


def plot_metric_against_cost(table: pd.DataFrame, metric: str, cost: str, ax: Axes) -> Axes:
    """Draw each run's metric, with its interval where there is one, against what it cost.

    Runs in red are on the front: none is both cheaper and better.

    Args:
        table: one row a run; the interval's ends are in the columns `<metric>_low`, `_high`.
        metric: column; higher is better.
        cost: column; lower is better.
        ax: where to draw.
    """
    x, y = table[cost].to_numpy(float), table[metric].to_numpy(float)
    ends = [f"{metric}_low", f"{metric}_high"]
    if set(ends) <= set(table.columns):
        low, high = table[ends].to_numpy(float).T
        ax.vlines(x, low, high, color=COARSE, linewidth=1, zorder=1)
    front = pareto_front(x, y)
    ax.scatter(x[~front], y[~front], color=FINE, s=22, zorder=2, label="runs")
    ax.scatter(x[front], y[front], color=CHOSEN, marker="D", s=30, zorder=3, label="on the front")
    order = np.argsort(x[front], kind="stable")
    ax.plot(x[front][order], y[front][order], color=CHOSEN, linewidth=1, linestyle="--")
    ax.set_xlabel(cost)
    ax.set_ylabel(metric)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    ax.grid()
    return ax


def pareto_front(cost: np.ndarray, metric: np.ndarray) -> np.ndarray:
    """(N,) bool: no other run costs no more and is better, or is as good and costs less.

    >>> pareto_front(np.array([1, 2, 3]), np.array([0.5, 0.4, 0.9])).tolist()
    [True, False, True]
    """
    cheaper = cost[None, :] < cost[:, None]
    better = metric[None, :] > metric[:, None]
    no_dearer, no_worse = cost[None, :] <= cost[:, None], metric[None, :] >= metric[:, None]
    return ~((no_dearer & better) | (cheaper & no_worse)).any(axis=1)


def plot_seed_spread(table: pd.DataFrame, configuration: str, metric: str, ax: Axes) -> Axes:
    """Draw the metric of each seed as a dot, a row for each configuration, best mean on top.

    Args:
        table: one row a run.
        configuration: column that names what is repeated.
        metric: column; higher is better.
        ax: where to draw.
    """
    means = table.groupby(configuration)[metric].mean().sort_values()
    for row, name in enumerate(means.index):
        values = table.loc[table[configuration] == name, metric]
        ax.hlines(row, values.min(), values.max(), color=COARSE, linewidth=2, zorder=1)
        # Where seeds agree, their dots darken.
        ax.scatter(values, np.full(len(values), row), color=FINE, alpha=0.45, s=30, zorder=2)
    ax.scatter(means, range(len(means)), color=CHOSEN, marker="|", s=200, zorder=3, label="mean")
    ax.set_yticks(range(len(means)), means.index)
    ax.set_ylim(-0.5, len(means) - 0.5)
    ax.set_xlabel(metric)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    ax.grid(axis="x")
    return ax
