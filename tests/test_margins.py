"""Leads of answers, and the noise that they are held against."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from entrep import margins
from entrep.config import load_config
from entrep.embed import embed_pictures
from entrep.encoders import load_encoder


def test_a_class_leads_by_its_distance_to_the_best_other():
    probs = np.array([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4], [0.5, 0.4, 0.1]])
    np.testing.assert_allclose(margins.class_leads(probs, np.array([0, 2, 1])), [0.5, 0.1, -0.1])


def test_a_ranking_leads_by_what_its_first_has_over_the_rest():
    rows = [("q", 1, 0.5), ("q", 2, 0.4), ("q", 3, 0.1), ("alone", 1, 0.2), ("given", 1, 0.1)]
    rows += [("given", 2, 0.3)]  # one answer a picture: the first need not be the likest
    table = pd.DataFrame(rows, columns=["query", "rank", "similarity"])
    np.testing.assert_allclose(margins.ranking_leads(table), [0.1, np.inf, -0.2])


def test_the_table_counts_what_is_as_good_as_a_tie():
    leads = {1: np.array([0.5, 0.001]), 3: np.array([0.0, 1e-6, 2e-6])}
    table = margins.margin_table(leads, 1e-8)
    assert table["track"].tolist() == [1, 3] and table["queries"].tolist() == [2, 3]
    assert table["smallest_lead"].tolist() == ["0.001000", "0.000000"]
    assert table["within_step"].tolist() == [0, 2]
    assert table["lead_over_noise"].tolist() == ["100000", "0"]
    assert margins.margin_table(leads, None)["lead_over_noise"].tolist() == ["", ""]
    assert margins.margin_table({}, None).empty


@pytest.fixture
def drawn(tmp_path):
    folder, rng = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    paths = [f"{number}.png" for number in range(5)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(folder / path)
    return folder, paths


def test_noise_is_what_embedding_again_changes(drawn, tmp_path, capsys):
    folder, paths = drawn
    config = load_config(device="cpu")
    encoder = load_encoder("demo-clip", device="cpu")
    saved = embed_pictures(encoder, folder, paths, progress=False).matrix
    assert margins.measure_noise(config, folder, paths, saved) < 1e-6
    other = saved.copy()
    other[0] = -other[0]  # saved by somebody else
    assert margins.measure_noise(config, folder, paths, other) > 0.1
    assert margins.measure_noise(config, tmp_path, paths, saved) is None
    assert "pictures are not at hand" in capsys.readouterr().out
    unknown = load_config(device="cpu", prototype_encoder="biomedclip")
    assert margins.measure_noise(unknown, folder, paths, saved) is None
    assert "the weights of biomedclip are not here" in capsys.readouterr().out
