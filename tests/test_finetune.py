import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from entrep import finetune
from entrep.finetune import BINARY, CLASSES, SITES, TrainingOptions
from entrep.labels import CLASS_NAMES, CLASS_TO_INDEX, MIRROR_CLASS, SITE_OF
from entrep.preprocess import as_batch, mirror

OPTIONS = TrainingOptions(
    backbone="demo-dino",
    image_size=56,
    epochs=2,
    learning_rate=1e-3,
    layer_decay=0.8,
    weight_decay=0.05,
    batch_size=8,
    label_smoothing=0.05,
    patience=2,
    flip_swap=True,
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def study():
    """28 random pictures, four a class: prepared, class_index, fold, sha256."""
    rng = np.random.default_rng(0)
    prepared = rng.integers(0, 255, (28, 56, 56, 3), np.uint8)
    fold = np.repeat([0, 1, -1, 0], 7)
    return prepared, np.tile(np.arange(7), 4), fold, [f"{i:064x}" for i in range(28)]


class SideStub(nn.Module):
    """Says "right" in proportion to the light in the left half of the picture."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        half = batch.shape[-1] // 2
        left = batch[..., :half].float().mean((1, 2, 3)) - batch[..., half:].float().mean((1, 2, 3))
        logits = torch.zeros(len(batch), BINARY.stop)
        logits[:, CLASS_TO_INDEX["nose-right"]] = left
        logits[:, CLASS_TO_INDEX["nose-left"]] = -left
        logits[:, BINARY.start] = -left
        return logits


def test_the_heads_lie_side_by_side():
    assert (CLASSES, SITES, BINARY) == (slice(0, 7), slice(7, 11), slice(11, 14))
    assert len(finetune.PROB_COLUMNS) == 14


def test_mirroring_logits_twice_changes_nothing_and_moves_only_nose_and_ear():
    logits = torch.randn(5, 14)
    once = finetune.mirror_logits(logits)
    torch.testing.assert_close(finetune.mirror_logits(once), logits)
    assert torch.equal(once[:, list(MIRROR_CLASS)], logits[:, CLASSES])
    assert torch.equal(once[:, 4:11], logits[:, 4:11])  # cords, throat, sites
    assert torch.equal(once[:, 11:13], -logits[:, 11:13])  # nose and ear side
    assert torch.equal(once[:, 13], logits[:, 13])  # cords open or closed


def test_a_mirrored_training_picture_carries_the_mirrored_label(study):
    torch.manual_seed(0)
    batch, target = as_batch(study[0]), torch.from_numpy(study[1])
    pictures, classes = finetune.mirror_half(batch, target)
    turned = [
        torch.equal(picture, mirror(old)) for picture, old in zip(pictures, batch, strict=True)
    ]
    assert 5 < sum(turned) < 23
    for new, old, flipped in zip(classes, target, turned, strict=True):
        assert new == (MIRROR_CLASS[old] if flipped else old)


def test_flip_tta_of_a_mirrored_picture_is_the_swapped_answer(study):
    prepared = study[0]
    mirrored = mirror(as_batch(prepared)).permute(0, 2, 3, 1).contiguous().numpy()
    ours = finetune.predict_logits(SideStub(), prepared, flip_tta=True)
    theirs = finetune.predict_logits(SideStub(), mirrored, flip_tta=True)
    swapped = finetune.mirror_logits(torch.from_numpy(theirs)).numpy()
    np.testing.assert_allclose(ours, swapped, atol=1e-4)
    assert np.abs(ours[:, 0]).max() > 0.5  # without the swap the two views would cancel out


def test_batch_size_does_not_change_predictions(study):
    torch.manual_seed(0)
    network = finetune.build_network("demo-dino", 56)
    one = finetune.predict_logits(network, study[0], batch_size=1)
    many = finetune.predict_logits(network, study[0], batch_size=32)
    np.testing.assert_allclose(one, many, atol=1e-5)


def test_probabilities_of_each_question_sum_to_one():
    probs = finetune.to_probs(np.random.default_rng(0).normal(size=(6, 14)).astype(np.float32))
    np.testing.assert_allclose(probs[:, CLASSES].sum(axis=1), 1)
    np.testing.assert_allclose(probs[:, SITES].sum(axis=1), 1)
    assert ((probs[:, BINARY] > 0) & (probs[:, BINARY] < 1)).all()


def test_class_weights_favour_rare_classes_and_keep_the_mean():
    counts = np.array([325, 290, 156, 133, 159, 147, 81])
    weights = finetune.class_weights(np.repeat(np.arange(7), counts))
    assert (np.argsort(weights) == np.argsort(-counts)).all()
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1, abs=1e-5)
    assert finetune.class_weights(np.array([0, 1]))[6] == 0


def test_loss_equals_a_plain_loop():
    torch.manual_seed(0)
    logits, classes = torch.randn(9, 14), torch.arange(9) % 7
    weight = torch.arange(1.0, 8.0)
    total = 0.0
    for row, index in zip(logits, classes, strict=True):
        loss = -row[CLASSES].log_softmax(0)[index] - row[SITES].log_softmax(0)[SITE_OF[index]]
        if CLASS_NAMES[index] != "throat":
            answer = row[BINARY][SITE_OF[index]].sigmoid()
            second = CLASS_NAMES[index] in ("nose-left", "ear-left", "vc-closed")
            loss = loss - torch.log(answer if second else 1 - answer)
        total += weight[index] * loss
    expected = total / weight[classes].sum()
    torch.testing.assert_close(finetune.multi_task_loss(logits, classes, weight), expected)


def test_the_same_seed_trains_the_same_weights_and_another_does_not(study):
    prepared, target, fold, _ = study
    rows = fold >= 0
    arguments = (prepared[rows], target[rows], fold[rows] == 0)
    runs = [
        finetune.train_fold(*arguments, options=OPTIONS, device=CPU, seed=seed)[0].state_dict()
        for seed in (0, 0, 1)
    ]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not torch.equal(runs[0]["head.weight"], runs[2]["head.weight"])


def test_training_leaves_the_global_random_state_alone(study):
    prepared, target, fold, _ = study
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    options = dataclasses.replace(OPTIONS, epochs=1)
    finetune.train_fold(prepared, target, fold == 0, options=options, device=CPU, seed=0)
    assert torch.equal(torch.rand(1), expected)


def test_finished_folds_are_loaded_and_changed_ones_trained_again(study, tmp_path, monkeypatch):
    prepared, target, fold, sha256 = study

    def run(options=OPTIONS, seed=0):
        return finetune.cross_validate(
            tmp_path, prepared, target, fold, sha256, options=options, device=CPU, seed=seed
        )

    networks, history = run()
    first = finetune.predict_all(networks, prepared, fold)
    assert set(history["fold"]) == {0, 1}
    assert (history.groupby("fold")["best"].sum() == 1).all()

    trained = []
    train_fold = finetune.train_fold
    monkeypatch.setattr(
        finetune, "train_fold", lambda *a, **k: trained.append(k["name"]) or train_fold(*a, **k)
    )
    again, history_again = run()
    assert trained == []
    np.testing.assert_array_equal(first, finetune.predict_all(again, prepared, fold))
    assert history_again["validation_loss"].tolist() == pytest.approx(
        history["validation_loss"].tolist(), abs=1e-6
    )

    checkpoint = tmp_path / "fold1.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])  # a cut-off copy
    run()
    assert trained == ["fold 1"]
    run(dataclasses.replace(OPTIONS, epochs=1))
    assert trained == ["fold 1", "fold 0", "fold 1"]


def test_a_picture_is_judged_only_by_networks_that_never_saw_it(study):
    prepared, _, fold, _ = study
    torch.manual_seed(0)
    networks = [finetune.build_network("demo-dino", 56) for _ in range(2)]
    probs = finetune.predict_all(networks, prepared, fold, flip_tta=False)
    logits = [finetune.predict_logits(n, prepared, flip_tta=False) for n in networks]
    alone = [finetune.to_probs(table) for table in logits]
    np.testing.assert_allclose(probs[fold == 1], alone[1][fold == 1], atol=1e-6)
    np.testing.assert_allclose(probs[fold < 0], (alone[0] + alone[1])[fold < 0] / 2, atol=1e-6)


def test_a_foreign_checkpoint_is_refused(tmp_path):
    path = tmp_path / "fold0.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a whole checkpoint of this kit"):
        finetune.load_checkpoint(path, CPU)


def test_a_loss_that_is_not_finite_stops_training(study):
    prepared, target, fold, _ = study
    options = dataclasses.replace(OPTIONS, learning_rate=1e30, epochs=6)
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        finetune.train_fold(prepared, target, fold == 0, options=options, device=CPU, seed=0)


@pytest.mark.parametrize("batches", [1, 4, 5])
def test_a_killed_training_goes_on_to_the_same_weights(study, tmp_path, monkeypatch, batches):
    prepared, target, fold, sha256 = study
    options = dataclasses.replace(OPTIONS, epochs=4, patience=0)
    monkeypatch.setattr(finetune, "KEEP_EVERY_S", 0)

    def run(folder):
        networks, history = finetune.cross_validate(
            folder, prepared, target, fold, sha256, options=options, device=CPU, seed=0
        )
        return [network.state_dict() for network in networks], history

    expected, history = run(tmp_path / "whole")
    loss, calls = finetune.multi_task_loss, []

    def kill(*arguments, **options):
        calls.append(1)
        if len(calls) == 3 * batches:  # somewhere in an epoch of the first fold
            raise KeyboardInterrupt
        return loss(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finetune, "multi_task_loss", kill)
        run(tmp_path / "killed")
    found, history_again = run(tmp_path / "killed")
    for one, other in zip(expected, found, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    np.testing.assert_allclose(history, history_again, atol=1e-6)  # a table holds 6 decimals
    assert not list((tmp_path / "killed").glob("*.pt"))


def test_a_kept_state_of_another_training_is_passed_over(study, tmp_path):
    prepared, target, fold, _ = study
    arguments = (prepared, target, fold == 0)
    state = tmp_path / "fold0.pt"
    training = finetune._Training(finetune.build_network("demo-dino", 56), OPTIONS, target)
    training.save(state, "of another seed")
    given = {"options": OPTIONS, "device": CPU, "seed": 0}
    fresh = finetune.train_fold(*arguments, **given)[0].state_dict()
    found = finetune.train_fold(*arguments, **given, kept=state, key="mine")[0].state_dict()
    assert all(torch.equal(fresh[name], found[name]) for name in fresh)
    state.write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"fold0\.pt is damaged"):
        finetune.train_fold(*arguments, **given, kept=state, key="mine")


def test_when_time_is_up_training_ends_cleanly_and_goes_on_next_time(study, tmp_path, capsys):
    prepared, target, fold, sha256 = study
    options = dataclasses.replace(OPTIONS, epochs=3, patience=0)
    arguments = (prepared, target, fold, sha256)
    given = {"options": options, "device": CPU, "seed": 0}
    whole, _ = finetune.cross_validate(tmp_path / "whole", *arguments, **given)
    folder = tmp_path / "short"
    networks, history = finetune.cross_validate(folder, *arguments, **given, budget_s=0)
    assert history.groupby("fold").size().tolist() == [1, 1]
    assert "fold 0: time is up after 1 of 3 epochs" in capsys.readouterr().out
    assert finetune.predict_all(networks, prepared, fold).shape == (28, 14)
    assert not list(folder.glob("*.safetensors"))  # an unfinished fold is not taken for a whole one
    networks, _ = finetune.cross_validate(folder, *arguments, **given)
    for one, other in zip(whole, networks, strict=True):
        one, other = one.state_dict(), other.state_dict()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_network_with_one_answer_for_everything_stops_training():
    classes = np.arange(7)
    same, varied = np.zeros((7, 14), np.float32), np.eye(7, 14, dtype=np.float32)
    finetune._check_collapse(same, classes, epoch=2, epochs=10, name="fold 0")  # too early to say
    finetune._check_collapse(varied, classes, epoch=9, epochs=10, name="fold 0")
    with pytest.raises(RuntimeError, match="every picture the same answer; lower learning_rate"):
        finetune._check_collapse(same, classes, epoch=9, epochs=10, name="fold 0")


@pytest.mark.gpu
def test_a_gpu_predicts_what_the_cpu_does(study):
    torch.manual_seed(0)
    network = finetune.build_network("demo-dino", 56)
    here = finetune.to_probs(finetune.predict_logits(network, study[0]))
    there = finetune.to_probs(finetune.predict_logits(network.to("cuda"), study[0]))
    np.testing.assert_allclose(here, there, atol=1e-3)
