"""Model packs: an encoder's files in one folder that loads anywhere, without a network.

A pack is laid out as its library's own `local-dir:` folder (open_clip_config.json or timm's
config.json beside safetensors), with the text tower's configuration and tokenizer in `text/`,
NOTICE.txt and pack.json: what it is, where it comes from, the SHA-256 of every file, and the
embeddings of two pictures and two texts that a sound copy must give.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import open_clip
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from entrep.artifacts import hash_folder, sha256_file, write_json, write_text
from entrep.checkpoints import fill_weights, read_checkpoint
from entrep.encoders import (
    CONFIG_FILE,
    TEXT_FOLDER,
    WEIGHTS_FILE,
    Encoder,
    build_network,
    load_encoder,
)
from entrep.registry import PACK_FILE, PACK_FORMAT, EncoderSpec, find_spec, read_pack
from entrep.sources import (
    CHECKPOINT_SUFFIXES,
    TOKENIZER_NAMES,
    WEIGHTS_NAMES,
    describe_files,
    find_texts,
    gather_files,
    is_card,
    pick_weights,
    read_config,
)

PROBE_TEXTS = ("a normal ear drum", "a polyp in the left nasal cavity")


def make_pack(
    name: str, sources: Sequence[str | Path], to: str | Path, *, revision: str = ""
) -> Path:
    """Make a pack of files as people have them.

    Args:
        name: a name of the registry, `timm:NAME`, `open_clip:NAME/TAG`, or `hf-hub:…` and
            `local-dir:…` for files that say themselves what they are.
        sources: files and folders: weights, a hub's snapshot or cache, a mounted data set.
        to: the pack's folder; new or empty.
        revision: of the source; found by itself in a hub's cache.

    Returns:
        The pack's folder.

    Raises:
        ValueError: if the weights do not fit, or files are ambiguous; nothing is left behind.
        FileNotFoundError: if a file that is needed is not among the sources.
    """
    if "@" in name:
        raise ValueError(f"{name}: pack the network at its own size; write @ where you load it.")
    files, found = gather_files([Path(source) for source in sources], _repositories(name))
    spec, config = describe_files(name, files)
    texts = find_texts(spec, config, files) if spec.family == "joint" else {}
    named = [path for path in map(Path, sources) if path.suffix in CHECKPOINT_SUFFIXES]
    weights = pick_weights(spec, [path for path in named if path.is_file()] or files)
    state = read_checkpoint(weights)
    if "register_tokens" in state and "_dinov2" in spec.architecture:
        plain = spec.architecture.replace("_reg4", "")
        spec = dataclasses.replace(spec, architecture=plain.replace("patch14_", "patch14_reg4_"))
        config["architecture"] = spec.architecture.partition(".")[0]
    with _new_folder(to) as folder:
        for card in (path for path in files if is_card(path)):
            # NOTICE.txt is the pack's own; of two with one name the nearer one counts.
            name_here = "NOTICE-source.txt" if card.name == "NOTICE.txt" else card.name
            if not (folder / name_here).exists():
                shutil.copyfile(card, folder / name_here)
        for file_name, content in texts.items():
            path = folder / TEXT_FOLDER / file_name
            path.parent.mkdir(exist_ok=True)
            if isinstance(content, Path):
                shutil.copyfile(content, path)
            else:
                write_json(path, content)
        network = build_network(spec, config, folder / TEXT_FOLDER)
        report = fill_weights(network, state, source=str(weights))
        print(f"{spec.name}: {report}")
        filled = network.state_dict()
        write_pack(folder, spec, filled, config, revision=revision or found, note=str(report))
    return Path(to)


def write_pack(
    folder: str | Path,
    spec: EncoderSpec,
    state: Mapping[str, Tensor],
    config: dict,
    *,
    revision: str = "",
    note: str = "",
) -> None:
    """Write weights, configuration, licence and manifest beside the files that are there.

    Args:
        folder: with the text tower's files and the licence, if any.
        spec: what the pack holds; its width is measured.
        state: tensors of the network that `config` describes.
        config: content of the library's configuration file.
        revision: of the source.
        note: how the weights were made or filled.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
    save_file(weights, folder / WEIGHTS_FILE[spec.library])
    write_json(folder / CONFIG_FILE[spec.library], config)
    licence = [f"{spec.name}: {spec.licence}", f"source: {spec.source}"]
    licence += [f"revision: {revision}"] if revision else []
    licence += [spec.terms] if spec.terms else []
    write_text(folder / "NOTICE.txt", "\n".join(licence) + "\n")
    manifest = {
        "format": PACK_FORMAT,
        "encoder": dataclasses.asdict(spec),
        "revision": revision,
        "note": note,
        "made_with": {
            "torch": torch.__version__,
            "timm": timm.__version__,
            "open_clip": open_clip.__version__,
        },
        "files": {
            name: {"bytes": (folder / name).stat().st_size, "sha256": digest}
            for name, digest in hash_folder(folder).items()
            if name != PACK_FILE
        },
    }
    write_json(folder / PACK_FILE, manifest)
    # Read back from the disk: the fingerprint is of what others will load.
    embeddings = _probe(load_encoder(f"local-dir:{folder}", device="cpu", precision="fp32"))
    manifest["encoder"]["width"] = embeddings["pictures"].shape[1]
    manifest["fingerprint"] = {
        kind: [" ".join(f"{x:.6f}" for x in row) for row in rows]
        for kind, rows in embeddings.items()
    }
    write_json(folder / PACK_FILE, manifest)


