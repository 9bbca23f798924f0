"""Pictures and texts to embeddings: one engine for training time and inference time.

Pictures are decoded ahead of the network, the network's memory sets the size of its passes,
and with a cache nothing is computed twice. None of this changes a number: order, batch size,
workers and cache state move an embedding by less than 1e-6 (in float32; half precision keeps
three digits, and there the size of a pass may show in the last one).
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from entrep.cache import VectorStore
from entrep.decode import (
    Decoded,
    cached_pixels,
    decode_kept,
    decode_pictures,
    hash_pictures,
    in_batches,
    pixel_file,
    preprocessing_identity,
)
from entrep.encoders import Encoder
from entrep.preprocess import mirror

KEEP_EVERY_S = 2.0  # an interrupted run loses this much; each write waits for the disk
# Larger passes gain nothing on a CPU: their activations leave its caches. ViT-B/16 on 2 cores
# takes 4 to 16 pictures a pass equally fast; for tiny networks a handful would be slower.
MOST_ON_CPU = 16
OUT_OF_MEMORY = re.compile(r"out of memory|not enough memory|can't allocate memory|ALLOC_FAILED")


@dataclass(frozen=True)
class Embeddings:
    """What came of some pictures or texts.

    Attributes:
        keys: paths or texts in the order asked, without the skipped ones.
        matrix: (N, D) float32, unit L2 norm per row, in the order of `keys`.
        skipped: why a picture could not be read, by path.
    """

    keys: list[str]
    matrix: np.ndarray
    skipped: dict[str, str] = field(default_factory=dict)


def embed_pictures(
    encoder: Encoder,
    root: str | Path,
    paths: Sequence[str],
    *,
    sha256: Sequence[str] | None = None,
    crop: bool = True,
    batch_size: int = 32,
    workers: int | None = None,
    flip_tta: bool = False,
    on_error: str = "stop",
    cache: str | Path | None = None,
    keep_pixels: bool = False,
    progress: bool = True,
) -> Embeddings:
    """Embed pictures in the order given; the same bytes are embedded once.

    Args:
        encoder: from `load_encoder`.
        root: folder that `paths` are relative to.
        paths: N POSIX paths.
        sha256: N digests of the pictures' bytes in the same order; None computes them.
        crop: cut to the lit disc; otherwise the whole frame is kept.
        batch_size: most pictures a forward pass (on a CPU never above 16); halved when memory
            runs out.
        workers: processes that decode; 0 decodes in threads of this one, None chooses.
        flip_tta: embed the mirrored picture too and take the mean direction. Mind that this
            erases which side a structure lies on, and left and right are classes here.
        on_error: "stop" at a picture that cannot be read, or "skip" it and report it.
        cache: folder where embeddings are kept; what lies there is not computed again.
        keep_pixels: keep the decoded pictures there too, for the next encoder of this input
            size (S * S * 3 bytes a picture); see `cached_pixels`.
        progress: show a progress bar.

    Raises:
        FileNotFoundError: if a picture is missing, unless it is to be skipped.
        ValueError: if a picture cannot be decoded, unless it is to be skipped; if none of
            them can; if the cache is damaged.
        RuntimeError: if not even one picture fits into memory, or a worker was killed.
    """
    root, paths, size = Path(root), list(paths), encoder.spec.image_size
    batch_size = _pass_size(encoder, batch_size)
    _check_on_error(on_error)
    if keep_pixels and cache is None:
        raise ValueError("keep_pixels needs a folder; name one in `cache`.")
    digest_of, skipped = _digests(root, paths, sha256, on_error)
    path_of: dict[str, str] = {}
    for path, digest in digest_of.items():
        path_of.setdefault(digest, path)
    store = None
    if cache is not None:
        pixels = preprocessing_identity(size, crop)
        named = {"name": encoder.spec.name, "fingerprint": encoder.fingerprint}
        store = picture_store(cache, **named, preprocessing=pixels, flip_tta=flip_tta)
    failed: dict[str, str] = {}

    def decode(missing: list[str]) -> Generator[Decoded]:
        known, digests = list(digest_of), list(digest_of.values())
        # For one new picture among many, decoding all of them again would be no bargain.
        if keep_pixels and (
            len(missing) == len(path_of) or pixel_file(cache, size, crop, digests).is_file()
        ):
            options = {"workers": workers, "on_error": on_error, "progress": progress}
            kept = cached_pixels(cache, root, known, size, sha256=digests, crop=crop, **options)
            row_of = {path: row for row, path in enumerate(known)}
            return decode_kept(kept, row_of, root, missing, crop=crop, batch_size=batch_size)
        options = {"batch_size": batch_size, "workers": workers, "count": len(missing)}
        return decode_pictures(root, missing, size, crop=crop, device=encoder.device, **options)

    def compute(digests: list[str]) -> Iterator[tuple[list[str], np.ndarray]]:
        decoded = decode([path_of[digest] for digest in digests])
        for part in _forward_all(encoder, decoded, batch_size, flip_tta, on_error):
            failed.update({digest_of[path]: why for path, why in part.skipped.items()})
            bar.update(len(part.keys) + len(part.skipped))
            yield [digest_of[path] for path in part.keys], part.matrix

    label = f"embed ({encoder.spec.name})"
    with tqdm(total=len(path_of), desc=label, unit="picture", disable=not progress) as bar:
        rows = _look_up(store, list(path_of), compute, bar)
    for path, digest in digest_of.items():
        if digest in failed:
            # The same bytes under another name fail for the same reason.
            skipped[path] = failed[digest].replace(path_of[digest], path)
    keys = [path for path in paths if path not in skipped]
    skipped = {path: skipped[path] for path in paths if path in skipped}
    _report_skipped(skipped, len(set(paths)))
    return Embeddings(keys, _stack([rows[digest_of[path]] for path in keys]), skipped)


def picture_store(
    cache: str | Path, *, name: str, fingerprint: str, preprocessing: str, flip_tta: bool = False
) -> VectorStore:
    """Where `embed_pictures` keeps an encoder's vectors, by the SHA-256 of the pictures' bytes.

    Args:
        cache: the folder.
        name: the encoder's, for people.
        fingerprint: the encoder's.
        preprocessing: `preprocessing_identity` of its input size and the crop.
        flip_tta: whether they are of both directions.
    """
    how = [preprocessing, "mirrored too" if flip_tta else "as is"]
    return VectorStore(cache, f"{name}-pictures", [fingerprint, "pictures", *how])


def embed_texts(
    encoder: Encoder,
    texts: Sequence[str],
    *,
    batch_size: int = 64,
    cache: str | Path | None = None,
) -> Embeddings:
    """Embed texts with a joint encoder in the order given; equal texts are embedded once.

    Args:
        encoder: from `load_encoder`.
        texts: T texts, the keys of the result.
        batch_size: most texts a forward pass; halved when memory runs out.
        cache: folder where embeddings are kept.

    Raises:
        ValueError: for an image-only encoder, or a damaged cache.
    """
    texts = list(texts)
    digest_of = {text: hashlib.sha256(text.encode("utf-8")).hexdigest() for text in texts}
    text_of = {digest: text for text, digest in digest_of.items()}

    batch_size = _pass_size(encoder, batch_size)

    def compute(digests: list[str]) -> Iterator[tuple[list[str], np.ndarray]]:
        fitting = _Fitting(encoder, encoder.encode_texts, batch_size, "text")
        for part in in_batches(digests, batch_size):
            rows = fitting([text_of[digest] for digest in part])
            yield part, torch.cat(rows).cpu().numpy()

    store = None
    if cache is not None:
        name, identity = f"{encoder.spec.name}-texts", [encoder.fingerprint, "texts"]
        store = VectorStore(cache, name, identity)
    rows = _look_up(store, list(text_of), compute, None)
    return Embeddings(texts, _stack([rows[digest_of[text]] for text in texts]))


def stream_embeddings(
    encoder: Encoder,
    root: str | Path,
    paths: Iterable[str],
    *,
    crop: bool = True,
    batch_size: int = 32,
    workers: int | None = None,
    flip_tta: bool = False,
    on_error: str = "stop",
) -> Iterator[Embeddings]:
    """Embed pictures as they come, a batch at a time; memory stays flat however many come.

    Arguments and errors are those of `embed_pictures`, but `paths` may be a generator: it is
    read a few batches ahead. There is no cache, and equal pictures are embedded again.
    """
    batch_size = _pass_size(encoder, batch_size)
    _check_on_error(on_error)
    options = {"crop": crop, "batch_size": batch_size, "workers": workers}
    decoded = decode_pictures(
        root, paths, encoder.spec.image_size, device=encoder.device, **options
    )
    yield from _forward_all(encoder, decoded, batch_size, flip_tta, on_error)


def _pass_size(encoder: Encoder, batch_size: int) -> int:
    """Pictures or texts a batch, decoded and passed on together."""
    return min(batch_size, MOST_ON_CPU) if encoder.device.type == "cpu" else batch_size


def _check_on_error(on_error: str) -> None:
    if on_error not in ("stop", "skip"):
        raise ValueError(f"on_error: expected 'stop' or 'skip', got {on_error!r}.")


def _digests(
    root: Path, paths: list[str], sha256: Sequence[str] | None, on_error: str
) -> tuple[dict[str, str], dict[str, str]]:
    """Digest by path, and by path why there is none."""
    if sha256 is not None:
        if len(sha256) != len(paths):
            raise ValueError(f"{len(paths)} paths, but {len(sha256)} digests; give one each.")
        return dict(zip(paths, sha256, strict=True)), {}
    found = hash_pictures(root, paths)
    failed = {path: error for path, error in found.items() if isinstance(error, Exception)}
    if failed and on_error == "stop":
        raise next(iter(failed.values()))
    digest_of = {path: digest for path, digest in found.items() if path not in failed}
    return digest_of, {path: str(error) for path, error in failed.items()}


def _look_up(
    store: VectorStore | None,
    digests: list[str],
    compute: Callable[[list[str]], Iterable[tuple[list[str], np.ndarray]]],
    bar: tqdm | None,
) -> dict[str, np.ndarray]:
    """Rows by digest: read from the store where they are there, else computed and kept."""
    rows = store.read(digests) if store else {}
    if bar is not None:
        # Both, so that rate and time left are those of the pictures to come.
        bar.initial = bar.n = len(rows)
        bar.refresh()
    missing = [digest for digest in digests if digest not in rows]
    if not missing:
        return rows
    fresh: dict[str, np.ndarray] = {}
    last = time.monotonic()
    try:
        for part, matrix in compute(missing):
            fresh.update(zip(part, matrix, strict=True))
            if store and time.monotonic() - last > KEEP_EVERY_S:
                rows.update(store.write(fresh))
                fresh, last = {}, time.monotonic()
    finally:
        # Also when a picture stops the run, or somebody does: what is done stays done.
        rows.update(store.write(fresh) if store else fresh)
    return rows


def _stack(rows: list[np.ndarray]) -> np.ndarray:
    return np.stack(rows) if rows else np.empty((0, 0), np.float32)


def _report_skipped(skipped: dict[str, str], asked: int) -> None:
    if not skipped:
        return
    reasons = list(skipped.values())
    if len(skipped) == asked:
        raise ValueError(f"None of {asked} pictures could be read; the first: {reasons[0]}")
    more = f" (and {len(reasons) - 3} more)" if len(reasons) > 3 else ""
    print(f"{len(reasons)} of {asked} pictures skipped: {' '.join(reasons[:3])}{more}")


def _forward_all(
    encoder: Encoder,
    decoded: Generator[Decoded],
    batch_size: int,
    flip_tta: bool,
    on_error: str,
) -> Iterator[Embeddings]:
    """Embed decoded batches; a result is waited for when the next batch is on its way."""

    def encode(batch: Tensor) -> Tensor:
        rows = encoder.encode_pictures(batch)
        if flip_tta:
            both = rows + encoder.encode_pictures(mirror(batch))
            rows = functional.normalize(both, dim=-1)
        return rows

    fitting = _Fitting(encoder, encode, batch_size, "picture")
    waiting: deque[Callable[[], Embeddings]] = deque()
    stop = None
    with closing(decoded):
        for paths, pixels, failed in decoded:
            if failed and on_error == "stop":
                stop = next(iter(failed.values()))
            rows = [] if pixels is None else fitting(pixels)
            keys = [path for path in paths if path not in failed]
            reasons = {path: str(error) for path, error in failed.items()}
            waiting.append(_fetch(keys, rows, reasons))
            if stop is not None:
                break
            if len(waiting) > 1:
                yield waiting.popleft()()
    # What was computed before a picture stops the run is handed over first.
    while waiting:
        yield waiting.popleft()()
    if stop is not None:
        raise stop


def _fetch(
    keys: list[str], rows: list[Tensor], reasons: dict[str, str]
) -> Callable[[], Embeddings]:
    """Start copying rows to the host; the function given back waits and hands them over.

    The copy is queued right behind the pass that it belongs to, and waited for alone: a
    plain `.cpu()` later on would wait for the next pass too.
    """
    event = None
    if rows and rows[0].device.type == "cuda":
        copies = [torch.empty(r.shape, dtype=r.dtype, pin_memory=True) for r in rows]
        for copy, row in zip(copies, rows, strict=True):
            copy.copy_(row, non_blocking=True)
        event = torch.cuda.current_stream(rows[0].device).record_event()
        rows = copies

    def finish() -> Embeddings:
        if event is not None:
            event.synchronize()
        matrix = torch.cat([row.cpu() for row in rows]).numpy() if rows else _stack([])
        return Embeddings(keys, matrix, reasons)

    return finish


class _Fitting:
    """Runs a batch in pieces that fit into memory, and remembers the size that did."""

    def __init__(self, encoder: Encoder, encode: Callable, limit: int, unit: str):
        if limit < 1:
            raise ValueError(f"batch_size: expected 1 or more, got {limit}.")
        self.encoder, self.encode, self.limit, self.unit = encoder, encode, limit, unit

    def __call__(self, batch: Tensor | list[str]) -> list[Tensor]:
        """(b, D) rows of each piece."""
        rows, start = [], 0
        while start < len(batch):
            part = batch[start : start + self.limit]
            result = self._try(part)
            if result is None:
                self.limit = len(part) // 2
                print(
                    f"{self.encoder.spec.name}: out of memory with {len(part)} {self.unit}s a "
                    f"pass; goes on with {self.limit}."
                )
                continue
            rows.append(result)
            start += len(part)
        return rows

    def _try(self, part: Tensor | list[str]) -> Tensor | None:
        """Rows of a piece; None where memory is too small for it."""
        try:
            return self.encode(part)
        except (RuntimeError, MemoryError) as error:
            known = isinstance(error, torch.OutOfMemoryError | MemoryError)
            if not known and not OUT_OF_MEMORY.search(str(error)):
                raise
            if len(part) == 1:
                reason = (str(error).splitlines() or ["MemoryError"])[0]
                raise RuntimeError(
                    f"{self.encoder.spec.name}: not even one {self.unit} fits into the memory of "
                    f"{self.encoder.device} ({reason}); take a smaller encoder or input size."
                ) from error
        # Not within `except`: there the error still holds on to the tensors.
        if self.encoder.device.type == "cuda":
            torch.cuda.empty_cache()
        return None
