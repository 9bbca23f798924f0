import doctest
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from entrep import metrics
from entrep.labels import CLASS_NAMES

labels = st.integers(0, 6)
pairs = st.lists(st.tuples(labels, labels), min_size=1, max_size=40)


def test_docstring_examples_run():
    results = doctest.testmod(metrics)
    assert results.attempted > 10
    assert results.failed == 0


@settings(deadline=None)
@given(pairs)
def test_classification_scores_agree_with_scikit_learn(rows):
    target, predicted = np.array(rows).T
    every = list(range(7))
    options = {"labels": every, "zero_division": 0}
    np.testing.assert_array_equal(
        metrics.confusion_matrix(target, predicted, 7),
        sk.confusion_matrix(target, predicted, labels=every),
    )
    assert metrics.accuracy(target, predicted) == pytest.approx(
        sk.accuracy_score(target, predicted)
    )
    for average, ours in (("macro", metrics.macro_f1), ("weighted", metrics.weighted_f1)):
        want = sk.f1_score(target, predicted, average=average, **options)
        assert ours(target, predicted, 7) == pytest.approx(want)


@settings(deadline=None)
@given(pairs)
def test_per_class_table_agrees_with_scikit_learn(rows):
    target, predicted = np.array(rows).T
    table = metrics.per_class_table(target, predicted, CLASS_NAMES).set_index("class")
    assert list(table.index) == [*CLASS_NAMES, "macro", "weighted"]
    options = {"labels": list(range(7)), "zero_division": 0}
    want = sk.precision_recall_fscore_support(target, predicted, **options)
    np.testing.assert_allclose(table.iloc[:7].to_numpy().T, want)
    for average in ("macro", "weighted"):
        want = sk.precision_recall_fscore_support(target, predicted, average=average, **options)
        np.testing.assert_allclose(table.loc[average, ["precision", "recall", "f1"]], want[:3])
        assert table.loc[average, "support"] == len(target)


def test_a_class_that_is_absent_keeps_a_zero_row():
    table = metrics.per_class_table([0, 1], [0, 1], CLASS_NAMES)
    assert table.loc[6, "class"] == "throat"
    assert table.loc[6, ["precision", "recall", "f1", "support"]].tolist() == [0, 0, 0, 0]
    assert metrics.macro_f1([0, 1], [0, 1], classes=7) == pytest.approx(2 / 7)


def test_wrong_side_costs_fine_accuracy_only():
    scores = metrics.classification_scores([0, 2, 4, 6], [1, 3, 5, 6])
    assert scores["accuracy"] == 0.25
    assert scores["coarse_accuracy"] == scores["coarse_macro_f1"] == 1.0


def test_scores_by_part_use_each_part_alone_and_leave_test_pictures_out():
    pictures = pd.DataFrame(
        {
            "class_index": [0, 1, 2, 3, 6, -1],
            "part": ["dev", "dev", "dev", "dev", "heldout", "test"],
            "group": [0, 0, 1, 1, 2, 3],
        }
    )
    scores = metrics.score_by_part(pictures, np.array([0, 0, 2, 6, 6, 0]), seed=0)
    assert list(scores.index) == ["dev", "heldout"]
    assert scores["pictures"].tolist() == [4, 1]
    assert scores.loc["dev", ["coarse", "fine"]].tolist() == [0.75, 0.5]
    assert scores.loc["dev", ["fine_low", "fine_high"]].tolist() == [0.5, 0.5]  # both groups 1/2
    assert scores.loc["dev", "coarse_low"] < 0.75 < scores.loc["dev", "coarse_high"]
    assert scores.loc["heldout", "fine"] == 1.0
    assert list(metrics.score_by_part(pictures[:4], np.zeros(4, int)).index) == ["dev"]


def test_bootstrap_interval_is_deterministic_and_holds_the_mean():
    values = np.linspace(0.5, 1.0, 41)
    first = metrics.bootstrap_interval(values, seed=3)
    assert first == metrics.bootstrap_interval(values, seed=3)
    assert first != metrics.bootstrap_interval(values, seed=4)
    assert first[0] < 0.75 < first[1]


