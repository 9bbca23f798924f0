"""Exact search: every vector of an index is compared, a block at a time.

Products in float32 find the candidates, within a margin wider than their rounding errors. What
is left is computed again in float64 and rounded, so the answer is that of `rank_gallery` over
the whole gallery: the same on every processor, whatever the block size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from entrep.index import Hit, Index

BLOCK = 4096  # rows a product; its results are read again while they are in the cache
GROUP = 32  # columns of which only the best is ranked, as long as k is small
QUERIES_AT_ONCE = 1024
DECIMALS = 6
# Float32 sums of a few thousand products of unit vectors err by some 1e-6; rounding adds 5e-7.
MARGIN = 1e-5
MOST_CANDIDATES = 1 << 19  # more are settled at once, such as thousands of copies of one picture
SETTLED_AT_ONCE = 8192

# (n,) each: query, row of the index, product in float32
Candidates = tuple[np.ndarray, np.ndarray, np.ndarray]


def search_exact(index: Index, queries: np.ndarray, *, k: int = 10) -> list[list[Hit]]:
    """The k nearest pictures of each query by cosine similarity, best first.

    Memory stays flat whatever the size of the index: a block of rows in float32 and its
    products (16 MB for 1,024 queries) beside one mapped segment.

    Args:
        index: from `open_index`.
        queries: (Q, D) float32, unit L2 norm per row, from the index's encoder.
        k: how many to keep; less come where the index holds less.

    Returns:
        Q lists of hits. Ties (to 6 decimals) go to the smaller name.

    Raises:
        ValueError: if the width differs, k is below 1, or a file of the index was changed.
    """
    queries, k = check_queries(index, queries, k), min(k, len(index))
    found: list[list[Hit]] = []
    with _one_torch_thread():
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            part = queries[start : start + QUERIES_AT_ONCE]
            found += settle_hits(index, part, *_candidates(index, part, k), k)
    if any(len(hits) < k for hits in found):
        raise ValueError(
            f"{index.folder}: it holds vectors that are no numbers; build it anew: "
            f"entrep index {index.pictures} --out NEW"
        )
    return found


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """NumPy's threads keep the cores awake after a product; PyTorch's would wait for them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def check_queries(index: Index, queries: np.ndarray, k: int) -> np.ndarray:
    """Queries as contiguous float32.

    Raises:
        ValueError: if they do not fit the index, or k is below 1.
    """
    if k < 1:
        raise ValueError(f"k: expected 1 or more, got {k}.")
    if queries.ndim != 2 or queries.shape[1] != index.width:
        raise ValueError(
            f"queries have shape {queries.shape}, the index {index.folder} is {index.width} "
            f"wide; embed them with its encoder, {index.recipe.encoder}."
        )
    if not np.isfinite(queries).all():
        raise ValueError("queries hold values that are no numbers; embed them again.")
    return np.ascontiguousarray(queries, np.float32)


def settle_hits(
    index: Index, queries: np.ndarray, query: np.ndarray, row: np.ndarray, k: int
) -> list[list[Hit]]:
    """The k best candidates of each query as hits, decided in float64.

    Args:
        index: that the rows are of.
        queries: (Q, D) float32.
        query: (n,) which query each candidate is of.
        row: (n,) its row in the index; none twice for one query.
        k: how many to keep.
    """
    query, row, value = _settle(index, queries, query, row, k)
    digests, names = np.empty((len(row), 32), np.uint8), [b""] * len(row)
    for segment, positions, local in index.gather(row):
        keys = index.keys(segment)[local]
        digests[positions] = keys["sha256"]
        for position, path in zip(positions.tolist(), keys["path"].tolist(), strict=True):
            names[position] = path
    hits: list[list[Hit]] = [[] for _ in queries]
    for q, path, similarity, digest in zip(
        query.tolist(), names, value.tolist(), digests, strict=True
    ):
        hits[q].append(Hit(index.checked_name(path), similarity, digest.tobytes().hex()))
    return hits


