import json

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from published import write_biomedclip, write_surgenet_dinov3
from torch.nn import functional

from entrep.artifacts import read_json
from entrep.encoders import (
    feature_width,
    load_backbone,
    load_encoder,
    pooled_features,
    resolve_device,
    resolve_precision,
    with_levels,
)
from entrep.packs import make_pack
from entrep.preprocess import normalise
from entrep.registry import ENCODERS, IMAGENET_MEAN, IMAGENET_STD

TEXTS = ["An endoscopic image of the throat.", "a polyp in the LEFT nasal cavity", "."]


def ramp_picture(size: int = 224) -> torch.Tensor:
    """Three ramps, one a channel: (1, 3, size, size) uint8."""
    rows, columns = np.mgrid[0:size, 0:size]
    planes = (columns * 255 // (size - 1), rows * 255 // (size - 1), (rows + columns) % 256)
    return torch.from_numpy(np.stack(planes).astype(np.uint8)[None])


def test_effnet_lite0_features_equal_the_original_implementation():
    # Values computed once with the PyPI package efficientnet-lite-pytorch 0.1.0.
    network, _, _ = load_backbone("effnet-lite0")
    pixels = normalise(ramp_picture(), IMAGENET_MEAN, IMAGENET_STD)
    with torch.inference_mode():
        features = pooled_features(network.eval(), pixels)[0]
    expected = [0.0056946, 0.0, 0.4426506, 0.1116805, 0.0, 0.0, 0.0, 0.0170580]
    np.testing.assert_allclose(features[:8].numpy(), expected, atol=2e-5)
    assert features.sum().item() == pytest.approx(150.733, abs=2e-2)


def test_demo_clip_embeds_pictures_and_texts_into_one_space():
    encoder = load_encoder("demo-clip", device="cpu")
    pictures = encoder.encode_pictures(ramp_picture(112))
    texts = encoder.encode_texts(["An endoscopic image of the throat.", "a polyp"])
    assert pictures.shape[1] == texts.shape[1]
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(pictures.norm(dim=1), torch.ones(1))


def test_demo_dino_works_at_another_size():
    network, _, _ = load_backbone("demo-dino", image_size=84)
    features = pooled_features(network.eval(), torch.zeros(2, 3, 84, 84))
    assert features.shape == (2, feature_width(network))


def test_a_size_that_does_not_fit_the_patches_is_refused():
    with pytest.raises(ValueError, match="patches of 14 px and 100 is no multiple.*98 or 112"):
        load_backbone("demo-dino", image_size=100)


def test_an_image_only_encoder_refuses_texts():
    encoder = load_encoder("demo-dino", device="cpu")
    with pytest.raises(ValueError, match="pictures only; choose a joint encoder.*demo-clip"):
        encoder.encode_texts(["a polyp"])


def test_a_joint_encoder_is_no_backbone():
    with pytest.raises(ValueError, match="cannot be fine-tuned"):
        load_backbone("demo-clip")


def test_an_unusable_device_is_one_clear_error():
    with pytest.raises(ValueError, match="device: 'gpu' cannot be used.*'auto' or 'cpu'"):
        resolve_device("gpu")


@pytest.mark.parametrize(
    ("name", "dtype"), [("auto", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_the_precision_is_known_by_name(name, dtype):
    assert resolve_precision(name, torch.device("cpu")) == dtype


def test_an_unknown_precision_is_one_clear_error():
    with pytest.raises(ValueError, match="precision: expected auto, fp32, fp16, bf16; got 'fp8'"):
        resolve_precision("fp8", torch.device("cpu"))


@pytest.mark.parametrize("name", ["demo-clip", "demo-dino", "effnet-lite0"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_gives_nearly_the_same_embeddings(name, precision):
    whole = load_encoder(name, device="cpu", precision="fp32")
    half = load_encoder(name, device="cpu", precision=precision)
    batch = ramp_picture(whole.spec.image_size)
    one, other = whole.encode_pictures(batch), half.encode_pictures(batch)
    assert other.dtype == torch.float32
    assert (one * other).sum() > (0.99 if precision == "bf16" else 0.9999)  # 8 bits, 11 bits
    if whole.tokenizer is not None:
        assert (whole.encode_texts(TEXTS) * half.encode_texts(TEXTS)).sum(dim=1).min() > 0.999


def test_the_fingerprint_tells_all_that_changes_an_embedding():
    def fingerprint(name: str, **options) -> str:
        return load_encoder(name, device="cpu", **options).fingerprint

    base = fingerprint("demo-dino")
    assert base == fingerprint("demo-dino", precision="fp32") == fingerprint("demo-dino@112")
    others = {
        fingerprint("demo-dino@84"),
        fingerprint("demo-dino", precision="bf16"),
        fingerprint("demo-clip"),
        fingerprint("effnet-lite0"),
    }
    assert len(others) == 4 and base not in others


def test_embeddings_do_not_depend_on_the_batch():
    encoder = load_encoder("demo-clip", device="cpu")
    generator = torch.Generator().manual_seed(0)
    batch = torch.randint(0, 256, (5, 3, 112, 112), dtype=torch.uint8, generator=generator)
    together = encoder.encode_pictures(batch)
    alone = torch.cat([encoder.encode_pictures(picture[None]) for picture in batch])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    texts = torch.cat([encoder.encode_texts([text]) for text in TEXTS])
    torch.testing.assert_close(encoder.encode_texts(TEXTS), texts, atol=1e-5, rtol=0)


def test_networks_without_a_class_token_give_what_their_classifier_would_get():
    for name in ("test_resnet", "vit_base_patch16_siglip_224", "mixer_s32_224"):
        small = {"depth": 1, "embed_dim": 48} if name.startswith("vit") else {}
        network = timm.create_model(name, num_classes=0, **small).eval()
        pixels = torch.randn(1, 3, 224, 224)
        with torch.inference_mode():
            features = pooled_features(network, pixels)
            torch.testing.assert_close(features, network(pixels))
        assert features.shape[1] == feature_width(network)


# --- agreement with the libraries' own documented use ----------------------------------------


def draw_picture(size: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def as_batch(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return functional.cosine_similarity(one, other, dim=-1).min().item()


def compare_with_open_clip(folder, encoder, **options) -> None:
    """The usage that open_clip's README shows, on a `local-dir:` folder."""
    network, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}", **options)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    picture = draw_picture(encoder.spec.image_size)
    network.eval()
    with torch.no_grad():
        pictures = network.encode_image(preprocess(picture)[None], normalize=True)
        texts = network.encode_text(tokenizer(TEXTS), normalize=True)
    assert cosine(encoder.encode_pictures(as_batch(picture)), pictures) >= 0.99999
    assert cosine(encoder.encode_texts(TEXTS), texts) >= 0.99999
    assert cosine(texts[:1], texts[1:]) < 0.99999  # or the test would tell nothing


def test_open_clips_own_towers_agree_with_open_clip(tmp_path):
    config = {
        "embed_dim": 32,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32}
        | {"patch_size": 16},
        "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 2}
        | {"layers": 2},
    }
    torch.manual_seed(0)
    folder = tmp_path / "clip"
    folder.mkdir()
    torch.save(open_clip.CLIP(**config).state_dict(), folder / "open_clip_pytorch_model.bin")
    pixels = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    published = {"model_cfg": config, "preprocess_cfg": pixels}
    (folder / "open_clip_config.json").write_text(json.dumps(published))
    pack = make_pack(f"local-dir:{folder}", [folder], tmp_path / "pack")
    encoder = load_encoder(f"local-dir:{pack}", device="cpu")
    assert encoder.spec.mean == (0.4, 0.5, 0.6)
    compare_with_open_clip(folder, encoder)
    larger = load_encoder(f"local-dir:{pack}@96", device="cpu")
    compare_with_open_clip(folder, larger, force_image_size=96)


def test_biomedclips_towers_agree_with_open_clip(tmp_path):
    model, tower = write_biomedclip(tmp_path)
    pack = make_pack("biomedclip", [model, tower], tmp_path / "pack")
    # As published, open_clip would ask the hub for the text tower's configuration.
    config = json.loads((model / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= {"hf_model_name": str(tower), "hf_model_pretrained": False}
    (model / "open_clip_config.json").write_text(json.dumps(config))
    encoder = load_encoder("biomedclip", device="cpu", weights_dir=pack)
    compare_with_open_clip(model, encoder)
    assert encoder.tokenizer(TEXTS).shape == (3, 256)


def compare_with_timm(network: torch.nn.Module, encoder, **other_settings) -> None:
    """The usage that timm's model cards show, for features instead of classes."""
    settings = timm.data.resolve_model_data_config(network.eval())
    size = encoder.spec.image_size
    # The kit crops by itself.
    settings |= {"input_size": (3, size, size), "crop_pct": 1.0, **other_settings}
    picture = draw_picture(size)
    pixels = timm.data.create_transform(**settings, is_training=False)(picture)[None]
    with torch.no_grad():
        tokens = network.forward_features(pixels)
        if tokens.dim() == 3:
            patches = tokens[:, network.num_prefix_tokens :].mean(dim=1)
            expected = torch.cat([tokens[:, 0], patches], dim=1)
        else:
            expected = network.forward_head(tokens, pre_logits=True)
    got = encoder.encode_pictures(as_batch(picture))
    assert got.shape == (1, encoder.spec.width)
    assert cosine(got, expected) >= 0.99999


@pytest.mark.parametrize(
    ("name", "architecture", "arguments"),
    [
        ("timm:test_vit", "test_vit", {}),
        ("surgenet-dinov2-s", "vit_small_patch14_dinov2", {"img_size": 336}),
        ("dinov3-s", "vit_small_patch16_dinov3", {}),
        ("timm:test_convnext", "test_convnext", {}),
    ],
)
def test_timms_networks_agree_with_timm(tmp_path, name, architecture, arguments):
    torch.manual_seed(0)
    network = timm.create_model(architecture, num_classes=0, **arguments)
    with torch.no_grad():  # the scales of the blocks begin near 0: the blocks would not count
        for key, parameter in network.named_parameters():
            if "gamma" in key:
                parameter.fill_(0.5)
    torch.save(network.state_dict(), tmp_path / "x.pth")
    pack = make_pack(name, [tmp_path / "x.pth"], tmp_path / "pack")
    compare_with_timm(network, load_encoder(name, device="cpu", weights_dir=pack))


def test_effnet_lite0_agrees_with_timm():
    network, _, _ = load_backbone("effnet-lite0")
    # The normalisation is ours for these weights, not that of timm's own file.
    settings = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    compare_with_timm(network, load_encoder("effnet-lite0", device="cpu"), **settings)


def test_surgenets_dinov3_agrees_with_its_own_loader(tmp_path):
    original = write_surgenet_dinov3(tmp_path / "x.pth")
    pack = make_pack("surgenet-dinov3-s", [tmp_path / "x.pth"], tmp_path / "pack")
    note = read_json(pack / "pack.json")["note"]
    assert note == "21,599,232 of 21,599,232 parameters filled"
    encoder = load_encoder("surgenet-dinov3-s", device="cpu", weights_dir=pack)
    batch = as_batch(draw_picture(336))
    with torch.inference_mode():
        pixels = normalise(batch, IMAGENET_MEAN, IMAGENET_STD)
        tokens = original(pixels).last_hidden_state
    expected = torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=-1)
    assert cosine(encoder.encode_pictures(batch), expected) >= 0.99999
    assert encoder.spec.width == ENCODERS["surgenet-dinov3-s"].width


def test_rows_with_levels_begin_with_the_embedding():
    encoder = load_encoder("demo-clip", device="cpu")
    levels = with_levels(encoder)
    assert levels.fingerprint != encoder.fingerprint
    batch = torch.randint(0, 255, (3, 3, 112, 112), dtype=torch.uint8)
    embedding, rows = encoder.encode_pictures(batch), levels.encode_pictures(batch)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    width = embedding.shape[1]
    assert rows.shape[1] == width + 3 * 4 * 128  # class token, mean and maximum of four blocks
    torch.testing.assert_close(functional.normalize(rows[:, :width], dim=1), embedding)
    torch.testing.assert_close(levels.encode_texts(["x"]), encoder.encode_texts(["x"]))


def test_levels_are_refused_for_an_image_only_encoder():
    with pytest.raises(ValueError, match="demo-dino reads pictures only"):
        with_levels(load_encoder("demo-dino", device="cpu"))


def test_the_shipped_joint_encoder_takes_another_size():
    encoder = load_encoder("demo-clip@224", device="cpu")
    batch = torch.zeros(1, 3, 224, 224, dtype=torch.uint8)
    assert encoder.encode_pictures(batch).shape == (1, 96)
