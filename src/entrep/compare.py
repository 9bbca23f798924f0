"""Runs side by side: what sets their configurations apart, and paired tests on the same pictures.

Every out-of-fold picture is answered by networks that never saw it, so two runs that share their
pictures can be compared picture by picture. Runs that differ in their seeds only are repetitions
of one configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import ttest_rel

from entrep.artifacts import read_json, read_table
from entrep.hybrid import fuse_heads
from entrep.metrics import bootstrap_interval, mcnemar_test, paired_bootstrap
from entrep.pipeline import PLACES
from entrep.sweep_table import SEEDS, make_table

ANSWERING = ("04_hybrid", "03_dinov2_finetune", "02_prototypes")  # the first that all runs have


@dataclass(frozen=True)
class Answers:
    """One run's out-of-fold pictures, and which of them it got right."""

    folder: Path
    config: Mapping[str, object]
    pictures: pd.DataFrame  # index path; columns sha256, class_index, fold, cluster, right

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the run, as in `SEEDS`; the same ones mean the same pictures and folds."""
        return tuple(self.config.get(name, 0) for name in SEEDS)


@dataclass(frozen=True)
class Comparison:
    """What `compare_runs` found, as tables for people."""

    notebook: str  # whose answers
    configurations: pd.DataFrame
    tests: pd.DataFrame
    by_seed: pd.DataFrame


def find_runs(folders: Sequence[str | Path]) -> list[Path]:
    """Run folders; the folder of a sweep stands for its finished runs, sorted by parameters."""
    found = []
    for folder in map(Path, folders):
        if (folder / "sweep.json").is_file():
            table = make_table(folder)
            done = table["run"][table["status"] == "done"]
            if not len(done):
                raise FileNotFoundError(f"{folder}: the sweep has no finished run to compare.")
            found += [folder / "runs" / run for run in done]
        else:
            found.append(folder)
    return found


def load_answers(folder: str | Path, notebook: str) -> Answers:
    """Read a run's out-of-fold answers.

    Args:
        folder: the run folder.
        notebook: whose answers, one of `ANSWERING`.

    Raises:
        FileNotFoundError: if this is no run folder, or the notebook has not run there.
        ValueError: if its predictions are of other pictures than its notebook 01's.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: this is no run folder; config.json is not in it.")
    pictures = read_table(folder / "01_eda" / "pictures.csv")
    table = read_table(folder / notebook / "predictions.csv")
    if table["path"].tolist() != pictures["path"].tolist():
        raise ValueError(
            f"{folder}: {notebook} and 01_eda are of different pictures; run it again."
        )
    # The same group of pictures has the same name in every run, whatever its number.
    pictures["cluster"] = pictures.groupby("group")["sha256"].transform("min")
    pictures["right"] = _classes(notebook, table) == pictures["class_index"].to_numpy()
    dev = pictures[pictures["part"] == "dev"].set_index("path")
    columns = ["sha256", "class_index", "fold", "cluster", "right"]
    return Answers(folder, read_json(folder / "config.json"), dev[columns].sort_index())


def _classes(notebook: str, table: pd.DataFrame) -> np.ndarray:
    """(N,) the class that a notebook answers, from its table of probabilities."""
    if notebook == "04_hybrid":
        return table["class_index"].to_numpy()
    classes, sites, second = (
        table.filter(regex=f"^{prefix}_").to_numpy() for prefix in ("p", "site", "second")
    )
    probs = classes if notebook == "02_prototypes" else fuse_heads(classes, sites, second)
    return probs.round(6).argmax(axis=1)


def compare_runs(
    folders: Sequence[str | Path], *, notebook: str = "", draws: int = 2000
) -> Comparison:
    """Compare configurations with the first one, on the same out-of-fold pictures.

    Args:
        folders: two run folders or more, of this kit's runs or sweeps.
        notebook: whose answers; empty: the last that all runs have, of 02, 03 and 04.
        draws: resamples of each bootstrap.

    Returns:
        A `Comparison`. `configurations`: a number for each, the parameters that differ, runs,
        pictures, accuracy with its 95 % interval over groups of pictures, and its sample
        standard deviation over seeds. `tests`: each against the first: the difference of the
        accuracies with its paired bootstrap interval and p; McNemar's exact test over all
        pictures, where no picture comes twice; a paired t test over seeds, or over folds
        where there is one seed and the folds are the same. `by_seed`: McNemar's test for each.

    Raises:
        ValueError: for fewer than two configurations, or runs that do not have the same seeds,
            pictures and labels.
    """
    notebook = notebook or _common_notebook(folders)
    runs = [load_answers(folder, notebook) for folder in folders]
    names = differing([run.config for run in runs])
    apart = [name for name in names if name not in SEEDS] or names
    groups: dict[tuple, dict[tuple[int, ...], Answers]] = {}
    for run in runs:
        group = groups.setdefault(tuple(run.config.get(name) for name in apart), {})
        if run.seeds in group:
            raise ValueError(
                f"{group[run.seeds].folder} and {run.folder} have the same parameters; "
                "give one of them."
            )
        group[run.seeds] = run
    if len(groups) < 2:
        raise ValueError("compare: the runs do not differ in any parameter; give two that do.")

    first, *others = groups.values()
    configurations, tests, by_seed = [], [], []
    for number, (values, group) in enumerate(groups.items(), start=1):
        named = dict(zip(apart, values, strict=True))
        configurations.append({"configuration": number, **named, **_summary(group, draws)})
    for number, group in enumerate(others, start=2):
        pairs = _pair(first, group, of_seeds=set(names) <= set(SEEDS))
        versus = {"configuration": f"{number} less 1"}
        tests.append({**versus, **paired_tests(pairs, draws=draws)})
        by_seed += [
            {**versus, **dict(zip(SEEDS, b.seeds, strict=True)), **_mcnemar([(a, b)])}
            for a, b in pairs
        ]
    return Comparison(notebook, *map(pd.DataFrame, (configurations, tests, by_seed)))


