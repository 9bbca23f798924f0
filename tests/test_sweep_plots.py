"""A sweep's table and its figures; notebook 07, whole, on a small table made by hand."""

from __future__ import annotations

import ast
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from entrep import sweep_plots
from entrep.artifacts import read_table, write_json
from entrep.sweep_table import (
    configurations_of,
    flatten,
    main_metric,
    make_table,
    read_sweep_table,
    varied_parameters,
    write_tables,
)

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "07_compare.ipynb"
METRIC = "03_dinov2_finetune.heldout.fine"
HASH = "03_dinov2_finetune/predictions.csv"


def write_record(out: Path, run: str, rate: float, seed: int, fine: float | None, **more) -> None:
    config = {"learning_rate": rate, "seed": seed, "epochs": 4, "backbone": "demo-dino"}
    record = {
        "run": run,
        "status": "done" if fine else "failed",
        "reason": "" if fine else "03_dinov2_finetune: its kernel stopped",
        "attempts": 1,
        "peak_gb": 1.25,
        "given": ["learning_rate", "seed"],
        "config": {**config, "threads": 1, **more},
    }
    if fine:
        held = {"fine": fine, "fine_low": fine - 0.1, "fine_high": fine + 0.05, "note": "text"}
        record["metrics"] = flatten({"03_dinov2_finetune": {"heldout": held, "limits": [1, 2]}})
        record["seconds"] = {"01_eda": 20.0, "03_dinov2_finetune": 1e3 * rate + seed}
        record["sha256"] = {HASH: run * 64}
    write_json(out / "records" / f"{run}.json", record)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """The folder of seven runs, one of them failed; ids that do not sort as parameters do."""
    scores = {(1e-3, 0): 0.9, (1e-3, 1): 0.86, (3e-3, 0): 0.95, (3e-3, 1): 0.91, (1e-7, 0): 0.5}
    for run, ((rate, seed), fine) in zip("edcba", scores.items(), strict=True):
        write_record(tmp_path, run, rate, seed, fine)
    write_record(tmp_path, "f", 1e-7, 1, None)
    write_record(tmp_path, "0", 3e-3, 2, 0.92, backbone="other")
    write_tables(tmp_path)
    return tmp_path


# The table


def test_the_table_is_tidy_and_the_same_in_both_files(sweep):
    table = make_table(sweep)
    assert table["run"].tolist() == ["a", "f", "e", "d", "c", "b", "0"]  # by parameters
    columns = list(table.columns)
    assert columns[:10] == ["run", "status", "reason", "learning_rate", "seed", "backbone",
                            "threads", "attempts", "seconds", "peak_gb"]  # fmt: skip
    assert {METRIC, f"{METRIC}_low", "seconds.01_eda", f"sha256.{HASH}"} <= set(columns)
    assert "03_dinov2_finetune.limits.1" in columns and not any("note" in c for c in columns)
    row = table.set_index("run").loc["e"]
    assert row["seconds"] == 21 and row[METRIC] == 0.9 and row[f"sha256.{HASH}"] == "e" * 64
    failed = table.set_index("run").loc["f"]
    assert failed["reason"] and np.isnan(failed[METRIC]) and np.isnan(failed["seconds"])
    assert table["learning_rate"].min() == 1e-7  # to the last digit
    pd.testing.assert_frame_equal(read_sweep_table(sweep), table)
    text = pd.read_csv(sweep / "table.csv", keep_default_na=False, na_values={METRIC: ""})
    assert text["learning_rate"].tolist() == table["learning_rate"].tolist()
    assert text["reason"].tolist() == table["reason"].tolist()


def test_a_sweep_without_a_record_has_an_empty_table(tmp_path):
    assert write_tables(tmp_path).empty
    assert read_sweep_table(tmp_path).columns[0] == "run"
    with pytest.raises(FileNotFoundError, match="`entrep sweep` writes it"):
        read_sweep_table(tmp_path / "elsewhere")


