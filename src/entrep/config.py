"""The one configuration object of a run: profile defaults, then overrides, validated."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PROFILES: dict[str, dict[str, object]] = {
    # Drawn pictures and the embedded encoders: minutes on two CPU cores.
    "demo": {},
    # Real pictures with what needs no model hub.
    "mini": {
        "work_dir": "runs/mini",
        "holdout": 0.0,
        "backbone": "effnet-lite0",
        "prototype_encoder": "effnet-lite0",
        "image_size": 192,
        "phantoms": 1800,
        "epochs": 12,
        "learning_rate": 1e-3,
        "layer_decay": 0.9,
        "patience": 8,
    },
    # The reference's encoders, on a GPU.
    "full": {
        "work_dir": "runs/full",
        "holdout": 0.15,
        "folds": 5,
        "backbone": "surgenet-dinov2-b",
        "prototype_encoder": "biomedclip",
        "text_encoder": "biomedclip",
        "image_size": 336,
        "phantoms": 3000,
        "train_batch_size": 32,
        "learning_rate": 1e-4,
        "layer_decay": 0.7,
    },
}


@dataclass(frozen=True)
class RunConfig:
    """Everything that a run depends on. Field comments say what a value does.

    Build it with `load_config`, which applies the profile's differences first.
    """

    profile: str = "demo"  # demo, mini or full
    data_path: str = ""  # the challenge's folder; empty: draw the demo set into work_dir/data
    work_dir: str = "runs/demo"  # the run folder
    seed: int = 0  # phantoms, folds, weights of the heads, shuffling
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    threads: int = 0  # CPU threads of PyTorch; 0: its own choice
    batch_size: int = 32  # pictures a forward pass at inference
    split: str = "auto"  # test lists to answer: public, private, test; auto: private if there
    # phantoms (demo without data)
    demo_size: float = 0.25  # share of the real set's counts
    demo_difficulty: float = 0.4  # 0 easy .. 1 hard
    # folds
    folds: int = 3  # cross-validation folds over the development pictures
    holdout: float = 0.2  # share of labelled pictures that nothing is fitted on
    # encoders
    prototype_encoder: str = "demo-clip"  # prototypes and image-to-image retrieval
    text_encoder: str = "demo-clip"  # text-to-image retrieval
    backbone: str = "demo-dino"  # the network that is fine-tuned
    weights_dir: str = ""  # folder with the model packs of encoders that are not shipped
    precision: str = "auto"  # of embedding: fp32, fp16, bf16; auto: what the device is best at
    crop: bool = True  # cut pictures to the endoscope's lit disc; False: the whole frame
    cache_dir: str = ""  # embeddings and decoded pictures, kept; empty: work_dir/.cache
    # fine-tuning
    image_size: int = 112  # pixels a side
    phantoms: int = 0  # drawn pictures to train on before the real ones; 0: none
    epochs: int = 10
    learning_rate: float = 1e-3
    layer_decay: float = 0.9  # learning rate of a block relative to the block above it
    weight_decay: float = 0.05
    train_batch_size: int = 16
    linear_probe: bool = True  # fit the heads on frozen features first, then train everything
    ema: bool = True  # answer with the moving average of the weights
    label_smoothing: float = 0.05
    focal_gamma: float = 0.0  # above 0: what is already answered well counts less
    class_balance: str = "weights"  # rare classes: weights, sampler (drawn more often) or none
    augmentation: float = 1.0  # strength of the training views' changes; 0: none, 2: most
    mix_share: float = 0.0  # share of training views mixed with another one (mixup, CutMix)
    drop_path: float = 0.0  # highest rate at which a block is skipped in training
    accumulate: int = 1  # parts that a batch goes through the network in, to need less memory
    clip_norm: float = 1.0  # longest gradient; 0: any
    lora_rank: int = 0  # above 0: train detours of this rank, not the backbone itself
    gradient_checkpointing: bool = False  # compute twice to need less memory
    train_precision: str = "auto"  # fp32, fp16, bf16; auto: what the device is best at
    processes: int = 1  # that share each batch: one a GPU
    members: int = 1  # networks a fold, which differ by their seeds
    training_seed: int = 0  # another one: other networks, from the same pictures and folds
    patience: int = 10  # epochs without a better out-of-fold loss before a fold stops; 0: never
    time_budget_min: float = 0.0  # minutes for all training, ended cleanly; 0: as long as it takes
    flip_swap: bool = True  # mirror training pictures and swap their left/right label
    mirror_pairs: bool = True  # both at once: learn from their mean answer, as flip_tta asks
    flip_tta: bool = True  # average with the mirrored picture, its classes swapped back
    # hybrid
    decision: str = "combined"  # or "reference": its rule of thumb instead of weighed opinions
    coverage: float = 0.9  # share of pictures whose set of classes shall hold the true one
    accept_share: float = 0.95  # share of pictures like the training's that is not doubted
    abstain_share: float = 0.99  # share of them that is answered at all, if it may keep silent
    # retrieval
    copies: str = "identical"  # of the query that never answer: none, identical or near
    adapter_epochs: int = 60  # of the correction of the joint space; 0: as the encoder has it
    same_class_weight: float = 0.1  # how much a picture of the query's class is preferred
    named_class_weight: float = 0.1  # how much the site and side that a phrase names count
    hubness: str = "none"  # take off what is near to all phrases: csls, inverted_softmax, none
    fine_scale: bool = True  # see pictures at the joint encoder's size and at twice that
    phrase_probe: bool = True  # learn which known phrases describe a picture; False: by cosine
    whiten_dims: int = 0  # directions kept of a whitened image-only space; 0: as it is
    finding_weight: float = 0.7  # share of how far what is said of two pictures agrees
    k_reciprocal_weight: float = 0.0  # share of how far two pictures' neighbours agree
    expansion: int = 0  # neighbours that a picture is moved towards
    split_phrases: bool = True  # ask for each finding that a phrase joins, too
    phrase_variants: bool = False  # average over several wordings of a phrase
    one_to_one: bool = False  # no two phrases of a list share their first answer


_CHOICES = {
    "precision": ("auto", "fp32", "fp16", "bf16"),
    "train_precision": ("auto", "fp32", "fp16", "bf16"),
    "class_balance": ("weights", "sampler", "none"),
    "decision": ("combined", "reference"),
    "copies": ("none", "identical", "near"),
    "hubness": ("csls", "inverted_softmax", "none"),
    "split": ("auto", "public", "private", "test"),
}


def load_config(profile: str = "demo", **overrides: object) -> RunConfig:
    """Resolve a profile and overrides to a validated `RunConfig`.

    Args:
        profile: "demo", "mini" or "full".
        overrides: fields of `RunConfig`; a value of None keeps the profile's.

    Raises:
        ValueError: for an unknown profile or field, a wrong type or a value out of range.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile: expected one of {', '.join(PROFILES)}; got {profile!r}.")
    fields = {field.name: field for field in dataclasses.fields(RunConfig)}
    values = {"profile": profile, **PROFILES[profile]}
    for name, value in overrides.items():
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{name}: there is no such parameter.{hint}")
        if value is not None:
            values[name] = _typed(name, value, type(fields[name].default))
    config = RunConfig(**values)
    _check(config)
    return config


