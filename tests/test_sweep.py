"""What a sweep consists of: the file and the command line, the runs, what they share."""

from __future__ import annotations

import doctest
import itertools
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_runner import write_notebook

from entrep import cli, sweep_plots, sweep_spec, sweep_table
from entrep.artifacts import write_json
from entrep.pipeline import Step
from entrep.sweep import count_cores, describe_plan, earlier_seconds, estimate_seconds, make_plan
from entrep.sweep_spec import Spec, make_axes, make_spec, read_spec, split_pair

STEPS = (
    Step("01_first"),
    Step("02_second", upstream=("01_first",)),
    Step("03_third", upstream=("01_first",)),
    Step("04_last", upstream=("02_second", "03_third")),
)
DECLARED = {
    "01_first": {"seed", "folds"},
    "02_second": {"seed", "batch_size"},
    "03_third": {"seed", "epochs", "learning_rate", "threads"},
    "04_last": {"seed", "coverage"},
}


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("notebooks")
    kinds = {"learning_rate": "float", "coverage": "float"}
    for step in STEPS:
        own = "\n".join(
            f"{name}: {kinds.get(name, 'int')} = None"
            for name in sorted(DECLARED[step.name] - {"seed"})
        )
        write_notebook(folder, step.name, own, "pass")
    return folder


@pytest.fixture
def plan(notebooks, tmp_path):
    def plan(axes, **options):
        return make_plan(axes, tmp_path / "out", notebooks=notebooks, steps=STEPS, **options)

    return plan


# The command line and the file


@pytest.mark.parametrize("module", [sweep_spec, sweep_table, sweep_plots])
def test_examples_in_the_docstrings_hold(module):
    results = doctest.testmod(module)
    assert results.attempted and not results.failed


def test_values_of_the_command_line_get_their_parameters_type():
    pairs = [split_pair(pair) for pair in ("epochs=4, 8", "learning_rate=1e-3", "ema=yes,no")]
    assert make_axes(pairs, seeds="0-2,7", folds="3,5") == {
        "epochs": (4, 8),
        "learning_rate": (1e-3,),
        "ema": (True, False),
        "seed": (0, 1, 2, 7),
        "folds": (3, 5),
    }


SPEC = """\
parameters:
  learning_rate: [1e-3, 0.003]   # YAML reads the first one as text
  epochs: 4
  ema: [true, false]
seeds: 0-1
folds: 3
only: [03, 04]
jobs: 1
memory_gb: 4
"""


