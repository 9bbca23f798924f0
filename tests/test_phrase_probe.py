import numpy as np
import pytest

from entrep.phrase_probe import TRUST, learn_phrases


@pytest.fixture
def study():
    """60 pictures of three phrases in two folds, 6 of them outside; the prior knows nothing."""
    rng = np.random.default_rng(0)
    phrase, fold = np.tile(np.arange(3), 20), np.repeat([0, 1], 30)
    fold[-6:] = -1
    rows = np.eye(3)[phrase] @ rng.normal(size=(3, 100)) + rng.normal(0, 0.3, (60, 100))
    return rows, np.eye(3)[phrase], fold, np.full((60, 3), 1 / 3)


def test_the_probe_reads_what_rows_tell(study):
    rows, described, fold, prior = study
    said = learn_phrases(rows, described, fold, prior)
    np.testing.assert_allclose(said.sum(axis=1), 1)
    assert (said.argmax(axis=1) == described.argmax(axis=1)).all()


def test_no_picture_is_answered_by_a_probe_that_learned_from_it(study):
    rows, described, fold, prior = study
    said = learn_phrases(rows, described, fold, prior)
    for own in (0, -1):
        canary = described.copy()
        canary[fold == own] = np.roll(canary[fold == own], 1, axis=1)
        found = learn_phrases(rows, canary, fold, prior)
        np.testing.assert_array_equal(found[fold == own], said[fold == own])
    canary = described.copy()
    canary[fold == 0] = np.roll(canary[fold == 0], 1, axis=1)
    assert np.abs(learn_phrases(rows, canary, fold, prior) - said)[fold == 1].max() > 0.1


def test_a_phrase_that_few_pictures_carry_stays_as_the_encoder_has_it(study):
    rows, described, fold, prior = study
    prior = np.tile([0.1, 0.1, 0.8], (60, 1))
    little = described.copy()
    little[:, 2] *= 1e-3 * TRUST  # hardly anybody was said to show the third
    said = learn_phrases(rows, little, fold, prior)
    first = described[:, 0] == 1
    assert said[first, 2].mean() > 0.2, "its prior still counts"
    taught = learn_phrases(rows, described, fold, prior)
    assert taught[first, 2].mean() < said[first, 2].mean() / 2


def test_without_two_phrases_to_tell_apart_the_prior_stays(study):
    rows, described, fold, prior = study
    nothing = learn_phrases(rows, np.zeros_like(described), fold, prior)
    np.testing.assert_array_equal(nothing, prior)
    only = described * [1, 0, 0]
    np.testing.assert_array_equal(learn_phrases(rows, only, fold, prior), prior)
