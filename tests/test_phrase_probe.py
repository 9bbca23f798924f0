import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from entrep import phrase_probe
from entrep.phrase_probe import TRUST, fit_probe


@pytest.fixture
def study():
    """60 pictures of three phrases, and a prior that knows nothing."""
    rng = np.random.default_rng(0)
    phrase = np.tile(np.arange(3), 20)
    rows = np.eye(3)[phrase] @ rng.normal(size=(3, 100)) + rng.normal(0, 0.3, (60, 100))
    return rows, np.eye(3)[phrase], np.full((60, 3), 1 / 3)


def test_the_probe_reads_what_rows_tell(study):
    rows, described, prior = study
    said = fit_probe(rows[:30], described[:30]).correct(rows[30:], prior[30:])
    np.testing.assert_allclose(said.sum(axis=1), 1)
    assert (said.argmax(axis=1) == described[30:].argmax(axis=1)).all()


def test_two_phrases_are_told_apart_as_well(study):
    rows, described, _ = study
    some = described[:, 2] == 0
    said = fit_probe(rows[some], described[some, :2]).correct(rows[some], np.full((40, 2), 0.5))
    assert (said.argmax(axis=1) == described[some, :2].argmax(axis=1)).all()


def test_a_picture_teaches_each_of_its_phrases_by_its_share(study):
    rows, described, _ = study
    both = described.copy()
    both[described[:, 0] == 1] = [0.75, 0.25, 0]
    probe = fit_probe(rows, both)
    np.testing.assert_allclose(probe.taught, [15, 25, 20])
    free = np.ones((1, 3)) / 3
    said = probe.correct(rows[described[:, 0] == 1].mean(axis=0, keepdims=True), free)[0]
    assert said[0] > said[1] > 5 * said[2]


def test_a_phrase_that_few_pictures_carry_stays_as_the_encoder_has_it(study):
    rows, described, _ = study
    prior = np.tile([0.1, 0.1, 0.8], (60, 1))
    little = described.copy()
    little[:, 2] *= 1e-3 * TRUST  # hardly anybody was said to show the third
    first = described[:, 0] == 1
    said = fit_probe(rows, little).correct(rows[first], prior[first])
    assert said[:, 2].mean() > 0.2, "its prior still counts"
    taught = fit_probe(rows, described).correct(rows[first], prior[first])
    assert taught[:, 2].mean() < said[:, 2].mean() / 2


@pytest.mark.parametrize("known", [0, 1])
def test_without_two_phrases_to_tell_apart_the_prior_stays(study, known):
    rows, described, _ = study
    prior = np.random.default_rng(1).dirichlet(np.ones(3), 60)
    probe = fit_probe(rows, described * ([1, 0, 0] if known else 0))
    np.testing.assert_allclose(probe.correct(rows, prior), prior, atol=1e-5)


def test_a_probe_is_fitted_on_one_thread_whatever_there_are(study, monkeypatch):
    rows, described, _ = study
    threads, one_a_class = [], phrase_probe.one_a_class

    def watched(found):
        threads.extend(p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas")
        return one_a_class(found)

    monkeypatch.setattr(phrase_probe, "one_a_class", watched)
    with threadpool_limits(2, user_api="blas"):
        fit_probe(rows, described)
    assert set(threads) <= {1}  # empty where NumPy has macOS's own library
