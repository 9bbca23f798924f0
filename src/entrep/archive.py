"""Search on one's own pictures: build an index of a folder, ask it with a picture or a phrase."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tqdm import tqdm

from entrep.approximate import build_approximate, search_approximate
from entrep.artifacts import sha256_file
from entrep.decode import choose_workers, hash_pictures, preprocessing_identity
from entrep.embed import embed_pictures, embed_texts, stream_embeddings
from entrep.encoders import PRECISIONS, Encoder, load_encoder
from entrep.exact import search_exact
from entrep.index import (
    DTYPES,
    MANIFEST,
    Hit,
    Index,
    Recipe,
    Segment,
    claimed,
    commit,
    display_name,
    name_fault,
    open_index,
    sweep,
    write_segment,
)
from entrep.layout import find_files
from entrep.readers import check_header, check_picture, first_three
from entrep.registry import ENCODERS, split_size

DEFAULT_ENCODER = "demo-clip"  # shipped, and reads pictures and phrases
COMMIT_ROWS = 1024  # pictures that a killed build has to embed again at most
SEGMENT_ROWS = 8192  # a shorter last segment is written anew with the next rows
MOST_CHARACTERS = 2000  # of a phrase; text towers read some hundred characters
LIBRARIES = ("torch", "timm", "open_clip_torch", "pillow")


@dataclass
class IndexReport:
    """What a build did.

    Attributes:
        index: as it is now.
        added: pictures that were not in it, or had other bytes.
        embedded: pictures among them that a network had to look at; the others' bytes were
            known.
        removed: pictures that are gone from the folder, or have other bytes now.
        skipped: why a picture is left out, by path.
        dropped: whether a FAISS index was left behind, as it was of other pictures.
    """

    index: Index
    added: int = 0
    embedded: int = 0
    removed: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    dropped: bool = False


def build_index(
    pictures: str | Path,
    out: str | Path,
    *,
    encoder: str = "",
    weights_dir: str | Path = "",
    device: str = "auto",
    batch_size: int = 32,
    dtype: str = "",
    crop: bool | None = None,
    approximate: bool = False,
    workers: int | None = None,
    commit_rows: int = COMMIT_ROWS,
    progress: bool = True,
) -> IndexReport:
    """Make an index of a folder's pictures, or bring one up to date with its folder.

    Every picture's bytes are hashed; only bytes that the index does not know are embedded. A
    picture that left the folder leaves the index, its vector is deleted from the disk. A build
    that was stopped, in whatever way, goes on when it is called again.

    Args:
        pictures: folder, searched with all its subfolders.
        out: folder of the index: a new one, or an index of these pictures.
        encoder: name for `load_encoder`; "" takes the index's own, or demo-clip.
        weights_dir: a model pack, or a folder that holds some.
        device: see `resolve_device`.
        batch_size: most pictures a forward pass.
        dtype: "fp16" (the default) or "fp32", of the vectors on disk.
        crop: whether pictures are cut to the lit disc, as they are by default.
        approximate: make a FAISS index of the vectors too; see `build_approximate`.
        workers: processes that decode; see `decode_pictures`.
        commit_rows: pictures that are committed together.
        progress: show a progress bar.

    Raises:
        FileNotFoundError: if the folder, or the encoder's pack, is not there.
        ValueError: if no picture can be read; if `out` is something else, damaged, of other
            pictures or of another encoder; if another build is at work in it.
    """
    root, names = list_pictures(pictures)
    with claimed(out):
        index = reopen_index(out, encoder=encoder, dtype=dtype, crop=crop)
        name, precision = encoder or DEFAULT_ENCODER, "auto"
        if index is not None:
            name, precision = index.recipe.encoder, index.recipe.precision
        network = load_encoder(name, device=device, weights_dir=weights_dir, precision=precision)
        if index is None:
            recipe = make_recipe(name, network, crop is not False)
            index = Index(Path(out), recipe, str(root), dtype or "fp16", 0)
        check_encoder(index, network)
        sweep(index)
        report = IndexReport(index)
        _mirror(report, root, names, network, commit_rows, batch_size, workers, progress)
        if approximate and index.approximate is None:
            build_approximate(index)
            report.dropped = False
        sweep(index)
    return report


def list_pictures(pictures: str | Path) -> tuple[Path, list[str]]:
    """A folder's absolute path, and the paths of its pictures below it, sorted.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if no picture is in it.
    """
    root = Path(pictures)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: there is no such folder; give the pictures' folder.")
    root = root.resolve()
    return root, find_files(root).pictures


def reopen_index(
    out: str | Path, *, encoder: str = "", dtype: str = "", crop: bool | None = None
) -> Index | None:
    """The index in a folder, if there is one; options that it was not built with are refused.

    Raises:
        ValueError: for such an option, or if the index is damaged.
    """
    if dtype and dtype not in DTYPES:
        raise ValueError(f"dtype: expected {' or '.join(DTYPES)}, got {dtype!r}.")
    if not (Path(out) / MANIFEST).is_file():
        return None
    index = open_index(out)
    _check_same(index, {"encoder": encoder or None, "dtype": dtype or None, "crop": crop})
    return index


def search_index(
    index: str | Path | Index,
    *,
    image: str | Path | None = None,
    text: str | None = None,
    k: int = 5,
    encoder: Encoder | None = None,
    weights_dir: str | Path = "",
    device: str = "auto",
    approximate: bool = False,
    copies: bool = True,
) -> list[Hit]:
    """The k pictures of an index that are nearest to a picture or a phrase, best first.

    Args:
        index: its folder, or what `open_index` gave.
        image: a picture file; either this or `text`.
        text: a phrase; the index's encoder must be a joint one.
        k: how many to give; less come where the index holds less.
        encoder: the index's encoder, if it is loaded already; None loads it.
        weights_dir: where its pack is, as for `load_encoder`.
        device: see `resolve_device`.
        approximate: ask the FAISS index instead of comparing every vector.
        copies: whether a picture with the very bytes of the query may answer.

    Raises:
        FileNotFoundError: if the index or the query is not there.
        ValueError: if the query cannot be read or is too long, the index is damaged or was
            changed, or the encoder is not the one it was built with.
    """
    if (image is None) == (text is None):
        raise ValueError("give either an image or a text as the query.")
    digest = "" if image is None else _check_image(Path(image))
    if text is not None:
        _check_text(text)
    index = index if isinstance(index, Index) else open_index(index)
    encoder = encoder or load_index_encoder(index, weights_dir=weights_dir, device=device)
    check_encoder(index, encoder)
    if text is not None:
        query = embed_texts(encoder, [text]).matrix
    else:
        path, crop = Path(image), index.recipe.crop
        options = {"crop": crop, "workers": 0, "progress": False}
        query = embed_pictures(encoder, path.parent, [path.name], **options).matrix
    search = search_approximate if approximate else search_exact
    fetched = k
    while True:
        found = search(index, query, k=fetched)[0]
        hits = [hit for hit in found if copies or hit.sha256 != digest]
        if len(hits) >= k or len(found) < fetched:
            return hits[:k]
        fetched *= 2


def load_index_encoder(
    index: Index, *, weights_dir: str | Path = "", device: str = "auto"
) -> Encoder:
    """Load the encoder that an index was built with, in its precision."""
    recipe = index.recipe
    options = {"device": device, "weights_dir": weights_dir, "precision": recipe.precision}
    return load_encoder(recipe.encoder, **options)


def check_encoder(index: Index, encoder: Encoder) -> None:
    """Refuse an encoder whose vectors do not belong to the index's.

    Raises:
        ValueError: if weights, input size, precision, cropping or library versions differ.
    """
    check_recipe(index, make_recipe(encoder.spec.name, encoder, index.recipe.crop))


def check_recipe(index: Index, here: Recipe) -> None:
    """Refuse vectors that are made in another way than the index's; see `check_encoder`."""
    recipe = index.recipe
    if (here.fingerprint, here.preprocessing) == (recipe.fingerprint, recipe.preprocessing):
        return
    if here.fingerprint == recipe.fingerprint:
        what = "but the kit crops or resizes pictures in another way now"
    else:
        what = "whose vectors do not compare: other weights, size, precision or libraries"
    raise ValueError(
        f"{index.folder} was built with the encoder {recipe.encoder} (fingerprint "
        f"{recipe.fingerprint[:12]}, {recipe.precision}, {recipe.made_with}); this is "
        f"{here.encoder} ({here.fingerprint[:12]}, {here.precision}, {here.made_with}), "
        f"{what}. Take the index's encoder and versions, or build a new index: "
        f"entrep index {index.pictures} --out NEW --encoder {here.encoder}"
    )