def test_bootstrap_interval_of_many_single_values_matches_the_normal_one():
    values = np.arange(1000) % 2
    low, high = metrics.bootstrap_interval(values)
    half = 1.96 * 0.5 / np.sqrt(1000)
    assert low == pytest.approx(0.5 - half, abs=0.004)
    assert high == pytest.approx(0.5 + half, abs=0.004)


def test_bootstrap_interval_widens_when_groups_agree():
    groups = np.repeat(np.arange(20), 10)
    values = groups % 2  # ten pictures of one group are all right or all wrong
    single = np.ptp(metrics.bootstrap_interval(values))
    grouped = np.ptp(metrics.bootstrap_interval(values, groups))
    assert grouped == pytest.approx(single * np.sqrt(10), rel=0.2)


def test_bootstrap_interval_does_not_depend_on_what_groups_are_called():
    values = [0.0, 1.0, 1.0, 0.0, 1.0, 0.5]
    by_number = metrics.bootstrap_interval(values, [0, 0, 1, 1, 2, 2])
    assert by_number == metrics.bootstrap_interval(values, ["a", "a", "b", "b", "c", "c"])


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_mcnemar_sums_the_binomial_tails(rows):
    a, b = np.array(rows).T
    found = metrics.mcnemar_test(a, b)
    told = found["only_a"] + found["only_b"]
    tail = sum(math.comb(told, i) for i in range(min(found["only_a"], found["only_b"]) + 1))
    assert found["p"] == pytest.approx(min(1, 2 * tail / 2**told))
    swapped = metrics.mcnemar_test(b, a)
    assert (swapped["only_b"], swapped["p"]) == (found["only_a"], pytest.approx(found["p"]))
    assert metrics.mcnemar_test(a, a)["p"] == 1.0


def test_mcnemar_rejects_equal_methods_at_most_as_often_as_stated():
    generator = np.random.default_rng(0)
    small = [
        metrics.mcnemar_test(*generator.random((2, 100)) < 0.8)["p"] <= 0.05 for _ in range(500)
    ]
    assert 0.01 < np.mean(small) <= 0.06


def test_paired_bootstrap_has_the_interval_of_the_difference_and_turns_with_the_sign():
    generator = np.random.default_rng(0)
    a, b = generator.random((2, 80)) < [[0.9], [0.7]]
    groups = np.arange(80) // 2
    found = metrics.paired_bootstrap(a, b, groups)
    assert (found["low"], found["high"]) == metrics.bootstrap_interval(a.astype(float) - b, groups)
    back = metrics.paired_bootstrap(b, a, groups)
    np.testing.assert_allclose(
        [back["difference"], back["low"], back["high"], back["p"]],
        [-found["difference"], -found["high"], -found["low"], found["p"]],
    )
    assert found["p"] < 0.05
    assert metrics.paired_bootstrap(a, a)["p"] == 1.0


def test_paired_bootstrap_is_less_sure_when_groups_agree():
    groups = np.repeat(np.arange(10), 10)
    a = (groups < 8).astype(float)  # ten pictures of one group are all right or all wrong
    b = np.where(groups >= 5, a, 0.4)
    single, grouped = metrics.paired_bootstrap(a, b), metrics.paired_bootstrap(a, b, groups)
    assert grouped["high"] - grouped["low"] > 2 * (single["high"] - single["low"])
    assert grouped["difference"] == single["difference"]


