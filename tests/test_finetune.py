import dataclasses

import numpy as np
import pytest
import torch

from entrep import finetune, heads, training
from entrep.config import load_config
from entrep.finetune import TrainingOptions
from entrep.network import build_network, predict_logits

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


def test_training_takes_its_options_from_the_configuration():
    config = load_config("demo", epochs=7, mix_share=0.5)
    options = finetune.options_of(config, patience=0)
    assert (options.epochs, options.mix_share, options.patience) == (7, 0.5, 0)
    assert options.questions == heads.QUESTIONS


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
    train_network = finetune.train_network
    monkeypatch.setattr(
        finetune,
        "train_network",
        lambda *a, **k: trained.append(k["name"]) or train_network(*a, **k),
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
    networks = [build_network("demo-dino", 56) for _ in range(2)]
    probs = finetune.predict_all(networks, prepared, fold, flip_tta=False)
    logits = [predict_logits(n, prepared, flip_tta=False) for n in networks]
    alone, together = heads.to_probs(logits[1]), heads.to_probs((logits[0] + logits[1]) / 2)
    np.testing.assert_allclose(probs[fold == 1], alone[fold == 1], atol=1e-6)
    np.testing.assert_allclose(probs[fold < 0], together[fold < 0], atol=1e-6)


@pytest.mark.parametrize("batches", [1, 4, 5])
def test_a_killed_training_goes_on_to_the_same_weights(study, tmp_path, monkeypatch, batches):
    prepared, target, fold, sha256 = study
    options = dataclasses.replace(OPTIONS, epochs=4, patience=0)
    monkeypatch.setattr(training, "KEEP_EVERY_S", 0)

    def run(folder):
        networks, history = finetune.cross_validate(
            folder, prepared, target, fold, sha256, options=options, device=CPU, seed=0
        )
        return [network.state_dict() for network in networks], history

    expected, history = run(tmp_path / "whole")
    loss, calls = training.multi_task_loss, []

    def kill(*arguments, **options):
        calls.append(1)
        if len(calls) == 3 * batches:  # somewhere in an epoch of the first fold
            raise KeyboardInterrupt
        return loss(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "multi_task_loss", kill)
        run(tmp_path / "killed")
    found, history_again = run(tmp_path / "killed")
    for one, other in zip(expected, found, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    np.testing.assert_allclose(history, history_again, atol=1e-6)  # a table holds 6 decimals
    assert not list((tmp_path / "killed").glob("*.pt"))


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


def test_each_fold_may_have_several_members_who_vote(study, tmp_path):
    prepared, target, fold, sha256 = study
    options = dataclasses.replace(OPTIONS, epochs=1)
    networks, history = finetune.cross_validate(
        tmp_path, prepared, target, fold, sha256, options=options, device=CPU, seed=0, members=2
    )
    assert len(networks) == 4
    assert history[["fold", "member"]].drop_duplicates().to_numpy().tolist() == [
        [0, 0], [1, 0], [0, 1], [1, 1],
    ]  # fmt: skip
    probs = finetune.predict_all(networks, prepared, fold)
    logits = [predict_logits(n, prepared) for n in networks]
    first, everyone = heads.to_probs((logits[0] + logits[2]) / 2), heads.to_probs(sum(logits) / 4)
    np.testing.assert_allclose(probs[fold == 0], first[fold == 0], atol=1e-6)
    np.testing.assert_allclose(probs[fold < 0], everyone[fold < 0], atol=1e-6)