def verify_pack(folder: str | Path) -> str:
    """Check every file of a pack and one forward pass; return one line on what it is.

    Raises:
        ValueError: if a file changed, a file is there that should not be, or the embeddings
            differ from the stored ones (cosine below 0.9999); names each.
        FileNotFoundError: if a file is missing.
    """
    folder = Path(folder)
    if not (folder / PACK_FILE).is_file():
        raise FileNotFoundError(f"{folder / PACK_FILE} is not there; this folder is no pack.")
    spec, manifest = read_pack(folder)
    expected = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    changed = [name for name in expected if sha256_file(folder / name) != expected[name]]
    if changed:
        raise ValueError(
            f"{folder}: {', '.join(changed)} differ from the manifest; copy the pack again."
        )
    surplus = sorted(hash_folder(folder).keys() - expected.keys() - {PACK_FILE})
    if surplus:
        raise ValueError(f"{folder}: {', '.join(surplus)} do not belong to the pack; remove them.")
    embeddings = _probe(load_encoder(f"local-dir:{folder}", device="cpu", precision="fp32"))
    lowest = 1.0
    for kind, rows in manifest["fingerprint"].items():
        stored = np.array([row.split() for row in rows], dtype=float)
        same = kind in embeddings and stored.shape == embeddings[kind].shape
        lowest = min(lowest, (stored * embeddings[kind]).sum(axis=1).min() if same else -1.0)
    if lowest < 0.9999:
        raise ValueError(
            f"{folder}: its files are whole, but the network gives other embeddings than when "
            f"the pack was made (cosine {lowest:.4f}), with {manifest['made_with']}; here torch "
            f"{torch.__version__}, timm {timm.__version__}, open_clip {open_clip.__version__}. "
            "A library computes it differently: install the versions of the pack, or make it anew."
        )
    size = sum(entry["bytes"] for entry in manifest["files"].values()) / 1e6
    return (
        f"{spec.name}: {len(expected)} files, {size:,.0f} MB, {spec.licence}, all as packed; "
        f"embeddings agree (lowest cosine {lowest:.6f})"
    )


