import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from entrep import training
from entrep.labels import MIRROR_CLASS
from entrep.preprocess import as_batch, mirror
from entrep.training import TrainingOptions, train_network

OPTIONS = TrainingOptions(
    backbone="demo-dino",
    image_size=56,
    epochs=2,
    learning_rate=1e-3,
    layer_decay=0.8,
    weight_decay=0.05,
    train_batch_size=8,
    label_smoothing=0.05,
    patience=2,
    flip_swap=True,
)
CPU = torch.device("cpu")


def train(study, *, seed=0, validation=0, given=None, **changes):
    """Weights and history of a short training on `study`."""
    prepared, target, fold, _ = study
    options = dataclasses.replace(OPTIONS, **changes)
    network, history, whole = train_network(
        prepared,
        target,
        fold == validation,
        options=options,
        device=CPU,
        seed=seed,
        **(given or {}),
    )
    assert whole
    return network.state_dict(), history


def differs(one, other):
    """Largest difference between two states' weights."""
    return max((one[name] - other[name]).abs().max().item() for name in one)


def test_the_same_seed_trains_the_same_weights_and_another_does_not(study):
    runs = [train(study, seed=seed)[0] for seed in (0, 0, 1)]
    assert differs(runs[0], runs[1]) == 0
    assert differs(runs[0], runs[2]) > 0


def test_training_leaves_the_global_random_state_alone(study):
    prepared, target, fold, _ = study
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    options = dataclasses.replace(OPTIONS, epochs=1)
    train_network(prepared, target, fold == 0, options=options, device=CPU, seed=0)
    assert torch.equal(torch.rand(1), expected)


def test_a_batch_in_parts_trains_as_in_one_go(study):
    whole, history = train(study)
    parts, again = train(study, accumulate=3)
    assert 0 < differs(whole, parts) < 1e-3
    np.testing.assert_allclose(history["train_loss"], again["train_loss"], rtol=1e-4)


def test_two_processes_train_as_one_does(study):
    alone, history = train(study)
    together, again = train(study, processes=2)
    np.testing.assert_allclose(history["train_loss"], again["train_loss"], rtol=1e-3)
    np.testing.assert_allclose(history["validation_loss"], again["validation_loss"], rtol=1e-3)
    assert differs(alone, together) < 2e-3


def test_a_failing_process_is_told(study):
    with pytest.raises(RuntimeError, match="one of 2 training processes failed"):
        train(study, processes=2, learning_rate=1e30, epochs=6)


