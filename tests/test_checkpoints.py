import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from entrep.checkpoints import fill_weights, read_checkpoint


def tiny_vit(seed: int = 0, *, image_size: int = 32, **arguments) -> nn.Module:
    """A ViT of 80,000 parameters with patches of 16 px."""
    torch.manual_seed(seed)
    settings = dict(patch_size=16, embed_dim=48, depth=2, num_heads=3, num_classes=0)
    return timm.models.VisionTransformer(img_size=image_size, **(settings | arguments))


def tiny_eva(seed: int = 0, **arguments) -> nn.Module:
    """A DINOv3 in small, as timm builds it."""
    torch.manual_seed(seed)
    settings = dict(img_size=64, patch_size=16, embed_dim=48, depth=2, num_heads=3, num_classes=0)
    settings |= dict(qkv_bias=False, init_values=1e-5, rope_type="dinov3", rope_rotate_half=True)
    settings |= dict(use_rot_pos_emb=True, use_abs_pos_emb=False, num_reg_tokens=4)
    settings |= dict(dynamic_img_size=True, use_fc_norm=False)
    return timm.models.Eva(**(settings | arguments))


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# --- reading --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.safetensors", "a.bin", "a.pth", "a.pt", "a.ckpt"])
def test_every_kind_of_file_is_read(tmp_path, name):
    state = tiny_vit().state_dict()
    (save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    read = read_checkpoint(tmp_path / name)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], state[key]) for key in state)


def test_pytorchs_older_format_is_read(tmp_path):
    torch.save({"w": torch.ones(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "old.pth")["w"].sum() == 3


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {"student": {}, "teacher": state, "epoch": 3},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
        lambda state: {"teacher": {f"module.backbone.{k}": v for k, v in state.items()}},
        lambda state: (
            {f"backbone.{key}": value for key, value in state.items()}
            | {"dino_head.mlp.0.weight": torch.ones(2), "head.weight": torch.ones(2, 2)}
        ),
        lambda state: (
            {f"student.{key}": torch.zeros_like(value) for key, value in state.items()}
            | {f"teacher.{key}": value for key, value in state.items()}
        ),
        lambda state: OrderedDict(state),
    ],
    ids="state_dict model teacher module compiled nested backbone both plain".split(),
)
def test_what_training_scripts_wrap_around_the_tensors_is_taken_off(tmp_path, wrap):
    original, network = tiny_vit(seed=1), tiny_vit(seed=2)
    torch.save(wrap(original.state_dict()), tmp_path / "x.pth")
    report = fill_weights(network, read_checkpoint(tmp_path / "x.pth"), source="x")
    assert same_weights(original, network)
    assert report.filled == report.total and not report.missing


def test_a_heads_name_does_not_hide_the_trunks_prefix():
    original, network = tiny_vit(seed=1, num_classes=5), tiny_vit(seed=2, num_classes=5)
    state = {f"backbone.{key}": value for key, value in original.state_dict().items()}
    fill_weights(network, state | {"head.weight": torch.ones(9, 48)}, source="x")
    assert torch.equal(network.cls_token, original.cls_token)


def test_blocks_in_groups_are_numbered_through():
    original, network = tiny_vit(seed=1), tiny_vit(seed=2)
    state = {
        key.replace("blocks.0", "blocks.0.0").replace("blocks.1", "blocks.1.1"): value
        for key, value in original.state_dict().items()
    }
    fill_weights(network, state, source="x")
    assert same_weights(original, network)


