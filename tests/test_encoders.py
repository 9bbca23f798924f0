import numpy as np
import pytest
import torch

from entrep.encoders import (
    ENCODERS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    feature_width,
    fill_weights,
    find_spec,
    load_backbone,
    load_encoder,
    pooled_features,
    resolve_device,
)
from entrep.preprocess import normalise


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


def test_an_unknown_encoder_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="'resnet' is not known; expected one of demo-clip"):
        find_spec("resnet")


def test_missing_weights_name_file_licence_and_mend(tmp_path):
    with pytest.raises(FileNotFoundError, match="SurgeNetXL.*CC-BY-NC-SA.*weights_dir"):
        load_backbone("surgenet-dinov2-b", weights_dir=str(tmp_path))


def test_weights_of_another_network_are_refused():
    layer = torch.nn.Linear(3, 2)
    with pytest.raises(ValueError, match="lacks 2 of 2 tensors"):
        fill_weights(layer, {}, source="x")
    with pytest.raises(ValueError, match="misshapen 1 of 2"):
        fill_weights(layer, {"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, source="x")
    with pytest.raises(ValueError, match="unknown 1 of 2"):
        state = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "extra": torch.zeros(1)}
        fill_weights(layer, state, source="x")


def test_a_surplus_classifier_is_passed_over():
    layer = torch.nn.Linear(3, 2)
    state = {"weight": torch.ones(2, 3), "bias": torch.ones(2), "head.weight": torch.zeros(5)}
    fill_weights(layer, state, source="x")
    assert layer.weight.sum() == 6


def test_an_unusable_device_is_one_clear_error():
    with pytest.raises(ValueError, match="device: 'gpu' cannot be used.*'auto' or 'cpu'"):
        resolve_device("gpu")


def test_every_encoder_states_family_and_licence():
    for spec in ENCODERS.values():
        assert spec.family in ("joint", "image")
        assert spec.licence
