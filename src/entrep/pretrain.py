"""Trains the two embedded encoders on phantoms alone; `entrep demo-weights` runs it.

`demo-clip` is an open_clip dual encoder, trained on pictures and captions with a
multi-positive contrastive loss. `demo-dino` is a DINOv2-style timm ViT (patch 14, layer
scale), trained by self-supervision (MoCo v3 with multi-crop, see `train_dino`) and without
any label. Every picture is mirrored at random and no caption's side is told the truth, so
both learn what a site looks like and neither which side it is: as in their big sisters,
that is left to fine-tuning.
"""

from __future__ import annotations

import copy
import itertools
import platform
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2
from tqdm import tqdm

from entrep.artifacts import sha256_file, write_text
from entrep.disc import crop_disc
from entrep.encoders import WEIGHTS_FILE, build_network, pooled_features
from entrep.labels import CLASS_TO_INDEX, SITE_NAMES, SITE_OF
from entrep.packs import write_pack
from entrep.phantom import draw_pictures
from entrep.preprocess import as_batch, normalise
from entrep.prototypes import CLASS_PHRASES, TEMPLATES, sweep_picture_weight
from entrep.registry import ENCODERS

MEAN, STD = ENCODERS["demo-clip"].mean, ENCODERS["demo-clip"].std  # demo-dino's too
STORED_PX = 128  # pictures are kept at this size; crops of 112 are cut from it
SIZE_PX = 112
GLOBAL_PX, LOCAL_PX = 84, 42  # crops of demo-dino's training
DINO_LR = 1e-3

# The content of a pack's configuration file: open_clip's and timm's own formats.
CLIP_CONFIG = {
    "model_cfg": {
        "embed_dim": 96,
        "vision_cfg": {
            "image_size": SIZE_PX,
            "patch_size": 16,
            "width": 128,
            "layers": 4,
            "head_width": 32,
        },
        # The tokenizer's 49,408 words are most of the weights: 32 wide keeps them at 3 MB.
        "text_cfg": {
            "context_length": 40,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 3,
        },
    },
    "preprocess_cfg": {"mean": list(MEAN), "std": list(STD)},
}
DINO_CONFIG = {
    "architecture": "vit_tiny_patch16_224",
    "num_classes": 0,
    "model_args": {
        "img_size": SIZE_PX,
        "patch_size": 14,
        "embed_dim": 128,
        "depth": 6,
        "num_heads": 4,
        "init_values": 1e-2,
        "dynamic_img_size": True,
    },
    "pretrained_cfg": {
        "input_size": [3, SIZE_PX, SIZE_PX],
        "mean": list(MEAN),
        "std": list(STD),
        "num_classes": 0,
    },
}


def train_demo_weights(
    folder: str | Path,
    *,
    seed: int = 0,
    pictures: int = 3000,
    clip_epochs: int = 20,
    dino_epochs: int = 30,
    device: str = "cpu",
) -> None:
    """Draw phantoms, train both encoders, probe them, and write weights, configs and the log.

    Args:
        folder: receives the packs demo-clip and demo-dino, and training.log.
        seed: of pictures, weights and batches.
        pictures: phantoms to train on; 500 more are drawn for the probe.
        clip_epochs: passes over the pictures for demo-clip.
        dino_epochs: passes over the pictures for demo-dino.
        device: where to train.
    """
    folder, target = Path(folder), torch.device(device)
    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        tqdm.write(line)

    log(f"pictures={pictures} seed={seed} clip_epochs={clip_epochs} dino_epochs={dino_epochs}")
    log(
        f"python {platform.python_version()} torch {torch.__version__} timm {timm.__version__} "
        f"open_clip {open_clip.__version__}, {device}, {torch.get_num_threads()} threads"
    )
    start = time.perf_counter()
    train = _draw(pictures, seed)
    probe = _draw(500, seed + 1)
    log(f"{pictures + 500} phantoms drawn in {time.perf_counter() - start:.0f} s")
    torch.manual_seed(seed)

    clip = train_clip(train, epochs=clip_epochs, seed=seed, device=target, log=log)
    _report("demo-clip", clip.encode_image, probe, target, log)
    _save(folder, "demo-clip", _forget_unseen_words(clip, train).state_dict(), CLIP_CONFIG, log)

    dino = train_dino(train[0], epochs=dino_epochs, device=target, log=log)
    _report("demo-dino", lambda x: pooled_features(dino, x), probe, target, log)
    _save(folder, "demo-dino", dino.state_dict(), DINO_CONFIG, log)
    log(f"whole run {time.perf_counter() - start:.0f} s")
    write_text(folder / "training.log", "\n".join(lines) + "\n")


