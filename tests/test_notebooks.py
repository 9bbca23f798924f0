"""The six notebooks: their form, and a whole small run of them."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest

from entrep.artifacts import read_table
from entrep.config import RunConfig
from entrep.pipeline import BASE_PARAMETERS, NOTEBOOKS
from entrep.runner import run
from entrep.saved_run import pack_run, submit_run, unpack_run

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
PATHS = [FOLDER / f"{step.name}.ipynb" for step in NOTEBOOKS]
notebooks = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def cells_of(path: Path, kind: str) -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def parameters_of(path: Path) -> ast.Module:
    code = cells_of(path, "code")
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1, f"{path.name}: want one 'parameters' cell, found {len(tagged)}"
    assert tagged[0] is code[0], f"{path.name}: the parameters are the first code cell"
    return ast.parse(tagged[0].source)


def test_the_folder_holds_the_six_and_the_one_for_sweeps():
    names = [*(path.name for path in PATHS), "07_compare.ipynb"]  # test_sweep_plots.py runs it
    assert sorted(path.name for path in FOLDER.glob("*.ipynb")) == names


@notebooks
def test_parameters_are_typed_literals_that_the_configuration_knows(path):
    known = {field.name for field in dataclasses.fields(RunConfig)}
    names = []
    for line in parameters_of(path).body:
        assert isinstance(line, ast.AnnAssign), f"{path.name}: write `name: type = value`"
        ast.literal_eval(line.value)  # nothing derived: overrides run after this cell
        names.append(line.target.id)
    assert set(BASE_PARAMETERS) <= set(names) <= known


@notebooks
def test_a_notebook_is_stored_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    assert "papermill" not in notebook.metadata
    for cell in cells_of(path, "code"):
        assert not cell.outputs and cell.execution_count is None, f"{path.name}: strip outputs"


@notebooks
def test_a_notebook_explains_itself_in_short_steps(path):
    code, prose = cells_of(path, "code"), cells_of(path, "markdown")
    steps = [cell for cell in code if "parameters" not in cell.metadata.get("tags", [])]
    for cell in steps:  # the parameters are a list to look things up in
        assert len(cell.source.splitlines()) <= 25, f"{path.name}: too long:\n{cell.source}"
    assert len(prose) >= 0.4 * (len(code) + len(prose))
    title = nbformat.read(path, as_version=4).cells[0]
    assert title.source.startswith(f"# {path.stem[:2]} ")
    for words in ("You need", "You get", "Time"):
        assert words in title.source, f"{path.name}: the title cell lacks {words!r}"


@notebooks
def test_a_notebook_reads_only_what_the_runner_knows_of(path):
    (step,) = (step for step in NOTEBOOKS if step.name == path.stem)
    code = "\n".join(cell.source for cell in cells_of(path, "code"))
    used = {other.name for other in NOTEBOOKS if re.search(rf"[\"']{other.name}", code)}
    assert used <= {step.name, *step.upstream}


@notebooks
def test_a_notebook_brings_nothing_of_its_own_machine(path):
    for cell in cells_of(path, "code"):
        lines = [line.strip() for line in cell.source.splitlines()]
        assert not [line for line in lines if line.startswith(("!", "%"))], path.name
        assert "/kaggle" not in cell.source and "filterwarnings" not in cell.source


# A small run of all six: 26 pictures a class at most, two folds, one epoch.

SMALL = {
    "demo_size": 0.03,
    "folds": 2,
    "epochs": 1,
    "image_size": 56,  # a multiple of the patch, 14
    "threads": 1,
}
TRACKS = [f"track{track}.{kind}" for track in (1, 2, 3) for kind in ("json", "zip")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small demo run."""
    out = tmp_path_factory.mktemp("demo") / "run"
    assert set(run(out=out, parameters=SMALL).values()) == {"new"}
    return out


def submissions_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "submissions").iterdir())}


def test_a_run_writes_three_valid_submissions_and_its_records(finished):
    from entrep.data import find_challenge
    from entrep.submission import check_submission

    assert sorted(submissions_of(finished)) == sorted(TRACKS)
    challenge = find_challenge(finished / "data")
    for name in TRACKS:
        assert check_submission(finished / "submissions" / name, int(name[5]), challenge) == []
    scores = json.loads((finished / "metrics.json").read_text(encoding="utf-8"))
    assert {"02_prototypes", "03_dinov2_finetune", "04_hybrid", "05_retrieval"} <= set(scores)
    executed = sorted(path.stem for path in (finished / "notebooks").iterdir())
    assert executed == [step.name for step in NOTEBOOKS]
    for name in ("config.json", "versions.json", "SHA256SUMS", "06_submission/summary.md"):
        assert (finished / name).stat().st_size > 0


