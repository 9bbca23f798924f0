import dataclasses
import json

import pytest
import timm
import torch

from entrep.encoders import build_network, feature_width
from entrep.registry import (
    BIOMEDCLIP_CONFIG,
    ENCODERS,
    find_home,
    find_packs,
    find_spec,
    model_arguments,
    pack_digest,
    split_size,
    weights_folder,
)

NETWORKS = [spec for spec in ENCODERS.values() if spec.library == "timm"]


@pytest.mark.parametrize("spec", ENCODERS.values(), ids=ENCODERS)
def test_every_encoder_says_what_it_is_and_whose(spec):
    assert spec.family in ("joint", "image")
    assert spec.library in ("open_clip", "timm")
    assert 32 <= spec.image_size <= 1024
    assert spec.width > 0
    assert spec.licence and spec.licence != "unknown"
    kind, _, place = spec.source.partition(":")
    assert kind in ("shipped", "pypi", "hub")
    assert kind != "hub" or place.count("/") == 1
    assert len(spec.mean) == len(spec.std) == 3


@pytest.mark.parametrize("spec", NETWORKS, ids=lambda spec: spec.name)
def test_widths_and_sizes_are_those_of_the_network(spec):
    with torch.device("meta"):  # nothing is computed, so the large ones cost nothing
        network = build_network(spec, {"model_args": model_arguments(spec)})
    if not spec.source == "shipped":  # shorter than its architecture; a test of packs loads it
        assert feature_width(network) == spec.width
    patch = getattr(network, "patch_embed", None)
    if patch is not None:
        assert spec.image_size % patch.patch_size[0] == 0
        assert patch.img_size == (spec.image_size, spec.image_size)


def test_biomedclip_is_as_wide_as_its_configuration_says():
    spec, published = ENCODERS["biomedclip"], BIOMEDCLIP_CONFIG
    assert spec.width == published["model_cfg"]["embed_dim"]
    assert spec.image_size == published["model_cfg"]["vision_cfg"]["image_size"]
    assert list(spec.mean) == published["preprocess_cfg"]["mean"]
    assert len(spec.revision) == 40


def test_names_of_surgenets_files_are_those_of_its_release():
    assert ENCODERS["surgenet-dinov1-b"].files == ("DINOv1_ViTb16_size224_SurgeNetXL.pth",)
    assert ENCODERS["surgenet-dinov2-l"].files == ("DINOv2_ViTl14_size336_SurgeNetXL.pth",)
    assert ENCODERS["surgenet-dinov3-s"].files == ("DINOv3_ViTs16_size336_SurgeNetXL.pth",)
    assert sum(name.startswith("surgenet-") for name in ENCODERS) == 8


def test_terms_are_said_where_commercial_use_is_forbidden_or_special():
    assert "NOT for commercial use" in find_spec("surgenet-dinov2-b").terms
    assert "Meta's own terms" in find_spec("dinov3-b").terms
    assert find_spec("biomedclip").terms == find_spec("dinov2-b").terms == ""


def test_a_size_behind_the_name_replaces_the_encoders_own():
    assert find_spec("dinov2-b").image_size == 518
    assert find_spec("dinov2-b@336").image_size == 336
    assert find_spec("dinov2-b@336").name == "dinov2-b"
    assert find_spec("timm:vit_base_patch16_224@160").image_size == 160


@pytest.mark.parametrize("name", ["dinov2-b@", "dinov2-b@big", "dinov2-b@8", "dinov2-b@-14"])
def test_what_is_no_size_is_refused(name):
    with pytest.raises(ValueError, match="expected 16 to 2048 pixels behind @"):
        find_spec(name)


def test_a_folder_with_an_at_sign_is_no_size(tmp_path):
    folder = tmp_path / "pack@home@336"
    folder.mkdir()
    assert split_size(f"local-dir:{folder}") == (f"local-dir:{folder}", None)
    assert split_size(f"local-dir:{folder}@224") == (f"local-dir:{folder}", 224)
    assert split_size("local-dir:/data/me@home/pack") == ("local-dir:/data/me@home/pack", None)


