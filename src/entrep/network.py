"""The network that is fine-tuned: one backbone, one linear layer for all heads, one file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from entrep.artifacts import atomic_path
from entrep.encoders import feature_width, load_backbone, pooled_features
from entrep.heads import BINARY, mirror_logits
from entrep.labels import CLASS_NAMES
from entrep.preprocess import as_batch, mirror, normalise

_METADATA = "entrep"  # name of a checkpoint's metadata, as JSON
# The linear layers of a transformer's block in timm, which take LoRA's detours.
LORA_LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


class SharedNetwork(nn.Module):
    """One backbone and one linear layer for all heads: (B, 3, S, S) uint8 to (B, 14) logits.

    The normalisation is part of the network, so a checkpoint cannot meet another one's.
    """

    def __init__(
        self, backbone: nn.Module, mean: Sequence[float], std: Sequence[float], width: int
    ) -> None:
        """Put a fresh head on a backbone whose pooled features are `width` wide."""
        super().__init__()
        self.backbone = backbone
        self.mean, self.std = tuple(mean), tuple(std)
        self.head = nn.Linear(width, BINARY.stop)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def features(self, batch: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 to (B, F), what the heads see."""
        pixels = normalise(batch, self.mean, self.std)
        # Convolutions on a CPU run more than twice as fast with a pixel's channels together.
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        return pooled_features(self.backbone, pixels)

    def forward(self, batch: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 to (B, 14) logits, columns as in `entrep.heads`."""
        return self.head(self.features(batch))


def build_network(
    backbone: str,
    image_size: int,
    *,
    weights_dir: str = "",
    pretrained: bool = True,
    drop_path: float = 0.0,
) -> SharedNetwork:
    """A `SharedNetwork` with a fresh head on a registered backbone.

    Args:
        backbone: see `load_backbone`, as `weights_dir` and `pretrained`.
        image_size: pixels a side.
        weights_dir: a model pack, or a folder that holds some.
        pretrained: False leaves the weights random.
        drop_path: highest rate at which a block is skipped in training (Huang et al., arXiv
            1603.09382); it rises from 0 at the first block.
    """
    model, mean, std = load_backbone(
        backbone,
        image_size=image_size,
        weights_dir=weights_dir,
        pretrained=pretrained,
        drop_path=drop_path,
    )
    network = SharedNetwork(model, mean, std, feature_width(model))
    return network.to(memory_format=torch.channels_last)


def add_lora(network: SharedNetwork, rank: int) -> None:
    """Freeze the backbone and put a trainable detour of low rank beside each linear layer.

    Hu et al., "LoRA", arXiv 2106.09685; alpha is twice the rank.

    Raises:
        ValueError: if the backbone has no transformer blocks.
    """
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds, and few need it

    names = [name for name, _ in network.backbone.named_modules()]
    targets = [name for name in names if name.endswith(LORA_LAYERS)]
    if not targets:
        raise ValueError(
            "lora_rank: the backbone has no transformer blocks to adapt; "
            "set lora_rank=0 or take a ViT, such as a DINOv2."
        )
    settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
    inject_adapter_in_model(settings, network.backbone)


def merge_lora(network: SharedNetwork) -> None:
    """Add the detours into the layers that they go around: a plain network with the same answers.

    Does nothing where there are none.
    """
    for name, module in list(network.backbone.named_modules()):
        if hasattr(module, "lora_A"):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(network.backbone.get_submodule(parent), child, module.get_base_layer())


@torch.inference_mode()
def predict_logits(
    network: nn.Module, prepared: np.ndarray, *, batch_size: int = 32, flip_tta: bool = True
) -> np.ndarray:
    """Logits of prepared pictures: (N, S, S, 3) uint8 to (N, 14) float32.

    With `flip_tta` each picture is also seen mirrored, and the mirrored logits are turned
    back by `mirror_logits` before the two are averaged.
    """
    device = next(network.parameters()).device
    network.eval()
    rows = []
    for start in range(0, len(prepared), batch_size):
        batch = as_batch(prepared[start : start + batch_size]).to(device)
        logits = network(batch)
        if flip_tta:
            logits = (logits + mirror_logits(network(mirror(batch)))) / 2
        rows.append(logits.float().cpu())
    return torch.cat(rows).numpy() if rows else np.empty((0, BINARY.stop), np.float32)


def save_checkpoint(
    path: str | Path, network: SharedNetwork, options: Mapping[str, object], key: str
) -> None:
    """Save the weights as safetensors, atomically, with options, class order and key inside.

    Args:
        path: to write.
        network: without LoRA's detours; see `merge_lora`.
        options: at least `backbone`, `image_size` and `weights_dir`; numbers, texts and tuples.
        key: says what the weights depend on; see `checkpoint_metadata`.
    """
    told = {"options": dict(options), "class_names": CLASS_NAMES, "key": key}
    # Under one name: safetensors writes several in random order, and equal weights are equal bytes.
    metadata = {_METADATA: json.dumps(told)}
    state = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata)


def checkpoint_metadata(path: str | Path) -> Mapping[str, object]:
    """Options, class_names and key of a checkpoint; empty if there is none that is whole."""
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {}).get(_METADATA, "{}"))
    except (FileNotFoundError, SafetensorError):
        return {}


def load_checkpoint(path: str | Path, device: torch.device) -> SharedNetwork:
    """Rebuild a network from its checkpoint alone.

    Raises:
        ValueError: if the file is no checkpoint of ours, or of another class order.
    """
    metadata = checkpoint_metadata(path)
    if metadata.get("class_names") != list(CLASS_NAMES):
        raise ValueError(
            f"{path} is not a whole checkpoint of this kit with the official class order; "
            "delete it and run 03_dinov2_finetune again."
        )
    options = metadata["options"]
    network = build_network(
        options["backbone"],
        options["image_size"],
        weights_dir=options["weights_dir"],
        pretrained=False,
    )
    network.load_state_dict(load_file(path))
    return network.to(device)
