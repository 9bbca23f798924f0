import json
import shutil
from pathlib import Path

import pytest
import torch
from published import as_hub_cache, write_biomedclip

from entrep.registry import BIOMEDBERT, BIOMEDCLIP, BIOMEDCLIP_CONFIG, ENCODERS, SURGENET, find_spec
from entrep.sources import (
    describe_files,
    find_texts,
    gather_files,
    is_card,
    pick_weights,
    read_config,
)

SPEC = ENCODERS["biomedclip"]
SURGENET_FILE = "DINOv2_ViTb14_size336_SurgeNetXL.pth"


def touch(*paths: Path, text: str = "x") -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """BiomedCLIP's two repositories, in small."""
    return write_biomedclip(tmp_path_factory.mktemp("published"))


# --- the places that files lie in ------------------------------------------------------------


def test_a_snapshot_of_links_to_blobs_is_read_and_tells_its_commit(published, tmp_path):
    snapshot = as_hub_cache(published[0], tmp_path, BIOMEDCLIP)
    files, revision = gather_files([snapshot], [BIOMEDCLIP])
    assert revision == "c0ffee"
    assert pick_weights(SPEC, files) == snapshot / "open_clip_pytorch_model.bin"
    assert {path.name for path in files} == {path.name for path in published[0].iterdir()}


def test_a_cache_folder_gives_the_snapshot_that_main_points_to(published, tmp_path):
    as_hub_cache(published[0], tmp_path, BIOMEDCLIP, commit="bbb")
    newer = as_hub_cache(published[0], tmp_path, BIOMEDCLIP, commit="aaa")
    files, revision = gather_files([newer.parents[1]], [BIOMEDCLIP])
    assert revision == "aaa"
    assert all(path.parent == newer for path in files)


def test_several_snapshots_without_main_are_ambiguous(published, tmp_path):
    as_hub_cache(published[0], tmp_path, BIOMEDCLIP, commit="aaa")
    cache = as_hub_cache(published[0], tmp_path, BIOMEDCLIP, commit="bbb").parents[1]
    (cache / "refs" / "main").unlink()
    with pytest.raises(ValueError, match="holds 2 snapshots and no refs/main says which"):
        gather_files([cache], [BIOMEDCLIP])
    shutil.rmtree(cache / "snapshots" / "aaa")
    assert gather_files([cache], [BIOMEDCLIP])[1] == "bbb"


@pytest.mark.parametrize("below", ["", "hub"])
def test_of_a_whole_cache_only_the_encoders_repositories_are_read(published, tmp_path, below):
    root = tmp_path / below
    model, tower = published
    clip = as_hub_cache(model, root, BIOMEDCLIP, commit="aaa")
    bert = as_hub_cache(tower, root, BIOMEDBERT, commit="bbb")
    as_hub_cache(model, root, "someone/else", commit="ccc")
    files, revision = gather_files([tmp_path], [BIOMEDCLIP, BIOMEDBERT])
    assert {path.parent for path in files} == {clip, bert}
    assert revision == "aaa"


@pytest.mark.parametrize(
    "place",
    [
        "kaggle/input/biomedclip-weights",  # a data set
        "kaggle/input/models/someone/biomedclip/pytorch/default/1",  # a model
        "kaggle/input/biomedclip/pytorch/default/1/BiomedCLIP",  # an older mount
    ],
)
def test_kaggles_mounts_are_searched(published, tmp_path, place):
    folder = tmp_path / place
    shutil.copytree(published[0], folder)
    touch(tmp_path / "kaggle/input/entrep/train/a.png", tmp_path / "kaggle/input/entrep/train.json")
    files, revision = gather_files([tmp_path / "kaggle" / "input"], [BIOMEDCLIP])
    assert revision == ""
    assert pick_weights(SPEC, files) == folder / "open_clip_pytorch_model.bin"
    assert describe_files("biomedclip", files)[0].image_size == 224


