"""The warm start on drawn pictures: made once, kept, and where a training begins."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from entrep import finetune, training
from entrep.config import load_config
from entrep.finetune import fold_key
from entrep.heads import SITES
from entrep.labels import CLASS_NAMES, SITE_OF
from entrep.network import load_checkpoint, predict_logits
from entrep.phantom import draw_pictures
from entrep.preprocess import prepare_image
from entrep.warmstart import DIFFICULTY, draw_prepared, warm_start

CPU = torch.device("cpu")
OPTIONS = finetune.options_of(load_config("demo", image_size=56, train_batch_size=32))


def test_drawn_pictures_are_those_of_pretraining_and_do_not_depend_on_workers():
    pictures, classes = draw_prepared(3, 64, seed=4, workers=1)
    for row, (pixels, name, _, _) in enumerate(draw_pictures(3, seed=4, difficulty=DIFFICULTY)):
        image = prepare_image(Image.fromarray(pixels), 64)
        np.testing.assert_array_equal(pictures[row], image)
        assert CLASS_NAMES[classes[row]] == name
    again, _ = draw_prepared(3, 64, seed=4, workers=2)
    np.testing.assert_array_equal(pictures, again)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("warm")
    return warm_start(folder, 140, options=OPTIONS, device=CPU, seed=0, workers=1)


def test_a_warm_start_is_kept_and_another_recipe_makes_another(start, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("drawn again")

    monkeypatch.setattr("entrep.warmstart.draw_prepared", refuse)
    given = {"options": OPTIONS, "device": CPU, "seed": 0}
    assert warm_start(start.parent, 140, **given) == start
    longer = dataclasses.replace(OPTIONS, epochs=99)  # of the training to come
    assert warm_start(start.parent, 140, **{**given, "options": longer}) == start
    with pytest.raises(AssertionError, match="drawn again"):
        warm_start(start.parent, 140, **{**given, "seed": 1})
    assert not list(start.parent.glob("*.pt"))


def test_training_begins_with_its_weights_heads_and_all(start, study):
    prepared, target, fold, sha256 = study
    options = dataclasses.replace(OPTIONS, start=str(start))
    state = training._Training(prepared, target, fold == 0, options, CPU, 0, "fold")
    state.probe()  # leaves fitted heads alone
    for name, value in load_file(start).items():
        assert torch.equal(state.network.state_dict()[name], value)
    assert fold_key(options, sha256, 0, 0) != fold_key(OPTIONS, sha256, 0, 0)


def test_it_has_learned_to_tell_sites_apart(start):
    pictures, classes = draw_prepared(40, 56, seed=77, workers=1)
    logits = predict_logits(load_checkpoint(start, CPU), pictures)
    right = logits[:, SITES].argmax(1) == np.array(SITE_OF)[classes]
    assert right.mean() > 0.7


def test_too_few_drawn_pictures_are_refused(tmp_path):
    with pytest.raises(ValueError, match="phantoms: expected 0 or at least 140, got 10"):
        warm_start(tmp_path, 10, options=OPTIONS, device=CPU, seed=0)