@pytest.mark.parametrize(
    "change",
    [
        {"linear_probe": False},
        {"ema": False},
        {"focal_gamma": 2.0},
        {"class_balance": "sampler"},
        {"augmentation": 0.0},
        {"mix_share": 1.0},
        {"drop_path": 0.3},
        {"clip_norm": 0.01},
        {"flip_swap": False},
        {"mirror_pairs": True},
        {"lora_rank": 2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_option_changes_the_training(study, change):
    usual, _ = train(study, epochs=1)
    other, history = train(study, epochs=1, **change)
    assert set(other) == set(usual)  # a plain network comes out of every one
    assert differs(usual, other) > 1e-6
    assert np.isfinite(history["train_loss"]).all()


def test_gradient_checkpointing_computes_the_same(study):
    usual, _ = train(study, epochs=1)
    frugal, _ = train(study, epochs=1, gradient_checkpointing=True)
    assert differs(usual, frugal) < 1e-5


def test_a_single_question_is_learned_from_the_pictures_it_can_be_asked_of(study):
    prepared, target, fold, sha256 = study
    broken = prepared.copy()
    broken[~np.isin(target, (2, 3))] = 0  # nobody looks at these
    ear = train(study, questions=("ear",))[0]
    again = train((broken, target, fold, sha256), questions=("ear",))[0]
    assert differs(ear, again) == 0


def test_a_mirrored_training_picture_carries_the_mirrored_label(study):
    prepared, target, fold, _ = study
    options = dataclasses.replace(OPTIONS, augmentation=0.0, train_batch_size=28)
    state = training._Training(prepared, target, fold > 5, options, CPU, 0, "fold")
    plan = torch.Generator().manual_seed(0)
    [(views, answers)] = training._parts(state, torch.arange(28), plan)
    turned = 0
    for view, answer, picture, old in zip(views, answers, as_batch(prepared), target, strict=True):
        mirrored = torch.equal(view, mirror(picture))
        assert mirrored != torch.equal(view, picture)
        assert answer[MIRROR_CLASS[old] if mirrored else old] == 1
        turned += mirrored
    assert 5 < turned < 23


def test_trained_in_pairs_mirrored_pictures_teach_the_same(study):
    prepared, target, fold, sha256 = study
    mirrored = np.ascontiguousarray(prepared[:, :, ::-1])
    turned = (mirrored, np.array(MIRROR_CLASS)[target], fold, sha256)
    plain = {"augmentation": 0.0, "linear_probe": False}
    own, other = (train(s, mirror_pairs=True, **plain)[0] for s in (study, turned))
    apart = [train(s, **plain, flip_swap=False)[0] for s in (study, turned)]
    # Without pairs it matters which of the two was seen; with them only last bits differ.
    assert differs(own, other) < differs(*apart) / 10


def test_the_sampler_draws_rare_classes_as_often(study):
    prepared, _, fold, _ = study
    target = np.array([0] * 20 + [6] * 4 + [1] * 4)
    options = dataclasses.replace(OPTIONS, class_balance="sampler")
    state = training._Training(prepared, target, fold > 5, options, CPU, 0, "fold")
    plan = torch.Generator().manual_seed(0)
    drawn = np.concatenate([target[training._order(state, plan)] for _ in range(50)])
    shares = np.bincount(drawn, minlength=7) / len(drawn)
    np.testing.assert_allclose(shares[[0, 1, 6]], 1 / 3, atol=0.05)


def test_a_loss_that_is_not_finite_stops_training(study):
    prepared, target, fold, _ = study
    options = dataclasses.replace(OPTIONS, learning_rate=1e30, epochs=6)
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        train_network(prepared, target, fold == 0, options=options, device=CPU, seed=0)


KILLED = """
import sys
import numpy as np, torch
from pathlib import Path
from entrep import training
sys.path.insert(0, sys.argv[2])
import test_training
training.KEEP_EVERY_S = 0
torch.set_num_threads(int(sys.argv[3]))
job = np.load(sys.argv[1] + "/study.npz")
options = test_training.dataclasses.replace(test_training.OPTIONS, epochs=400, patience=0)
training.train_network(job["prepared"], job["target"], job["validation"], options=options,
                       device=test_training.CPU, seed=0, kept=Path(sys.argv[1], "kept.pt"), key="k")
"""


@pytest.mark.skipif(os.name == "nt", reason="runs where SIGKILL is: not on Windows")
def test_killed_with_sigkill_a_training_goes_on_to_the_same_weights(study, tmp_path):
    prepared, target, fold, _ = study
    np.savez(tmp_path / "study.npz", prepared=prepared, target=target, validation=fold == 0)
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent)]
    command.append(str(torch.get_num_threads()))  # another number trains other last bits
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    kept, patience = tmp_path / "kept.pt", time.monotonic() + 120
    while not kept.is_file() and process.poll() is None and time.monotonic() < patience:
        time.sleep(0.02)
    time.sleep(0.3)  # into the middle of some epoch
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = len(torch.load(kept, weights_only=True)["history"])
    assert 0 < done < 400
    # The rest need not be trained to see whether it is the same: a few epochs more tell.
    found, uninterrupted = (
        training._Training(prepared, target, fold == 0, _long(), CPU, 0, "fold") for _ in range(2)
    )
    found.load(kept, "k")
    uninterrupted.probe()
    for epoch in range(done + 2):
        training._train_epoch(uninterrupted, epoch)
        if epoch >= done:
            training._train_epoch(found, epoch)
    assert differs(found.network.state_dict(), uninterrupted.network.state_dict()) == 0
    averages = (t.average.module.state_dict() for t in (found, uninterrupted))
    assert differs(*averages) == 0


def _long():
    return dataclasses.replace(OPTIONS, epochs=400, patience=0)


def test_a_kept_state_of_another_training_is_passed_over(study, tmp_path):
    prepared, target, fold, _ = study
    kept = tmp_path / "fold0.pt"
    state = training._Training(prepared, target, fold == 0, OPTIONS, CPU, 5, "fold")
    state.save(kept, "of another seed")
    fresh, _ = train(study)
    found, _ = train(study, given={"kept": kept, "key": "mine"})
    assert differs(fresh, found) == 0
    kept.write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"fold0\.pt is damaged"):
        train(study, given={"kept": kept, "key": "mine"})


def test_a_network_with_one_answer_for_everything_stops_training():
    classes = np.arange(7)
    same, varied = np.zeros((7, 14), np.float32), np.eye(7, 14, dtype=np.float32)
    training.check_collapse(same, classes, epoch=2, epochs=10, name="fold 0")  # too early to say
    training.check_collapse(varied, classes, epoch=9, epochs=10, name="fold 0")
    with pytest.raises(RuntimeError, match="every picture the same answer; lower learning_rate"):
        training.check_collapse(same, classes, epoch=9, epochs=10, name="fold 0")
