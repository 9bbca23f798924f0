"""An encoder's files as people have them: a hub's snapshot or cache, a mounted data set, one file.

Nothing is loaded here; these functions find the files and say what they are.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from entrep.artifacts import read_json
from entrep.registry import (
    BIOMEDBERT_CONFIG,
    BIOMEDBERT_NAMES,
    BIOMEDCLIP_CONFIG,
    CLIP_MEAN,
    CLIP_STD,
    EncoderSpec,
    find_spec,
    model_arguments,
)

CHECKPOINT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
WEIGHTS_NAMES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)
TOKENIZER_NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
)
_VOCABULARIES = set(TOKENIZER_NAMES) - {
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
}
# Older configurations of BiomedCLIP call these so; today's open_clip would refuse them.
_RENAMED = {"proj": "hf_proj_type", "pooler_type": "hf_pooler_type"}


def gather_files(sources: Sequence[Path], repositories: Sequence[str]) -> tuple[list[Path], str]:
    """All files below the sources, the nearest first, and the commit if a hub's cache tells it.

    Hidden folders (.git, .cache, .ipynb_checkpoints) are left out.

    Args:
        sources: files and folders. Of a hub's cache, only the snapshots in use are read.
        repositories: OWNER/NAME of those that matter in a cache that holds more.

    Raises:
        FileNotFoundError: if a source is not there.
        ValueError: if a cache holds several snapshots and does not say which is in use.
    """
    wanted = {f"models--{name.replace('/', '--')}" for name in repositories}
    files: list[Path] = []
    revision = ""
    for source in sources:
        if source.is_file():
            files.append(source)
            continue
        if not source.is_dir():
            raise FileNotFoundError(f"{source}: there is no such file or folder.")
        inside = [*source.glob("models--*"), *source.glob("hub/models--*")]
        caches = [path for path in (source, *sorted(inside)) if (path / "snapshots").is_dir()]
        chosen = [path for path in caches if path.name in wanted] or caches
        for folder in [_snapshot(cache) for cache in chosen] or [source]:
            below = [
                path
                for path in folder.rglob("*")
                if path.is_file()
                and not any(part.startswith(".") for part in path.relative_to(folder).parts)
            ]
            files += sorted(below, key=lambda path: (len(path.parts), path.as_posix()))
            if folder.parent.name == "snapshots" and not revision:
                revision = folder.name
    return files, revision


def describe_files(name: str, files: Sequence[Path]) -> tuple[EncoderSpec, dict]:
    """What the files are: a spec, and the content of the library's configuration file.

    Args:
        name: of the registry, `timm:NAME`, `open_clip:NAME/TAG`, or `hf-hub:…` and
            `local-dir:…` for files whose configuration says all.
        files: from `gather_files`.

    Raises:
        ValueError: if the name is unknown, or neither it nor the files tell the architecture.
    """
    known = None if name.startswith(("hf-hub:", "local-dir:")) else find_spec(name)
    published = read_config(files, "open_clip_config.json", "model_cfg")
    if known.library == "open_clip" if known else published is not None:
        return _describe_open_clip(name, known, published, files)
    published = read_config(files, "config.json", "architecture")
    if known is None:
        if published is None:
            raise ValueError(
                f"{name}: its files hold neither open_clip_config.json nor timm's config.json, so "
                "nothing says what they are. If you know the architecture, pack them as "
                "timm:NAME or open_clip:NAME."
            )
        known = _spec_of_timm(name, published, files)
    return known, _timm_config(known, published or {})


def find_texts(spec: EncoderSpec, config: dict, files: Sequence[Path]) -> dict[str, Path | dict]:
    """Content of a pack's text folder: the tower's configuration and the tokenizer's files.

    Raises:
        FileNotFoundError: if one that is needed is not among the files.
    """
    tower = config["model_cfg"]["text_cfg"]
    texts: dict[str, Path | dict] = {}
    if "hf_model_name" in tower:
        known = BIOMEDBERT_CONFIG if tower["hf_model_name"] in BIOMEDBERT_NAMES else None
        texts["config.json"] = read_config(files, "config.json", "model_type") or known
        if texts["config.json"] is None:
            raise FileNotFoundError(
                f"{spec.name}: its text tower needs config.json of {tower['hf_model_name']}, which "
                "is not among the files; add that folder to --from."
            )
    if "hf_tokenizer_name" in tower:
        # Of two tokenizers, that of the nearer source; the files of one belong together.
        homes = [path.parent for path in files if path.name in _VOCABULARIES]
        if not homes:
            raise FileNotFoundError(
                f"{spec.name}: the tokenizer's files (tokenizer.json or vocab.txt) are not among "
                f"the files; add a folder with those of {tower['hf_tokenizer_name']} to --from."
            )
        texts |= {n: homes[0] / n for n in TOKENIZER_NAMES if (homes[0] / n).is_file()}
    return texts


def pick_weights(spec: EncoderSpec, files: Sequence[Path]) -> Path:
    """The one file of weights: by its published name, else the only one that could be.

    Of two with the same name the nearer one is taken, or the one of the earlier source.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if there are several, or two of one name lie side by side.
    """
    candidates = [path for path in files if path.suffix in CHECKPOINT_SUFFIXES]
    for name in (*spec.files, *WEIGHTS_NAMES):
        named = [path for path in candidates if path.name == name]
        beside = [p for p in named[1:] if p.parent.parent == named[0].parent.parent]
        if named and not any(not p.samefile(named[0]) for p in beside):
            return named[0]
        if named:
            candidates = named
            break
    if not candidates:
        raise FileNotFoundError(
            f"{spec.name}: no weights among the files; expected {' or '.join(spec.files)}."
        )
    if len(candidates) > 1:
        raise ValueError(
            f"{spec.name}: {len(candidates)} files may be its weights "
            f"({', '.join(map(str, candidates[:4]))}); name the right one in --from."
        )
    return candidates[0]


def read_config(files: Sequence[Path], file_name: str, key: str) -> dict | None:
    """The first JSON object of that name that has the key; None without one."""
    for path in files:
        if path.name == file_name:
            try:
                config = read_json(path)
            except ValueError as error:
                raise ValueError(f"{path} is no valid JSON ({error}); get it again.") from error
            if isinstance(config, dict) and key in config:
                return config
    return None


def is_card(path: Path) -> bool:
    """Whether a file is a licence or a model card, which travel with the weights."""
    card = r"readme\.md|(licen[cs]e|notice)([-_.]?[\w-]*)?(\.(txt|md))?"
    return re.fullmatch(card, path.name, re.IGNORECASE) is not None


def _snapshot(cache: Path) -> Path:
    """The snapshot of a hub's cache folder: what `main` points to, or the only one."""
    main = cache / "refs" / "main"
    if main.is_file():
        folder = cache / "snapshots" / main.read_text(encoding="ascii").strip()
        if folder.is_dir():
            return folder
    folders = sorted(path for path in (cache / "snapshots").iterdir() if path.is_dir())
    if len(folders) != 1:
        raise ValueError(
            f"{cache} holds {len(folders)} snapshots and no refs/main says which; "
            "name one of the folders below snapshots/."
        )
    return folders[0]