def caveat(index: Index) -> str:
    """What must be said of answers of the shipped encoders; "" for others."""
    spec = ENCODERS.get(split_size(index.recipe.encoder)[0])
    if spec is None or spec.source != "shipped":
        return ""
    return (
        f"{spec.name} has only seen drawn pictures: on real ones its answers, above all to "
        "phrases, are not meaningful. effnet-lite0 is made for real pictures, biomedclip for "
        "phrases too."
    )


def describe_report(report: IndexReport) -> str:
    """What a build did, in a few lines."""
    index = report.index
    lines = [
        f"{index.folder}: {len(index)} pictures, {index.width} wide, {index.dtype}, by "
        f"{index.recipe.encoder}; {report.added} added ({report.embedded} embedded), "
        f"{report.removed} removed"
    ]
    if report.skipped:
        reasons = [display_name(reason) for reason in report.skipped.values()]
        lines.append(f"{len(reasons)} left out: {first_three(reasons)}")
    if index.approximate:
        made = index.approximate
        lines.append(
            f"approximate index: finds {made.recall:.3f} of the 10 nearest in {made.probes} lists"
        )
    if report.dropped:
        lines.append("the approximate index was of other pictures; --approximate makes it anew")
    return "\n".join(lines)


def _mirror(
    report: IndexReport,
    root: Path,
    names: Sequence[str],
    encoder: Encoder,
    commit_rows: int,
    batch_size: int,
    workers: int | None,
    progress: bool,
) -> None:
    """Bring an index up to date with its folder, committing on the way."""
    index, skipped = report.index, report.skipped
    digest_of = hash_named(root, names, skipped)
    known = index.all_keys()
    gone = {name for name, (digest, _) in known.items() if digest_of.get(name) != digest}
    row_of = {digest: row for digest, row in known.values()}
    if known and row_of.keys().isdisjoint(digest_of.values()):
        raise ValueError(
            f"{index.folder} is an index of {len(known)} pictures of {index.pictures}, and none "
            f"of them is in {root}; give that folder, or a new folder for the index."
        )
    fresh = [n for n, digest in digest_of.items() if n not in known or known[n][0] != digest]
    copied = [name for name in fresh if digest_of[name] in row_of]
    names_of: dict[str, list[str]] = {}
    for name in fresh:
        if digest_of[name] not in row_of:
            names_of.setdefault(digest_of[name], []).append(name)
    index.unfinished = sum(map(len, names_of.values()))
    report.removed = len(gone)
    changed = bool(gone or copied) or index.pictures != str(root)
    index.pictures = str(root)

    writer, before = _Writer(index), index.segments
    report.dropped = index.approximate is not None
    if gone or copied:
        # Renamed pictures change places in one commit.
        for start in range(0, len(copied), SEGMENT_ROWS):
            part = copied[start : start + SEGMENT_ROWS]
            rows = np.array([row_of[digest_of[name]] for name in part])
            for segment, positions, local in index.gather(rows):
                vectors = index.vectors(segment)[local]
                these = [part[position] for position in positions]
                writer.add(these, [digest_of[name] for name in these], vectors)
        if gone:
            writer.rewrite(before, gone)
        writer.commit()
    report.added += len(copied)

    def decodable() -> Iterator[str]:
        for of_same_bytes in names_of.values():
            fault = check_header(root / of_same_bytes[0])
            if not fault:
                yield of_same_bytes[0]
                continue
            for name in of_same_bytes:
                skipped[name] = f"{root / name}: {fault}."
            bar.update()

    size = encoder.spec.image_size
    if workers is None:
        workers = choose_workers(encoder.device, len(names_of), batch_size * size * size * 3)
    options = {"crop": index.recipe.crop, "batch_size": batch_size, "workers": workers}
    label = f"index ({encoder.spec.name})"
    with tqdm(total=len(names_of), desc=label, unit="picture", disable=not progress) as bar:
        stream = stream_embeddings(encoder, root, decodable(), on_error="skip", **options)
        try:
            for part in stream:
                bar.update(len(part.keys) + len(part.skipped))
                for name, reason in part.skipped.items():
                    for same in names_of[digest_of[name]]:
                        skipped[same] = reason.replace(str(root / name), str(root / same))
                for name, vector in zip(part.keys, part.matrix, strict=True):
                    digest = digest_of[name]
                    same = names_of[digest]
                    if not _still(root / name, digest):
                        reason = "it changed while it was read; run again."
                        skipped.update({other: f"{root / other}: {reason}" for other in same})
                        continue
                    vectors = np.broadcast_to(vector, (len(same), len(vector)))
                    writer.add(same, [digest] * len(same), vectors)
                    report.embedded += 1
                    report.added += len(same)
                    index.unfinished -= len(same)
                if len(writer.names) >= commit_rows:
                    writer.commit()
        finally:
            # Also when somebody stops it: what is done stays done.
            stream.close()
            if writer.names and writer.whole:
                writer.commit()
    if not len(index):
        first = next(iter(skipped.values()))
        raise ValueError(f"None of {len(names)} pictures could be read; the first: {first}")
    if changed or report.added or index.unfinished:
        index.unfinished = 0
        commit(index)
    report.dropped = report.dropped and index.approximate is None