class Bomb:
    """What a hostile file would hold: unpickling it runs a command."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, zipped):
    mark = tmp_path / "ran"
    content = {"weight": torch.ones(2), "bomb": Bomb(mark)}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ValueError, match=r"x\.pth was not loaded: it asks for \w+\.mkdir.*any code"
    ):
        read_checkpoint(tmp_path / "x.pth")
    assert not mark.exists()
    # The proof that it would have run:
    torch.load(tmp_path / "x.pth", weights_only=False)
    assert mark.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_bare_pickle_is_refused(tmp_path):
    mark = tmp_path / "ran"
    (tmp_path / "x.bin").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(ValueError, match="x.bin was not loaded|not a whole file of weights"):
        read_checkpoint(tmp_path / "x.bin")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["a.safetensors", "a.bin"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_file_that_is_cut_off_is_named(tmp_path, name, share):
    state = tiny_vit().state_dict()
    (save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match=rf"{name} is not a whole .*get it again"):
        read_checkpoint(tmp_path / name)


def test_an_older_pickle_that_is_cut_off_is_named(tmp_path):
    state = {"w": torch.ones(2000)}
    torch.save(state, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(whole[:-4000])
    with pytest.raises(ValueError, match="x.pth"):
        read_checkpoint(tmp_path / "x.pth")


@pytest.mark.filterwarnings("ignore:.*(torch.jit|TorchScript)")
def test_torchscript_is_explained(tmp_path):
    traced = torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))
    torch.jit.save(traced, str(tmp_path / "x.pt"))
    with pytest.raises(ValueError, match="TorchScript archive is not read: save its state_dict"):
        read_checkpoint(tmp_path / "x.pt")


def test_a_pointer_of_git_lfs_is_explained(tmp_path):
    for name in ("a.bin", "a.safetensors"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
        with pytest.raises(ValueError, match="pointer of git LFS.*git lfs pull"):
            read_checkpoint(tmp_path / name)


def test_files_without_tensors_or_that_are_not_there_are_named(tmp_path):
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="x.pth holds no tensors by name"):
        read_checkpoint(tmp_path / "x.pth")
    torch.save(torch.ones(3), tmp_path / "y.pth")
    with pytest.raises(ValueError, match="y.pth holds no tensors by name"):
        read_checkpoint(tmp_path / "y.pth")
    with pytest.raises(FileNotFoundError, match="z.pth: there is no such file"):
        read_checkpoint(tmp_path / "z.pth")


# --- filling --------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [{}, {"epoch": torch.ones(1)}])
def test_a_checkpoint_that_fills_nothing_is_an_error(state):
    with pytest.raises(ValueError, match="the weights of x fill 0 of .* another network"):
        fill_weights(tiny_vit(), state, source="x")


@settings(max_examples=40, deadline=None)
@given(missing=st.integers(1, 20) | st.integers(1, 9999))
def test_999_parameters_of_1000_must_be_filled(missing):
    network = nn.Module()
    network.given = nn.Parameter(torch.zeros(10_000 - missing))
    network.missing = nn.Parameter(torch.zeros(missing))
    state = {"given": torch.ones(10_000 - missing)}
    if missing <= 10:
        report = fill_weights(network, state, source="x")
        assert (report.filled, report.total) == (10_000 - missing, 10_000)
        assert "left as initialised: missing" in str(report)
        assert network.given.all() and not network.missing.any()
    else:
        with pytest.raises(ValueError, match=f"fill {10_000 - missing:,} of 10,000 parameters"):
            fill_weights(network, state, source="x")
        assert not network.given.any()


def test_a_small_token_that_is_missing_is_fatal():
    network = tiny_vit(embed_dim=192, depth=6)
    state = network.state_dict()
    del state["cls_token"]
    assert network.cls_token.numel() < 0.001 * sum(v.numel() for v in state.values())
    with pytest.raises(ValueError, match="lack cls_token, which the network needs"):
        fill_weights(network, state, source="x")


def test_a_head_of_another_shape_is_passed_over():
    original, network = tiny_vit(seed=1, num_classes=10), tiny_vit(seed=2, num_classes=7)
    before = network.head.weight.clone()
    fill_weights(network, original.state_dict(), source="x")
    assert torch.equal(network.head.weight, before)
    assert torch.equal(network.blocks[1].mlp.fc1.weight, original.blocks[1].mlp.fc1.weight)


def test_heads_and_training_parts_are_passed_over_and_named():
    original, network = tiny_vit(seed=1), tiny_vit(seed=2)
    extra = {"head.weight": torch.zeros(5, 48), "dino_head.last_layer.weight_v": torch.zeros(2)}
    report = fill_weights(network, original.state_dict() | extra, source="x")
    assert set(report.skipped) == extra.keys()
    assert "passed over: head.weight" in str(report)


def test_tensors_without_a_place_are_fatal():
    state = tiny_vit().state_dict() | {"blocks.0.extra.weight": torch.ones(2)}
    with pytest.raises(ValueError, match="hold 1 tensors that the network has no place for.*extra"):
        fill_weights(tiny_vit(), state, source="x")


def test_another_patch_size_is_explained():
    with pytest.raises(
        ValueError, match="patches of 8 px, the network into patches of 16 px.*patch8"
    ):
        fill_weights(tiny_vit(), tiny_vit(patch_size=8).state_dict(), source="x")


@pytest.mark.parametrize("size", [48, 64, 112])
def test_position_embeddings_of_another_input_size_are_resampled_as_timm_does(size):
    original, network = tiny_vit(seed=1, image_size=64), tiny_vit(seed=2, image_size=size)
    report = fill_weights(network, original.state_dict(), source="x")
    original.set_input_size(size)
    torch.testing.assert_close(network.pos_embed, original.pos_embed)
    assert bool(report.notes) == (size != 64)
    assert size == 64 or "position embeddings resampled from (1, 17, 48) to" in str(report)


def test_a_network_of_another_size_is_explained():
    with pytest.raises(ValueError, match="network expects .*another size \\(small, base, large\\)"):
        fill_weights(tiny_vit(), tiny_vit(embed_dim=96).state_dict(), source="x")
    with pytest.raises(ValueError, match="no place for .*blocks.2"):
        fill_weights(tiny_vit(), tiny_vit(depth=3).state_dict(), source="x")
    with pytest.raises(ValueError, match="tensors are missing .*blocks.2.*another network"):
        fill_weights(tiny_vit(depth=3), tiny_vit().state_dict(), source="x")


def test_half_precision_is_widened():
    original, network = tiny_vit(seed=1), tiny_vit(seed=2)
    fill_weights(network, {k: v.half() for k, v in original.state_dict().items()}, source="x")
    assert network.cls_token.dtype == torch.float32
    torch.testing.assert_close(network.cls_token, original.cls_token, atol=1e-3, rtol=0)


# --- the layouts of Meta's releases ----------------------------------------------------------


def test_dinov2_as_meta_names_it_fills_timms_network():
    original = tiny_vit(seed=1, init_values=1e-5, reg_tokens=4, no_embed_class=True)
    state = original.state_dict()
    positions = torch.randn(1, 5, 48)
    state["pos_embed"] = positions  # Meta's has one for the class token, too
    state["cls_token"] = torch.randn(1, 1, 48)
    state["register_tokens"] = state.pop("reg_token")
    state["mask_token"] = torch.zeros(1, 48)
    network = tiny_vit(seed=2, init_values=1e-5, reg_tokens=4, no_embed_class=True)
    fill_weights(network, state, source="x")
    assert torch.equal(network.reg_token, original.reg_token)
    torch.testing.assert_close(network.cls_token, state["cls_token"] + positions[:, :1])
    torch.testing.assert_close(network.pos_embed, positions[:, 1:])


def meta_dinov3(network: nn.Module, *, bias: float) -> dict[str, torch.Tensor]:
    state = {}
    for key, value in network.state_dict().items():
        key = key.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
        state[key.replace("reg_token", "storage_tokens")] = value
    for block in range(2):
        state[f"blocks.{block}.attn.qkv.bias"] = torch.full((3 * 48,), bias)
        mask = torch.ones(3, 48)
        mask[1] = 0  # the keys
        state[f"blocks.{block}.attn.qkv.bias_mask"] = mask.flatten()
    return state | {"mask_token": torch.ones(1, 48), "rope_embed.periods": torch.ones(4)}


def test_dinov3_as_meta_names_it_fills_timms_network():
    original, network = tiny_eva(seed=1), tiny_eva(seed=2)
    fill_weights(network, meta_dinov3(original, bias=0.0), source="x")
    assert same_weights(original, network)


def test_dinov3_whose_biases_would_be_dropped_is_refused():
    original, network = tiny_eva(seed=1), tiny_eva(seed=2)
    with pytest.raises(ValueError, match="have biases in their attention.*qkvb in its name"):
        fill_weights(network, meta_dinov3(original, bias=0.5), source="x")
    biased = tiny_eva(seed=2, qkv_bias=True)
    fill_weights(biased, meta_dinov3(original, bias=0.5), source="x")
    assert biased.blocks[0].attn.q_bias.eq(0.5).all()
    keys_too = {k: v for k, v in meta_dinov3(original, bias=0.5).items() if "mask" not in k}
    with pytest.raises(ValueError, match="biases of the keys"):
        fill_weights(tiny_eva(seed=2, qkv_bias=True), keys_too, source="x")


def test_dinov3_without_registers_is_no_dinov3_with_them():
    original, network = tiny_eva(seed=1), tiny_eva(seed=2)
    state = original.state_dict()
    del state["reg_token"]
    with pytest.raises(ValueError):
        fill_weights(network, state, source="x")
