"""Faster search in big indexes with FAISS, which looks at a part of the vectors only.

An inverted file (IVF) sorts the vectors to some centres; a search looks into the lists of the
centres nearest to the query. How many lists is not guessed: it is doubled until the answers of a
sample agree with exact search as often as asked.
"""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np

from entrep.exact import check_queries, search_exact, settle_hits, stream_blocks
from entrep.index import Approximate, Hit, Index, commit, describe_part, new_part

RECALL = 0.95
SAMPLE = 200  # pictures of the index that the recall is measured with
NEAREST = 10
TRAINED_ON = 64  # vectors a centre
ROWS_AT_ONCE = 65_536


def build_approximate(index: Index, *, recall: float = RECALL) -> Approximate:
    """Build a FAISS index (IVF, fp16) of an index's vectors, check it and commit it.

    The share of the true 10 nearest that it finds is measured with up to 200 pictures of the
    index as queries, themselves left out.

    Args:
        index: from `open_index`, with its lock held.
        recall: share that must be found.

    Raises:
        ValueError: if faiss is not installed, or the recall is not reached even when every
            list is looked into.
    """
    faiss = _faiss()
    lists = max(1, round(len(index) ** 0.5))
    # fp16 as the vectors themselves: half of IVF,Flat's memory, and nothing is lost.
    built = faiss.index_factory(index.width, f"IVF{lists},SQfp16", faiss.METRIC_INNER_PRODUCT)
    built.train(_sample(index, lists * TRAINED_ON))
    for _, block in stream_blocks(index, ROWS_AT_ONCE):
        built.add(block.numpy())
    queries = _sample(index, SAMPLE)
    # One more than 10, and the first does not count: each finds itself.
    true = search_exact(index, queries, k=NEAREST + 1)
    probes, reached = 1, 0.0
    while True:
        built.nprobe = probes
        answers = _search(index, built, queries, NEAREST + 1)
        reached = _recall(true, answers)
        if reached >= recall or probes == lists:
            break
        probes = min(2 * probes, lists)
    if reached < recall:
        raise ValueError(
            f"{index.folder}: FAISS finds {reached:.3f} of the true nearest even in all its "
            f"lists, asked were {recall}; search exactly, without --approximate."
        )
    number = index.last_number + 1
    with new_part(index.folder, number, "faiss") as temporary:
        faiss.write_index(built, str(temporary))
        file = describe_part(temporary)
    made = Approximate(number, file, probes, round(reached, 6))
    index.last_number, index.approximate = number, made
    commit(index)
    return made


def search_approximate(index: Index, queries: np.ndarray, *, k: int = 10) -> list[list[Hit]]:
    """`search_exact` among the candidates that the FAISS index gives.

    Its file is read and checked by the first search in an open index; that takes as long as a
    few exact searches do, so it pays for many queries in one process.

    Similarities and their order are exact; what FAISS did not look at is missing. Fewer than k
    hits come if its lists hold no more.

    Raises:
        ValueError: as `search_exact`; also if there is no FAISS index of the present vectors,
            its file was changed, or faiss is not installed.
    """
    queries = check_queries(index, queries, k)
    file = index.faiss_file()
    if file not in index.loaded:
        index.loaded[file] = _faiss().read_index(str(file))
    built = index.loaded[file]
    if built.ntotal != len(index) or built.d != index.width:
        raise ValueError(
            f"{file} holds {built.ntotal} vectors of width {built.d}, the index {len(index)} of "
            f"{index.width}; make it anew with 'entrep index … --approximate'."
        )
    built.nprobe = index.approximate.probes
    return _search(index, built, queries, k)


def _search(index: Index, built, queries: np.ndarray, k: int) -> list[list[Hit]]:
    # More than asked for: FAISS's last digits decide among these only.
    _, rows = built.search(queries, min(max(64, 4 * k), len(index)))
    query, column = np.nonzero(rows >= 0)  # -1 where the lists hold no more
    return settle_hits(index, queries, query, rows[query, column], k)


def _recall(true: list[list[Hit]], answers: list[list[Hit]]) -> float:
    """Share of the true hits behind the first that are among the answers."""
    found = total = 0
    for want, got in zip(true, answers, strict=True):
        rest = {hit.name for hit in want[1:]}
        found, total = found + len(rest & {hit.name for hit in got}), total + len(rest)
    return found / total if total else 1.0


def _sample(index: Index, count: int) -> np.ndarray:
    """Up to `count` vectors, evenly spread over the rows: (n, D) float32."""
    rows = np.unique(np.linspace(0, len(index) - 1, min(count, len(index))).astype(int))
    found = np.empty((len(rows), index.width), np.float32)
    for segment, positions, local in index.gather(rows):
        found[positions] = index.vectors(segment)[local]
    return found


def _faiss() -> ModuleType:
    if sys.platform == "darwin":
        # Both bring an OpenMP of their own, and the second one ends the process.
        raise ValueError(
            "FAISS crashes beside PyTorch on macOS (faiss-wheels issue 73); search exactly, "
            "without --approximate."
        )
    try:
        import faiss
    except ImportError as error:
        raise ValueError(
            "faiss is not installed; it is needed for --approximate only. Install it: "
            "pip install faiss-cpu"
        ) from error
    return faiss
