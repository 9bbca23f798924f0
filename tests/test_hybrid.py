import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize

from entrep.hybrid import (
    FLOOR,
    Combiner,
    choose_site,
    combine,
    combine_out_of_fold,
    fit_combiner,
    fit_product_of_experts,
    fuse_heads,
    hybrid_probs,
    join_classes,
    predict_classes,
    product_of_experts,
    split_classes,
    sweep_threshold,
)
from entrep.labels import CLASS_TO_INDEX, FINE_PAIRS, SITE_OF
from entrep.metrics import expected_calibration_error
from entrep.prototypes import fit_temperature, site_probs

SURE_NOSE = [0.9, 0.05, 0.03, 0.02]
UNSURE = [0.4, 0.3, 0.2, 0.1]
SURE_EAR = [0.1, 0.8, 0.05, 0.05]


def test_sure_prototypes_decide_and_unsure_ones_fall_back():
    sites, fallback = choose_site(
        np.array([SURE_NOSE, UNSURE]), np.array([SURE_EAR, SURE_EAR]), threshold=0.5
    )
    assert sites.tolist() == [0, 1]
    assert fallback.tolist() == [False, True]


def test_threshold_zero_trusts_prototypes_and_above_one_never_does():
    prototypes, backbone = np.array([SURE_NOSE, UNSURE]), np.array([SURE_EAR, SURE_EAR])
    assert choose_site(prototypes, backbone, 0.0)[0].tolist() == [0, 0]
    assert choose_site(prototypes, backbone, 1.01)[0].tolist() == [1, 1]


def test_the_binary_head_of_the_chosen_site_tells_the_class():
    second = np.array([[0.8, 0.1, 0.1]] * 4)
    names = ["nose-left", "ear-right", "vc-open", "throat"]
    expected = [CLASS_TO_INDEX[name] for name in names]
    assert predict_classes(np.arange(4), second).tolist() == expected


sites = arrays(float, (5, 4), elements=st.floats(0.01, 1)).map(
    lambda a: a / a.sum(axis=1, keepdims=True)
)
answers = arrays(float, (5, 3), elements=st.floats(0, 1))


@given(sites, sites, answers, st.floats(0, 1.1))
def test_hybrid_probabilities_sum_to_one_and_keep_the_deciders_sites(a, b, second, threshold):
    probs = hybrid_probs(a, b, second, threshold)
    np.testing.assert_allclose(probs.sum(axis=1), 1)
    _, fallback = choose_site(a, b, threshold)
    decider = np.where(fallback[:, None], b, a)
    np.testing.assert_allclose(probs[:, 0] + probs[:, 1], decider[:, 0])
    np.testing.assert_allclose(probs[:, 6], decider[:, 3])


@given(sites, sites)
def test_fallback_share_rises_with_the_threshold(a, b):
    thresholds = np.linspace(0, 1.01, 20)
    _, scores = sweep_threshold(a, b, np.zeros(5, int), thresholds)
    assert (np.diff(scores[:, 1]) >= 0).all()
    assert scores[0, 1] == 0 and scores[-1, 1] == 1


