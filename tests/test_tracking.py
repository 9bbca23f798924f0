"""A sweep's table in MLflow's file store."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest

from entrep import cli
from entrep.tracking import log_to_mlflow

TABLE = pd.DataFrame(
    {
        "run": ["a", "b"],
        "status": ["done", "failed"],
        "reason": ["", "01_eda: its kernel stopped"],
        "learning_rate": [1e-3, 3e-3],
        "attempts": [1, 2],
        "seconds": [12.5, np.nan],
        "05_retrieval.image.recall@1": [0.71, np.nan],
        "sha256.submissions/track1.json": ["f" * 64, None],
    }
)


def test_each_row_is_a_run_and_is_logged_once(tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="runs where MLflow is installed")
    assert log_to_mlflow(TABLE, tmp_path / "store", "sweep") == 2
    assert log_to_mlflow(TABLE, tmp_path / "store", "sweep") == 0
    mended = TABLE.assign(status="done", reason="", seconds=10.0)
    assert log_to_mlflow(mended, tmp_path / "store", "sweep") == 2

    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "store").as_uri())
    experiment = client.get_experiment_by_name("sweep").experiment_id
    runs = client.search_runs([experiment], order_by=["attributes.start_time"])
    first, second = runs[:2]
    assert first.data.params == {"learning_rate": "0.001"}
    expected = {"attempts": 1, "seconds": 12.5, "05_retrieval.image.recall_1": 0.71}
    assert first.data.metrics == expected and first.info.status == "FINISHED"
    assert first.data.tags["sha256.submissions/track1.json"] == "f" * 64
    assert second.info.status == "FAILED" and "kernel stopped" in second.data.tags["reason"]
    assert second.data.metrics == {"attempts": 2}


def test_without_mlflow_nothing_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert cli.main(["sweep", "--out", str(tmp_path / "s"), "--mlflow", str(tmp_path / "m")]) == 2
    assert "MLflow is not installed; pip install mlflow-skinny" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