Drawn = tuple[np.ndarray, np.ndarray, list[str], list[str]]


def _draw(count: int, seed: int) -> Drawn:
    """`count` phantoms: prepared (N, 128, 128, 3), class_index (N,), findings, phrases."""
    prepared = np.empty((count, STORED_PX, STORED_PX, 3), np.uint8)
    class_index, findings, phrases = np.empty(count, int), [], []
    drawn = draw_pictures(count, seed=seed, difficulty=0.4)
    bar = tqdm(drawn, "draw phantoms", count, unit="picture")
    for row, (picture, name, finding, phrase) in enumerate(bar):
        square = crop_disc(Image.fromarray(picture))
        prepared[row] = np.asarray(square.resize((STORED_PX,) * 2, Image.Resampling.BICUBIC))
        class_index[row] = CLASS_TO_INDEX[name]
        findings.append(finding)
        phrases.append(phrase)
    return prepared, class_index, findings, phrases


def _crops(size: int, scale: tuple[float, float], *, recolour: bool = False) -> v2.Transform:
    """Random mirrored crops; `recolour` keeps colour from telling which picture a crop is of."""
    strength = (0.4, 0.4, 0.4, 0.1) if recolour else (0.3, 0.3, 0.3)
    steps = [
        v2.RandomResizedCrop(size, scale=scale, ratio=(0.9, 1.1), antialias=True),
        v2.RandomHorizontalFlip(),
        v2.ColorJitter(*strength),
    ]
    return v2.Compose(steps + [v2.RandomGrayscale(0.2)] if recolour else steps)


def _augmented(transform: v2.Transform, pictures: Tensor, device: torch.device) -> Tensor:
    batch = torch.stack([transform(picture) for picture in pictures])
    return normalise(batch.to(device), MEAN, STD)


def _cosine(step: int, steps: int, peak: float, warmup: int) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + np.cos(np.pi * (step - warmup) / max(1, steps - warmup)))


# --- demo-clip ---------------------------------------------------------------------------


def caption(class_name: str, phrase: str, draw: random.Random) -> tuple[str, bool]:
    """A caption, and whether it tells the finding (True) or only the site (False).

    A class's phrase may name a side; as pictures are mirrored at random, that word tells
    nothing, which is the point. The state of the cords is not told at all.
    """
    site = CLASS_PHRASES[class_name].replace("open ", "").replace("closed ", "")
    told = draw.choice(TEMPLATES).format(site)
    kind = draw.random()
    if kind < 0.4:
        return told, False
    return (phrase, True) if kind < 0.8 else (f"{told} {phrase}", True)


