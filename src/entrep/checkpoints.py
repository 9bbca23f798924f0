"""Weight files as people have them, read without running their code and loaded strictly."""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

# What a training script wraps around the tensors, from the outside in.
_WRAPPERS = ("model_ema", "teacher", "state_dict", "model", "module", "network")
# What it puts before their names; the one that most of them begin with is taken off.
_PREFIXES = ("_orig_mod.", "module.", "model.", "teacher.", "student.", "backbone.", "encoder.")
# A network's classifier may differ from the file's, or be missing there.
_CLASSIFIER = re.compile(r"^(head|head_dist|fc|classifier)\.(fc\.)?(weight|bias)$")
# Parts of a training task that a file may hold beside the trunk.
_LEFTOVER = re.compile(
    r"(^|\.)(head|heads|head_dist|fc|classifier|dino_head|ibot_head|projector|last_layer)\."
    r"|(^|\.)(mask_token|logit_bias|position_ids)$|^text\.transformer\.pooler\."
    r"|\.(periods|bias_mask)$"
)
# Small, yet random until filled: a network without one of them computes nonsense.
_TOKEN = re.compile(
    r"(^|\.)(cls_token|reg_token|dist_token|class_embedding|pos_embed|positional_embedding)$"
)
_POINTER = b"version https://git-lfs"
_MOST = 0.999  # share of the trunk's parameters that a checkpoint must fill


@dataclass(frozen=True)
class FillReport:
    """What a checkpoint did to a network.

    Attributes:
        filled: parameters that the checkpoint gave.
        total: parameters of the trunk.
        missing: tensors of the trunk that it lacks, left as they were.
        skipped: tensors of the checkpoint that belong to heads.
        notes: what was adapted, in words.
    """

    filled: int
    total: int
    missing: tuple[str, ...]
    skipped: tuple[str, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.filled:,} of {self.total:,} parameters filled"]
        lines += [f"left as initialised: {', '.join(self.missing)}"] if self.missing else []
        lines += [f"passed over: {_some(self.skipped)}"] if self.skipped else []
        return "; ".join([*lines, *self.notes])