def test_hidden_folders_are_left_out(tmp_path):
    touch(tmp_path / ".cache/huggingface/download/model.safetensors", tmp_path / ".git/x.bin")
    touch(tmp_path / "b.bin")
    assert gather_files([tmp_path], [])[0] == [tmp_path / "b.bin"]


def test_a_hidden_parent_hides_nothing(tmp_path):
    touch(tmp_path / ".cache" / "models" / "b.bin")
    assert len(gather_files([tmp_path / ".cache" / "models"], [])[0]) == 1


def test_a_source_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none: there is no such file or folder"):
        gather_files([tmp_path / "none"], [])


# --- the weights among them ------------------------------------------------------------------


def test_the_published_name_is_taken_first(tmp_path):
    touch(tmp_path / "optimizer.pt", tmp_path / SURGENET_FILE, tmp_path / "other.bin")
    spec = ENCODERS["surgenet-dinov2-b"]
    assert pick_weights(spec, gather_files([tmp_path], [SURGENET])[0]).name == SURGENET_FILE


def test_one_file_under_another_name_is_taken(tmp_path):
    touch(tmp_path / "surgenet (1).pth", tmp_path / "readme.txt")
    spec = ENCODERS["surgenet-dinov2-b"]
    assert pick_weights(spec, gather_files([tmp_path], [])[0]).name == "surgenet (1).pth"


def test_several_candidates_are_named(tmp_path):
    touch(tmp_path / "a.pth", tmp_path / "b.pth")
    with pytest.raises(ValueError, match="2 files may be its weights .*a.pth.*name the right one"):
        pick_weights(SPEC, gather_files([tmp_path], [])[0])


def test_two_versions_side_by_side_are_ambiguous(tmp_path):
    touch(tmp_path / "1" / SPEC.files[0], tmp_path / "2" / SPEC.files[0])
    with pytest.raises(ValueError, match="2 files may be its weights .*1/open_clip"):
        pick_weights(SPEC, gather_files([tmp_path], [])[0])
    # ... but not two sources, of which the first counts.
    files, _ = gather_files([tmp_path / "2"], [])
    assert pick_weights(SPEC, files).parent.name == "2"


def test_no_weights_are_told_with_the_expected_name(tmp_path):
    touch(tmp_path / "vocab.txt")
    with pytest.raises(FileNotFoundError, match="expected open_clip_model.safetensors or"):
        pick_weights(SPEC, gather_files([tmp_path], [])[0])


# --- what the files are ----------------------------------------------------------------------


def test_a_bare_bin_takes_the_configuration_that_is_known(tmp_path):
    touch(tmp_path / "open_clip_pytorch_model.bin", tmp_path / "vocab.txt")
    files, _ = gather_files([tmp_path], [])
    spec, config = describe_files("biomedclip", files)
    assert config == BIOMEDCLIP_CONFIG
    assert (spec.image_size, spec.width) == (224, 512)
    texts = find_texts(spec, config, files)
    assert texts["config.json"]["hidden_size"] == 768
    assert texts["vocab.txt"] == tmp_path / "vocab.txt"


def test_older_configurations_of_biomedclip_are_translated(tmp_path):
    older = json.loads(json.dumps(BIOMEDCLIP_CONFIG))
    tower = older["model_cfg"]["text_cfg"]
    tower["proj"] = tower.pop("hf_proj_type")
    tower["pooler_type"] = tower.pop("hf_pooler_type")
    touch(tmp_path / "open_clip_config.json", text=json.dumps(older))
    _, config = describe_files("biomedclip", gather_files([tmp_path], [])[0])
    assert config == BIOMEDCLIP_CONFIG


def test_a_missing_tokenizer_is_told(tmp_path):
    touch(tmp_path / "open_clip_pytorch_model.bin", tmp_path / "tokenizer_config.json", text="{}")
    files, _ = gather_files([tmp_path], [])
    with pytest.raises(FileNotFoundError, match="tokenizer.json or vocab.txt.*--from"):
        find_texts(*describe_files("biomedclip", files), files)