def test_every_saved_table_is_whole_and_nothing_temporary_is_left(finished):
    assert {path.name for path in finished.rglob(".*")} == {".lock", ".cache"}
    figures = list(finished.glob("0*/figures/*.png"))
    assert len(figures) >= 10
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures)


def test_a_second_run_has_nothing_to_do(finished):
    before = submissions_of(finished)
    assert set(run(out=finished, parameters=SMALL).values()) == {"unchanged"}
    assert submissions_of(finished) == before


def test_the_same_seed_in_another_place_gives_the_same_submissions(finished, tmp_path, monkeypatch):
    """Another run folder and working folder; pictures are drawn and folds trained anew."""
    monkeypatch.chdir(tmp_path)
    run(out="elsewhere", parameters=SMALL)
    assert submissions_of(tmp_path / "elsewhere") == submissions_of(finished)


@pytest.mark.parametrize("changed", [{"threads": 2, "batch_size": 1}, {"batch_size": 8}])
def test_threads_and_batch_size_at_inference_do_not_change_the_submissions(
    finished, tmp_path, changed
):
    """From the same checkpoints: 02, 03 and 05 compute everything anew, but train nothing."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    weights = out / "03_dinov2_finetune" / "fold0.safetensors"
    trained = weights.stat().st_mtime_ns
    shutil.rmtree(out / ".cache")  # kept embeddings would hide what the change does to them
    results = run(out=out, parameters={**SMALL, **changed})
    assert results["02_prototypes"] == results["03_dinov2_finetune"] == "parameters changed"
    assert weights.stat().st_mtime_ns == trained
    assert submissions_of(out) == submissions_of(finished)


def test_packed_artifacts_give_the_same_submissions_without_pictures(finished, tmp_path):
    pack_run(finished, tmp_path / "artifacts.bin")
    folder = unpack_run(tmp_path / "artifacts.bin", tmp_path / "run")
    assert not (folder / "data").exists()
    found = submit_run(folder)
    assert submissions_of(folder) == submissions_of(finished)
    assert sorted(found) == sorted(TRACKS)
    here, there = (read_table(run / "06_submission" / "margins.csv") for run in (finished, folder))
    assert here["smallest_lead"].tolist() == there["smallest_lead"].tolist()
    # Noise was measured where the pictures are, and is far below every score's six decimals.
    assert 0 <= here["noise"].astype(float).max() < 1e-6
    assert there["noise"].tolist() == [""] * 3


def test_real_pictures_end_in_three_valid_submissions(real_sample, tmp_path):
    from entrep.data import find_challenge
    from entrep.submission import check_submission

    small = {"folds": 2, "epochs": 1, "image_size": 64, "phantoms": 140}
    run("mini", data=real_sample, out=tmp_path / "run", parameters=small)
    challenge = find_challenge(real_sample)
    for name in TRACKS:
        assert (
            check_submission(tmp_path / "run" / "submissions" / name, int(name[5]), challenge) == []
        )


def test_class_folders_without_test_lists_end_in_scores_and_no_submission(finished, tmp_path):
    from entrep.data import find_challenge
    from entrep.labels import CLASS_NAMES

    pictures = find_challenge(finished / "data").pictures
    for row in pictures[pictures["class_index"] >= 0].itertuples():
        target = tmp_path / "classes" / CLASS_NAMES[row.class_index] / row.image_id
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((finished / "data" / row.path).read_bytes())
    out = tmp_path / "run"
    small = {"folds": 2, "epochs": 1, "image_size": 64, "phantoms": 0}
    run("mini", data=tmp_path / "classes", out=out, parameters=small)
    assert not (out / "submissions").exists()
    scores = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert scores["04_hybrid"]["combined"]["heldout"]["pictures"] > 0
    executed = (out / "notebooks" / "01_eda.ipynb").read_text(encoding="utf-8")
    assert "a fifth is held out instead" in executed