def stream_blocks(index: Index, rows: int) -> Iterator[tuple[int, Tensor]]:
    """All vectors in float32, a block at a time: number of its first row, (n, D).

    The memory of a block is used again for the next one.
    """
    block, filled, first = torch.empty(rows, index.width), 0, 0
    for segment in index.segments:
        vectors = torch.from_numpy(index.vectors(segment))
        start = 0
        while start < segment.rows:
            count = min(rows - filled, segment.rows - start)
            block[filled : filled + count].copy_(vectors[start : start + count])
            start, filled = start + count, filled + count
            if filled == rows:
                yield first, block
                first, filled = first + filled, 0
    if filled:
        yield first, block[:filled]


def _candidates(index: Index, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Every (query, row) that may be among the k best of the query, and few others."""
    group = GROUP if k * GROUP * 4 <= BLOCK else 1
    rows = min(BLOCK, -(-len(index) // group) * group)
    products = torch.empty(len(queries), rows)
    grouped = products.view(len(queries), rows // group, group)
    # Of each query the k best maxima of groups: k different rows, so the k-th bounds the k-th
    # best row from below.
    best = torch.full((len(queries), k), -torch.inf)
    floor = best[:, -1]
    kept: list[Candidates] = []
    for first, block in stream_blocks(index, rows):
        # NumPy's product: on some processors PyTorch's (MKL) takes a fourth longer.
        np.matmul(queries, block.numpy().T, out=products.numpy()[:, : len(block)])
        products[:, len(block) :] = -torch.inf
        top = grouped.amax(dim=-1)
        of, which = (top >= floor[:, None]).nonzero(as_tuple=True)
        better = of.unique()  # few queries, after the first blocks
        nearest = torch.cat([best[better], top[better]], dim=1)
        best[better] = nearest.topk(k, dim=1).values
        floor = best[:, -1] - MARGIN
        values = grouped[of, which]
        good = (values >= floor[of][:, None]) & (values > -torch.inf)
        hit, lane = good.nonzero(as_tuple=True)
        row = first + which[hit] * group + lane
        kept.append((of[hit].numpy(), row.numpy(), values[hit, lane].numpy()))
        if sum(len(part[0]) for part in kept) > max(MOST_CANDIDATES, 4 * len(queries) * k):
            kept = [_reduce(index, queries, kept, floor.numpy(), k)]
    return _reduce(index, queries, kept, floor.numpy(), k)[:2]


def _reduce(
    index: Index, queries: np.ndarray, kept: list[Candidates], floor: np.ndarray, k: int
) -> Candidates:
    """Drop candidates below the floor; where ties leave too many, all but the k best."""
    query, row, value = (np.concatenate(column) for column in zip(*kept, strict=True))
    above = value >= floor[query]
    query, row, value = query[above], row[above], value[above]
    if len(query) <= max(MOST_CANDIDATES // 2, 2 * len(queries) * k):
        return query, row, value
    order = np.argsort(query, kind="stable")
    parts = []
    for start in range(0, len(order), MOST_CANDIDATES):
        part = order[start : start + MOST_CANDIDATES]
        parts.append(_settle(index, queries, query[part], row[part], k))
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def _settle(
    index: Index, queries: np.ndarray, query: np.ndarray, row: np.ndarray, k: int
) -> Candidates:
    """The k best of each query, in order: by similarity to 6 decimals, then by name."""
    value = np.empty(len(row))
    names = None
    for segment, positions, local in index.gather(row):
        vectors, paths = index.vectors(segment), index.keys(segment)["path"]
        for start in range(0, len(positions), SETTLED_AT_ONCE):
            here = positions[start : start + SETTLED_AT_ONCE]
            these = vectors[local[start : start + SETTLED_AT_ONCE]].astype(np.float64)
            value[here] = np.einsum("nd,nd->n", these, queries[query[here]].astype(np.float64))
        if names is None or names.dtype.itemsize < paths.dtype.itemsize:
            names = np.zeros(len(row), paths.dtype) if names is None else names.astype(paths.dtype)
        names[positions] = paths[local]
    if names is None:
        return query, row, value
    value = np.round(value, DECIMALS)
    order = np.lexsort((names, -value, query))
    query = query[order]
    # Position within its query: distance from the first row of the same query.
    place = np.arange(len(query)) - np.searchsorted(query, query, side="left")
    order = order[place < k]
    return query[place < k], row[order], value[order]