def fetch_pack(
    name: str,
    to: str | Path,
    *,
    revision: str = "",
    endpoint: str | None = None,
    cache_dir: str | Path | None = None,
    attempts: int = 5,
    wait: Callable[[float], None] = time.sleep,
) -> Path:
    """Download an encoder from the Hugging Face hub at one commit, and make a pack of it.

    A file that was downloaded before is not asked for again; a transfer that breaks off goes
    on where it stopped, as long as the command runs.

    Args:
        name: see `make_pack`.
        to: the pack's folder; new or empty.
        revision: commit, branch or tag; "" takes the registry's commit, or the newest.
        endpoint: address of the hub; None takes huggingface_hub's own.
        cache_dir: huggingface_hub's cache; None takes its own.
        attempts: tries before a failing network is given up.
        wait: sleeps that many seconds between two tries.

    Raises:
        ValueError: if the encoder has no repository, or the repository lacks what is needed.
        RuntimeError: if the hub cannot be reached.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    spec = None if name.startswith("hf-hub:") else find_spec(name)
    if spec and not spec.source.startswith("hub:"):
        raise ValueError(
            f"{name} has no repository on the hub (its source is {spec.source}); if you have its "
            f"files: entrep models pack {name} --from FILES --to {to}"
        )
    if constants.HF_HUB_OFFLINE:
        raise RuntimeError(f"{name}: the hub is switched off (HF_HUB_OFFLINE); unset it to fetch.")
    _check_new(to)
    repository = _repositories(name)[0]
    wanted = revision or (spec.revision if spec else "") or "main"
    api = HfApi(endpoint=endpoint)

    info = _retry(lambda: api.model_info(repository, revision=wanted), repository, attempts, wait)
    print(f"{repository} at commit {info.sha}")
    present = [file.rfilename for file in info.siblings]
    ranked = [*(spec.files if spec else ()), *WEIGHTS_NAMES]
    weights = next((file for file in ranked if file in present), None)
    if weights is None:
        raise ValueError(
            f"{repository} at {wanted} has none of {', '.join(dict.fromkeys(ranked))}; "
            f"it holds {', '.join(present[:8])}."
        )
    patterns = [weights, "open_clip_config.json", "config.json", *TOKENIZER_NAMES]
    patterns += [file for file in present if is_card(Path(file))]

    def download(
        source: str, commit: str | None, names: Sequence[str], needed: Sequence[str] = ()
    ) -> Path:
        def task():
            folder = snapshot_download(
                source,
                revision=commit,
                allow_patterns=list(names),
                endpoint=endpoint,
                cache_dir=cache_dir,
            )
            # Without an answer from the hub, some versions give back what is in the cache.
            for name in needed:
                if not Path(folder, name).is_file():
                    raise FileNotFoundError(f"{name} did not arrive")
            return Path(folder)

        return _retry(task, f"files of {source}", attempts, wait)

    folders = [download(repository, info.sha, patterns, [n for n in patterns if n in present])]
    published = read_config(list(folders[0].iterdir()), "open_clip_config.json", "model_cfg")
    tower = published["model_cfg"]["text_cfg"] if published else {}
    other, _, commit = (spec.text_source if spec else "").partition("@")
    if "hf_model_name" in tower:
        repository = other or tower["hf_model_name"]
        folders.append(download(repository, commit or None, ["config.json"], ["config.json"]))
    if "hf_tokenizer_name" in tower and not set(TOKENIZER_NAMES) & set(present):
        folders.append(download(tower["hf_tokenizer_name"], None, TOKENIZER_NAMES))
    return make_pack(name, folders, to, revision=info.sha)


def probe_pictures(size: int) -> Tensor:
    """Two pictures whose pixels follow from integers alone: (2, 3, size, size) uint8."""
    rows, columns = np.mgrid[0:size, 0:size]
    ramps = np.stack([columns * 255 // size, rows * 255 // size, (rows + columns) % 256])
    rings = (rows - size // 2) ** 2 + (columns - size // 3) ** 2
    discs = np.stack([(rings // (size // 4 + step)) % 256 for step in (1, 2, 3)])
    return torch.from_numpy(np.stack([ramps, discs]).astype(np.uint8))


def _probe(encoder: Encoder) -> dict[str, np.ndarray]:
    """Embeddings of the probe pictures, (2, D), and of the probe texts if it reads any."""
    rows = {"pictures": encoder.encode_pictures(probe_pictures(encoder.spec.image_size))}
    if encoder.tokenizer is not None:
        rows["texts"] = encoder.encode_texts(PROBE_TEXTS)
    return {kind: tensor.cpu().numpy() for kind, tensor in rows.items()}


def _repositories(name: str) -> list[str]:
    """The hub's repositories of an encoder, as OWNER/NAME: its own, then its text tower's."""
    if name.startswith(("hf-hub:", "local-dir:")):
        return [name.partition(":")[2]]
    spec = find_spec(name)
    sources = [spec.source.removeprefix("hub:"), spec.text_source.partition("@")[0]]
    return [source for source in sources if "/" in source]


def _check_new(folder: str | Path) -> None:
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty; give a new folder for the pack.")


@contextmanager
def _new_folder(to: str | Path) -> Iterator[Path]:
    """A temporary folder beside `to` that takes its name if the block succeeds."""
    to = Path(to)
    _check_new(to)
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{to.name}-", dir=to.parent) as temporary:
        folder = Path(temporary) / to.name
        folder.mkdir()
        yield folder
        if to.exists():
            to.rmdir()
        os.replace(folder, to)


def _retry(task: Callable, what: str, attempts: int, wait: Callable[[float], None]):
    """Call `task` until it succeeds, waiting 1, 2, 4, … seconds between tries."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    for attempt in range(attempts):
        try:
            return task()
        except HFValidationError as error:
            raise ValueError(f"{what}: no name of a repository ({error}).") from error
        except HfHubHTTPError as error:
            status = getattr(getattr(error, "response", None), "status_code", 0)
            if 400 <= status < 500 and status != 429:
                raise RuntimeError(
                    f"{what}: the hub refused ({status}): {_first_line(error)}"
                ) from error
            reason = error
        except Exception as error:  # requests' or httpx's, by the client's version
            reason = error
        if attempt + 1 < attempts:
            print(f"{what}: {type(reason).__name__}; trying again in {2**attempt} s")
            wait(2**attempt)
    raise RuntimeError(
        f"{what}: the hub could not be reached in {attempts} tries "
        f"({_first_line(reason)}). Run the same command again: files that arrived whole are kept."
    ) from reason


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
