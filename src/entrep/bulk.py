"""Embeddings of many pictures, shard by shard, into an index: here, or wherever shards are sent.

The sorted pictures of a folder are cut into fixed shards. A shard is embedded whole, wherever,
and becomes one segment of the index when it comes back; the manifest names it from then on. So
whoever is killed, worker or driver, leaves whole shards, and only those that are missing are
embedded again. One process writes, in the shards' order: the files are the same whoever worked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from entrep.archive import (
    DEFAULT_ENCODER,
    IndexReport,
    check_recipe,
    hash_named,
    list_pictures,
    make_recipe,
    reopen_index,
)
from entrep.decode import hash_pictures
from entrep.embed import picture_store, stream_embeddings
from entrep.encoders import load_encoder
from entrep.index import Index, Recipe, claimed, commit, sweep, write_segment
from entrep.readers import check_header

SHARD_SIZE = 2048  # pictures; a lost worker costs this many at most, a minute or two of one core


@dataclass(frozen=True)
class Settings:
    """How pictures are embedded; plain values, so that they can be sent anywhere."""

    root: str  # folder of the pictures
    encoder: str  # name for `load_encoder`
    precision: str = "auto"
    crop: bool = True
    weights_dir: str = ""
    device: str = "auto"
    batch_size: int = 32
    workers: int | None = None  # processes that decode; see `embed_pictures`


@dataclass(frozen=True)
class Shard:
    """What came of a shard's pictures.

    Attributes:
        names: of those that were embedded, in the order given.
        sha256: digests of their bytes.
        matrix: (n, D) float32, unit L2 norm per row.
        skipped: why a picture is left out, by name.
    """

    names: list[str]
    sha256: list[str]
    matrix: np.ndarray
    skipped: dict[str, str] = field(default_factory=dict)


class Encoders(Protocol):
    """Whoever embeds shards: this process (`ShardEncoder`), or a cluster's workers."""

    def recipe(self) -> Recipe:
        """How the vectors are made."""

    def embed_all(self, shards: Iterable[Sequence[str]]) -> Iterator[Shard]:
        """Embed shards, each a list of names; what came of them, in the same order."""


class ShardEncoder:
    """Embeds shards with an encoder that it loads once."""

    def __init__(self, settings: Settings) -> None:
        """Load the encoder.

        Raises:
            FileNotFoundError: if its pack is not there.
            ValueError: for a name or a device that there is not.
        """
        self.settings = settings
        options = {"weights_dir": settings.weights_dir, "precision": settings.precision}
        self.encoder = load_encoder(settings.encoder, device=settings.device, **options)

    def recipe(self) -> Recipe:
        """How the vectors are made."""
        return make_recipe(self.encoder.spec.name, self.encoder, self.settings.crop)

    def embed(self, names: Sequence[str]) -> Shard:
        """Embed one shard; a picture that cannot be read is left out, with the reason."""
        root, skipped = Path(self.settings.root), {}
        digest_of = hash_named(root, names, skipped)
        for name in digest_of:
            if fault := check_header(root / name):
                skipped[name] = f"{root / name}: {fault}."
        stream = stream_embeddings(
            self.encoder,
            root,
            [name for name in digest_of if name not in skipped],
            crop=self.settings.crop,
            batch_size=self.settings.batch_size,
            workers=self.settings.workers,
            on_error="skip",
        )
        rows: dict[str, np.ndarray] = {}
        for part in stream:
            skipped |= part.skipped
            rows |= zip(part.keys, part.matrix, strict=True)
        for name, digest in hash_pictures(root, list(rows)).items():
            if digest != digest_of[name]:
                del rows[name]
                skipped[name] = f"{root / name}: it changed while it was read; run again."
        matrix = np.stack(list(rows.values())) if rows else np.empty((0, 0), np.float32)
        return Shard(list(rows), [digest_of[name] for name in rows], matrix, skipped)

    def embed_all(self, shards: Iterable[Sequence[str]]) -> Iterator[Shard]:
        """Embed shards one after the other."""
        return map(self.embed, shards)