def differing(configs: Sequence[Mapping[str, object]]) -> list[str]:
    """Parameters in which configurations differ; where things lie does not count."""
    names = dict.fromkeys(name for config in configs for name in config)
    left_out = {*PLACES, "data_path"}
    return [
        name
        for name in names
        if name not in left_out and len({config.get(name) for config in configs}) > 1
    ]


def _common_notebook(folders: Sequence[str | Path]) -> str:
    for name in ANSWERING:
        if all((Path(folder) / name / "predictions.csv").is_file() for folder in folders):
            return name
    raise FileNotFoundError(
        f"{', '.join(map(str, folders))}: there is no notebook of {', '.join(ANSWERING)} whose "
        "predictions.csv all of them have; run the same notebooks in each."
    )


def _pair(
    first: Mapping[tuple, Answers], other: Mapping[tuple, Answers], *, of_seeds: bool
) -> list[tuple[Answers, Answers]]:
    """Runs of the same seeds side by side (of any, if these are what is compared), checked."""
    if of_seeds:
        pairs = list(zip(first.values(), other.values(), strict=True))
    elif first.keys() != other.keys():
        folders = next(iter(first.values())).folder, next(iter(other.values())).folder
        raise ValueError(
            f"{folders[0]} and {folders[1]} and their repetitions have different seeds "
            f"({sorted(first)} and {sorted(other)}); give the same seeds of both."
        )
    else:
        pairs = [(first[seed], other[seed]) for seed in sorted(first)]
    for a, b in pairs:
        same = ["sha256", "class_index"]
        if not a.pictures[same].equals(b.pictures[same]):
            raise ValueError(
                f"{a.folder} and {b.folder} have different out-of-fold pictures or labels "
                f"({len(a.pictures)} and {len(b.pictures)} pictures); only the same ones can "
                "be compared one by one. Give both the same data, seed and held-out share."
            )
    return pairs


def _summary(group: Mapping[tuple, Answers], draws: int) -> dict[str, object]:
    right, cluster = (
        np.concatenate([run.pictures[column] for run in group.values()])
        for column in ("right", "cluster")
    )
    low, high = bootstrap_interval(right, cluster, draws=draws)
    means = [run.pictures["right"].mean() for run in group.values()]
    spread = float(np.std(means, ddof=1)) if len(means) > 1 else np.nan
    accuracy = {"accuracy": float(right.mean()), "low": low, "high": high, "sd": spread}
    return {"runs": len(group), "pictures": len(right), **accuracy}


def paired_tests(
    pairs: Sequence[tuple[Answers, Answers]], *, draws: int = 2000
) -> dict[str, object]:
    """Paired tests of two configurations, from runs that share pictures: the second less the first.

    Returns:
        difference, low, high and p_bootstrap (`metrics.paired_bootstrap`); only_first,
        only_second and p_mcnemar (NaN if a picture comes twice, where it would count
        pictures that are not independent); t, p_t and over of the paired t test, NaN where
        there are not two units or all differ by the same.
    """
    a, b, cluster = (
        np.concatenate([pair[side].pictures[column] for pair in pairs])
        for side, column in ((0, "right"), (1, "right"), (1, "cluster"))
    )
    boot = paired_bootstrap(b, a, cluster, draws=draws)
    boot["p_bootstrap"] = boot.pop("p")
    return {**boot, **_mcnemar(pairs), **_paired_t(pairs)}


def _mcnemar(pairs: Sequence[tuple[Answers, Answers]]) -> dict[str, object]:
    a, b = (np.concatenate([pair[side].pictures["right"] for pair in pairs]) for side in (0, 1))
    found = mcnemar_test(b, a)
    seen = [set(first.pictures["sha256"]) for first, _ in pairs]
    once = sum(map(len, seen)) == len(set().union(*seen))
    counts = {"pictures": len(a), "only_first": found["only_b"], "only_second": found["only_a"]}
    return {**counts, "p_mcnemar": found["p"] if once else np.nan}


def _paired_t(pairs: Sequence[tuple[Answers, Answers]]) -> dict[str, object]:
    """Student's paired t over the seeds' accuracies, or over the folds' of one seed."""
    units, over = [[run.pictures["right"].mean() for run in pair] for pair in pairs], "seeds"
    if len(pairs) == 1:
        a, b = (run.pictures for run in pairs[0])
        folds = [t.groupby("fold")["right"].mean() for t in (a, b)]
        units = np.transpose(folds) if a["fold"].equals(b["fold"]) else []
        over = "folds"
    differences = [second - first for first, second in units]
    if len(units) < 2 or np.ptp(differences) < 1e-12:
        return {"t": np.nan, "p_t": np.nan, "over": f"{len(units)} {over}"}
    first, second = np.transpose(units)
    t, p = ttest_rel(second, first)
    return {"t": float(t), "p_t": float(p), "over": f"{len(units)} {over}"}


def describe_comparison(found: Comparison) -> str:
    """A comparison as text."""
    style = {"index": False, "float_format": "{:.4g}".format, "na_rep": "-"}
    parts = [
        f"Out-of-fold pictures, answers of {found.notebook}",
        found.configurations.to_string(**style),
        "Paired tests on the same pictures",
        found.tests.to_string(**style),
    ]
    if len(found.by_seed) > len(found.tests):
        parts += ["Seed by seed (McNemar)", found.by_seed.to_string(**style)]
    return "\n\n".join(parts)