def test_configurations_are_what_is_varied_beside_the_seed(sweep):
    table = make_table(sweep)
    assert varied_parameters(table) == ["learning_rate", "seed", "backbone"]
    same = table[table["backbone"] == "demo-dino"]
    expected = [f"learning_rate={rate}" for rate in (1e-7, 1e-7, 0.001, 0.001, 0.003, 0.003)]
    assert configurations_of(same).tolist() == expected
    assert set(configurations_of(same[same["learning_rate"] == 1e-3])) == {"all runs"}
    assert main_metric(table) == METRIC
    with pytest.raises(ValueError, match="name a column of the table, such as .*learning_rate"):
        main_metric(table.drop(columns=METRIC))


# Figures


def test_lines_pass_through_their_values_and_the_best_is_red(sweep, ax):
    done = make_table(sweep).dropna(subset=[METRIC]).reset_index(drop=True)
    sweep_plots.plot_parallel(done, ["learning_rate", "backbone"], METRIC, ax)
    lines = [line for line in ax.lines if len(line.get_xdata()) == 3]
    assert len(lines) == len(done)
    heights = np.array([line.get_ydata() for line in lines])
    assert set(heights[:, 0]) == {0, 0.5, 1}  # three rates at equal distances
    scores = done[METRIC].to_numpy()
    assert heights[:, 2] == pytest.approx((scores - scores.min()) / np.ptp(scores))
    red = [line.get_color() == sweep_plots.CHOSEN for line in lines]
    assert np.flatnonzero(red).tolist() == [scores.argmax()]
    written = {text.get_text().strip() for text in ax.texts}
    assert {"1e-07", "0.003", "demo-dino", "other", "0.95"} <= written


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_the_front_is_what_no_run_beats(pairs):
    cost, metric = np.array(pairs).T
    for index, on_front in enumerate(sweep_plots.pareto_front(cost, metric)):
        beaten = any(
            c <= cost[index] and m >= metric[index] and (c, m) != (cost[index], metric[index])
            for c, m in pairs
        )
        assert on_front == (not beaten)


def test_cost_and_seeds_are_drawn_run_by_run(sweep, ax):
    done = make_table(sweep).dropna(subset=[METRIC]).reset_index(drop=True)
    sweep_plots.plot_metric_against_cost(done, METRIC, "seconds", ax)
    dots = np.concatenate([c.get_offsets() for c in ax.collections if len(c.get_offsets())])
    assert {tuple(dot) for dot in dots} >= set(zip(done["seconds"], done[METRIC], strict=True))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("seconds", METRIC)

    other = plt.subplots()[1]
    done["configuration"] = configurations_of(done)
    sweep_plots.plot_seed_spread(done, "configuration", METRIC, other)
    names = [label.get_text() for label in other.get_yticklabels()]
    assert names[-1] == "learning_rate=0.003, backbone=demo-dino"  # best mean on top
    assert len(names) == done["configuration"].nunique()


# Notebook 07


def test_the_results_notebook_runs_whole_on_a_small_table(sweep, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(sweep_plots.__file__).parents[1]))
    executed = tmp_path / "executed.ipynb"
    papermill.execute_notebook(
        NOTEBOOK, executed, {"sweep": str(sweep)}, kernel_name="python3", progress_bar=False
    )
    for name in ("parallel", "cost", "seeds"):
        with Image.open(sweep / "figures" / f"{name}.png") as picture:
            assert min(picture.size) > 200
    summary = read_table(sweep / "configurations.csv")
    assert summary["mean"].is_monotonic_decreasing and summary["runs"].sum() == 6
    text = executed.read_text(encoding="utf-8")
    assert "7 runs, 1 of them failed" in text and "its kernel stopped" in text


def test_the_results_notebook_has_the_form_of_the_others():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == code[:1]
    for line in ast.parse(code[0].source).body:
        ast.literal_eval(line.value)
    assert all(len(cell.source.splitlines()) <= 25 for cell in code)
    assert len(code) <= 0.6 * len(notebook.cells)
    assert all(word in notebook.cells[0].source for word in ("You need", "You get", "Time"))


def test_figures_change_no_settings(sweep, ax):
    before = dict(matplotlib.rcParams)
    done = make_table(sweep).dropna(subset=[METRIC]).reset_index(drop=True)
    sweep_plots.plot_parallel(done, ["learning_rate"], METRIC, ax)
    assert dict(matplotlib.rcParams) == before
