"""A sweep's table in MLflow's local file store, for people who look at their runs there."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import ModuleType

import pandas as pd

from entrep.artifacts import sha256_json
from entrep.sweep_table import parameters_of


def find_mlflow() -> ModuleType:
    """The installed MLflow.

    Raises:
        ValueError: if there is none.
    """
    # Since version 3.7 it refuses its file store, which asks for no database, unless told so.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    try:
        import mlflow
    except ImportError as error:
        raise ValueError("--mlflow: MLflow is not installed; pip install mlflow-skinny.") from error
    return mlflow


def log_to_mlflow(table: pd.DataFrame, store: str | Path, experiment: str) -> int:
    """Log each row of a sweep's table as a run, unless the store has it from before.

    Args:
        table: of `sweep_table`; failed runs are logged as such, with their reason as a tag.
        store: folder of the file store; made when needed.
        experiment: its name; made when needed.

    Returns:
        How many runs are new.
    """
    client = find_mlflow().MlflowClient(tracking_uri=Path(store).resolve().as_uri())
    known = client.get_experiment_by_name(experiment)
    place = known.experiment_id if known else client.create_experiment(experiment)
    before = {
        run.data.tags.get("entrep.row") for run in client.search_runs([place], max_results=50_000)
    }
    new = 0
    for row in table.to_dict("records"):
        filled = {name: value for name, value in row.items() if not pd.isna(value)}
        digest = sha256_json(filled)
        if digest not in before:
            _log_row(client, place, filled, parameters_of(table), digest)
            new += 1
    return new


def _log_row(client, experiment: str, row: dict, parameters: list[str], digest: str) -> None:
    failed = row["status"] == "failed"
    run = client.create_run(experiment, run_name=row["run"]).info.run_id
    for name, value in row.items():
        if name in parameters:
            client.log_param(run, name, value)
        elif isinstance(value, int | float):
            # "recall@1": MLflow knows letters, digits and a few signs.
            client.log_metric(run, re.sub(r"[^\w\-. :/]", "_", name), value)
        else:
            client.set_tag(run, name, value)
    client.set_tag(run, "entrep.row", digest)  # last: a row that a kill cut off is logged again
    client.set_terminated(run, "FAILED" if failed else "FINISHED")