def train_clip(
    train: Drawn, *, epochs: int, seed: int, device: torch.device, log: Callable[[str], None]
) -> nn.Module:
    """Train the dual encoder with the multi-positive loss of UniCL (arXiv 2204.03610, eq. 2).

    A picture and a caption are a positive pair when their sites are the same and the
    caption tells the picture's finding, or none.
    """
    prepared, class_index, findings, phrases = train
    model = open_clip.CLIP(**CLIP_CONFIG["model_cfg"]).to(device)
    tokenize = open_clip.SimpleTokenizer(
        context_length=CLIP_CONFIG["model_cfg"]["text_cfg"]["context_length"]
    )
    names = list(CLASS_TO_INDEX)
    site = torch.tensor(SITE_OF)[torch.from_numpy(class_index)]
    numbers = {name: number for number, name in enumerate(sorted(set(findings)))}
    finding = torch.tensor([numbers[name] for name in findings])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    transform, draw = _crops(SIZE_PX, (0.6, 1.0)), random.Random(seed)
    pictures, size = as_batch(prepared), 100
    steps = epochs * (len(pictures) // size)
    step = itertools.count()
    for epoch in tqdm(range(epochs), "demo-clip", unit="epoch"):
        losses = []
        for rows in torch.randperm(len(pictures)).split(size):
            if len(rows) < size:
                continue
            for group in optimizer.param_groups:
                group["lr"] = _cosine(next(step), steps, 1e-3, steps // 10)
            told = [caption(names[class_index[r]], phrases[r], draw) for r in rows.tolist()]
            tells = torch.tensor([flag for _, flag in told])
            images = model.encode_image(
                _augmented(transform, pictures[rows], device), normalize=True
            )
            texts = model.encode_text(
                tokenize([text for text, _ in told]).to(device), normalize=True
            )
            same_site = site[rows][:, None] == site[rows][None, :]
            same_finding = finding[rows][:, None] == finding[rows][None, :]
            positive = (same_site & (same_finding | ~tells[None, :])).float().to(device)
            logits = model.logit_scale.exp().clamp(max=50) * images @ texts.T
            loss = _soft_cross_entropy(logits, positive) + _soft_cross_entropy(logits.T, positive.T)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item() / 2)
        log(f"demo-clip epoch {epoch + 1:2d}/{epochs} loss {np.mean(losses):.4f}")
    return model.eval()


def _soft_cross_entropy(logits: Tensor, positive: Tensor) -> Tensor:
    return functional.cross_entropy(logits, positive / positive.sum(dim=1, keepdim=True))


def _forget_unseen_words(model: nn.Module, train: Drawn) -> nn.Module:
    """Set the vectors of words that no caption held to zero: their random start means nothing."""
    tokenize = open_clip.SimpleTokenizer(
        context_length=CLIP_CONFIG["model_cfg"]["text_cfg"]["context_length"]
    )
    prompts = [t.format(phrase) for t in TEMPLATES for phrase in CLASS_PHRASES.values()]
    seen = tokenize(sorted(set(train[3])) + prompts).unique()
    kept = torch.zeros(model.vocab_size, 1, dtype=torch.bool)
    kept[seen] = True
    with torch.no_grad():
        model.token_embedding.weight.mul_(kept.to(model.token_embedding.weight.device))
    return model


# --- demo-dino ---------------------------------------------------------------------------


def _mlp(width: int, out: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(width, 256), nn.BatchNorm1d(256), nn.GELU(), nn.Linear(256, out, bias=False)
    )


def train_dino(
    prepared: np.ndarray, *, epochs: int, device: torch.device, log: Callable[[str], None]
) -> nn.Module:
    """Self-supervised training with two global and two local crops; returns the teacher.

    A student with a predictor matches, for every crop, the projection that its moving
    average, the teacher, gives to another, global crop of the same picture, against those
    of the other pictures of the batch: MoCo v3 (arXiv 2104.02057, algorithm 1) with DINO's
    multi-crop (arXiv 2104.14294, section 3.1). Each crop is mirrored and recoloured on its
    own. Crops are smaller than the network's pictures, which saves half of the time; its
    position embeddings are resampled for them.
    """
    backbone = build_network(ENCODERS["demo-dino"], DINO_CONFIG)
    teacher = nn.Sequential(backbone, _mlp(2 * backbone.num_features, 64)).to(device)
    student = copy.deepcopy(teacher)
    teacher.requires_grad_(False)
    predictor = _mlp(64, 64).to(device)
    learned = [*student.parameters(), *predictor.parameters()]
    optimizer = torch.optim.AdamW(learned, lr=DINO_LR, weight_decay=0.04)
    crops = (
        _crops(GLOBAL_PX, (0.4, 1.0), recolour=True),
        _crops(LOCAL_PX, (0.1, 0.4), recolour=True),
    )
    pictures, size = as_batch(prepared), 64
    steps = epochs * (len(pictures) // size)
    step = itertools.count()
    for epoch in tqdm(range(epochs), "demo-dino", unit="epoch"):
        losses = []
        for rows in torch.randperm(len(pictures)).split(size):
            if len(rows) < size:
                continue
            now = next(step)
            for group in optimizer.param_groups:
                group["lr"] = _cosine(now, steps, DINO_LR, steps // 10)
            views = [_augmented(crops[n > 1], pictures[rows], device) for n in range(4)]
            wide, local = torch.cat(views[:2]), torch.cat(views[2:])
            with torch.no_grad():
                keys = _project(teacher, wide).chunk(2)
            queries = [
                *predictor(_project(student, wide)).chunk(2),
                *predictor(_project(student, local)).chunk(2),
            ]
            pairs = [(k, q) for k in range(2) for q in range(4) if k != q]
            loss = torch.stack([_contrast(queries[q], keys[k]) for k, q in pairs]).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(learned, 3.0)
            optimizer.step()
            pace = 0.02 * 0.5 * (1 + np.cos(np.pi * now / steps))  # the teacher slows to a halt
            with torch.no_grad():
                for kept, new in zip(teacher.parameters(), student.parameters(), strict=True):
                    kept.lerp_(new, pace)
            losses.append(loss.item())
        log(f"demo-dino epoch {epoch + 1:2d}/{epochs} loss {np.mean(losses):.4f}")
    return teacher[0].eval()


def _project(network: nn.Sequential, pixels: Tensor) -> Tensor:
    backbone, projector = network
    return projector(pooled_features(backbone, pixels))


def _contrast(queries: Tensor, keys: Tensor, temperature: float = 0.2) -> Tensor:
    """InfoNCE: the n-th query belongs to the n-th key."""
    logits = functional.normalize(queries, dim=-1) @ functional.normalize(keys, dim=-1).T
    target = torch.arange(len(logits), device=logits.device)
    return functional.cross_entropy(logits / temperature, target)


# --- probe and files ---------------------------------------------------------------------


@torch.inference_mode()
def _report(
    name: str,
    encode: Callable[[Tensor], Tensor],
    probe: Drawn,
    device: torch.device,
    log: Callable[[str], None],
) -> None:
    """Log what frozen features tell: two-fold accuracy of the nearest picture prototype."""
    prepared, class_index, _, _ = probe
    batch = functional.interpolate(
        as_batch(prepared).float(), SIZE_PX, mode="bilinear", antialias=True
    )
    pixels = normalise(batch, MEAN, STD).to(device)
    features = torch.cat([encode(part).float().cpu() for part in pixels.split(100)])
    embeddings = functional.normalize(features, dim=-1).numpy()
    fold = np.arange(len(class_index)) % 2
    _, scores = sweep_picture_weight(embeddings, class_index, fold, None, np.ones(1))
    site = np.array(SITE_OF)[class_index]
    counts = ", ".join(f"{n} {(site == i).sum()}" for i, n in enumerate(SITE_NAMES))
    log(
        f"{name} frozen, nearest prototype on {len(class_index)} unseen phantoms ({counts}): "
        f"coarse {scores[0, 0]:.3f}, fine {scores[0, 1]:.3f}"
    )


def _save(
    folder: Path,
    name: str,
    state: dict[str, Tensor],
    config: dict,
    log: Callable[[str], None],
) -> None:
    spec = ENCODERS[name]
    half = {key: tensor.cpu().half() for key, tensor in state.items()}
    write_pack(folder / name, spec, half, config)
    path = folder / name / WEIGHTS_FILE[spec.library]
    log(f"{name}: {path.stat().st_size / 1e6:.2f} MB, SHA-256 {sha256_file(path)}")
