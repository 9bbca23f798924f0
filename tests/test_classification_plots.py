import matplotlib
import numpy as np
import pandas as pd
import pytest
from test_plots import labels_of, texts_of

from entrep import classification_plots, plots
from entrep.labels import CLASS_NAMES, MIRROR_CLASS, SITE_NAMES


@pytest.mark.parametrize("count", [1, 21])
def test_weight_sweep_draws_both_scores_and_marks_the_choice(ax, count):
    weights = np.linspace(1, 0, count)[::-1]
    classification_plots.plot_weight_sweep(weights, np.full((count, 2), [0.9, 0.5]), 0.65, ax)
    coarse, fine, line = ax.lines
    assert set(coarse.get_ydata()) == {0.9}
    assert set(fine.get_ydata()) == {0.5}
    assert list(line.get_xdata()) == [0.65, 0.65]
    assert texts_of(ax) == ["chosen: 0.65"]


def test_confusion_writes_the_counts_and_shades_rows_by_share(ax):
    classification_plots.plot_confusion([0, 0, 0, 0, 6], [0, 1, 1, 1, 6], CLASS_NAMES, ax)
    assert texts_of(ax) == ["1", "3", "1"]  # empty cells stay empty
    shares = ax.images[0].get_array()
    assert shares[0, :2].tolist() == [0.25, 0.75]
    assert shares[6, 6] == 1.0
    assert shares[3].sum() == 0.0
    assert labels_of(ax.xaxis) == labels_of(ax.yaxis) == list(CLASS_NAMES)
    assert len(ax.patches) == len(SITE_NAMES)  # a box a site
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted", "true")


def test_confusion_of_sites_has_no_boxes(ax):
    classification_plots.plot_confusion([0, 3], [0, 3], SITE_NAMES, ax)
    assert labels_of(ax.yaxis) == list(SITE_NAMES)
    assert not ax.patches


def test_method_comparison_has_two_bars_a_method_with_their_values(ax):
    table = pd.DataFrame(
        {
            "coarse": [0.97, 1.0],
            "coarse_low": [0.95, 1.0],
            "coarse_high": [0.99, 1.0],
            "fine": [0.55, 0.9],
            "fine_low": [0.5, 0.85],
            "fine_high": [0.6, 0.94],
        },
        index=pd.Index(["prototypes", "hybrid"], name="method"),
    )
    classification_plots.plot_method_comparison(table, ax)
    assert [bar.get_height() for bar in ax.patches] == [0.97, 1.0, 0.55, 0.9]
    assert texts_of(ax) == ["97.0%", "100.0%", "55.0%", "90.0%"]
    assert labels_of(ax.xaxis) == ["prototypes", "hybrid"]
    ends = ax.containers[3].lines[2][0].get_segments()
    np.testing.assert_allclose([segment[:, 1] for segment in ends], [[0.5, 0.6], [0.85, 0.94]])


@pytest.mark.parametrize("accuracy", [np.linspace(0.9, 0.98, 11), np.ones(11)])
def test_threshold_sweep_marks_the_choice_and_shows_the_whole_line(ax, accuracy):
    thresholds = np.linspace(0, 1, 11)
    classification_plots.plot_threshold_sweep(thresholds, accuracy, thresholds**2, 0.3, ax)
    assert ax.get_ylim()[0] < accuracy.min() <= accuracy.max() < ax.get_ylim()[1]
    assert texts_of(ax) == ["chosen: 0.30"]
    (behind,) = [other for other in ax.figure.axes if other is not ax]
    assert behind.get_ylabel() == "share that falls back (area)"


def test_reliability_has_a_dot_for_each_bin_with_pictures(ax):
    probs = np.array([[0.95, 0.05], [0.93, 0.07], [0.6, 0.4]])
    classification_plots.plot_reliability(probs, np.array([0, 1, 0]), ax)
    dots = ax.collections[-1].get_offsets()
    np.testing.assert_allclose(dots, [[0.6, 1.0], [0.94, 0.5]])
    assert texts_of(ax) == ["calibration error 0.427", "3 pictures"]


def test_risk_coverage_has_a_line_a_method_with_its_area(ax):
    correct = np.array([True, True, True, False])
    classification_plots.plot_risk_coverage(
        {"ours": (np.array([4, 3, 2, 1]), correct), "rule": (np.array([1, 2, 3, 4]), correct)}, ax
    )
    ours, rule = ax.lines
    np.testing.assert_allclose(ours.get_ydata(), [0, 0, 0, 0.25])
    np.testing.assert_allclose(rule.get_ydata(), [1, 1 / 2, 1 / 3, 1 / 4])
    np.testing.assert_allclose(rule.get_xdata(), [0.25, 0.5, 0.75, 1])
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["ours (0.0625)", "rule (0.5208)"]
    assert ours.get_linestyle() != rule.get_linestyle()
    assert ax.get_ylim()[1] > 1


def test_risk_coverage_without_an_error_still_has_an_axis(ax):
    classification_plots.plot_risk_coverage({"ours": (np.ones(3), np.ones(3, bool))}, ax)
    assert ax.get_ylim()[1] > 0


@pytest.mark.parametrize("refused", [3.0, np.inf])
def test_outliers_are_shares_by_kind_with_the_finite_limits(ax, refused):
    scores = {"development": np.random.default_rng(0).random(200), "new": np.array([0.5, 1e9])}
    classification_plots.plot_outliers(scores, {"doubted above": 1.5, "refused above": refused}, ax)
    marks = ["doubted above 1.50", "refused above 3.00"]
    assert texts_of(ax) == marks[: 2 if refused == 3.0 else 1]
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["development (200)", "new (2)"]
    assert ax.get_xlim()[1] < 10  # one far picture does not squeeze all others into a line
    heights = [patch.get_xy()[:, 1] for patch in ax.patches]
    assert heights[1].max() == 0.5
    ax.figure.canvas.draw()


def test_set_sizes_stack_sets_with_and_without_the_truth(ax):
    sets = np.zeros((5, 7), bool)
    sets[0, 0] = sets[1, 1] = sets[2, [2, 3]] = sets[3, 0] = True  # the last one is empty
    classification_plots.plot_set_sizes(sets, np.array([0, 1, 3, 6, 6]), ax)
    heights = [bar.get_height() for bar in ax.patches]
    assert heights == [0, 2, 1] + [1, 1, 0]  # right, then wrong, by size 0, 1, 2
    assert texts_of(ax) == ["1", "3", "1"]
    assert ax.get_title(loc="center") == "60.0% covered, 1.00 classes on average"


def test_a_confusion_reads_in_the_notebooks_style(ax):
    with matplotlib.rc_context():
        plots.set_style()
        target = np.repeat(np.arange(7), 4)
        mirrored = np.array(MIRROR_CLASS)[target]
        classification_plots.plot_confusion(target, mirrored, CLASS_NAMES, ax)
        ax.figure.canvas.draw()
