"""Figures of classification: what was chosen, how often it is right, how far it can be trusted.

Data and `ax` in, `ax` out; colours are those of `plots` and mean the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import PercentFormatter

from entrep.labels import CLASS_NAMES, SITE_OF
from entrep.metrics import (
    area_under_risk_coverage,
    confusion_matrix,
    expected_calibration_error,
    reliability_table,
    risk_coverage,
)
from entrep.plots import CHOSEN, CLASS_COLOURS, COARSE, FINE, RIGHT, WRONG

LIMIT = "#5b6470"  # beyond which something else is done


def plot_weight_sweep(weights: np.ndarray, scores: np.ndarray, chosen: float, ax: Axes) -> Axes:
    """Draw out-of-fold accuracy against the pictures' weight in a prototype.

    Args:
        weights: (W,) rising, 0..1.
        scores: (W, 2) coarse and fine accuracy.
        chosen: the weight that was decided on.
        ax: where to draw.
    """
    marker = "o" if len(weights) < 30 else None
    for column, (name, colour) in enumerate((("coarse (site)", COARSE), ("fine (class)", FINE))):
        ax.plot(weights, scores[:, column], color=colour, marker=marker, ms=4, label=name)
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(0, 1.04)
    ax.set_xlabel("weight of the pictures (0: sentences only, 1: pictures only)")
    _mark_chosen(ax, chosen)
    _percent_axis(ax, "out-of-fold accuracy")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return ax


def plot_threshold_sweep(
    thresholds: np.ndarray,
    accuracy: np.ndarray,
    fallback_share: np.ndarray,
    chosen: float,
    ax: Axes,
) -> Axes:
    """Draw coarse accuracy, and behind it the share that falls back, against the threshold.

    Args:
        thresholds: (T,) rising.
        accuracy: (T,) coarse accuracy out of fold, 0..1.
        fallback_share: (T,) share of pictures whose site the backbone decides, 0..1.
        chosen: the threshold that was decided on.
        ax: where to draw; a second axis on its right is made for the share.
    """
    behind = ax.twinx()
    behind.fill_between(thresholds, fallback_share, color=COARSE, alpha=0.45, lw=0)
    behind.set_ylim(0, 1)
    behind.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    behind.set_ylabel("share that falls back (area)", color="#6b7c90")
    sns.despine(ax=behind, right=False)
    ax.set_zorder(behind.get_zorder() + 1)
    ax.patch.set_visible(False)

    ax.plot(thresholds, accuracy, color=FINE, lw=2)
    span = max(float(np.ptp(accuracy)), 0.02)
    ax.set_ylim(accuracy.max() - 1.12 * span, accuracy.max() + 0.12 * span)
    ax.set_xlim(thresholds[0], thresholds[-1])
    ax.set_xlabel("threshold on the prototypes' confidence")
    _mark_chosen(ax, chosen)
    _percent_axis(ax, "coarse accuracy (line)", decimals=1)
    return ax


def plot_method_comparison(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw coarse and fine accuracy of methods as bars with their intervals.

    Args:
        table: one row a method, its name in the index, with the columns coarse, coarse_low,
            coarse_high, fine, fine_low and fine_high.
        ax: where to draw.
    """
    places = np.arange(len(table))
    width = 0.36
    for name, colour, shift in (("coarse", COARSE, -0.19), ("fine", FINE, 0.19)):
        value = table[name].to_numpy()
        ends = np.abs([value - table[f"{name}_low"], table[f"{name}_high"] - value])
        label = {"coarse": "coarse (site)", "fine": "fine (class)"}[name]
        ax.bar(places + shift, value, width, color=colour, label=label)
        whiskers = ax.errorbar(places + shift, value, ends, fmt="none", ecolor="#111111", lw=1.8)
        # A white seam: the dark lines stay visible on a dark bar.
        whiskers[2][0].set_path_effects([withStroke(linewidth=4, foreground="white")])
        for place, share in zip(places + shift, value, strict=True):
            ink = "white" if name == "fine" else "#111111"
            ax.text(place, 0.03, f"{share:.1%}", ha="center", color=ink, fontsize=9)
    ax.set_xticks(places, table.index)
    ax.tick_params(axis="x", length=0, labelsize=10)
    ax.set_ylim(0, 1.04)
    _percent_axis(ax, "accuracy, 95 % interval")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return ax