def test_timm_names_tell_size_licence_and_source():
    spec = find_spec("timm:vit_small_patch14_reg4_dinov2.lvd142m")
    assert (spec.family, spec.image_size, spec.licence) == ("image", 518, "apache-2.0")
    assert spec.source == "hub:timm/vit_small_patch14_reg4_dinov2.lvd142m"
    assert spec.mean == timm.get_pretrained_cfg("vit_small_patch14_reg4_dinov2.lvd142m").mean


def test_open_clip_names_tell_size_and_width():
    spec = find_spec("open_clip:ViT-B-32/laion2b_s34b_b79k")
    assert (spec.family, spec.image_size, spec.width) == ("joint", 224, 512)
    assert spec.source == "hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
    assert find_spec("open_clip:ViT-B-32").source == "file"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("biomedclp", "Did you mean 'biomedclip'"),
        ("dinov2b", "Did you mean 'dinov2-b'"),
        ("resnet", "expected one of demo-clip"),
        ("timm:vit_base_patch16_dinov33", "near it are .*vit_base_patch16_dinov3"),
        ("timm:vit_base_patch16_224.nonsense", "timm knows .* of vit_base_patch16_224"),
        ("open_clip:ViT-B-33", "near it are .*ViT-B-32"),
        ("open_clip:ViT-B-32/mine", "open_clip knows openai"),
        ("hf-hub:me/mine", "only its files say what it is"),
    ],
)
def test_unknown_names_are_met_with_a_hint(name, hint):
    with pytest.raises(ValueError, match=hint):
        find_spec(name)


def test_a_missing_pack_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="models fetch surgenet-dinov2-b.*CC-BY-NC-SA"):
        find_home("surgenet-dinov2-b", tmp_path)
    with pytest.raises(FileNotFoundError, match="weights_dir is empty"):
        find_home("biomedclip", "")
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        find_home("biomedclip", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="is not a model pack.*models pack"):
        find_home(f"local-dir:{tmp_path}", "")
    assert find_home("biomedclip", tmp_path, needed=False)[0] is None


def test_the_shipped_encoders_need_no_folder():
    home, spec = find_home("demo-dino@84", "")
    assert home == weights_folder() / "demo-dino"
    assert spec.image_size == 84
    assert len(pack_digest("demo-dino", "")) == 64
    assert pack_digest("effnet-lite0", "") == ""


def manifest(name: str, note: str = "") -> str:
    spec = dataclasses.replace(ENCODERS["dinov2-s"], name=name)
    content = {"format": 1, "encoder": dataclasses.asdict(spec), "files": {}, "note": note}
    return json.dumps(content)


def test_packs_are_found_seven_folders_down_as_kaggle_mounts_them(tmp_path):
    deep = tmp_path / "models" / "me" / "packs" / "pytorch" / "default" / "1" / "biomedclip"
    deep.mkdir(parents=True)
    (deep / "pack.json").write_text(manifest("biomedclip"))
    assert find_packs(tmp_path) == {deep: "biomedclip"}
    assert find_packs(deep) == {deep: "biomedclip"}
    assert find_home("biomedclip", tmp_path)[0] == deep


def test_two_different_packs_of_one_name_are_ambiguous_but_a_copy_is_not(tmp_path):
    for folder, note in (("a", ""), ("b", ""), ("c", "other")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "pack.json").write_text(manifest("dinov2-s", note))
    with pytest.raises(ValueError, match="are different packs of dinov2-s.*local-dir:"):
        find_home("dinov2-s", tmp_path)
    (tmp_path / "c" / "pack.json").unlink()
    assert find_home("dinov2-s", tmp_path)[0] == tmp_path / "a"


def test_a_foreign_pack_json_is_passed_over_and_a_damaged_one_named(tmp_path):
    (tmp_path / "pack.json").write_text('{"name": "a game"}')
    assert find_packs(tmp_path) == {}
    (tmp_path / "pack.json").write_text('{"format": 1, "enco')
    with pytest.raises(ValueError, match="pack.json is no valid JSON"):
        find_packs(tmp_path)


def test_a_manifest_of_a_newer_kit_is_refused(tmp_path):
    text = manifest("dinov2-s").replace('"format": 1', '"format": 99')
    (tmp_path / "pack.json").write_text(text)
    with pytest.raises(ValueError, match="format 99 is newer than this kit"):
        find_home("dinov2-s", tmp_path)
