"""Random weights in the exact layouts that their publishers use, for tests and benchmarks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import timm
import torch
from tokenizers import BertWordPieceTokenizer

from entrep.encoders import build_network
from entrep.registry import BIOMEDBERT_CONFIG, BIOMEDCLIP_CONFIG, ENCODERS

_TINY_BERT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
}


def write_biomedclip(folder: Path, *, tiny: bool = True, seed: int = 0) -> tuple[Path, Path]:
    """BiomedCLIP's two repositories with random weights: the model's, and its text tower's.

    Args:
        folder: receives both as subfolders.
        tiny: narrower towers; False writes the true 196 M parameters (784 MB).
        seed: of the weights.
    """
    model, tower = folder / "BiomedCLIP", folder / "BiomedBERT"
    model.mkdir(parents=True)
    tower.mkdir()
    config = json.loads(json.dumps(BIOMEDCLIP_CONFIG))
    bert = {**BIOMEDBERT_CONFIG, **(_TINY_BERT if tiny else {})}
    if tiny:
        config["model_cfg"]["embed_dim"] = 16
        config["model_cfg"]["vision_cfg"]["timm_model_name"] = "test_vit"
    (model / "open_clip_config.json").write_text(json.dumps(config))
    (tower / "config.json").write_text(json.dumps(bert))
    for place in (model, tower):
        _write_tokenizer(place)
    torch.manual_seed(seed)
    state = build_network(ENCODERS["biomedclip"], config, tower).state_dict()
    # transformers before 4.31 kept this one among the weights, and so does the published file.
    state["text.transformer.embeddings.position_ids"] = torch.arange(512)[None]
    torch.save(state, model / "open_clip_pytorch_model.bin")
    (model / "README.md").write_text("---\nlicense: mit\nlibrary_name: open_clip\n---\n# Card\n")
    (model / "LICENSE.md").write_text("MIT License\n")
    return model, tower


def write_surgenet(
    file: Path, architecture: str, *, image_size: int, seed: int = 0, **arguments: object
) -> dict[str, torch.Tensor]:
    """A SurgeNet release: the plain state_dict of a timm network in a .pth; returns it."""
    torch.manual_seed(seed)
    network = timm.create_model(architecture, num_classes=0, img_size=image_size, **arguments)
    state = network.state_dict()
    if "dinov2" in architecture:
        state["mask_token"] = torch.zeros(1, network.embed_dim)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, file)
    return state


def write_surgenet_dinov3(file: Path, *, width: int = 384, seed: int = 0) -> torch.nn.Module:
    """A DINOv3 of SurgeNet's release: Meta's names, biased keys, no register tokens.

    The network is transformers' with the settings that the release's own loader gives it;
    it is returned, for its embeddings to be compared with.
    """
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    layers, heads = (24 if width == 1024 else 12), width // 64
    no_augmentation = dict.fromkeys(f"pos_embed_{x}" for x in ("shift", "jitter", "rescale"))
    config = DINOv3ViTConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=336,
        num_register_tokens=0,
        key_bias=True,
        layer_norm_eps=1e-6,
        **no_augmentation,
    )
    network = DINOv3ViTModel(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():  # biases and scales count, too
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    own = {key.removeprefix("model."): value for key, value in network.state_dict().items()}
    state = {
        "cls_token": own["embeddings.cls_token"],
        "mask_token": own["embeddings.mask_token"][0],
        "patch_embed.proj.weight": own["embeddings.patch_embeddings.weight"],
        "patch_embed.proj.bias": own["embeddings.patch_embeddings.bias"],
        "rope_embed.periods": torch.ones(16, dtype=torch.bfloat16),
    }
    names = {"proj": "attention.o_proj", "fc1": "mlp.up_proj", "fc2": "mlp.down_proj"}
    places = {"proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    for block in range(layers):
        to, of = f"blocks.{block}.", f"layer.{block}."
        for kind in ("weight", "bias"):
            parts = [own[f"{of}attention.{x}_proj.{kind}"] for x in "qkv"]
            state[f"{to}attn.qkv.{kind}"] = torch.cat(parts)
            for short, name in names.items():
                state[f"{to}{places[short]}.{kind}"] = own[f"{of}{name}.{kind}"]
            for norm in ("norm1", "norm2"):
                state[f"{to}{norm}.{kind}"] = own[f"{of}{norm}.{kind}"]
        for scale in (1, 2):
            state[f"{to}gamma_{scale}"] = own[f"{of}layer_scale{scale}.lambda1"]
    state |= {f"norm.{kind}": own[f"norm.{kind}"] for kind in ("weight", "bias")}
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, file)
    return network


def as_hub_cache(files: Path, root: Path, repository: str, *, commit: str = "c0ffee") -> Path:
    """Lay a folder's files out as huggingface_hub's cache does; returns the snapshot."""
    cache = root / f"models--{repository.replace('/', '--')}"
    snapshot = cache / "snapshots" / commit
    for folder in (snapshot, cache / "blobs", cache / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    for path in files.iterdir():
        blob = cache / "blobs" / f"{commit}-{path.name}"  # the hub's are named by their hashes
        shutil.copyfile(path, blob)
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", blob.name))
    (cache / "refs" / "main").write_text(commit)
    return snapshot


def _write_tokenizer(folder: Path) -> None:
    """A BERT word-piece tokenizer with BERT's 30,522 entries, most of them fillers."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    words += ["ear", "drum", "nasal", "cavity", "polyp", "left", "right", "normal", ".", ","]
    words += [f"[unused{i}]" for i in range(30522 - len(words))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True).save(
        str(folder / "tokenizer.json")
    )
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    special = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    special |= {"cls_token": "[CLS]", "mask_token": "[MASK]"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))


# Code that cuts a fresh interpreter off from every network before anything else is imported.
BLOCK_NETWORK = """
import os, socket
os.environ["HF_HUB_OFFLINE"] = "1"
def _refuse(*args, **kwargs):
    raise AssertionError(f"the network was asked for: {args}")
socket.socket.connect = socket.socket.connect_ex = _refuse
socket.create_connection = socket.getaddrinfo = socket.gethostbyname = _refuse
"""