def read_checkpoint(file: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors, .bin, .pth, .pt or .ckpt file on the CPU.

    Wrappers of training scripts ("state_dict", "teacher", …) are taken off. A pickle is only
    read if it holds nothing but tensors and plain values (`weights_only`).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is cut off, would run code, or holds no tensors.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such file of weights.")
    with open(file, "rb") as stream:
        head = stream.read(len(_POINTER))
    if head == _POINTER:
        raise ValueError(
            f"{file} is a pointer of git LFS, not the weights; run 'git lfs pull' in its folder."
        )
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except SafetensorError as error:
            raise ValueError(
                f"{file} is not a whole safetensors file ({error}); get it again."
            ) from error
    try:
        is_zip = head.startswith(b"PK\x03\x04")  # PyTorch's format since 1.6 can be mapped
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        reason = _first_line(error)
        raise ValueError(
            f"{file} was not loaded: {reason} A pickle can run any code, so only plain tensors "
            "are read from one. Get the weights as .safetensors, or have whoever made the file "
            "save its state_dict alone."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{file} is not a whole file of weights ({_first_line(error)}); get it again. "
            "A TorchScript archive is not read: save its state_dict."
        ) from error
    return _unwrap(content, file)


def fill_weights(model: nn.Module, weights: Mapping[str, Tensor], *, source: str) -> FillReport:
    """Load weights into a network, strictly where it matters.

    The trunk must be complete: what is missing of it may make up 0.1 % of its parameters at
    most (and is named in the report), nothing may have another shape, nothing may be left
    over. Heads may differ. Position embeddings of another input size are resampled by the
    library that built the network.

    Args:
        model: an open_clip or timm network, or any module.
        weights: tensors by name, from `read_checkpoint`.
        source: what to call the weights in messages.

    Raises:
        ValueError: if the weights do not belong to this network; says why.
    """
    own = model.state_dict()
    weights, notes = _adapt(model, _rename(weights, own), source)
    weights = {
        key: tensor
        for key, tensor in weights.items()
        if not (_CLASSIFIER.match(key) and key in own and own[key].shape != tensor.shape)
    }
    trunk = {key: tensor for key, tensor in own.items() if not _CLASSIFIER.match(key)}
    missing = tuple(key for key in trunk if key not in weights)
    surplus = tuple(key for key in weights if key not in own)
    misshapen = [key for key in own if key in weights and own[key].shape != weights[key].shape]
    total = sum(tensor.numel() for tensor in trunk.values())
    filled = total - sum(trunk[key].numel() for key in missing)
    if filled < _MOST * total or not filled:
        raise ValueError(
            f"the weights of {source} fill {filled:,} of {total:,} parameters "
            f"({filled / max(total, 1):.1%}); {len(missing)} of {len(trunk)} tensors are missing "
            f"({_some(missing)}). They belong to another network: the file begins with "
            f"{_some(tuple(weights)) or 'nothing'}."
        )
    random = [key for key in missing if _TOKEN.search(key)]
    if random:
        raise ValueError(
            f"the weights of {source} lack {_some(random)}, which the network needs; they belong "
            "to another network of the same kind."
        )
    if misshapen:
        raise ValueError(_explain_shape(misshapen[0], own, weights, source))
    fatal = [key for key in surplus if not _LEFTOVER.search(key)]
    if fatal:
        raise ValueError(
            f"the weights of {source} hold {len(fatal)} tensors that the network has no place "
            f"for ({_some(fatal)}); they belong to another network of the same kind."
        )
    kept = {key: weights[key].to(own[key].dtype) for key in own if key in weights}
    model.load_state_dict(kept, strict=False)
    return FillReport(filled, total, missing, surplus, tuple(notes))


def _unwrap(content: object, file: Path) -> dict[str, Tensor]:
    while isinstance(content, Mapping):
        tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
        inner = [k for k in _WRAPPERS if isinstance(content.get(k), Mapping)]
        if tensors and not inner:
            return tensors
        if not inner:
            break
        content = content[inner[0]]
    raise ValueError(f"{file} holds no tensors by name; expected the state_dict of a network.")


def _rename(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take prefixes off, and the groups that DINOv2's training makes of its blocks."""
    weights = dict(weights)
    trunk = {key for key in own if not _CLASSIFIER.match(key)}
    while not trunk & weights.keys():
        counts = {p: sum(key.startswith(p) for key in weights) for p in _PREFIXES}
        prefix = max(counts, key=counts.get)
        if not counts[prefix]:
            break
        # What lies beside the trunk (a student, heads) is no part of it.
        weights = {
            key.removeprefix(prefix): tensor
            for key, tensor in weights.items()
            if key.startswith(prefix)
        }
    grouped = re.compile(r"^blocks\.\d+\.(\d+\.)")
    if any(map(grouped.match, weights)) and not any(map(grouped.match, own)):
        weights = {grouped.sub(r"blocks.\1", key): tensor for key, tensor in weights.items()}
    return weights


def _adapt(
    model: nn.Module, weights: dict[str, Tensor], source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Let the library that built the network convert and resample the weights."""
    before = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    # open_clip wraps a timm network of its own: the class's home tells which library it is.
    if type(model).__module__.startswith("open_clip."):
        from open_clip.convert import convert_state_dict
        from open_clip.model import (
            convert_to_custom_text_state_dict,
            resize_pos_embed,
            resize_text_pos_embed,
        )

        weights = convert_state_dict(model, weights)
        if "positional_embedding" in weights and not hasattr(model, "positional_embedding"):
            weights = convert_to_custom_text_state_dict(weights)
        for key in [key for key in weights if key.endswith("positional_embedding")]:
            weights[key] = weights[key].float()  # halves cannot be resampled on a CPU
        resize_pos_embed(weights, model)
        resize_text_pos_embed(weights, model)
    elif hasattr(model, "patch_embed"):
        if hasattr(model, "rope"):
            # timm computes these itself; the mask token would have it take the file for BEiT's.
            weights = {
                key: tensor
                for key, tensor in weights.items()
                if key != "mask_token" and not key.startswith("rope_embed.")
            }
        _check_patches(model, weights, source)
        _check_biases(model, weights, source)
        convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        if convert:
            weights = convert(weights, model)
    notes = [
        f"position embeddings resampled from {before[key]} to {tuple(weights[key].shape)}"
        for key in before
        if "pos_embed" in key and key in weights and tuple(weights[key].shape) != before[key]
    ]
    return dict(weights), notes


def _check_patches(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Refuse another patch size: timm would resample the patches in silence."""
    projection = getattr(model.patch_embed, "proj", None)
    given = weights.get("patch_embed.proj.weight")
    if projection is None or given is None or given.dim() != 4:
        return
    if tuple(given.shape[-2:]) != tuple(projection.kernel_size):
        raise ValueError(
            f"the weights of {source} cut pictures into patches of {given.shape[-1]} px, the "
            f"network into patches of {projection.kernel_size[-1]} px; choose an architecture "
            f"with patch{given.shape[-1]} in its name."
        )


def _check_biases(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Refuse biases that timm's DINOv3 would drop in silence: all of them, or those of the keys."""
    own = model.state_dict()
    dropped = []
    for key, tensor in weights.items():
        if not key.endswith("attn.qkv.bias") or key in own:
            continue
        # Meta's networks compute with bias times mask; the mask is 0 for the keys.
        used = (tensor * weights.get(f"{key}_mask", torch.ones(()))).nan_to_num()
        held = key.replace("qkv.bias", "q_bias") in own
        if (used.chunk(3)[1] if held else used).any():
            dropped.append(key)
    if dropped:
        raise ValueError(
            f"the weights of {source} have biases in their attention ({_some(dropped)}) that the "
            "network has no place for; choose the architecture with qkvb in its name, or for "
            "biases of the keys one like the surgenet-dinov3 encoders."
        )


def _explain_shape(
    key: str, own: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str
) -> str:
    given, expected = tuple(weights[key].shape), tuple(own[key].shape)
    text = f"the weights of {source}: {key} is {given}, the network expects {expected}. "
    if "pos_embed" in key and given[-1] == expected[-1]:
        return text + "The input size differs; give the size that the weights were made for."
    return text + "It is a network of another size (small, base, large) or kind."


def _some(keys: tuple[str, ...] | list[str]) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(list(keys)[:3]) + more


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    unsafe = re.search(r"GLOBAL ([\w.]+)", text)
    if unsafe:
        return f"it asks for {unsafe[1]}, which is no tensor."
    return text.splitlines()[0] if text else type(error).__name__
