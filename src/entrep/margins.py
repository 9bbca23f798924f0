"""How safe "the same submission everywhere" is: leads of the answers against numerical noise.

Scores are rounded to 6 decimals before any decision, so what could still differ between two
machines is an answer whose lead is about as small as that step, or as the noise of the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from entrep.config import RunConfig
from entrep.embed import embed_pictures
from entrep.encoders import load_encoder

STEP = 1e-6  # what scores are rounded to
HANDFUL = 8  # pictures that noise is measured on
BATCHES = (1, 8)


def class_leads(probs: np.ndarray, class_index: np.ndarray) -> np.ndarray:
    """By how much each answered class leads the best other one.

    Args:
        probs: (N, C) probabilities.
        class_index: (N,) answers; by another rule than the highest probability a lead may be
            negative.
    """
    rows = np.arange(len(probs))
    others = np.array(probs, np.float64)
    others[rows, class_index] = -np.inf
    return np.asarray(probs)[rows, class_index] - others.max(axis=1)


def ranking_leads(ranking: pd.DataFrame) -> np.ndarray:
    """By how much each query's first answer leads the best other one; infinity over none.

    Args:
        ranking: columns query, rank (from 1) and similarity, as notebook 05 writes them.
    """
    first = ranking[ranking["rank"] == 1].set_index("query")["similarity"]
    other = ranking[ranking["rank"] > 1].groupby("query")["similarity"].max()
    return (first - other.reindex(first.index).fillna(-np.inf)).to_numpy()


def measure_noise(
    config: RunConfig, root: str | Path, paths: Sequence[str], saved: np.ndarray
) -> float | None:
    """Embed a few pictures again: the largest change of a cosine between any two of them.

    They are embedded one by one and together, on this machine; each is compared with what was
    saved, and both with each other.

    Args:
        config: of the run: its prototypes' encoder and how it embeds.
        root: folder that `paths` are relative to.
        paths: N pictures.
        saved: (N, D) their embeddings as the run has them.

    Returns:
        None, and the reason printed, where pictures or the encoder's weights are not at hand.
    """
    if not len(paths) or not all((Path(root) / path).is_file() for path in paths):
        print("Noise is not measured: the test pictures are not at hand.")
        return None
    names = ("device", "weights_dir", "precision")
    try:
        encoder = load_encoder(
            config.prototype_encoder, **{name: getattr(config, name) for name in names}
        )
    except FileNotFoundError as error:
        print(f"Noise is not measured: {error}")
        return None
    options = {"crop": config.crop, "progress": False}
    again = [embed_pictures(encoder, root, paths, batch_size=n, **options).matrix for n in BATCHES]
    cosines = [rows @ rows.T for rows in (np.asarray(e, np.float64) for e in (saved, *again))]
    return float(max(np.abs(a - b).max() for a in cosines for b in cosines))


def margin_table(leads: Mapping[int, np.ndarray], noise: float | None) -> pd.DataFrame:
    """One row a track: its smallest lead against the rounding step and the noise, as text.

    Args:
        leads: by track, from `class_leads` and `ranking_leads`.
        noise: from `measure_noise`; None where it could not be measured.

    Returns:
        Columns track, queries, smallest_lead, within_step (answers that lead by one rounding
        step at most: close to a tie, which goes to the smaller name), noise, lead_over_noise.
    """
    rows = []
    for track, values in leads.items():
        smallest = float(values.min())
        ratio = f"{smallest / noise:.0f}" if noise else ("inf" if noise == 0 else "")
        rows.append(
            {
                "track": track,
                "queries": len(values),
                "smallest_lead": f"{smallest:.6f}",
                "within_step": int((values < 1.5 * STEP).sum()),
                "noise": "" if noise is None else f"{noise:.1e}",
                "lead_over_noise": ratio,
            }
        )
    columns = ["track", "queries", "smallest_lead", "within_step", "noise", "lead_over_noise"]
    return pd.DataFrame(rows, columns=columns)
