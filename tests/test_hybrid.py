import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from entrep.hybrid import choose_site, hybrid_probs, predict_classes, sweep_threshold
from entrep.labels import CLASS_TO_INDEX

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
