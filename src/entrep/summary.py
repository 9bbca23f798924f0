"""One page of Markdown about a run: its scores, its answers and its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from entrep.artifacts import list_files, sha256_file
from entrep.labels import CLASS_NAMES

PARTS = {"heldout": "held-out pictures", "dev": "out-of-fold"}


def summarise_run(
    profile: str,
    splits: Mapping[int, str],
    answers: Mapping[int, Mapping[str, object]],
    metrics: Mapping[str, Mapping],
    submissions: str | Path,
    margins: pd.DataFrame,
) -> str:
    """The page as Markdown text.

    Args:
        profile: the run's profile.
        splits: the test set that each track answers.
        answers: by track, the answer to each query; track 1 answers are class indices.
        metrics: by notebook, what its `metrics.json` holds.
        submissions: folder of the written files.
        margins: from `margins.margin_table`.
    """
    hybrid = metrics["04_hybrid"]
    retrieval = {k: v for k, v in metrics["05_retrieval"].items() if k in ("image", "text")}
    lines = [f"# Run summary ({profile})", "", "## Classification", ""]
    lines += ["| method | on | pictures | coarse | fine | macro F1 |", "|---|---|--:|--:|--:|--:|"]
    for method in ("prototypes", "baseline", "reference", "combined"):
        for part, where in PARTS.items():
            if scores := hybrid[method].get(part):
                lines.append(
                    f"| {method} | {where} | {scores['pictures']} | {_share(scores, 'coarse')} "
                    f"| {_share(scores, 'fine')} | {scores['macro_f1']:.3f} |"
                )
    lines += [
        "",
        f"Submitted: {hybrid['decision']}. The reference's rule believes the prototypes' ",
    ]
    lines[-1] += f"site from {hybrid['threshold']:.2f} on."
    lines += [""]
    lines += ["## Retrieval on the training pairs and phrases", ""]
    if retrieval:
        lines += ["| query | queries | R@1 | R@5 | R@10 | MRR | chance R@1 |"]
        lines += ["|---|--:|--:|--:|--:|--:|--:|"]
    for kind, scores in retrieval.items():
        lines.append(
            f"| {kind} | {scores['queries']} | {scores['recall@1']:.3f} "
            f"({scores['low']:.3f} to {scores['high']:.3f}) | {scores['recall@5']:.3f} "
            f"| {scores['recall@10']:.3f} | {scores['mrr']:.3f} | {scores['chance']:.3f} |"
        )
    lines += [] if retrieval else ["The data has neither pairs nor phrases to measure on."]
    lines += ["", "## Submissions", ""]
    if not answers:
        lines.append("The data has no test lists, so there is nothing to submit.")
    for track, found in answers.items():
        distinct = len(set(found.values()))
        lines.append(
            f"- track {track}: {len(found)} answers to the {splits[track]} list, "
            f"{distinct} of them distinct"
        )
    if 1 in answers:
        given = list(answers[1].values())
        counts = ", ".join(f"{n} {given.count(i)}" for i, n in enumerate(CLASS_NAMES))
        lines += ["", f"Classes answered: {counts}."]
    if answers:
        lines += ["", "```"]
        lines += [f"{sha256_file(path)}  {path.name}" for path in list_files(submissions)]
        lines += ["```", "", "## How safe that is", ""]
        lines += [_margin(row) for row in margins.to_dict("records")]
    return "\n".join(lines) + "\n"


def _margin(row: Mapping[str, object]) -> str:
    noise = "the noise of this machine was not measured"
    if row["noise"]:
        noise = f"{row['lead_over_noise']} times the noise of a cosine here ({row['noise']})"
    return (
        f"- track {row['track']}: the narrowest answer leads by {row['smallest_lead']}, {noise}; "
        f"{row['within_step']} of {row['queries']} within one rounding step"
    )


def _share(scores: Mapping[str, float], name: str) -> str:
    low, high = scores[f"{name}_low"], scores[f"{name}_high"]
    return f"{scores[name]:.1%} ({low:.1%} to {high:.1%})"
