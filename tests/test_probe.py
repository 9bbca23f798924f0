import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn

from entrep import probe
from entrep.probe import PENALTY, fit_heads


def test_the_probe_is_scikit_learns_logistic_regression():
    rng = np.random.default_rng(0)
    target = np.tile(np.arange(7), 12)
    features = rng.normal(size=(84, 10)) * 3 + 1 + target[:, None] * rng.normal(size=10)
    head = nn.Linear(10, 14)
    fit_heads(head, features, target, np.ones(7))
    logits = head(torch.from_numpy(features).float()).detach().numpy()
    scaled = (features - features.mean(0)) / features.std(0)
    model = LogisticRegression(C=PENALTY, max_iter=1000).fit(scaled, target)
    expected = model.decision_function(scaled)
    np.testing.assert_allclose(logits[:, :7] - logits[:, :1], expected - expected[:, :1], atol=1e-3)
    np.testing.assert_array_equal(logits[:, :7].argmax(1), model.predict(scaled))


def test_the_probe_speaks_against_classes_that_it_never_saw():
    features = np.random.default_rng(0).normal(size=(20, 3))
    head = nn.Linear(3, 14)
    fit_heads(head, features, np.repeat([0, 1], 10), np.ones(7))
    logits = head(torch.from_numpy(features).float())
    assert (logits[:, 2:7] < -4).all()  # five classes
    assert (logits[:, 8:11] < -4).all()  # three sites
    assert (logits[:, 12:] == 0).all()  # ears and cords: nobody knows


def test_heads_are_fitted_on_one_thread_whatever_there_are(monkeypatch):
    threads, one_a_class = [], probe.one_a_class

    def watched(found):
        threads.extend(p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas")
        return one_a_class(found)

    monkeypatch.setattr(probe, "one_a_class", watched)
    with threadpool_limits(2, user_api="blas"):
        fit_heads(nn.Linear(3, 14), np.eye(3), np.arange(3), np.ones(7))
    assert set(threads) <= {1}  # empty where NumPy has macOS's own library
