"""What came of a sweep's runs: a record each, and one tidy table of all, as CSV and Parquet."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from entrep.artifacts import atomic_path, read_json, write_json, write_text
from entrep.config import load_config
from entrep.pipeline import PLACES
from entrep.runner import read_manifest
from entrep.sweep import Plan, PlannedRun

SEEDS = ("seed", "training_seed")  # runs that differ in these only are repetitions
_HASHED = ("predictions.csv", "track1.json", "track2.json", "track3.json")  # of a run's files


def write_record(
    plan: Plan,
    planned: PlannedRun,
    reason: str,
    attempts: Mapping[str, int],
    peaks: Mapping[str, float],
) -> None:
    """Write what came of one run to `records/<id>.json`.

    Args:
        plan: the sweep.
        planned: one of its runs.
        reason: why it failed; empty if its folder is complete.
        attempts: starts of each node, over all calls of the sweep.
        peaks: most GB of memory of each node.
    """
    folder = plan.run_folder(planned)
    parameters = {**plan.parameters_of(planned), "data_path": plan.data}
    config = dataclasses.asdict(load_config(plan.profile, **parameters))
    ids = planned.nodes.values()
    record = {
        "run": planned.id,
        "status": "failed" if reason else "done",
        "reason": reason,
        "attempts": max((attempts.get(node, 0) for node in ids), default=0),
        "peak_gb": max((peaks[node] for node in ids if node in peaks), default=None),
        "nodes": planned.nodes,
        "given": list(planned.parameters),
        "config": {name: value for name, value in config.items() if name not in PLACES},
        **({} if reason else _results(folder)),
    }
    write_json(plan.out / "records" / f"{planned.id}.json", record)


def _results(folder: Path) -> dict[str, object]:
    manifest = read_manifest(folder)
    files = itertools.chain.from_iterable(e["outputs"].items() for e in manifest.values())
    return {
        "seconds": {name: entry["seconds"] for name, entry in manifest.items()},
        "metrics": flatten(read_json(folder / "metrics.json")),
        "sha256": {name: digest for name, digest in files if name.endswith(_HASHED)},
    }


def flatten(value: object, name: str = "") -> dict[str, float]:
    """All numbers of nested mappings and lists, under their joined keys; texts are left out.

    >>> flatten({"fine": {"mean": 0.5, "of": "dev"}, "limits": [1, 2]})
    {'fine.mean': 0.5, 'limits.0': 1.0, 'limits.1': 2.0}
    """
    if isinstance(value, int | float):
        return {name: float(value)}
    if not isinstance(value, dict | list):
        return {}
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    dot = f"{name}." if name else ""
    return {k: v for key, part in parts for k, v in flatten(part, f"{dot}{key}").items()}


def make_table(out: str | Path) -> pd.DataFrame:
    """One row for each run that a sweep's folder has a record of, sorted by its parameters.

    Columns: run, status ("done" or "failed") and reason; every parameter that some run was given
    or that sets runs apart, and threads; attempts, seconds (of all its notebooks, shared ones
    included), peak_gb (memory of its hungriest notebook's processes); the metrics, as
    `<notebook>.<key>`; `seconds.<notebook>`; `sha256.<file>` of predictions and submissions.
    """
    records = [read_json(path) for path in sorted(Path(out).glob("records/*.json"))]
    names = _parameters(records)
    rows = [_row(record, names) for record in records]
    front = ["run", "status", "reason", *names, "attempts", "seconds", "peak_gb"]
    rest = sorted({name for row in rows for name in row} - set(front))
    table = pd.DataFrame(rows, columns=[*front, *rest])
    return table.sort_values([*names, "run"], ignore_index=True)


def _parameters(records: Sequence[Mapping]) -> list[str]:
    given = [name for record in records for name in record["given"]]
    fields = [name for record in records for name in record["config"]]
    apart = [name for name in fields if len({r["config"].get(name) for r in records}) > 1]
    return list(dict.fromkeys([*given, *apart, "threads"]))


def _row(record: Mapping, names: Sequence[str]) -> dict[str, object]:
    seconds = record.get("seconds", {})
    hashes = record.get("sha256", {})
    return {
        **{name: record[name] for name in ("run", "status", "reason", "attempts", "peak_gb")},
        **{name: record["config"].get(name) for name in names},
        **({"seconds": sum(seconds.values())} if seconds else {}),
        **record.get("metrics", {}),
        **{f"seconds.{name}": value for name, value in seconds.items()},
        **{f"sha256.{name}": digest for name, digest in hashes.items()},
    }


def write_tables(out: str | Path) -> pd.DataFrame:
    """Write `make_table` as `table.csv` and `table.parquet`, numbers to their last digit."""
    table = make_table(out)
    write_text(Path(out) / "table.csv", table.to_csv(index=False, lineterminator="\n"))
    with atomic_path(Path(out) / "table.parquet") as temporary:
        table.to_parquet(temporary, index=False)
    return table


def read_sweep_table(out: str | Path) -> pd.DataFrame:
    """The table in a sweep's folder, with every number as it was written.

    Raises:
        FileNotFoundError: if there is none.
    """
    path = Path(out) / "table.parquet"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there. `entrep sweep` writes it; give the folder of its --out."
        )
    return pd.read_parquet(path)


def parameters_of(table: pd.DataFrame) -> list[str]:
    """The parameters among the columns of a sweep's table, in its order."""
    columns = list(table.columns)
    return columns[columns.index("reason") + 1 : columns.index("attempts")]


def varied_parameters(table: pd.DataFrame) -> list[str]:
    """Those of `parameters_of` that have more than one value."""
    return [name for name in parameters_of(table) if table[name].nunique(dropna=False) > 1]


def configurations_of(table: pd.DataFrame) -> pd.Series:
    """What sets each run apart beside its seeds, as text; runs that agree are repetitions."""
    names = [name for name in varied_parameters(table) if name not in SEEDS]
    if not names:
        return pd.Series("all runs", index=table.index)
    texts = table[names].astype(str)
    return texts.apply(lambda row: ", ".join(f"{n}={v}" for n, v in row.items()), axis=1)


_MAIN_METRICS = tuple(
    f"{method}.{part}.fine"
    for method in ("04_hybrid.combined", "03_dinov2_finetune", "02_prototypes")
    for part in ("heldout", "dev")
)


def main_metric(table: pd.DataFrame) -> str:
    """The accuracy of the last notebook that the table has, on held-out pictures if there are.

    Raises:
        ValueError: if it has none; the message names some columns to choose from.
    """
    found = [name for name in _MAIN_METRICS if name in table]
    if not found:
        numbers = table.select_dtypes("number").columns
        raise ValueError(f"metric: name a column of the table, such as {', '.join(numbers[:8])}.")
    return found[0]