class _Writer:
    """Rows on their way to the next segment.

    `whole` is False within a change: one that was broken off must not be committed.
    """

    def __init__(self, index: Index):
        self.index, self.whole = index, True
        self._clear()

    def _clear(self) -> None:
        self.names, self.digests, self.vectors = [], [], []

    def add(self, names: Sequence[str], sha256: Sequence[str], vectors: np.ndarray) -> None:
        """Take rows in; they are in the index when they are committed."""
        self.whole = False
        self._add(names, sha256, vectors)
        self.whole = True

    def _add(self, names: Sequence[str], sha256: Sequence[str], vectors: np.ndarray) -> None:
        self.index.width = self.index.width or vectors.shape[1]
        self.names += names
        self.digests += sha256
        self.vectors.append(vectors)
        if len(self.names) >= SEGMENT_ROWS:
            self._write()

    def rewrite(self, segments: Sequence[Segment], gone: set[str]) -> None:
        """Replace each of these segments that holds such a picture by one without it."""
        for segment in segments:
            keys = self.index.keys(segment)
            names = [self.index.checked_name(bytes(path)) for path in keys["path"]]
            kept = [row for row, name in enumerate(names) if name not in gone]
            if len(kept) == segment.rows:
                continue
            self._take(segment, kept)

    def commit(self) -> None:
        """Write what was taken in as a segment, together with a last one that is short."""
        self.whole = False
        last = self.index.segments[-1] if self.index.segments else None
        if last and last.rows < SEGMENT_ROWS and self.names:
            self._take(last, range(last.rows))
        if self.names:
            self._write()
        self.index.approximate = None  # it was of the rows as they were
        commit(self.index)
        self.whole = True
        sweep(self.index)

    def _take(self, segment: Segment, rows: Sequence[int]) -> None:
        """Move rows out of a segment, which leaves the index."""
        rows = np.asarray(rows, int)
        keys = self.index.keys(segment)[rows]
        names = [self.index.checked_name(bytes(path)) for path in keys["path"]]
        digests = [digest.tobytes().hex() for digest in keys["sha256"]]
        if len(rows):
            self._add(names, digests, np.array(self.index.vectors(segment)[rows]))
        self.index.segments = tuple(s for s in self.index.segments if s is not segment)

    def _write(self) -> None:
        vectors = np.concatenate(self.vectors)
        segment = write_segment(self.index, self.names, self.digests, vectors)
        self.index.segments += (segment,)
        self._clear()


