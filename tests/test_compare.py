"""Runs side by side: paired tests equal SciPy's and statsmodels', the same pictures or none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from entrep import cli
from entrep.artifacts import write_json, write_table
from entrep.compare import Answers, compare_runs, find_runs, paired_tests
from entrep.labels import CLASS_NAMES, FINE_SITES, SITE_NAMES, SITE_OF
from entrep.metrics import paired_bootstrap


def answers(right, *, seed: int = 0, fold=None, name: str = "") -> Answers:
    right = np.asarray(right, bool)
    sha256 = [f"{name}{index}" for index in range(len(right))]
    fold = np.arange(len(right)) % 3 if fold is None else fold
    columns = {"sha256": sha256, "class_index": 0, "fold": fold, "cluster": sha256}
    return Answers(Path(), {"seed": seed}, pd.DataFrame({**columns, "right": right}))


@st.composite
def repetitions(draw):
    """Two configurations on the same pictures, of one to four seeds."""
    seeds, count = draw(st.integers(1, 4)), draw(st.integers(6, 30))
    row = st.lists(st.booleans(), min_size=count, max_size=count)
    return [
        (answers(draw(row), seed=seed, name=f"{seed}/"), answers(draw(row), name=f"{seed}/"))
        for seed in range(seeds)
    ]


@settings(max_examples=40, deadline=None)
@given(repetitions())
def test_paired_tests_are_scipys(pairs):
    found = paired_tests(pairs, draws=50)
    first, second = (np.concatenate([pair[i].pictures["right"] for pair in pairs]) for i in (0, 1))
    only_first, only_second = np.sum(first & ~second), np.sum(second & ~first)
    assert (found["only_first"], found["only_second"]) == (only_first, only_second)
    if only_first + only_second:
        expected = stats.binomtest(only_second, only_first + only_second, 0.5).pvalue
        assert found["p_mcnemar"] == pytest.approx(expected, rel=1e-12)
    assert found["difference"] == pytest.approx(second.mean() - first.mean())
    pictures = np.concatenate([pair[0].pictures["sha256"] for pair in pairs])
    boot = paired_bootstrap(second, first, pictures, draws=50)
    assert (found["low"], found["high"]) == (boot["low"], boot["high"])

    if len(pairs) > 1:
        units = [[run.pictures["right"].mean() for run in pair] for pair in pairs]
        assert found["over"] == f"{len(pairs)} seeds"
    else:
        folds = [run.pictures.groupby("fold")["right"].mean() for run in pairs[0]]
        units = np.transpose(folds)
        assert found["over"] == "3 folds"
    a, b = np.transpose(units)
    assume(np.ptp(b - a) > 1e-9)
    expected = stats.ttest_rel(b, a)
    assert found["t"] == pytest.approx(expected.statistic, rel=1e-9)
    assert found["p_t"] == pytest.approx(expected.pvalue, rel=1e-9)


def test_paired_tests_are_statsmodels(capsys):
    contingency = pytest.importorskip(
        "statsmodels.stats.contingency_tables", reason="runs where statsmodels is installed"
    )
    weights = pytest.importorskip("statsmodels.stats.weightstats")
    rng = np.random.default_rng(0)
    pairs = [
        (answers(rng.random(40) < 0.7, name=f"{s}/"), answers(rng.random(40) < 0.8, name=f"{s}/"))
        for s in range(4)
    ]
    first, second = (np.concatenate([pair[i].pictures["right"] for pair in pairs]) for i in (0, 1))
    found = paired_tests(pairs, draws=50)
    table = pd.crosstab(first, second).to_numpy()
    assert found["p_mcnemar"] == pytest.approx(contingency.mcnemar(table, exact=True).pvalue)
    means = np.array([[run.pictures["right"].mean() for run in pair] for pair in pairs])
    t, p, _ = weights.DescrStatsW(means[:, 1] - means[:, 0]).ttest_mean(0)
    assert (found["t"], found["p_t"]) == (pytest.approx(t), pytest.approx(p))


def test_values_worked_by_hand():
    # 6 pictures that only the second has right, 1 that only the first has: 2 * (1 + 7) / 2**7.
    first = [1, 0, 0, 0, 0, 0, 0, 1, 1]
    second = [0, 1, 1, 1, 1, 1, 1, 1, 1]
    found = paired_tests([(answers(first), answers(second))], draws=50)
    assert found["p_mcnemar"] == pytest.approx(0.125)
    # Folds (every third picture): 1/3, 2/3 and 2/3 better; their mean is 5 standard errors.
    assert found["t"] == pytest.approx(5)
    assert found["p_t"] == pytest.approx(1 - 5 / 27**0.5)  # Student's t with 2 degrees of freedom
    assert found["difference"] == pytest.approx(5 / 9)


def test_no_test_is_made_where_it_would_not_hold():
    same = answers([1, 0, 1, 0]), answers([1, 1, 1, 0])
    twice = paired_tests([same, same], draws=50)  # the same pictures in two seeds
    assert np.isnan(twice["p_mcnemar"]) and twice["only_second"] == 2
    assert np.isnan(twice["t"]) and twice["over"] == "2 seeds"  # all seeds differ by the same
    other_folds = answers([1, 0, 1, 0], fold=[0, 0, 1, 1]), answers([1, 1, 1, 0])
    assert np.isnan(paired_tests([other_folds], draws=50)["t"])


# Run folders


def write_run(folder: Path, answered, *, notebook="02_prototypes", swap=False, **config) -> Path:
    """A run folder with 14 development pictures, two a class, and one held out."""
    target = np.append(np.arange(14) % 7, 3)
    pictures = pd.DataFrame(
        {
            "path": [f"{i:02}.png" for i in range(15)],
            "sha256": [f"{i:064x}" for i in range(15)],
            "class_index": target,
            "group": np.arange(15) // 2,
            "part": ["dev"] * 14 + ["heldout"],
            "fold": [i % 2 for i in range(14)] + [-1],
        }
    )
    if swap:
        pictures = pictures.iloc[::-1]
        answered = answered[::-1]
    write_table(folder / "01_eda" / "pictures.csv", pictures)
    table = pictures[["path"]].copy()
    if notebook == "04_hybrid":
        table["class_index"] = answered
    table[[f"p_{name}" for name in CLASS_NAMES]] = np.eye(7)[answered]
    if notebook == "03_dinov2_finetune":
        table[[f"site_{name}" for name in SITE_NAMES]] = np.eye(4)[np.array(SITE_OF)[answered]]
        table[[f"second_{name}" for name in FINE_SITES]] = 0.5
    write_table(folder / notebook / "predictions.csv", table)
    write_json(folder / "config.json", {"seed": 0, "epochs": 4, "work_dir": str(folder), **config})
    return folder


RIGHT = np.append(np.arange(14) % 7, 3)
WORSE = np.where(np.arange(15) < 5, 6, RIGHT)  # five wrong


@pytest.mark.parametrize("notebook", ["02_prototypes", "03_dinov2_finetune", "04_hybrid"])
def test_runs_are_compared_whatever_the_order_of_their_pictures(tmp_path, notebook):
    a = write_run(tmp_path / "a", WORSE, notebook=notebook)
    b = write_run(tmp_path / "b", RIGHT, notebook=notebook, epochs=8, swap=True)
    found = compare_runs([a, b], draws=50)
    assert found.notebook == notebook
    assert found.configurations["epochs"].tolist() == [4, 8]
    assert "work_dir" not in found.configurations
    assert found.configurations["accuracy"].tolist() == pytest.approx([9 / 14, 1])
    (row,) = found.tests.to_dict("records")
    assert (row["only_first"], row["only_second"], row["pictures"]) == (0, 5, 14)
    assert row["p_mcnemar"] == pytest.approx(2 / 2**5)


def test_runs_that_differ_by_seed_only_are_repetitions(tmp_path):
    runs = [
        write_run(tmp_path / f"{epochs}-{seed}", answered, epochs=epochs, seed=seed)
        for epochs, answered in ((4, WORSE), (8, RIGHT))
        for seed in (0, 1)
    ]
    found = compare_runs(runs, draws=50)
    assert found.configurations["runs"].tolist() == [2, 2]
    assert found.by_seed["seed"].tolist() == [0, 1]
    assert found.by_seed["p_mcnemar"].tolist() == pytest.approx([2 / 2**5] * 2)
    seeds = compare_runs(runs[:2], draws=50)  # nothing but the seed: that is what is compared
    assert seeds.configurations["seed"].tolist() == [0, 1]
    with pytest.raises(ValueError, match="different seeds .*give the same seeds of both"):
        compare_runs(runs[:3])
    with pytest.raises(ValueError, match="have the same parameters; give one of them"):
        compare_runs([runs[0], runs[0], runs[2]])
    with pytest.raises(ValueError, match="do not differ in any parameter"):
        compare_runs(runs[:1])


def test_networks_of_other_training_seeds_are_repetitions_on_the_same_pictures(tmp_path):
    runs = [
        write_run(tmp_path / f"{epochs}-{seed}", answered, epochs=epochs, training_seed=seed)
        for epochs, answered in ((4, WORSE), (8, RIGHT))
        for seed in (0, 1, 2)
    ]
    found = compare_runs(runs, draws=50)
    assert found.configurations["runs"].tolist() == [3, 3]
    assert found.by_seed["training_seed"].tolist() == [0, 1, 2]
    (row,) = found.tests.to_dict("records")
    assert np.isnan(row["p_mcnemar"]) and row["pictures"] == 3 * 14  # each picture comes thrice
    alone = compare_runs([runs[0], runs[3]], draws=50).tests.loc[0]
    # Thrice the same answers tell no more than once.
    assert (row["low"], row["high"]) == pytest.approx((alone["low"], alone["high"]))


def test_other_pictures_or_labels_are_refused(tmp_path):
    a = write_run(tmp_path / "a", WORSE)
    for column, value in (("sha256", "f" * 64), ("class_index", 5), ("part", "heldout")):
        b = write_run(tmp_path / column, RIGHT, epochs=8)
        table = pd.read_csv(b / "01_eda" / "pictures.csv", dtype={"path": str})
        table.loc[0, column] = value
        write_table(b / "01_eda" / "pictures.csv", table)
        with pytest.raises(ValueError, match="different out-of-fold pictures or labels"):
            compare_runs([a, b])
    table = pd.read_csv(a / "02_prototypes" / "predictions.csv")
    write_table(a / "02_prototypes" / "predictions.csv", table.iloc[1:])
    with pytest.raises(ValueError, match="02_prototypes and 01_eda are of different pictures"):
        compare_runs([a, b])


def test_what_is_no_run_is_one_error(tmp_path, capsys):
    a = write_run(tmp_path / "a", WORSE)
    assert cli.main(["compare", str(a), str(tmp_path / "not there")]) == 2
    assert "predictions.csv all of them have" in capsys.readouterr().err
    arguments = ["compare", str(a), str(tmp_path), "--notebook", "02_prototypes"]
    assert cli.main(arguments) == 2
    assert "this is no run folder; config.json is not in it" in capsys.readouterr().err


def test_a_sweeps_folder_stands_for_its_finished_runs(tmp_path, capsys):
    write_json(tmp_path / "sweep.json", {})
    with pytest.raises(FileNotFoundError, match="the sweep has no finished run"):
        find_runs([tmp_path])
    for run, epochs, status in (("x", 8, "done"), ("y", 4, "done"), ("z", 2, "failed")):
        record = {"run": run, "status": status, "reason": "", "attempts": 1, "peak_gb": None}
        config = {"config": {"epochs": epochs, "seed": 0, "threads": 1}, "given": ["epochs"]}
        write_json(tmp_path / "records" / f"{run}.json", record | config)
        write_run(tmp_path / "runs" / run, RIGHT if epochs == 8 else WORSE, epochs=epochs)
    assert find_runs([tmp_path]) == [tmp_path / "runs" / "y", tmp_path / "runs" / "x"]
    assert cli.main(["compare", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "2 less 1" in printed and "0.0625" in printed and "answers of 02_prototypes" in printed
