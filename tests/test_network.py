import numpy as np
import pytest
import torch
from torch import nn

from entrep import heads
from entrep.heads import BINARY
from entrep.labels import CLASS_TO_INDEX
from entrep.network import (
    add_lora,
    build_network,
    checkpoint_metadata,
    load_checkpoint,
    merge_lora,
    predict_logits,
    save_checkpoint,
)
from entrep.preprocess import as_batch, mirror

CPU = torch.device("cpu")


class SideStub(nn.Module):
    """Says "right" in proportion to the light in the left half of the picture."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        half = batch.shape[-1] // 2
        left = batch[..., :half].float().mean((1, 2, 3)) - batch[..., half:].float().mean((1, 2, 3))
        logits = torch.zeros(len(batch), BINARY.stop)
        logits[:, CLASS_TO_INDEX["nose-right"]] = left
        logits[:, CLASS_TO_INDEX["nose-left"]] = -left
        logits[:, BINARY.start] = -left
        return logits


def test_flip_tta_of_a_mirrored_picture_is_the_swapped_answer(study):
    prepared = study[0]
    mirrored = mirror(as_batch(prepared)).permute(0, 2, 3, 1).contiguous().numpy()
    ours = predict_logits(SideStub(), prepared, flip_tta=True)
    theirs = predict_logits(SideStub(), mirrored, flip_tta=True)
    swapped = heads.mirror_logits(torch.from_numpy(theirs)).numpy()
    np.testing.assert_allclose(ours, swapped, atol=1e-4)
    assert np.abs(ours[:, 0]).max() > 0.5  # without the swap the two views would cancel out


def test_batch_size_does_not_change_predictions(study):
    torch.manual_seed(0)
    network = build_network("demo-dino", 56)
    one = predict_logits(network, study[0], batch_size=1)
    many = predict_logits(network, study[0], batch_size=32)
    np.testing.assert_allclose(one, many, atol=1e-5)


def test_a_checkpoint_gives_the_same_answers(study, tmp_path):
    torch.manual_seed(0)
    network = build_network("demo-dino", 56)
    options = {"backbone": "demo-dino", "image_size": 56, "weights_dir": ""}
    save_checkpoint(tmp_path / "a.safetensors", network, options, "key")
    again = load_checkpoint(tmp_path / "a.safetensors", CPU)
    assert checkpoint_metadata(tmp_path / "a.safetensors")["key"] == "key"
    np.testing.assert_array_equal(
        predict_logits(network, study[0]), predict_logits(again, study[0])
    )


def test_equal_weights_are_equal_bytes(tmp_path):
    network = build_network("demo-dino", 56)
    options = {"backbone": "demo-dino", "image_size": 56, "weights_dir": ""}
    paths = [tmp_path / f"{number}.safetensors" for number in range(8)]
    for path in paths:
        save_checkpoint(path, network, options, "key")
    assert len({path.read_bytes() for path in paths}) == 1


def test_a_foreign_checkpoint_is_refused(tmp_path):
    path = tmp_path / "fold0.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a whole checkpoint of this kit"):
        load_checkpoint(path, CPU)


def test_lora_changes_nothing_at_first_and_merges_into_plain_layers(study):
    torch.manual_seed(0)
    network = build_network("demo-dino", 56)
    names, before = set(network.state_dict()), predict_logits(network, study[0])
    add_lora(network, 4)
    np.testing.assert_array_equal(predict_logits(network, study[0]), before)
    trained = {name for name, value in network.named_parameters() if value.requires_grad}
    assert trained > {"head.weight", "head.bias"}
    assert all("lora_" in name for name in trained - {"head.weight", "head.bias"})
    with torch.no_grad():
        for name, value in network.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.02)
    adapted = predict_logits(network, study[0])
    assert np.abs(adapted - before).max() > 1e-3
    merge_lora(network)
    assert set(network.state_dict()) == names
    np.testing.assert_allclose(predict_logits(network, study[0]), adapted, atol=1e-4)


def test_lora_refuses_a_backbone_without_transformer_blocks():
    with pytest.raises(ValueError, match="lora_rank: the backbone has no transformer blocks"):
        add_lora(build_network("effnet-lite0", 64), 4)


def test_drop_path_skips_blocks_in_training_only(study):
    torch.manual_seed(0)
    network, batch = build_network("demo-dino", 56, drop_path=0.5), as_batch(study[0])
    plain = build_network("demo-dino", 56)
    plain.load_state_dict(network.state_dict())
    network.train()
    assert not torch.equal(network(batch), network(batch))
    np.testing.assert_array_equal(
        predict_logits(network, study[0]), predict_logits(plain, study[0])
    )


@pytest.mark.gpu
def test_a_gpu_predicts_what_the_cpu_does(study):
    torch.manual_seed(0)
    network = build_network("demo-dino", 56)
    here = heads.to_probs(predict_logits(network, study[0]))
    there = heads.to_probs(predict_logits(network.to("cuda"), study[0]))
    np.testing.assert_allclose(here, there, atol=1e-3)