def hash_named(root: Path, names: Sequence[str], skipped: dict[str, str]) -> dict[str, str]:
    """SHA-256 by path of the pictures that may be indexed; notes why others may not."""
    good = []
    for name in names:
        if name_fault(name):
            skipped[name] = f"{root / name}: its name {name_fault(name)} on some systems; rename."
        else:
            good.append(name)
    found = hash_pictures(root, good)
    skipped.update({n: str(why) for n, why in found.items() if isinstance(why, Exception)})
    return {name: digest for name, digest in found.items() if name not in skipped}


def _still(path: Path, digest: str) -> bool:
    try:
        return sha256_file(path) == digest
    except OSError:
        return False


def make_recipe(name: str, encoder: Encoder, crop: bool) -> Recipe:
    """What the vectors of an encoder depend on."""
    precision = next(key for key, dtype in PRECISIONS.items() if dtype == encoder.dtype)
    pixels = preprocessing_identity(encoder.spec.image_size, crop)
    made_with = ", ".join(f"{library} {version(library)}" for library in LIBRARIES)
    return Recipe(name, precision, encoder.fingerprint, pixels, crop, made_with)


def _check_same(index: Index, asked: dict[str, object]) -> None:
    """Refuse options that an index was not built with."""
    has = {"encoder": index.recipe.encoder, "dtype": index.dtype, "crop": index.recipe.crop}
    for option, value in asked.items():
        if value is not None and value != has[option]:
            raise ValueError(
                f"{index.folder} was built with {option} {has[option]}, asked is {value}; leave "
                "the option out, or give a new folder for the index."
            )


def _check_image(path: Path) -> str:
    """SHA-256 of a query picture.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it cannot be read or is too large.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such picture.")
    checked = check_picture(path)
    if checked.trouble:
        raise ValueError(f"{path}: {checked.fault}; ask with an intact PNG or JPEG.")
    return checked.sha256


def _check_text(text: str) -> None:
    if not text.strip():
        raise ValueError("text: the phrase is empty; write what the picture shows.")
    if len(text) > MOST_CHARACTERS:
        raise ValueError(
            f"text: the phrase has {len(text):,} characters, at most {MOST_CHARACTERS:,} are "
            "taken; an encoder reads the first few hundred only."
        )
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("text: the phrase is no valid Unicode; type it again.")
