"""Picture files to pixels ahead of their use: in threads, in processes, or from a kept file."""

from __future__ import annotations

import inspect
import itertools
import multiprocessing
import os
import shutil
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from entrep import disc, preprocess
from entrep.artifacts import sha256_file, sha256_json
from entrep.cache import open_pixels, write_pixels
from entrep.preprocess import as_batch, prepare_picture

AHEAD = 2  # batches decoded before they are needed, by each worker or by all threads together
MOST_WORKERS = 16  # beside a GPU
WORKERS_ON_CPU = 2  # the network needs the cores itself
FEW = 512  # pictures that threads are done with before processes pay off ...
FEW_WITHOUT_FORK = 4096  # ... which is later where each process has to import PyTorch
WRITTEN_AT_ONCE = 32  # pictures of a kept file

# One batch: its paths, (B, 3, S, S) uint8 of the readable ones or None, why others are not.
Decoded = tuple[list[str], Tensor | None, dict[str, Exception]]


def decode_pictures(
    root: str | Path,
    paths: Iterable[str],
    size: int,
    *,
    crop: bool = True,
    batch_size: int = 32,
    workers: int | None = None,
    device: torch.device | None = None,
    count: int | None = None,
) -> Generator[Decoded]:
    """Decode pictures in the order given, some batches ahead of their use.

    A picture that cannot be read is handed over as the reason; the caller decides.

    Args:
        root: folder that `paths` are relative to.
        paths: POSIX paths; a generator is read a few batches ahead.
        size: pixels a side.
        crop: cut to the lit disc; otherwise the whole frame is kept.
        batch_size: pictures a batch.
        workers: processes; 0 takes threads of this one, None chooses.
        device: where the pictures go; for a CUDA device they lie in pinned memory.
        count: how many paths there are; None if that is not known, but many.

    Yields:
        Paths, (B, 3, size, size) uint8 of the readable ones (None without any), and the
        reasons of the others by path.

    Raises:
        RuntimeError: if a worker process was killed.
    """
    device = device or torch.device("cpu")
    pictures = _Pictures(Path(root), size, crop)
    if workers is None:
        workers = choose_workers(device, count, batch_size * size * size * 3)
    elif workers < 0:
        raise ValueError(f"workers: expected 0 or more, got {workers}.")
    pinned = device.type == "cuda"
    batches = in_batches(paths, batch_size)
    if workers == 0:
        # A network on the CPU has its cores to itself: threads that decode beside it make
        # each of its own wait for the others, and all together last longer.
        ahead = 0 if device.type == "cpu" else AHEAD
        return _decode_in_threads(pictures, batches, pinned, ahead)
    return _decode_in_processes(pictures, batches, workers, pinned)