def _describe_open_clip(
    name: str, known: EncoderSpec | None, published: dict | None, files: Sequence[Path]
) -> tuple[EncoderSpec, dict]:
    if published is None and known.architecture:
        import open_clip

        # OpenAI's weights need another activation than the architecture of their name says.
        tag = known.name.partition("/")[2]
        quick = (open_clip.get_pretrained_cfg(known.architecture, tag) or {}).get("quick_gelu")
        published = {
            "model_cfg": open_clip.get_model_config(known.architecture)
            | ({"quick_gelu": True} if quick else {}),
            "preprocess_cfg": {"mean": list(known.mean), "std": list(known.std)},
        }
    config = copy.deepcopy(published or BIOMEDCLIP_CONFIG)
    tower = config["model_cfg"]["text_cfg"]
    for old, new in _RENAMED.items():
        if old in tower and "hf_model_name" in tower:
            tower[new] = tower.pop(old)
    pixels = config.get("preprocess_cfg", {})
    size = config["model_cfg"]["vision_cfg"].get("image_size", 224)
    spec = known or EncoderSpec(
        name, "joint", "open_clip", "", 0, 0, _licence_of(files), _source_of(name)
    )
    spec = dataclasses.replace(
        spec,
        image_size=size[0] if isinstance(size, list) else size,
        width=config["model_cfg"]["embed_dim"],
        mean=tuple(pixels.get("mean", CLIP_MEAN)),
        std=tuple(pixels.get("std", CLIP_STD)),
    )
    return spec, config


def _spec_of_timm(name: str, published: dict, files: Sequence[Path]) -> EncoderSpec:
    """A spec from timm's config.json."""
    pixels = published.get("pretrained_cfg", {})
    base = find_spec(f"timm:{published['architecture']}")
    return dataclasses.replace(
        base,
        name=name,
        image_size=pixels.get("input_size", [base.image_size])[-1],
        mean=tuple(pixels.get("mean", base.mean)),
        std=tuple(pixels.get("std", base.std)),
        licence=pixels.get("license") or _licence_of(files),
        source=_source_of(name),
    )


def _timm_config(spec: EncoderSpec, published: dict) -> dict:
    """A config.json, as timm writes it, of a network without a classifier, at the spec's size."""
    arguments = {**published.get("model_args", {}), **model_arguments(spec)}
    return {
        "architecture": spec.architecture.partition(".")[0],
        "num_classes": 0,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, spec.image_size, spec.image_size],
            "mean": list(spec.mean),
            "std": list(spec.std),
            "num_classes": 0,
            "license": spec.licence,
        },
    }


def _source_of(name: str) -> str:
    kind, _, rest = name.partition(":")
    return f"hub:{rest}" if kind == "hf-hub" else "file"


def _licence_of(files: Sequence[Path]) -> str:
    """The licence that a model card names in its head; "unknown" without one."""
    for path in files:
        if path.name.lower() == "readme.md":
            text = path.read_text(encoding="utf-8", errors="replace")
            named = re.search(r"^license:\s*(\S+)", text, re.M)
            if named:
                return named[1]
    return "unknown"
