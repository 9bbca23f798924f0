import numpy as np
import pytest
import torch
from torch.nn import functional

from entrep import heads
from entrep.heads import BINARY, CLASSES, QUESTIONS, SITES
from entrep.labels import CLASS_NAMES, MIRROR_CLASS, SITE_OF


def test_the_heads_lie_side_by_side():
    assert (CLASSES, SITES, BINARY) == (slice(0, 7), slice(7, 11), slice(11, 14))
    assert len(heads.PROB_COLUMNS) == 14


def test_mirroring_logits_twice_changes_nothing_and_moves_only_nose_and_ear():
    logits = torch.randn(5, 14)
    once = heads.mirror_logits(logits)
    torch.testing.assert_close(heads.mirror_logits(once), logits)
    assert torch.equal(once[:, list(MIRROR_CLASS)], logits[:, CLASSES])
    assert torch.equal(once[:, 4:11], logits[:, 4:11])  # cords, throat, sites
    assert torch.equal(once[:, 11:13], -logits[:, 11:13])  # nose and ear side
    assert torch.equal(once[:, 13], logits[:, 13])  # cords open or closed


def test_probabilities_of_each_question_sum_to_one():
    probs = heads.to_probs(np.random.default_rng(0).normal(size=(6, 14)).astype(np.float32))
    np.testing.assert_allclose(probs[:, CLASSES].sum(axis=1), 1)
    np.testing.assert_allclose(probs[:, SITES].sum(axis=1), 1)
    assert ((probs[:, BINARY] > 0) & (probs[:, BINARY] < 1)).all()


def test_class_weights_favour_rare_classes_and_keep_the_mean():
    counts = np.array([325, 290, 156, 133, 159, 147, 81])
    weights = heads.class_weights(np.repeat(np.arange(7), counts))
    assert (np.argsort(weights) == np.argsort(-counts)).all()
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1, abs=1e-5)
    assert heads.class_weights(np.array([0, 1]))[6] == 0


def loss_by_hand(row, index, *, gamma=0.0, questions=QUESTIONS):
    """Sum of one picture's cross-entropies, straight from their definitions."""
    total = 0.0
    for question, columns, answer in (
        ("classes", CLASSES, index),
        ("sites", SITES, SITE_OF[index]),
    ):
        if question in questions:
            prob = row[columns].softmax(0)[answer]
            total = total - (1 - prob) ** gamma * prob.log()
    site = CLASS_NAMES[index].split("-")[0]
    if site in questions and site != "throat":
        prob = row[BINARY][SITE_OF[index]].sigmoid()
        prob = prob if CLASS_NAMES[index] in ("nose-left", "ear-left", "vc-closed") else 1 - prob
        total = total - (1 - prob) ** gamma * prob.log()
    return total


def one_hot(classes):
    return functional.one_hot(classes, len(CLASS_NAMES)).float()


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("questions", [QUESTIONS, ("classes",), ("nose", "vc")])
def test_loss_equals_a_plain_loop(gamma, questions):
    torch.manual_seed(0)
    logits, classes = torch.randn(9, 14), torch.arange(9) % 7
    weight = torch.arange(1.0, 8.0)
    expected = sum(
        weight[index] * loss_by_hand(row, index, gamma=gamma, questions=questions)
        for row, index in zip(logits, classes.tolist(), strict=True)
    )
    found = heads.multi_task_loss(
        logits, one_hot(classes), weight, focal_gamma=gamma, questions=questions
    )
    torch.testing.assert_close(found, torch.as_tensor(expected))


def test_loss_of_a_mixed_picture_is_the_mean_of_its_parts():
    torch.manual_seed(0)
    logits = torch.randn(1, 14)
    first, second = one_hot(torch.tensor([0])), one_hot(torch.tensor([6]))  # a nose, a throat
    losses = [
        heads.multi_task_loss(logits, targets, torch.ones(7)).item()
        for targets in (first, second, 0.7 * first + 0.3 * second)
    ]
    assert losses[2] == pytest.approx(0.7 * losses[0] + 0.3 * losses[1], rel=1e-5)


def test_smoothing_makes_a_sure_answer_cost():
    logits = torch.zeros(1, 14)
    logits[0, 6], logits[0, SITES.stop - 1] = 20.0, 20.0  # throat, for sure
    targets = one_hot(torch.tensor([6]))
    assert heads.multi_task_loss(logits, targets, torch.ones(7)) < 1e-6
    assert heads.multi_task_loss(logits, targets, torch.ones(7), label_smoothing=0.1) > 1