def test_sweep_chooses_where_each_part_is_right():
    # Sure prototypes are right, unsure ones wrong, the backbone right on the latter only.
    prototypes = np.array([SURE_NOSE] * 3 + [UNSURE] * 3)
    backbone = np.array([SURE_EAR] * 6)
    truth = np.array([CLASS_TO_INDEX["nose-right"]] * 3 + [CLASS_TO_INDEX["ear-left"]] * 3)
    best, scores = sweep_threshold(prototypes, backbone, truth, np.linspace(0, 1.01, 102))
    assert 0.4 < best <= 0.9
    assert scores[:, 0].max() == 1.0


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def simulate(count, seed, *, sureness=2.0):
    """Target, prototypes (N, 7) and an over-sure backbone's heads (N, 7), (N, 4), (N, 3).

    The prototypes know the site and little of the side; the backbone's heads share most of
    their noise, as the heads of one network do. `sureness` 1 would be nearly calibrated.
    """
    rng = np.random.default_rng(seed)
    target, site_of = rng.integers(7, size=count), np.array(SITE_OF)
    truth = np.eye(7)[target]
    site = np.eye(4)[site_of[target]]

    def noise(columns, scale):
        return rng.normal(0, scale, (count, columns))

    prototypes = softmax((3 * site + noise(4, 1))[:, site_of] + 0.3 * truth + noise(7, 0.7))
    shared = noise(7, 1)
    flat = softmax(sureness * (2.2 * truth + 2 * site[:, site_of] + shared + noise(7, 0.6)))
    by_site = np.stack([shared[:, site_of == index].mean(axis=1) for index in range(4)], axis=1)
    sites = softmax(sureness * (2.5 * site + by_site + noise(4, 0.6)))
    second = np.stack(
        [
            2.2 * (truth[:, b] - truth[:, a]) + shared[:, b] - shared[:, a] + noise(1, 0.6)[:, 0]
            for a, b in FINE_PAIRS.values()
        ],
        axis=1,
    )
    second = 1 / (1 + np.exp(-sureness * second))
    return target, prototypes.round(6), flat.round(6), sites.round(6), second.round(6)


def opinions_of(prototypes, flat, sites, second):
    return {
        "flat": split_classes(flat),
        "heads": (sites, second),
        "prototypes": split_classes(prototypes),
    }


classes = arrays(float, (5, 7), elements=st.floats(0.01, 1)).map(
    lambda a: a / a.sum(axis=1, keepdims=True)
)


@given(classes)
def test_splitting_classes_and_joining_them_changes_next_to_nothing(probs):
    np.testing.assert_allclose(join_classes(*split_classes(probs)), probs, atol=1e-5)


def test_a_site_without_probability_has_no_opinion_on_its_side():
    _, second = split_classes(np.array([[0.9, 0.1, 0, 0, 0, 0, 0]]))
    np.testing.assert_allclose(second, [[0.1, 0.5, 0.5]], atol=1e-5)


@given(classes, sites, answers)
def test_fused_heads_are_consistent_and_agreeing_heads_stay_as_they_are(flat, by_site, second):
    product = join_classes(by_site, second)
    fused = fuse_heads(flat, by_site, second)
    np.testing.assert_allclose(fused.sum(axis=1), 1)
    np.testing.assert_allclose(join_classes(*split_classes(fused)), fused, atol=1e-5)
    # The floor lifts probabilities of zero by a millionth.
    np.testing.assert_allclose(fuse_heads(flat, by_site, second, 1.0), flat, atol=1e-5)
    np.testing.assert_allclose(fuse_heads(flat, by_site, second, 0.0), product, atol=1e-5)
    np.testing.assert_allclose(fuse_heads(product, by_site, second), product, atol=1e-5)


def test_fusing_by_hand():
    # Nose left against throat: sqrt(0.8 * 0.2) equals sqrt(0.2 * 0.8).
    flat = np.array([[0, 0.8, 0, 0, 0, 0, 0.2]])
    fused = fuse_heads(flat, np.array([[0.2, 0, 0, 0.8]]), np.array([[1.0, 0.5, 0.5]]))
    np.testing.assert_allclose(fused[0, [1, 6]], [0.5, 0.5], atol=1e-4)


@given(classes, classes, st.floats(0, 3), st.floats(0, 3))
def test_the_order_of_experts_does_not_matter(a, b, first, second):
    np.testing.assert_allclose(
        product_of_experts([a, b], [first, second]),
        product_of_experts([b, a], [second, first]),
        atol=1e-12,
    )


def test_one_expert_is_temperature_scaling():
    rng = np.random.default_rng(0)
    target = np.arange(200) % 7
    embeddings = np.eye(7)[target] + 0.6 * rng.normal(size=(200, 7))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    stack = np.repeat(np.eye(7)[None], 200, axis=0)
    temperature = fit_temperature(embeddings, stack, target)
    (weight,) = fit_product_of_experts([softmax(np.round(embeddings, 6))], target, prior=1e-9)
    assert 1 / weight == pytest.approx(temperature, rel=1e-3)