def test_a_file_says_the_same_and_the_command_line_wins(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(SPEC)
    file = read_spec(path)
    axes = {
        "learning_rate": (1e-3, 3e-3),
        "epochs": (4,),
        "ema": (True, False),
        "seed": (0, 1),
        "folds": (3,),
    }
    assert make_spec(file, {"out": "x"}) == Spec(
        axes=axes, out="x", only="3,4", jobs=1, memory_gb=4.0
    )
    asked = {"out": "x", "jobs": 2, "axes": {"epochs": (1, 2)}, "only": None}
    spec = make_spec(file, asked)
    assert spec.jobs == 2 and spec.axes == {**axes, "epochs": (1, 2)} and spec.only == "3,4"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seeds: 0-4\nepochs: 4\n", "line 2: epochs: there is no such key; there are parameters"),
        ("parameters:\n  epochs: 1\n  epochs: 2\n", "line 3: epochs: the key is there twice"),
        ("seeds: 0\nseeds: 1\n", "line 2: seeds: the key is there twice"),
        ("parameters:\n  - epochs\n", "line 2: parameters must hold lines such as"),
        ("- epochs\n", "line 1: the file must hold lines such as"),
        ("", "the file must hold lines such as"),
        ("seeds: [0\n", "line 2: this is no YAML"),
        ("parameters:\n  epochs: []\n", "epochs: there is no value"),
        ("parameters:\n  seed: [0]\nseeds: 0-4\n", "seed: the parameter is given twice"),
        ("parameters:\n  epochs: many\n", "epochs: expected int, got 'many'"),
        ("parameters:\n  epochs:\n", "epochs: expected a number or a text, got None"),
        ("parameters:\n  epochs: [[4]]\n", "epochs: expected a number or a text, got"),
        ("parameters:\n  epochs: [4, 4.0]\n", "epochs: the value 4 is given twice"),
        ("seeds: 0-999999999\n", "seeds: 0-999999999 are more than 100,000 values"),
        ("seeds: a-b\n", "seeds: expected whole numbers such as 0-4"),
        ("parameters:\n  data_path: x\n", "data_path: give it with --data"),
    ],
)
def test_a_file_with_a_mistake_is_refused_with_its_place(tmp_path, text, words):
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="(?s)" + words):
        read_spec(path)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "sweep.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="sweep.yaml: this is no YAML"):
        read_spec(tmp_path / "sweep.yaml")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "--out: give the sweep a folder"),
        ({"out": "x", "jobs": 0}, "jobs: expected 1 or more, got 0"),
        ({"out": "x", "jobs": "two"}, "jobs: expected int, got 'two'"),
        ({"out": "x", "memory_gb": float("nan")}, "memory_gb: expected 0 or more"),
        ({"out": 3}, "out: expected str, got 3"),
    ],
)
def test_an_option_of_the_wrong_kind_is_refused(values, words):
    with pytest.raises(ValueError, match=words):
        make_spec({}, values)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", "epoch=3,4"], "epoch: there is no such parameter. Did you mean 'epochs'?"),
        (["-p", "epochs=many"], "epochs: expected int, got 'many'"),
        (["-p", "epochs=4,2.5"], "epochs: expected int, got '2.5'"),
        (["-p", "epochs=0,4"], "epochs: expected 1 to 1000, got 0"),
        (["-p", "epochs="], "-p epochs=: a value is empty"),
        (["-p", "epochs"], "expected name=value or name=a,b,c"),
        (["-p", "epochs=4", "-p", "epochs=8"], "epochs: the parameter is given twice"),
        (["-p", "epochs=4,4"], "epochs: the value 4 is given twice"),
        (["-p", "seed=0", "--seeds", "0-4"], "seed: the parameter is given twice"),
        (["-p", "threads=1,2"], "threads: give it with --threads"),
        (["-p", "work_dir=x"], "work_dir: give it with --out"),
        (["--seeds", "0-99", "-p", "epochs=" + ",".join(map(str, range(1, 101)))],
         "100 of epochs x 100 of seed make 10,000 runs, more than 1,000"),
        (["--seeds", "4-0"], "seed: there is no value"),
        (["--only", "01", "-p", "epochs=4"], "03_dinov2_finetune does; --only leaves it out"),
        (["--only", "9"], "no notebook '9'"),
        (["--profile", "mini"], "--data DIR"),
        (["--data", "not/there"], "not/there: there is no such folder"),
        (["-p", "backbone=biomdclip"], "biomdclip"),
        (["--like", "not/there"], "not/there: there is no such folder of a run or a sweep"),
        (["not/there.yaml"], "not/there.yaml: there is no such file"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_error_before_anything_is_written(
    arguments, words, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sweep", *arguments, "--out", "sweep"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("entrep: error: ") and words in printed
    assert list(tmp_path.iterdir()) == []


# The plan


def test_three_values_of_the_last_step_share_what_lies_upstream(plan):
    found = plan({"coverage": (0.8, 0.9, 0.95), "seed": (0, 1, 2, 3)})
    counts = {step.name: 0 for step in STEPS}
    for node in found.nodes.values():
        counts[node.step.name] += 1
    assert counts == {"01_first": 4, "02_second": 4, "03_third": 4, "04_last": 12}
    assert len(found.runs) == len({run.id for run in found.runs}) == 12
    text = describe_plan(found, set(), {}, 2, rows=3, cores=2)
    assert "12 runs: 3 of coverage x 4 of seed" in text and "and 9 more" in text
    assert "24 notebooks instead of 48" in text and "unknown, as no earlier run" in text


def test_wanted_notebooks_bring_those_upstream(plan):
    found = plan({"epochs": (1, 2)}, only=["03"])
    assert [node.step.name for node in found.nodes.values()] == ["01_first", *["03_third"] * 2]


AXES = {
    "seed": (0, 1, 2),
    "folds": (3, 5),
    "batch_size": (8, 16),
    "epochs": (4, 8),
    "learning_rate": (1e-4, 1e-3),
    "coverage": (0.8, 0.9),
}


@settings(max_examples=20, deadline=None)
@given(st.permutations(sorted(AXES)), st.integers(0, 3))
def test_a_notebook_runs_once_for_each_combination_of_what_it_depends_on(notebooks, names, dropped):
    axes = {name: AXES[name] for name in names[dropped:]}
    found = make_plan(axes, "out", notebooks=notebooks, steps=STEPS)
    depends = {"01_first": DECLARED["01_first"]}
    for step in STEPS[1:]:
        depends[step.name] = DECLARED[step.name].union(*(depends[n] for n in step.upstream))
    for step in STEPS:
        count = sum(node.step == step for node in found.nodes.values())
        sizes = [len(values) for name, values in axes.items() if name in depends[step.name]]
        assert count == math.prod(sizes)
    # Whatever the order and whatever else is swept, the same run has the same id.
    one = {name: values[:1] for name, values in reversed(axes.items())}
    again = make_plan(one, "out", notebooks=notebooks, steps=STEPS)
    assert again.runs[0].id in {run.id for run in found.runs}


def test_a_node_comes_after_those_upstream(plan):
    seen = set()
    for node in plan({"folds": (3, 5), "epochs": (1, 2)}).nodes.values():
        assert seen.issuperset(node.upstream.values())
        seen.add(node.id)


def test_threads_set_runs_apart_and_places_do_not(plan, notebooks, tmp_path):
    axes = {"epochs": (4,)}
    one, two = plan(axes, threads=1), plan(axes, threads=2)
    same = [name for name, node in one.runs[0].nodes.items() if two.runs[0].nodes[name] == node]
    assert same == ["01_first", "02_second"]  # the third takes threads, the last reads the third
    elsewhere = make_plan(axes, tmp_path / "b", notebooks=notebooks, steps=STEPS, threads=1)
    assert elsewhere.nodes.keys() == one.nodes.keys()


def test_time_is_estimated_from_earlier_runs(plan, tmp_path):
    found = plan({"epochs": (1, 2), "coverage": (0.8, 0.9)})
    recorded = {
        "old/steps/a": {"01_first": 10.0, "02_second": 10.0},
        "old/steps/b": {"01_first": 30.0, "02_second": 30.0},
        "run": {"03_third": 100.0, "04_last": 5.0},
    }
    for folder, seconds in recorded.items():
        entries = {name: {"seconds": value} for name, value in seconds.items()}
        write_json(tmp_path / folder / "manifest.json", {"notebooks": entries})
    seconds = earlier_seconds([tmp_path / "old", tmp_path / "run"])
    assert seconds == {"01_first": 20, "02_second": 20, "03_third": 100, "04_last": 5}
    assert estimate_seconds(found, set(), seconds, 1) == 20 + 20 + 2 * 100 + 4 * 5
    assert estimate_seconds(found, set(), seconds, 2) == 130
    assert estimate_seconds(found, set(), seconds, 100) == 20 + 100 + 5  # the longest chain
    thirds = {node.id for node in found.nodes.values() if node.step.name == "03_third"}
    assert estimate_seconds(found, thirds, seconds, 1) == 20 + 20 + 4 * 5
    assert math.isnan(estimate_seconds(found, set(), {"01_first": 1.0}, 1))
    assert "about 4 min" in describe_plan(found, set(), seconds, 1, rows=9, cores=1)


@pytest.mark.parametrize(("cores", "warned"), [(5, True), (6, False), (None, False)])
def test_more_threads_than_cores_are_warned_of_where_the_cores_are_known(plan, cores, warned):
    found = plan({"epochs": (4,)}, threads=3)
    text = describe_plan(found, set(), {}, 2, rows=1, cores=cores)
    assert ("Mind: 6 threads on 5 cores" in text) == ("Mind:" in text) == warned


@pytest.mark.parametrize(
    ("address", "warned"),
    [("", True), ("local", True), ("auto", False), ("10.0.0.1:6379", False)],
)
def test_work_for_a_cluster_is_not_measured_by_this_machines_cores(
    address, warned, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("entrep.ray_cluster.find_ray", lambda: None)  # a plan asks no more of Ray
    command = ["sweep", "--seeds", "0", "--only", "01", "--out", "new", "--plan", "--jobs", "1"]
    assert cli.main([*command, "--threads", str(count_cores() + 1), "--ray", address]) == 0
    assert ("Mind:" in capsys.readouterr().out) == warned


def test_the_plan_is_shown_and_nothing_is_written(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["sweep", "-p", "learning_rate=1e-3,3e-3,1e-2", "--seeds", "0-3", "--only", "03"]
    assert cli.main([*command, "--out", "new", "--jobs", "1", "--threads", "2", "--plan"]) == 0
    printed = capsys.readouterr().out
    runs = itertools.product(("0.001", "0.003", "0.01"), range(4))
    assert all(f"learning_rate={rate} seed={seed}" in printed for rate, seed in runs)
    assert "16 notebooks instead of 24" in printed
    assert "1 at a time with 2 threads each" in printed
    assert list(tmp_path.iterdir()) == []
