"""The look of all figures, and those of pictures, data, training and retrieval.

One function per figure: data and `ax` in, `ax` out; pictures in, a figure out.

Classes always come in the official order and in the same colours: one hue a site, the first
answer of its two-way question dark, the second light. The hues stay apart for colour-blind
eyes, and wherever colour carries a meaning a label, a marker or a line style carries it too.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator, StrMethodFormatter
from PIL import Image

from entrep.artifacts import atomic_path
from entrep.labels import CLASS_NAMES, SITE_OF
from entrep.ranking_metrics import hubness

CLASS_COLOURS = dict(
    zip(
        CLASS_NAMES,
        ("#16548f", "#6fb1e4", "#b5480f", "#ffb45c", "#0f6e5c", "#7ad9c0", "#b0609f"),
        strict=True,
    )
)
SITE_MARKERS = ("o", "s", "^", "D")  # by site index
COARSE, FINE = "#9fb0c3", "#2f3e53"  # of scores by site and by class
CHOSEN = "#c2185b"  # what was decided
RIGHT, WRONG = "#1a8f6a", "#cf3b3b"
PARTS = {"dev": "development", "heldout": "held out"}

Picture = Image.Image | np.ndarray  # (H, W, 3), bytes 0..255 or floats 0..1


def set_style() -> None:
    """Set the notebooks' look; the one function here that changes Matplotlib's settings."""
    sns.set_theme(
        context="notebook",
        style="ticks",
        rc={
            "axes.axisbelow": True,
            "axes.edgecolor": "#8a8f98",
            "axes.labelcolor": "#333333",
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlelocation": "left",
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.labelsize": 10,
            "axes.titlesize": 11,
            "legend.fontsize": 9,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "grid.color": "#e4e7eb",
            "legend.frameon": False,
            "xtick.color": "#8a8f98",
            "xtick.labelcolor": "#333333",
            "ytick.color": "#8a8f98",
            "ytick.labelcolor": "#333333",
        },
    )


def save_figure(fig: Figure, path: str | Path) -> None:
    """Save as PNG, atomically; the same figure gives the same bytes on the same machine."""
    with atomic_path(path) as temporary:
        fig.savefig(
            temporary, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None}
        )


def plot_picture_grid(
    pictures: Sequence[Picture],
    titles: Sequence[str],
    *,
    columns: int = 6,
    frame_colours: Sequence[str] | None = None,
) -> Figure:
    """Show pictures row by row, each under its title and, if asked for, in a coloured frame."""
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    lines = max(title.count("\n") + 1 for title in titles)
    height = 1.65 + 0.17 * lines
    fig, axes = plt.subplots(
        rows, columns, figsize=(1.7 * columns, height * rows), squeeze=False, layout="constrained"
    )
    for ax in axes.flat[len(pictures) :]:
        ax.set_axis_off()
    colours = [None] * len(pictures) if frame_colours is None else frame_colours
    used = axes.flat[: len(pictures)]
    for ax, picture, title, colour in zip(used, pictures, titles, colours, strict=True):
        _show_picture(ax, picture, colour)
        ax.set_title(title, fontsize=8.5, loc="center", pad=4, parse_math=False)
    return fig


def plot_class_counts(pictures: pd.DataFrame, ax: Axes) -> Axes:
    """Stack the labelled pictures of each class by part.

    Args:
        pictures: rows with the columns class_index (-1: unknown, left out) and part.
        ax: where to draw.
    """
    labelled = pictures[pictures["class_index"] >= 0]
    counts = pd.crosstab(labelled["class_index"], labelled["part"])
    counts = counts.reindex(index=range(len(CLASS_NAMES)), columns=list(PARTS), fill_value=0)
    start = np.zeros(len(CLASS_NAMES))
    for part, alpha in zip(PARTS, (1.0, 0.45), strict=True):
        ax.barh(
            CLASS_NAMES, counts[part], left=start, color=list(CLASS_COLOURS.values()), alpha=alpha
        )
        start += counts[part].to_numpy()
    for row, (dev, heldout) in enumerate(counts.to_numpy()):
        text = f" {dev + heldout}" + (f"  ({dev} + {heldout})" if heldout else "")
        ax.text(dev + heldout, row, text, va="center", fontsize=9)
    if counts["heldout"].any():
        handles = [Patch(color="#555555", alpha=a) for a in (1.0, 0.45)]
        ax.legend(handles, PARTS.values(), loc="lower right")
    ax.invert_yaxis()
    ax.margins(x=0.16)
    ax.set_xlabel("pictures")
    ax.grid(axis="x")
    return ax


def plot_group_sizes(groups: np.ndarray, ax: Axes) -> Axes:
    """Count the groups of each size; ten pictures and more share a bar.

    Args:
        groups: (N,) group of each picture.
        ax: where to draw.
    """
    sizes = np.minimum(pd.Series(groups).value_counts(), 10)
    counts = sizes.value_counts().sort_index()
    names = [f"{size}" if size < 10 else "10 or more" for size in counts.index]
    colours = [COARSE if size == 1 else FINE for size in counts.index]
    bars = ax.bar(names, counts, width=0.6, color=colours)
    ax.bar_label(bars, padding=2, fontsize=9)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_ylim(0.6, counts.max() * 3)
    ax.set_xlabel("pictures in a group")
    ax.set_ylabel("groups (log scale)")
    ax.grid(axis="y")
    return ax


def plot_embedding_map(embeddings: np.ndarray, class_index: np.ndarray, ax: Axes) -> Axes:
    """Draw embeddings on their two main axes: sites by marker and hue, classes by shade.

    Args:
        embeddings: (N, D), N >= 2 and D >= 2.
        class_index: (N,) ints in 0..6.
        ax: where to draw.
    """
    centred = embeddings.astype(np.float64) - embeddings.mean(axis=0, dtype=np.float64)
    _, scales, directions = np.linalg.svd(centred, full_matrices=False)
    directions = directions[:2]
    # An SVD may return either sign; let the largest component of each axis point up.
    largest = np.abs(directions).argmax(axis=1)
    directions = directions * np.sign(directions[[0, 1], largest])[:, None]
    points = centred @ directions.T
    for index, name in enumerate(CLASS_NAMES):
        chosen = class_index == index
        ax.scatter(
            *points[chosen].T,
            s=26,
            marker=SITE_MARKERS[SITE_OF[index]],
            color=CLASS_COLOURS[name],
            edgecolor="white",
            linewidth=0.4,
            label=name,
        )
    shares = scales**2 / max(np.sum(scales**2), np.finfo(float).tiny)
    ax.set_xlabel(f"principal axis 1 ({shares[0]:.0%} of the variance)")
    ax.set_ylabel(f"principal axis 2 ({shares[1]:.0%} of the variance)")
    ax.set_aspect("equal", adjustable="datalim")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), markerscale=1.4)
    return ax


def plot_training_history(history: pd.DataFrame, ax: Axes) -> Axes:
    """Draw each fold's losses by epoch and ring the epoch that was kept.

    Args:
        history: rows with the columns fold, epoch, train_loss, validation_loss and best
            (1 in the row whose weights were kept), and member if a fold has several networks.
        ax: where to draw.
    """
    folds = history["fold"].unique()
    colours = sns.color_palette("mako", len(folds) + 1)[: len(folds)]
    history = history.assign(member=history.get("member", 0))
    for (fold, _), rows in history.sort_values("epoch").groupby(["fold", "member"]):
        colour = colours[list(folds).index(fold)]
        ax.plot(rows["epoch"], rows["train_loss"], color=colour, lw=1, ls=(0, (4, 2)))
        ax.plot(rows["epoch"], rows["validation_loss"], color=colour, lw=1.8)
        best = rows[rows["best"] == 1]
        ax.plot(
            best["epoch"],
            best["validation_loss"],
            ls="none",
            marker="o",
            ms=9,
            mfc="none",
            mec=CHOSEN,
            mew=1.8,
        )
    handles = [
        Line2D([], [], color=c, lw=3, label=f"fold {f}")
        for f, c in zip(folds, colours, strict=True)
    ]
    handles += [
        Line2D([], [], color="#555555", lw=1.8, label="left-out fold"),
        Line2D([], [], color="#555555", lw=1, ls=(0, (4, 2)), label="training"),
        Line2D([], [], color=CHOSEN, ls="none", marker="o", mfc="none", ms=8, label="kept"),
    ]
    ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylim(bottom=0)
    ax.set_xlabel("epoch")
    ax.set_ylabel("loss")
    ax.grid(axis="y")
    return ax


def plot_attribution(
    pictures: Sequence[Picture], maps: np.ndarray, titles: Sequence[str]
) -> Figure:
    """Show each picture under its title, and below it, in grey, what its answer rests on.

    All maps share one scale. It ends at the median of the pictures' largest values, so that
    one loud map does not leave the others blank; the colour bar is pointed where some go on.

    Args:
        pictures: N >= 1, square.
        maps: (N, P, P), positive where a picture speaks for the answer.
        titles: N texts.
    """
    fig, axes = plt.subplots(
        2,
        len(pictures),
        figsize=(1.7 * len(pictures) + 0.9, 3.75),
        squeeze=False,
        layout="constrained",
    )
    limit = max(float(np.median(np.abs(maps).max(axis=(1, 2)))), 1e-9)
    for (above, below), picture, values, title in zip(axes.T, pictures, maps, titles, strict=True):
        _show_picture(above, picture)
        above.set_title(title, fontsize=8.5, loc="center", pad=4, parse_math=False)
        _show_picture(below, _greyed(picture))
        height, width = np.shape(picture)[:2]
        # Orange and purple: apart for colour-blind eyes, and neither stands for a verdict.
        image = below.imshow(
            values,
            cmap="PuOr_r",
            vmin=-limit,
            vmax=limit,
            alpha=0.85 * np.minimum(np.abs(values) / limit, 1) ** 0.5,  # 0 lets the picture through
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            interpolation="bilinear",
        )
    beyond = (bool((maps < -limit).any()), bool((maps > limit).any()))
    extend = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[beyond]
    bar = fig.colorbar(image, ax=axes[1].tolist(), extend=extend, aspect=12, pad=0.01)
    bar.set_label("fall of the log-odds", fontsize=9)
    return fig


def plot_hubness(counts: Mapping[str, np.ndarray], ax: Axes) -> Axes:
    """Draw how many gallery pictures answer how often; a hub stands far to the right.

    Args:
        counts: (G,) answers of each picture (`ranking_metrics.answer_counts`) by method, G >= 1;
            at most four. The skewness and the share that is never found stand in the legend.
        ax: where to draw.
    """
    most = max(int(values.max()) for values in counts.values())
    # One bar a count while they can be told apart, else equal bars of whole counts.
    edges = np.arange(0, most + 2, -(-(most + 1) // 30)) - 0.5
    edges = edges if edges[-1] > most else np.append(edges, 2 * edges[-1] - edges[-2])
    for (method, values), colour, dash in zip(
        counts.items(), (FINE, CHOSEN, RIGHT, WRONG), ("-", "--", "-.", ":"), strict=False
    ):
        label = f"{method}: skewness {hubness(values):.2f}, {np.mean(values == 0):.0%} never"
        ax.hist(values, edges, histtype="step", lw=1.8, color=colour, ls=dash, label=label)
    ax.set_yscale("log")
    ax.set_ylim(bottom=0.6)
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("queries that a picture is among the first answers of")
    ax.set_ylabel("gallery pictures (log scale)")
    ax.grid(axis="y")
    ax.legend(loc="upper right")
    return ax


def plot_neighbours(
    queries: Sequence[Picture | str],
    neighbours: Sequence[Sequence[Picture]],
    titles: Sequence[str],
    right: Sequence[Sequence[bool]],
    similarities: Sequence[Sequence[float]],
) -> Figure:
    """Show a query a row, then its nearest pictures: right ones framed green, others red.

    Args:
        queries: Q pictures, or Q phrases.
        neighbours: Q lists of pictures, best first.
        titles: Q texts for below the query picture; "" for none.
        right: Q lists that say of each neighbour whether it is a right answer.
        similarities: Q lists of numbers to stand below the neighbours.
    """
    k = max(len(row) for row in neighbours)
    fig, axes = plt.subplots(
        len(queries),
        k + 1,
        figsize=(1.9 + 1.5 * k, 1.75 * len(queries) + 0.2),
        squeeze=False,
        width_ratios=[1.35] + [1] * k,
        layout="constrained",
    )
    for ax in axes.flat:
        ax.set_axis_off()
    for row, query, nearest, title, verdicts, values in zip(
        axes, queries, neighbours, titles, right, similarities, strict=True
    ):
        if isinstance(query, str):
            text = textwrap.fill(query, 22)
            style = {"fontsize": 9.5, "style": "italic", "parse_math": False}
            row[0].text(0.5, 0.5, text, ha="center", va="center", **style)
        else:
            _show_picture(row[0], query)
            row[0].set_xlabel(textwrap.fill(title, 30), fontsize=8, parse_math=False)
        used = row[1 : len(nearest) + 1]
        for ax, picture, verdict, value in zip(used, nearest, verdicts, values, strict=True):
            _show_picture(ax, picture, RIGHT if verdict else WRONG)
            ax.set_xlabel(f"{value:.2f}", fontsize=8)
            ax.text(
                0.06,
                0.94,
                "✓" if verdict else "✗",
                transform=ax.transAxes,
                ha="left",
                va="top",
                color="white",
                fontsize=9,
                bbox={"facecolor": RIGHT if verdict else WRONG, "lw": 0, "pad": 1.5},
            )
    for column, ax in enumerate(axes[0]):
        ax.set_title("query" if column == 0 else f"{column}", fontsize=9, loc="center")
    return fig


def _show_picture(ax: Axes, picture: Picture, frame_colour: str | None = None) -> None:
    pixels = np.asarray(picture)
    if np.issubdtype(pixels.dtype, np.floating):
        pixels = np.clip(pixels, 0, 1)  # augmented pictures may overshoot
    ax.set_axis_on()
    ax.imshow(pixels)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(frame_colour is not None)
        spine.set(edgecolor=frame_colour, linewidth=3)


def _greyed(picture: Picture) -> np.ndarray:
    """The same picture without its colours, of the same kind."""
    pixels = np.asarray(picture)
    return np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2).astype(pixels.dtype)