def test_a_missing_text_tower_is_told(tmp_path):
    config = json.loads(json.dumps(BIOMEDCLIP_CONFIG))
    config["model_cfg"]["text_cfg"]["hf_model_name"] = "someone/bert"
    touch(tmp_path / "open_clip_config.json", text=json.dumps(config))
    files, _ = gather_files([tmp_path], [])
    with pytest.raises(FileNotFoundError, match="needs config.json of someone/bert"):
        find_texts(*describe_files("hf-hub:someone/clip", files), files)


def test_the_tokenizer_files_come_from_one_place(published, tmp_path):
    model, tower = published
    touch(tmp_path / "vocab.txt", text="[PAD]\n")
    files, _ = gather_files([tmp_path / "vocab.txt", tower], [])
    texts = find_texts(SPEC, BIOMEDCLIP_CONFIG, files)
    assert {path.parent for path in texts.values() if isinstance(path, Path)} == {tmp_path}


def test_timms_configuration_tells_all_of_a_hubs_network(tmp_path):
    config = {
        "architecture": "vit_small_patch16_224",
        "num_classes": 3,
        "model_args": {"init_values": 1e-5},
        "pretrained_cfg": {"input_size": [3, 160, 160], "mean": [0.5] * 3, "license": "mit"},
    }
    touch(tmp_path / "config.json", text=json.dumps(config))
    spec, packed = describe_files("hf-hub:me/vit", gather_files([tmp_path], [])[0])
    assert (spec.image_size, spec.licence, spec.source) == (160, "mit", "hub:me/vit")
    assert spec.mean == (0.5, 0.5, 0.5)
    assert packed["model_args"] == {"init_values": 1e-5, "img_size": 160}
    assert packed["num_classes"] == 0


def test_files_that_say_nothing_need_a_name(tmp_path):
    touch(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="nothing says what they are.*timm:NAME"):
        describe_files("local-dir:somewhere", gather_files([tmp_path], [])[0])


def test_openais_weights_get_their_activation():
    quick = describe_files("open_clip:ViT-B-32/openai", [])[1]
    assert quick["model_cfg"]["quick_gelu"] is True
    plain = describe_files("open_clip:ViT-B-32/laion2b_s34b_b79k", [])[1]
    assert "quick_gelu" not in plain["model_cfg"]
    assert find_spec("open_clip:ViT-B-32/openai").mean == ENCODERS["biomedclip"].mean


def test_a_damaged_configuration_is_named(tmp_path):
    touch(tmp_path / "config.json", text='{"architecture": "vi')
    with pytest.raises(ValueError, match="config.json is no valid JSON"):
        read_config([tmp_path / "config.json"], "config.json", "architecture")


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("LICENSE", True),
        ("LICENSE.md", True),
        ("licence.txt", True),
        ("LICENSE-CC-BY-NC", True),
        ("README.md", True),
        ("NOTICE.txt", True),
        ("README.md.metadata", False),
        ("license_plates.csv", False),
        ("model.safetensors", False),
    ],
)
def test_licences_and_cards_are_known_by_name(name, card):
    assert is_card(Path(name)) is card


def test_the_licence_comes_from_the_card(published, tmp_path):
    files, _ = gather_files([published[0]], [])
    assert describe_files("hf-hub:me/clip", files)[0].licence == "mit"
    (tmp_path / "README.md").write_bytes(b"---\nlicense: apache-2.0\n---\n\xff\xfe")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(BIOMEDCLIP_CONFIG))
    spec, _ = describe_files("hf-hub:me/clip", gather_files([tmp_path], [])[0])
    assert spec.licence == "apache-2.0"


def test_the_published_layout_is_what_the_release_has(published):
    state = torch.load(published[0] / "open_clip_pytorch_model.bin")
    assert {key.partition(".")[0] for key in state} == {"logit_scale", "visual", "text"}
    assert "visual.trunk.pos_embed" in state and "visual.head.proj.weight" in state
    assert "text.proj.0.weight" in state and "text.proj.2.weight" in state
    assert "text.transformer.embeddings.position_ids" in state