def config_from(namespace: Mapping[str, object]) -> RunConfig:
    """`load_config` from a notebook's variables: those that are named like a parameter.

    Call it right below the parameters cell, as `config_from(globals())`.
    """
    names = {field.name for field in dataclasses.fields(RunConfig)}
    return load_config(**{name: namespace[name] for name in names & namespace.keys()})


def _typed(name: str, value: object, expected: type) -> object:
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if expected is str and isinstance(value, Path):
        return str(value)
    if type(value) is not expected:
        raise ValueError(
            f"{name}: expected {expected.__name__}, got {value!r} ({type(value).__name__})."
        )
    return value


def _check(config: RunConfig) -> None:
    ranges = {
        "seed": (0, 2**31 - 1),
        "threads": (0, 1024),
        "batch_size": (1, 4096),
        "demo_size": (0.02, 4.0),
        "demo_difficulty": (0.0, 1.0),
        "folds": (2, 20),
        "holdout": (0.0, 0.5),
        "image_size": (32, 1024),
        "phantoms": (0, 10**6),
        "epochs": (1, 1000),
        "learning_rate": (1e-7, 1.0),
        "layer_decay": (0.1, 1.0),
        "weight_decay": (0.0, 1.0),
        "train_batch_size": (2, 4096),
        "label_smoothing": (0.0, 0.5),
        "focal_gamma": (0.0, 10.0),
        "augmentation": (0.0, 2.0),
        "mix_share": (0.0, 1.0),
        "drop_path": (0.0, 0.9),
        "accumulate": (1, 4096),
        "clip_norm": (0.0, 1e6),
        "lora_rank": (0, 1024),
        "processes": (1, 64),
        "members": (1, 100),
        "training_seed": (0, 10**6),
        "patience": (0, 1000),
        "time_budget_min": (0.0, 1e6),
        "adapter_epochs": (0, 10_000),
        "same_class_weight": (0.0, 100.0),
        "named_class_weight": (0.0, 100.0),
        "finding_weight": (0.0, 1.0),
        "whiten_dims": (0, 100_000),
        "k_reciprocal_weight": (0.0, 1.0),
        "expansion": (0, 1000),
        "coverage": (0.5, 0.999),
        "accept_share": (0.5, 0.999),
        "abstain_share": (0.5, 0.999),
    }
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if not low <= value <= high:  # also refuses NaN
            raise ValueError(f"{name}: expected {low} to {high}, got {value}.")
    if config.abstain_share < config.accept_share:
        raise ValueError(
            f"abstain_share: expected accept_share ({config.accept_share}) or more, got "
            f"{config.abstain_share}; a picture must be doubted before it is refused."
        )
    for name, choices in _CHOICES.items():
        if getattr(config, name) not in choices:
            expected = ", ".join(choices[:-1]) + f" or {choices[-1]}"
            raise ValueError(f"{name}: expected {expected}; got {getattr(config, name)!r}.")
    if not config.work_dir:
        raise ValueError("work_dir: give a folder to write to; it is empty.")


def need_pictures(config: RunConfig) -> None:
    """Refuse a profile for real pictures without their folder; later notebooks do without.

    Raises:
        ValueError: if the profile is not `demo` and `data_path` is empty.
    """
    if config.profile != "demo" and not config.data_path:
        raise ValueError(
            f"data_path: profile {config.profile!r} works on real pictures; "
            "give the challenge's folder (entrep run --data DIR)."
        )


def cache_folder(config: RunConfig) -> Path:
    """Where a run keeps embeddings and decoded pictures; by default hidden in its run folder."""
    return Path(config.cache_dir) if config.cache_dir else Path(config.work_dir) / ".cache"


def describe_config(config: RunConfig) -> str:
    """The configuration as aligned `name = value` lines; a star marks what is not the default."""
    lines = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        star = " " if value == field.default else "*"
        lines.append(f"{star} {field.name:22} = {value!r}")
    return "\n".join(lines)