def plot_confusion(
    target: np.ndarray, predicted: np.ndarray, names: Sequence[str], ax: Axes
) -> Axes:
    """Write counts into the cells and shade each by its share of the true class.

    Args:
        target: (N,) true indices into `names`.
        predicted: (N,) predicted indices.
        names: in the order of the indices; classes of one site are boxed together.
        ax: where to draw.
    """
    matrix = confusion_matrix(target, predicted, len(names))
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    ax.imshow(shares, cmap=sns.light_palette(CLASS_COLOURS["nose-right"], as_cmap=True), vmax=1)
    for row, column in np.argwhere(matrix):
        colour = "white" if shares[row, column] > 0.5 else "#222222"
        text = str(matrix[row, column])
        ax.text(column, row, text, ha="center", va="center", color=colour, fontsize=9.5)
    ends = np.arange(len(names) + 1) - 0.5
    ax.hlines(ends, -0.5, ends[-1], color="white", lw=1.2)
    ax.vlines(ends, -0.5, ends[-1], color="white", lw=1.2)
    if tuple(names) == CLASS_NAMES:
        for site in sorted(set(SITE_OF)):
            start, size = SITE_OF.index(site) - 0.5, SITE_OF.count(site)
            box = Rectangle((start, start), size, size, fill=False, ec=FINE, lw=1.3, zorder=3)
            ax.add_patch(box)
    ax.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(length=0)
    sns.despine(ax=ax, left=True, bottom=True)
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    return ax


def plot_reliability(probs: np.ndarray, target: np.ndarray, ax: Axes, *, bins: int = 10) -> Axes:
    """Compare how sure predictions are with how often they are right.

    Args:
        probs: (N, C) class probabilities, rows sum to 1, N >= 1.
        target: (N,) class indices.
        ax: where to draw.
        bins: how many bins of confidence.
    """
    table = reliability_table(probs, target, bins)
    error = expected_calibration_error(probs, target, bins)
    ax.plot([0, 1], [0, 1], color="#8a8f98", ls=(0, (4, 3)), lw=1.2)
    ax.vlines(table["confidence"], table["confidence"], table["accuracy"], color=CHOSEN, lw=2)
    area = 30 + 370 * table["count"] / table["count"].sum()
    ax.scatter(table["confidence"], table["accuracy"], s=area, color=FINE, zorder=3)
    ax.text(0.04, 0.93, f"calibration error {error:.3f}", transform=ax.transAxes, fontsize=9.5)
    ax.text(0.04, 0.86, f"{table['count'].sum()} pictures", transform=ax.transAxes, fontsize=9.5)
    ax.set_xlim(0, 1.03)
    ax.set_ylim(0, 1.03)
    ax.set_aspect("equal")
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set_xlabel("confidence (dots: bins, larger with more pictures)")
    _percent_axis(ax, "accuracy")
    return ax


def plot_risk_coverage(methods: Mapping[str, tuple[np.ndarray, np.ndarray]], ax: Axes) -> Axes:
    """Draw how often each method errs on the share of pictures that it is surest of.

    Args:
        methods: of each name, in the order of the legend, (N,) confidence and (N,) whether
            the answer is right; at most five. The area under each line stands in the legend.
        ax: where to draw.
    """
    colours = sns.color_palette("mako", len(methods) + 1)[: len(methods)]
    dashes = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)), (0, (9, 3)))
    highest = 0.0
    for (name, (confidence, correct)), colour, dash in zip(
        methods.items(), colours, dashes, strict=False
    ):
        coverage, risk = risk_coverage(confidence, correct)
        area = area_under_risk_coverage(confidence, correct)
        ax.plot(coverage, risk, color=colour, ls=dash, lw=1.8, label=f"{name} ({area:.4f})")
        highest = max(highest, float(risk.max()))
    ax.set_xlim(0, 1.02)
    ax.set_ylim(0, max(1.08 * highest, 0.01))
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set_xlabel("share of pictures that are answered, the surest first")
    _percent_axis(ax, "wrong among them", decimals=1)
    ax.legend(title="method (area)", loc="center left", bbox_to_anchor=(1.01, 0.5))
    return ax