def test_fitted_weights_minimise_the_loss():
    target, prototypes, flat, *_ = simulate(120, seed=3)
    experts = [flat, prototypes]

    logs = [np.log(np.maximum(expert, FLOOR)) for expert in experts]
    spreads = np.array([np.std(table - table.mean(axis=1, keepdims=True)) for table in logs])

    def loss(weights):
        probs = product_of_experts(experts, weights)[np.arange(120), target]
        away = np.array(weights) * spreads - 0.5
        return 10 * np.sum(away**2) - np.log(probs).sum()

    without_gradient = minimize(loss, [1, 1], method="Nelder-Mead", options={"xatol": 1e-6}).x
    found = fit_product_of_experts(experts, target, prior=20)
    np.testing.assert_allclose(found, without_gradient, atol=1e-4)
    free = fit_product_of_experts(experts, target, prior=1e-6)
    assert np.abs(free - found).max() > 0.01  # so the prior is heard


def test_an_expert_that_guesses_is_ignored_and_one_that_lies_gets_no_negative_weight():
    target, _, flat, *_ = simulate(1000, seed=0)
    guess = softmax(np.random.default_rng(9).normal(0, 3, (1000, 7)))
    liar = np.roll(flat, 1, axis=1)
    weights = fit_product_of_experts([flat, guess, liar], target)
    assert weights[0] > 0.3
    assert weights[1] < 0.05
    assert weights[2] >= 0


def test_no_mistake_among_few_pictures_gives_a_finite_weight():
    sure = np.full((20, 7), 0.01 / 6)
    sure[np.arange(20), np.arange(20) % 7] = 0.99
    (weight,) = fit_product_of_experts([sure], np.arange(20) % 7)
    assert 0.5 <= weight < 3
    assert fit_product_of_experts([sure[:0], sure[:0]], np.empty(0, int)).tolist() == [0.5, 0.5]


def test_a_whispering_expert_is_turned_up_as_a_shouting_one_is_turned_down():
    target, _, flat, *_ = simulate(300, seed=3)
    whisper, shout = (product_of_experts([flat], [power]) for power in (0.05, 1.5))
    quiet, loud = (fit_product_of_experts([e], target) for e in (whisper, shout))
    probs = [product_of_experts([e], w) for e, w in ((whisper, quiet), (shout, loud))]
    np.testing.assert_allclose(probs[0], probs[1], atol=0.05)
    assert quiet > 10 * loud


def test_the_combiner_hears_the_prototypes_on_the_site_more_than_on_the_side():
    target, prototypes, *backbone = simulate(4000, seed=1)
    blind = prototypes.copy()  # they know the site, and guess the side
    for a, b in FINE_PAIRS.values():
        swap = np.random.default_rng(a).random(4000) < 0.5
        blind[np.ix_(swap, [a, b])] = blind[np.ix_(swap, [b, a])]
    combiner = fit_combiner(opinions_of(blind, *backbone), target)
    place = combiner.experts.index("prototypes")
    assert combiner.site_weights[place] > 0.5
    assert all(weights[place] < 0.2 for weights in combiner.side_weights)


def test_combined_probabilities_are_consistent_and_survive_json():
    target, *experts = simulate(100, seed=2)
    opinions = opinions_of(*experts)
    combiner = fit_combiner(opinions, target)
    probs = combine(opinions, combiner)
    np.testing.assert_allclose(probs.sum(axis=1), 1)
    read = Combiner(**json.loads(json.dumps(asdict(combiner))))
    np.testing.assert_array_equal(combine(opinions, read), probs)
    backwards = dict(reversed(opinions.items()))  # experts are found by name
    np.testing.assert_array_equal(combine(backwards, combiner), probs)


