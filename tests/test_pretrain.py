import random

import numpy as np
import pytest
import torch

from entrep import pretrain
from entrep.artifacts import read_json
from entrep.encoders import CONFIG_FILE
from entrep.prototypes import CLASS_PHRASES
from entrep.registry import ENCODERS, read_pack, weights_folder


@pytest.fixture(scope="module")
def drawn():
    """130 random pictures in place of phantoms, as `_draw` gives them."""
    rng = np.random.default_rng(0)
    prepared = rng.integers(0, 255, (130, 128, 128, 3), np.uint8)
    return prepared, rng.integers(0, 7, 130), ["polyp"] * 130, ["a polyp"] * 130


def test_captions_never_tell_whether_the_cords_are_open():
    draw = random.Random(0)
    told = [caption for _ in range(40) for caption in pretrain.caption("vc-open", "normal", draw)]
    assert not any("open" in text for text in told if isinstance(text, str))
    assert "open" in CLASS_PHRASES["vc-open"]


def test_a_caption_says_whether_it_tells_the_finding():
    draw = random.Random(1)
    for _ in range(40):
        text, tells = pretrain.caption("throat", "a polyp", draw)
        assert ("a polyp" in text) == tells


def test_both_trainings_run_and_keep_pictures_apart(drawn):
    lines = []
    torch.manual_seed(0)
    device = torch.device("cpu")
    clip = pretrain.train_clip(drawn, epochs=1, seed=0, device=device, log=lines.append)
    dino = pretrain.train_dino(drawn[0], epochs=1, device=device, log=lines.append)
    assert np.isfinite([float(line.split()[-1]) for line in lines]).all()
    pixels = torch.stack([torch.zeros(3, 112, 112), torch.rand(3, 112, 112)])
    with torch.inference_mode():
        for features in (clip.encode_image(pixels), pretrain.pooled_features(dino, pixels)):
            assert features.isfinite().all()
            assert not torch.allclose(features[0], features[1], atol=1e-3)


def test_contrast_is_small_when_each_query_meets_its_key():
    keys = torch.eye(8)
    right = pretrain._contrast(keys, keys)
    assert right < pretrain._contrast(keys.roll(1, 0), keys)


def test_unseen_words_are_forgotten_and_seen_ones_kept(drawn):
    model = pretrain.open_clip.CLIP(
        **pretrain.CLIP_CONFIG["model_cfg"],
    )
    kept = pretrain._forget_unseen_words(model, drawn).token_embedding.weight.any(dim=1)
    tokenize = pretrain.open_clip.SimpleTokenizer(context_length=40)
    assert kept[tokenize(["a polyp"]).unique()].all()
    assert 10 < kept.sum() < 200


def test_the_shipped_encoders_are_small_and_match_their_log():
    folder = weights_folder()
    files = sorted(folder.rglob("*.safetensors"))
    assert [path.parent.name for path in files] == ["demo-clip", "demo-dino"]
    assert sum(path.stat().st_size for path in files) <= 8_000_000
    log = (folder / "training.log").read_text(encoding="utf-8")
    for path in files:
        assert pretrain.sha256_file(path) in log
    assert ENCODERS["demo-clip"].licence == ENCODERS["demo-dino"].licence == "MIT"


def test_the_shipped_packs_are_described_as_the_script_would_write_them():
    for name, config in (("demo-clip", pretrain.CLIP_CONFIG), ("demo-dino", pretrain.DINO_CONFIG)):
        spec, _ = read_pack(weights_folder() / name)
        assert spec == ENCODERS[name]
        assert read_json(weights_folder() / name / CONFIG_FILE[spec.library]) == config