def choose_workers(device: torch.device, count: int | None, batch_bytes: int) -> int:
    """How many processes decode `count` pictures; 0 for threads of this one.

    Processes decode beside a busy interpreter, threads start at once. Batches travel through
    shared memory, of which containers often have 64 MB: with too little of it a process that
    writes there is killed, so then too it is threads.
    """
    forks = multiprocessing.get_start_method() == "fork"
    if count is not None and count < (FEW if forks else FEW_WITHOUT_FORK):
        return 0
    chosen = min(count_cores(), WORKERS_ON_CPU if device.type == "cpu" else MOST_WORKERS)
    shared = Path("/dev/shm")
    if shared.is_dir():
        # Of each worker: batches ahead and one in the making.
        room = shutil.disk_usage(shared).free // 2
        chosen = min(chosen, room // max(1, (AHEAD + 1) * batch_bytes))
    return chosen


def count_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def hash_pictures(root: str | Path, paths: Sequence[str]) -> dict[str, str | Exception]:
    """SHA-256 by path, or why there is none; in threads, as hashing works without the GIL."""
    root = Path(root)

    def digest(path: str) -> str | Exception:
        try:
            return sha256_file(root / path)
        except FileNotFoundError:
            return FileNotFoundError(f"{root / path}: there is no such picture.")
        except OSError as error:
            return ValueError(f"{root / path}: not a readable picture ({error}).")

    unique = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(count_cores()) as pool:
        return dict(zip(unique, pool.map(digest, unique), strict=True))


def preprocessing_identity(size: int, crop: bool) -> str:
    """SHA-256 of all that turns a file into pixels.

    The source code is part of it: whoever improves the crop need not think of the caches.
    """
    source = inspect.getsource(disc) + inspect.getsource(preprocess)
    return sha256_json([size, crop, PIL.__version__, source])


def pixel_file(folder: str | Path, size: int, crop: bool, sha256: Sequence[str]) -> Path:
    """Where the pixels of exactly these pictures in this order are kept."""
    key = sha256_json([preprocessing_identity(size, crop), list(sha256)])
    return Path(folder) / f"pixels-{size}-{key[:16]}.npy"


def cached_pixels(
    folder: str | Path,
    root: str | Path,
    paths: Sequence[str],
    size: int,
    *,
    sha256: Sequence[str],
    crop: bool = True,
    workers: int | None = None,
    on_error: str = "stop",
    progress: bool = True,
) -> np.ndarray:
    """Prepared pictures, kept in `folder` and mapped into memory: (N, size, size, 3) uint8.

    For another encoder of the same input size, or for training. The file belongs to exactly
    these pictures in this order, by content. Nothing ever deletes it.

    Args:
        folder: where it is kept.
        root: folder that `paths` are relative to.
        paths: N POSIX paths.
        size: pixels a side.
        sha256: N digests of the pictures' bytes in the same order.
        crop: cut to the lit disc; otherwise the whole frame is kept.
        workers: see `decode_pictures`.
        on_error: "stop" at a picture that cannot be read, or "skip" it: its row stays black.
        progress: show a progress bar.

    Raises:
        FileNotFoundError: if a picture is missing.
        ValueError: if a picture cannot be decoded, or the kept file is damaged.
        OSError: if the folder cannot be written or the disk is full.
    """
    paths = list(paths)
    if len(sha256) != len(paths):
        raise ValueError(f"{len(paths)} paths, but {len(sha256)} digests; give one each.")
    file = pixel_file(folder, size, crop, sha256)
    shape = (len(paths), size, size, 3)

    def parts() -> Iterator[np.ndarray]:
        options = {"crop": crop, "batch_size": WRITTEN_AT_ONCE, "workers": workers}
        label = f"pictures ({size} px)"
        with tqdm(total=len(paths), desc=label, unit="picture", disable=not progress) as bar:
            decoded = decode_pictures(root, paths, size, count=len(paths), **options)
            for names, pixels, failed in decoded:
                if failed and on_error == "stop":
                    raise next(iter(failed.values()))
                part = np.zeros((len(names), size, size, 3), np.uint8)
                if pixels is not None:
                    good = [row for row, name in enumerate(names) if name not in failed]
                    part[good] = pixels.permute(0, 2, 3, 1).numpy()
                bar.update(len(names))
                yield part

    if not file.is_file():
        write_pixels(file, shape, parts())
    return open_pixels(file, shape)


def decode_kept(
    pixels: np.ndarray,
    row_of: dict[str, int],
    root: str | Path,
    paths: Sequence[str],
    *,
    crop: bool = True,
    batch_size: int = 32,
) -> Generator[Decoded]:
    """`decode_pictures` from kept pixels; a black row is read again, to learn the reason.

    Args:
        pixels: (N, S, S, 3) uint8 of `cached_pixels`.
        row_of: row of each path.
        root: folder that `paths` are relative to.
        paths: what to hand over, in this order.
        crop: of the pictures that are read again.
        batch_size: pictures a batch.
    """
    pictures = _Pictures(Path(root), pixels.shape[1], crop)
    for batch in in_batches(paths, batch_size):
        kept = [(path, pixels[row_of[path]]) for path in batch]
        yield _collate([(p, row) if row.any() else pictures[p] for p, row in kept])


def in_batches(items: Iterable[str], size: int) -> Iterator[list[str]]:
    """Lists of at most `size` items, as they come."""
    if size < 1:
        raise ValueError(f"batch_size: expected 1 or more, got {size}.")
    items = iter(items)
    return iter(lambda: list(itertools.islice(items, size)), [])


class _Pictures(Dataset):
    """Path to pixels, or to the reason why there are none; travels to worker processes."""

    def __init__(self, root: Path, size: int, crop: bool):
        self.root, self.size, self.crop = root, size, crop

    def __getitem__(self, path: str) -> tuple[str, np.ndarray | Exception]:
        full = self.root / path
        try:
            return path, prepare_picture(full, self.size, crop=self.crop)
        except FileNotFoundError as error:
            return path, FileNotFoundError(str(error))
        except Exception as error:
            # Whatever a broken file provokes concerns that file alone. It is never dropped:
            # the caller stops with it or reports it. As text, which any process can read.
            reason = str(error)
            if str(full) not in reason:
                reason = f"{full}: not a readable picture ({error!r})."
            return path, ValueError(reason)


def _collate(pictures: list[tuple[str, np.ndarray | Exception]]) -> Decoded:
    paths = [path for path, _ in pictures]
    failed = {path: found for path, found in pictures if isinstance(found, Exception)}
    good = [found for _, found in pictures if not isinstance(found, Exception)]
    return paths, as_batch(np.stack(good)) if good else None, failed


def _decode_in_processes(
    pictures: _Pictures, batches: Iterator[list[str]], workers: int, pinned: bool
) -> Generator[Decoded]:
    loader = DataLoader(
        pictures,
        batch_sampler=batches,  # any lists of keys will do, as they come
        num_workers=workers,
        prefetch_factor=AHEAD,
        collate_fn=_collate,
        pin_memory=pinned,
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RuntimeError(
            f"A process that decodes pictures was killed ({error}); it had too little memory, or "
            "a file crashed the decoder. Take fewer `workers`; 0 decodes without processes."
        ) from error


def _decode_in_threads(
    pictures: _Pictures, batches: Iterator[list[str]], pinned: bool, most_ahead: int
) -> Generator[Decoded]:
    pool = ThreadPoolExecutor(count_cores())

    def next_one() -> Decoded:
        paths, pixels, failed = _collate([future.result() for future in ahead.popleft()])
        return paths, pixels.pin_memory() if pinned and pixels is not None else pixels, failed

    ahead: deque = deque()
    try:
        for batch in batches:
            ahead.append([pool.submit(pictures.__getitem__, path) for path in batch])
            if len(ahead) > most_ahead:
                yield next_one()
        while ahead:
            yield next_one()
    finally:
        pool.shutdown(cancel_futures=True)