def plot_outliers(scores: Mapping[str, np.ndarray], limits: Mapping[str, float], ax: Axes) -> Axes:
    """Outlier scores of several kinds of pictures, and the limits that decide their fate.

    Args:
        scores: (N,) each, N >= 1, by kind; what lies beyond twice the last limit is counted
            in the last bar.
        limits: rising, by what is done above; infinity is not drawn.
        ax: where to draw.
    """
    finite = {name: limit for name, limit in limits.items() if np.isfinite(limit)}
    least, most = (find(float(find(score)) for score in scores.values()) for find in (min, max))
    if finite:
        most = min(most, least + 2 * (max(finite.values()) - least))
    edges = np.linspace(least, max(most, least + 1e-6), 31)
    for (kind, score), colour, dash in zip(
        scores.items(), (FINE, CHOSEN, RIGHT, WRONG), ("-", "--", "-.", ":"), strict=False
    ):
        shares, style = np.full(len(score), 1 / len(score)), {"color": colour, "ls": dash}
        label = f"{kind} ({len(score)})"
        shown = np.clip(score, edges[0], edges[-1])
        ax.hist(shown, edges, weights=shares, histtype="step", lw=1.8, label=label, **style)
    for name, limit in finite.items():
        ax.axvline(limit, color=LIMIT, lw=1.2, zorder=1)
        where = {"transform": ax.get_xaxis_transform(), "rotation": 90, "va": "top", "ha": "right"}
        ax.text(limit, 0.97, f"{name} {limit:.2f}", color=LIMIT, fontsize=9, **where)
    ax.set_xlabel("outlier score")
    _percent_axis(ax, "share of the pictures")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return ax


def plot_set_sizes(sets: np.ndarray, target: np.ndarray, ax: Axes) -> Axes:
    """Count prediction sets by how many classes they hold, and by whether they hold the truth.

    Args:
        sets: (N, C) bool, N >= 1.
        target: (N,) true class indices.
        ax: where to draw.
    """
    sizes = sets.sum(axis=1)
    covered = sets[np.arange(len(target)), target]
    places = np.arange(max(int(sizes.max()), 1) + 1)
    right = np.bincount(sizes[covered], minlength=len(places))
    wrong = np.bincount(sizes[~covered], minlength=len(places))
    ax.bar(places, right, width=0.6, color=FINE, label="holds the true class")
    ax.bar(places, wrong, width=0.6, bottom=right, color=WRONG, hatch="///", label="does not")
    for place, count in zip(places, right + wrong, strict=True):
        ax.text(place, count, f"{count}", ha="center", va="bottom", fontsize=9)
    ax.set_xticks(places)
    ax.margins(y=0.1)
    ax.set_title(f"{covered.mean():.1%} covered, {sizes.mean():.2f} classes on average")
    ax.set_xlabel("classes in the set (0: conforms to none)")
    ax.set_ylabel("pictures")
    ax.grid(axis="y")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return ax


def _mark_chosen(ax: Axes, chosen: float) -> None:
    ax.axvline(chosen, color=CHOSEN, lw=1.4, ls=(0, (4, 2)), zorder=1)
    # Above the axes, where no line can run through it.
    ax.text(
        chosen,
        1.01,
        f"chosen: {chosen:.2f}",
        color=CHOSEN,
        fontsize=9,
        ha="center",
        va="bottom",
        transform=ax.get_xaxis_transform(),
    )


def _percent_axis(ax: Axes, label: str, decimals: int = 0) -> None:
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=decimals))
    ax.set_ylabel(label)
    ax.grid(axis="y")