@pytest.mark.parametrize("seed", range(3))
def test_the_combiner_beats_the_rule_and_halves_its_calibration_error(seed):
    target, prototypes, flat, by_site, second = simulate(2600, seed)
    fold = np.where(np.arange(2600) < 1300, np.arange(2600) % 5, -1)
    dev, heldout = fold >= 0, fold < 0
    names = site_probs(prototypes)
    threshold, _ = sweep_threshold(
        names[dev], by_site[dev], target[dev], np.linspace(0, 1.01, 102).round(2)
    )
    rule = hybrid_probs(names, by_site, second, threshold)
    ours, _ = combine_out_of_fold(opinions_of(prototypes, flat, by_site, second), target, fold)
    for part in (dev, heldout):
        right = [(probs.argmax(axis=1) == target)[part].mean() for probs in (rule, ours)]
        errors = [expected_calibration_error(probs[part], target[part]) for probs in (rule, ours)]
        assert right[1] > right[0] + 0.01
        assert errors[1] < errors[0] / 2


def test_labels_outside_development_change_no_fitted_number():
    target, *experts = simulate(200, seed=4)
    opinions = opinions_of(*experts)
    fold = np.where(np.arange(200) < 120, np.arange(200) % 5, -1)
    probs, combiner = combine_out_of_fold(opinions, target, fold)
    for other in (np.random.default_rng(0).permutation(target), np.full(200, -1)):
        changed = np.where(fold < 0, other, target)
        again, same = combine_out_of_fold(opinions, changed, fold)
        assert same == combiner
        np.testing.assert_array_equal(again, probs)


def test_a_canary_label_does_not_reach_its_own_fold():
    target, *experts = simulate(100, seed=5)
    opinions, fold = opinions_of(*experts), np.arange(100) % 5
    probs, combiner = combine_out_of_fold(opinions, target, fold)
    wrong = target.copy()
    wrong[7] = (wrong[7] + 2) % 7
    again, other = combine_out_of_fold(opinions, wrong, fold)
    np.testing.assert_array_equal(again[fold == fold[7]], probs[fold == fold[7]])
    assert not np.array_equal(again[fold != fold[7]], probs[fold != fold[7]])
    assert other != combiner


def test_one_fold_predicts_as_a_combiner_fitted_without_it():
    target, *experts = simulate(100, seed=6)
    opinions, fold = opinions_of(*experts), np.arange(100) % 4 - 1
    probs, everyone = combine_out_of_fold(opinions, target, fold)

    def rows(chosen):
        return {name: (a[chosen], b[chosen]) for name, (a, b) in opinions.items()}

    kept = fold >= 1
    np.testing.assert_array_equal(
        probs[fold == 0], combine(rows(fold == 0), fit_combiner(rows(kept), target[kept]))
    )
    np.testing.assert_array_equal(probs[fold == -1], combine(rows(fold == -1), everyone))


HALF = np.full((2, 7), 1 / 7)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: product_of_experts([HALF], [1, 1]), "expected 1 numbers >= 0"),
        (lambda: product_of_experts([HALF], [-1]), "numbers >= 0"),
        (lambda: product_of_experts([HALF, HALF[:, :4]], [1, 1]), "same pictures"),
        (lambda: product_of_experts([], []), "at least one"),
        (lambda: product_of_experts([HALF * 50], [1]), "softmax"),
        (lambda: product_of_experts([HALF * np.nan], [1]), "softmax"),
        (lambda: fit_product_of_experts([HALF], np.array([0, -1])), "without a label"),
        (lambda: fit_product_of_experts([HALF], np.array([0])), "one index a row, 2"),
        (lambda: fit_product_of_experts([HALF], np.array([0, 1]), prior=0), "prior"),
        (lambda: fit_combiner({"a": split_classes(HALF)}, np.array([0, -1])), "without a label"),
        (
            lambda: combine(
                {"a": split_classes(HALF)}, Combiner(("a", "b"), (1, 1), ((1, 1),) * 3)
            ),
            "no opinion of b",
        ),
        (
            lambda: combine_out_of_fold(
                {"a": split_classes(HALF)}, np.array([0, 1]), np.array([0, -1])
            ),
            "at least 2 folds",
        ),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
