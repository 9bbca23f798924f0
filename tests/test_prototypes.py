import numpy as np
import pytest

from entrep.labels import CLASS_NAMES, SITE_OF
from entrep.prototypes import (
    CLASS_PHRASES,
    class_probs,
    class_prompts,
    fit_temperature,
    join_prototypes,
    mean_directions,
    out_of_fold_prototypes,
    predict_all,
    prompt_directions,
    site_probs,
    sweep_picture_weight,
)


@pytest.fixture
def clusters():
    """Seven noisy, well separated clusters: embeddings (70, 7), class_index, fold."""
    rng = np.random.default_rng(0)
    class_index = np.repeat(np.arange(7), 10)
    embeddings = np.eye(7)[class_index] + 0.1 * rng.normal(size=(70, 7))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings.astype(np.float32), class_index, np.arange(70) % 5


def test_prompts_stand_in_the_official_order():
    prompts = class_prompts()
    assert len(prompts) == len(CLASS_NAMES)
    assert "right nasal" in prompts[0][0] and "throat" in prompts[6][0]


def test_each_class_s_direction_is_the_mean_of_its_own_prompts():
    def embed(texts):
        found = [[CLASS_PHRASES[name] in text for name in CLASS_NAMES] for text in texts]
        return np.hstack([np.array(found), np.arange(len(texts))[:, None] % 2 * 2 - 1]) / 2**0.5

    np.testing.assert_allclose(prompt_directions(embed), np.eye(7, 8))


def test_mean_direction_of_two_pictures_lies_between_them():
    means = mean_directions(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([2, 2]))
    np.testing.assert_allclose(means[2], [2**-0.5, 2**-0.5])
    assert not means[[0, 1, 3, 4, 5, 6]].any()


def test_weight_one_is_pictures_and_weight_zero_is_prompts():
    pictures, prompts = np.eye(7), np.roll(np.eye(7), 1, axis=1)
    np.testing.assert_allclose(join_prototypes(pictures, prompts, 1.0), pictures)
    np.testing.assert_allclose(join_prototypes(pictures, prompts, 0.0), prompts)
    np.testing.assert_allclose(join_prototypes(pictures, None, 0.0), pictures)


def test_a_class_without_pictures_gets_no_probability():
    prototypes = np.eye(7)
    prototypes[3] = 0
    probs = class_probs(np.eye(7), prototypes, 0.1)
    assert (probs[:, 3] == 0).all()
    np.testing.assert_allclose(probs.sum(axis=1), 1)


def test_site_probs_sum_the_classes_of_a_site():
    probs = np.array([[0.1, 0.2, 0.3, 0.05, 0.05, 0.1, 0.2]])
    np.testing.assert_allclose(site_probs(probs), [[0.3, 0.35, 0.15, 0.2]])


def test_out_of_fold_prototypes_do_not_see_their_own_fold(clusters):
    embeddings, class_index, fold = clusters
    before = out_of_fold_prototypes(embeddings, class_index, fold, None, 1.0)
    changed = embeddings.copy()
    changed[fold == 2] = np.roll(changed[fold == 2], 3, axis=1)
    after = out_of_fold_prototypes(changed, class_index, fold, None, 1.0)
    np.testing.assert_array_equal(before[fold == 2], after[fold == 2])
    assert not np.allclose(before[fold == 0], after[fold == 0])


def test_predictions_of_a_picture_do_not_depend_on_its_own_label(clusters):
    embeddings, class_index, fold = clusters
    fold = np.where(fold == 4, -1, fold)
    options = {"picture_weight": 1.0, "temperature": 0.1}
    before = predict_all(embeddings, class_index, fold, None, **options)
    wrong = np.where(fold == -1, (class_index + 1) % 7, class_index)
    np.testing.assert_array_equal(before, predict_all(embeddings, wrong, fold, None, **options))
    wrong = class_index.copy()
    wrong[0] = 5  # a canary in fold 0 changes only what other folds are told
    after = predict_all(embeddings, wrong, fold, None, **options)
    np.testing.assert_array_equal(before[fold == 0], after[fold == 0])
    assert not np.array_equal(before[fold == 1], after[fold == 1])


def test_sweep_finds_that_wrong_prompts_deserve_no_weight(clusters):
    embeddings, class_index, fold = clusters
    prompts = np.roll(np.eye(7), 1, axis=1)
    weights = np.linspace(0, 1, 11)
    best, scores = sweep_picture_weight(embeddings, class_index, fold, prompts, weights)
    assert best > 0.5
    assert scores[-1].tolist() == [1.0, 1.0]
    assert scores[0, 1] == 0.0


def test_temperature_minimises_the_loss_on_a_grid(clusters):
    embeddings, class_index, fold = clusters
    noisy = np.where(np.arange(70) % 4 == 0, (class_index + 1) % 7, class_index)
    stack = out_of_fold_prototypes(embeddings, class_index, fold, None, 1.0)
    found = fit_temperature(embeddings, stack, noisy)

    def loss(temperature: float) -> float:
        pairs = zip(embeddings, stack, strict=True)
        probs = np.array([class_probs(row[None], own, temperature)[0] for row, own in pairs])
        return -np.log(np.maximum(probs[np.arange(70), noisy], 1e-300)).mean()

    assert loss(found) <= min(loss(t) for t in np.geomspace(1e-3, 1, 60)) + 1e-6


def test_sites_follow_from_classes():
    assert SITE_OF == (0, 0, 1, 1, 2, 2, 3)