def embed_folder(
    pictures: str | Path,
    out: str | Path,
    *,
    encoder: str = "",
    weights_dir: str | Path = "",
    device: str = "auto",
    batch_size: int = 32,
    dtype: str = "",
    crop: bool | None = None,
    shard_size: int = SHARD_SIZE,
    cache: str | Path = "",
    start: Callable[[Settings], Encoders] = ShardEncoder,
    progress: bool = True,
) -> IndexReport:
    """Embed a folder's pictures into an index that `search_index` reads and `build_index` extends.

    Pictures are known by their names here: those that the index holds are not read again, and
    any that changed or left the folder are `build_index`'s to find, which reads them all.

    Args:
        pictures: folder, searched with all its subfolders.
        out: folder of the index: a new one, or an index of these pictures.
        encoder: name for `load_encoder`; "" takes the index's own, or demo-clip.
        weights_dir: a model pack, or a folder that holds some.
        device: see `resolve_device`.
        batch_size: most pictures a forward pass.
        dtype: "fp16" (the default) or "fp32", of the vectors on disk.
        crop: whether pictures are cut to the lit disc, as they are by default.
        shard_size: pictures of a shard.
        cache: folder where the vectors are kept in float32, too, for `embed_pictures`; ""
            keeps none.
        start: gives those who embed; they are asked one shard after the other.
        progress: show a progress bar.

    Raises:
        FileNotFoundError: if the folder, or the encoder's pack, is not there.
        ValueError: if no picture can be read; if `out` is something else, damaged, of other
            pictures or of another encoder; if another build is at work in it.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size: expected 1 or more, got {shard_size}.")
    root, names = list_pictures(pictures)
    with claimed(out):
        index = reopen_index(out, encoder=encoder, dtype=dtype, crop=crop)
        if index is not None and index.pictures != str(root):
            raise ValueError(
                f"{out} is an index of {index.pictures}, not of {root}; if the folder has moved, "
                f"bring the index up to date first: entrep index {root} --out {out}"
            )
        own = index.recipe if index is not None else None
        settings = Settings(
            root=str(root),
            encoder=own.encoder if own else encoder or DEFAULT_ENCODER,
            precision=own.precision if own else "auto",
            crop=own.crop if own else crop is not False,
            weights_dir=str(Path(weights_dir).resolve()) if weights_dir else "",
            device=device,
            batch_size=batch_size,
        )
        encoders = start(settings)
        if index is None:
            index = Index(Path(out), encoders.recipe(), str(root), dtype or "fp16", 0)
        check_recipe(index, encoders.recipe())
        sweep(index)
        report = IndexReport(index)
        _add_missing(report, names, encoders, shard_size, cache, progress)
        sweep(index)
    if not len(index):
        first = next(iter(report.skipped.values()))
        raise ValueError(f"None of {len(names)} pictures could be read; the first: {first}")
    return report


def _add_missing(
    report: IndexReport,
    names: Sequence[str],
    encoders: Encoders,
    shard_size: int,
    cache: str | Path,
    progress: bool,
) -> None:
    """Embed what the index lacks, and commit each shard as it comes."""
    index, store = report.index, None
    if cache:
        made = index.recipe
        named = {"name": made.encoder, "fingerprint": made.fingerprint}
        store = picture_store(cache, **named, preprocessing=made.preprocessing)
    known = index.all_keys()
    cut = (names[start : start + shard_size] for start in range(0, len(names), shard_size))
    shards = [missing for shard in cut if (missing := [n for n in shard if n not in known])]
    index.unfinished = sum(map(len, shards))
    approximate = index.approximate
    label = f"embed ({index.recipe.encoder})"
    with tqdm(
        total=index.unfinished, desc=label, unit="picture", disable=None if progress else True
    ) as bar:
        for asked, shard in zip(shards, encoders.embed_all(shards), strict=True):
            report.skipped |= shard.skipped
            index.unfinished -= len(asked)
            if shard.names:
                _add(index, shard)
                if store is not None:
                    store.write(dict(zip(shard.sha256, shard.matrix, strict=True)))
            report.added += len(shard.names)
            bar.update(len(asked))
    report.embedded = report.added
    report.dropped = index.approximate is not approximate
    if shards and len(index):
        commit(index)  # where the last shards held no readable picture


def _add(index: Index, shard: Shard) -> None:
    index.width = index.width or shard.matrix.shape[1]
    segment = write_segment(index, shard.names, shard.sha256, shard.matrix)
    index.segments += (segment,)
    index.approximate = None  # it was of the rows as they were
    commit(index)
