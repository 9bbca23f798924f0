"""The evaluation by repeated cross-validation: its keys, its honesty, its resumption."""

from __future__ import annotations

import json

import numpy as np
import pytest

from entrep import cli
from entrep.config import load_config
from entrep.evaluate import SCORES, evaluate, predict_frozen
from entrep.phantom import draw_dataset

SMALL = {"epochs": 1, "image_size": 56, "folds": 2, "threads": 1}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    draw_dataset(folder, size=0.03, seed=5, difficulty=0.2)
    return folder


def test_the_command_writes_three_methods_with_intervals_and_resumes(phantoms, tmp_path, capsys):
    file = tmp_path / "scores.json"
    command = ["evaluate", "--profile", "demo", "--data", str(phantoms), "--folds", "2"]
    command += ["--repeats", "2", "--json", str(file), "--out", str(tmp_path / "run")]
    command += ["-p", "epochs=1", "-p", "image_size=56", "-p", "threads=1"]
    assert cli.main(command) == 0
    found = json.loads(file.read_text())
    for method in ("frozen", "reference", "ours"):
        assert set(found[method]) == set(SCORES)
        for score in found[method].values():
            assert 0 <= score["low"] <= score["mean"] <= score["high"] <= 1
    assert found["repeats"] == 2 and found["pictures"] > 20
    trained = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("fold*.safetensors")}
    assert len(trained) == 6  # two folds: ours in both repeats, the reference's in the first
    assert cli.main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in trained} == trained
    again = json.loads(file.read_text())
    assert {name: again[name] for name in ("frozen", "reference", "ours")} == {
        name: found[name] for name in ("frozen", "reference", "ours")
    }
    assert "| ours |" in capsys.readouterr().out


def test_no_repeat_is_refused(phantoms, tmp_path):
    config = load_config("demo", data_path=phantoms, work_dir=tmp_path, **SMALL)
    with pytest.raises(ValueError, match="repeats: expected 1 or more, got 0"):
        evaluate(config, repeats=0)


def test_a_frozen_prediction_never_saw_its_own_label():
    rng = np.random.default_rng(0)
    target, fold = np.arange(60) % 3, np.arange(60) % 5
    embeddings = np.eye(3)[target] + rng.normal(0, 0.3, (60, 3))
    before = predict_frozen(embeddings, target, fold)
    assert (before == target).mean() > 0.9
    changed = target.copy()
    changed[fold == 2] = 0
    after = predict_frozen(embeddings, changed, fold)
    np.testing.assert_array_equal(after[fold == 2], before[fold == 2])


def test_shuffled_labels_give_chance():
    rng = np.random.default_rng(0)
    target = np.arange(210) % 7
    embeddings = np.eye(7)[target] + rng.normal(0, 0.3, (210, 7))
    shuffled = rng.permutation(target)
    predicted = predict_frozen(embeddings, shuffled, np.arange(210) % 5)
    assert (predicted == shuffled).mean() < 0.3
