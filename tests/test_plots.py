import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from entrep import plots
from entrep.labels import CLASS_NAMES, SITE_OF
from entrep.ranking_metrics import hubness


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def labels_of(axis) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def texts_of(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_class_colours_are_pinned_in_the_official_order():
    assert list(plots.CLASS_COLOURS.items()) == [
        ("nose-right", "#16548f"),
        ("nose-left", "#6fb1e4"),
        ("ear-right", "#b5480f"),
        ("ear-left", "#ffb45c"),
        ("vc-open", "#0f6e5c"),
        ("vc-closed", "#7ad9c0"),
        ("throat", "#b0609f"),
    ]


def test_only_set_style_changes_settings(ax, generator):
    before = dict(matplotlib.rcParams)
    plots.plot_class_counts(pd.DataFrame({"class_index": [0, 6], "part": ["dev", "heldout"]}), ax)
    plots.plot_picture_grid([Image.new("RGB", (8, 8))], ["one"])
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context():
        plots.set_style()
        assert dict(matplotlib.rcParams) != before
    assert dict(matplotlib.rcParams) == before


def test_class_counts_have_a_bar_a_class_and_part(ax):
    pictures = pd.DataFrame(
        {
            "class_index": [0, 0, 0, 3, 6, -1],
            "part": ["dev", "dev", "heldout", "dev", "dev", "test"],
        }
    )
    plots.plot_class_counts(pictures, ax)
    assert labels_of(ax.yaxis) == list(CLASS_NAMES)
    widths = [bar.get_width() for bar in ax.patches]
    assert widths == [2, 0, 0, 1, 0, 0, 1] + [1, 0, 0, 0, 0, 0, 0]
    assert [to_hex(bar.get_facecolor()) for bar in ax.patches] == 2 * [
        *plots.CLASS_COLOURS.values()
    ]
    assert texts_of(ax)[0].strip() == "3  (2 + 1)"
    assert ax.yaxis_inverted()


def test_class_counts_without_held_out_pictures_need_no_legend(ax):
    plots.plot_class_counts(pd.DataFrame({"class_index": [0, 1], "part": ["dev", "dev"]}), ax)
    assert ax.get_legend() is None


def test_group_sizes_share_a_bar_from_ten_on(ax):
    plots.plot_group_sizes(np.repeat([1, 2, 3, 4, 5], [1, 1, 2, 10, 14]), ax)
    assert labels_of(ax.xaxis) == ["1", "2", "10 or more"]
    assert [bar.get_height() for bar in ax.patches] == [2, 1, 2]


def test_embedding_map_separates_what_is_apart(ax, generator):
    class_index = np.repeat(np.arange(7), 5)
    centres = np.eye(4, 16)[np.array(SITE_OF)[class_index]]
    plots.plot_embedding_map(centres + generator.normal(0, 0.01, (35, 16)), class_index, ax)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(CLASS_NAMES)
    drawn = [collection.get_offsets() for collection in ax.collections]
    assert [len(points) for points in drawn] == [5] * 7
    nose_right, nose_left, ear = (np.mean(points, axis=0) for points in drawn[:3])
    assert np.linalg.norm(nose_right - nose_left) < 0.1 < np.linalg.norm(nose_right - ear)
    colours = [to_hex(collection.get_facecolor()[0]) for collection in ax.collections]
    assert colours == list(plots.CLASS_COLOURS.values())


def test_embedding_map_takes_a_class_that_is_absent_and_equal_embeddings(ax):
    plots.plot_embedding_map(np.ones((3, 4), np.float32), np.array([0, 0, 6]), ax)
    assert [len(collection.get_offsets()) for collection in ax.collections] == [2, 0, 0, 0, 0, 0, 1]


def test_training_history_draws_two_losses_a_fold_and_rings_the_kept_epoch(ax):
    history = pd.DataFrame(
        {
            "fold": [0, 0, 0, 1, 1],
            "epoch": [0, 1, 2, 0, 1],
            "train_loss": [2.0, 1.0, 0.5, 2.0, 1.0],
            "validation_loss": [2.1, 1.2, 1.3, 2.2, 1.5],
            "best": [0, 1, 0, 0, 1],
        }
    )
    plots.plot_training_history(history, ax)
    assert len(ax.lines) == 2 * 3
    rings = [line for line in ax.lines if line.get_marker() == "o"]
    assert [(ring.get_xdata()[0], ring.get_ydata()[0]) for ring in rings] == [(1, 1.2), (1, 1.5)]
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["fold 0", "fold 1", "left-out fold", "training", "kept"]


def test_picture_grid_takes_any_kind_of_picture_and_frames_it(generator):
    pictures = [
        Image.new("RGB", (8, 8)),
        generator.integers(0, 255, (8, 8, 3), dtype=np.uint8),
        generator.random((8, 8, 3)) * 1.5,  # overshoots, as augmented pictures may
    ]
    fig = plots.plot_picture_grid(
        pictures,
        ["a", "b\nsaid c", "$x$ $"],
        columns=2,
        frame_colours=["#ff0000", "#00ff00"] * 1 + ["#0000ff"],
    )
    shown = [ax for ax in fig.axes if ax.images]
    assert [ax.get_title() for ax in shown] == ["a", "b\nsaid c", "$x$ $"]
    assert [to_hex(ax.spines["top"].get_edgecolor()) for ax in shown] == [
        "#ff0000",
        "#00ff00",
        "#0000ff",
    ]
    assert len(fig.axes) == 4
    assert not fig.axes[3].axison
    fig.canvas.draw()


@pytest.mark.parametrize("most", [3, 29, 30, 400])
def test_hubness_counts_every_picture_and_states_the_skewness(ax, generator, most):
    plain = np.append(generator.integers(0, 3, 60), most)
    plots.plot_hubness({"cosine": plain, "CSLS": np.ones(61, int)}, ax)
    for patch, values in zip(ax.patches, (np.ones(61, int), plain), strict=True):
        corners = patch.get_xy()
        heights = corners[1:-1:2, 1]  # one a bar
        assert heights.sum() == len(values)
        assert corners[:, 0].min() == -0.5 and corners[:, 0].max() > most
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    never = np.mean(plain == 0)
    assert labels[0] == f"cosine: skewness {hubness(plain):.2f}, {never:.0%} never"
    assert labels[1] == "CSLS: skewness 0.00, 0% never"
    ax.figure.canvas.draw()


def test_picture_grid_refuses_a_title_too_few():
    with pytest.raises(ValueError, match="shorter"):
        plots.plot_picture_grid([Image.new("RGB", (8, 8))] * 2, ["one"])


@pytest.mark.parametrize(
    "queries", [["a long phrase (left), 5 $ or $"] * 2, [np.zeros((4, 4, 3))] * 2]
)
def test_neighbours_are_framed_and_marked_by_verdict(queries):
    picture = np.zeros((4, 4, 3))
    fig = plots.plot_neighbours(
        queries,
        [[picture] * 3, [picture] * 2],
        ["text $", ""],
        [[True, False, True], [False] * 2],
        [[0.912, 0.5, 0.1], [0.0, -0.5]],
    )
    axes = np.array(fig.axes).reshape(2, 4)
    marks = [[texts_of(ax)[0] for ax in row[1:] if ax.images] for row in axes]
    assert marks == [["✓", "✗", "✓"], ["✗", "✗"]]
    frames = [to_hex(ax.spines["left"].get_edgecolor()) for ax in axes[0, 1:]]
    assert frames == [plots.RIGHT, plots.WRONG, plots.RIGHT]
    assert [ax.get_title() for ax in axes[0]] == ["query", "1", "2", "3"]
    assert [ax.get_xlabel() for ax in axes[0, 1:]] == ["0.91", "0.50", "0.10"]
    fig.canvas.draw()


def test_attribution_lays_maps_of_one_scale_over_grey_pictures(generator):
    pictures = list(generator.integers(0, 255, (3, 8, 8, 3), dtype=np.uint8))
    maps = np.zeros((3, 2, 2), np.float32)
    maps[0, 0, 0], maps[1, 0, 1], maps[2, 1, 1] = 0.5, -1, 7
    fig = plots.plot_attribution(pictures, maps, ["a", "b", "$c"])
    above, below = fig.axes[:3], fig.axes[3:6]
    assert [ax.get_title() for ax in above] == ["a", "b", "$c"]
    np.testing.assert_array_equal(above[1].images[0].get_array(), pictures[1])
    for ax, values in zip(below, maps, strict=True):
        grey, overlay = ax.images
        assert np.ptp(grey.get_array(), axis=2).max() == 0
        np.testing.assert_array_equal(overlay.get_array(), values)
        assert overlay.get_clim() == (-1, 1)  # the median of 0.5, 1 and 7
        assert overlay.get_extent() == grey.get_extent()
        assert (overlay.get_alpha()[values == 0] == 0).all()  # 0 hides nothing
    assert overlay.colorbar.extend == "max"
    assert fig.axes[6].get_ylabel() == "fall of the log-odds"
    fig.canvas.draw()


def test_attribution_without_any_effect_and_in_floats_still_draws(generator):
    picture = generator.random((8, 8, 3))
    fig = plots.plot_attribution([picture], np.zeros((1, 2, 2)), ["a"])
    np.testing.assert_allclose(fig.axes[1].images[0].get_array(), _grey(picture))
    assert fig.axes[1].images[1].colorbar.extend == "neither"
    fig.canvas.draw()


def _grey(picture):
    return np.repeat(picture.mean(axis=2, keepdims=True), 3, axis=2)


def test_attribution_refuses_a_map_too_few():
    with pytest.raises(ValueError, match="shorter"):
        plots.plot_attribution([Image.new("RGB", (8, 8))] * 2, np.zeros((1, 2, 2)), ["a", "b"])


def test_a_figure_saves_to_the_same_bytes_and_leaves_nothing_else(tmp_path, ax):
    ax.plot([1, 2], [3, 4])
    for name in ("a.png", "b.png"):
        plots.save_figure(ax.figure, tmp_path / "new" / name)
    first, second = (tmp_path / "new" / name for name in ("a.png", "b.png"))
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in first.parent.iterdir()) == ["a.png", "b.png"]
    with Image.open(first) as picture:
        assert set(picture.info) <= {"dpi"}


def test_figures_read_in_the_notebooks_style(generator):
    with matplotlib.rc_context():
        plots.set_style()
        target = np.repeat(np.arange(7), 4)
        fig, (left, right) = plt.subplots(1, 2)
        counted = pd.DataFrame({"class_index": target, "part": "dev"})
        plots.plot_class_counts(counted, left)
        plots.plot_embedding_map(generator.normal(size=(28, 5)), target, right)
        fig.canvas.draw()