def test_paired_bootstrap_rejects_equal_methods_about_as_often_as_stated():
    generator = np.random.default_rng(0)
    small = [
        metrics.paired_bootstrap(*generator.random((2, 100)) < 0.8, draws=300)["p"] < 0.05
        for _ in range(300)
    ]
    assert 0.02 < np.mean(small) < 0.09


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=20))
def test_risk_coverage_is_the_mean_over_all_orders_of_ties(rows):
    confidence, correct = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    coverage, risk = metrics.risk_coverage(confidence, correct)
    generator = np.random.default_rng(0)
    for place in range(len(rows)):
        # Expected errors among the first place + 1: whole levels, then a share of the next.
        left, errors = place + 1, 0.0
        for level in range(4, -1, -1):
            at = correct[confidence == level]
            taken = min(left, len(at))
            errors += (~at).mean() * taken if len(at) else 0
            left -= taken
        assert risk[place] == pytest.approx(errors / (place + 1))
    order = generator.permutation(len(rows))
    again = metrics.risk_coverage(confidence[order], correct[order])
    np.testing.assert_array_equal(again, (coverage, risk))
    assert risk[-1] == pytest.approx(1 - correct.mean())


def test_a_confidence_that_knows_its_errors_has_the_smallest_area():
    correct = np.arange(10) < 8
    best = metrics.area_under_risk_coverage(correct, correct)
    assert best == pytest.approx((1 / 9 + 2 / 10) / 10)
    assert metrics.area_under_risk_coverage(np.zeros(10), correct) == pytest.approx(0.2)
    assert best < 0.2 < metrics.area_under_risk_coverage(~correct, correct)


def test_detection_scores_agree_with_counting_pairs():
    generator = np.random.default_rng(0)
    inside, outside = generator.integers(0, 9, 40) * 1.0, generator.integers(4, 14, 15) * 1.0
    pairs = [(o > i) + 0.5 * (o == i) for o in outside for i in inside]
    found = metrics.detection_scores(inside, outside)
    assert found["auroc"] == pytest.approx(np.mean(pairs))
    assert metrics.detection_scores([0.0, 1.0], [2.0]) == {"auroc": 1.0, "fpr95": 0.0}


@given(st.integers(1, 60), st.integers(1, 15), st.integers(0, 2**32 - 1))
def test_expected_calibration_error_agrees_with_a_plain_loop(size, bins, seed):
    generator = np.random.default_rng(seed)
    probs = generator.dirichlet(np.ones(4), size)
    target = generator.integers(4, size=size)
    want = 0.0
    for b in range(bins):
        inside = [i for i in range(size) if b / bins < probs[i].max() <= (b + 1) / bins]
        if inside:
            sure = sum(probs[i].max() for i in inside) / len(inside)
            right = sum(probs[i].argmax() == target[i] for i in inside) / len(inside)
            want += abs(sure - right) * len(inside) / size
    assert metrics.expected_calibration_error(probs, target, bins) == pytest.approx(want)


def test_expected_calibration_error_is_zero_when_sure_and_right():
    assert metrics.expected_calibration_error(np.eye(3), np.arange(3)) == 0.0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: metrics.confusion_matrix([], [], 7), "no picture"),
        (lambda: metrics.confusion_matrix([0, 1], [0], 7), "one class index a picture"),
        (lambda: metrics.confusion_matrix([-1, 1], [0, 0], 7), "without a label"),
        (lambda: metrics.confusion_matrix([0, 1], [0, 7], 7), "predicted: expected indices 0..6"),
        (lambda: metrics.confusion_matrix([0.0], [0.0], 7), r"class indices \(int\)"),
        (lambda: metrics.accuracy([], []), "at least 1"),
        (lambda: metrics.classification_scores([], []), "at least 1"),
        (lambda: metrics.bootstrap_interval([]), "at least one value"),
        (lambda: metrics.bootstrap_interval([1, 0], [1]), "one group a value"),
        (lambda: metrics.bootstrap_interval([1, 0], level=95), "level"),
        (lambda: metrics.paired_bootstrap([1, 0], [1]), "same pictures"),
        (lambda: metrics.mcnemar_test([1, 0], [1]), "equal length"),
        (lambda: metrics.mcnemar_test([], []), "at least 1"),
        (lambda: metrics.risk_coverage([], []), "at least one picture"),
        (lambda: metrics.detection_scores([1.0], []), "0 outside"),
        (lambda: metrics.expected_calibration_error(np.ones((2, 2)) * 3, [0, 1]), "softmax"),
        (lambda: metrics.expected_calibration_error(np.ones(2), [0, 1]), r"\(N, C\)"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
