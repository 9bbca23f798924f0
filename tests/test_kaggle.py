"""From the table of kernels to what is pushed: rules, rendering, bundles, the first cell."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from small_run import write_small_run

from entrep import kaggle_build, kaggle_rules
from entrep.artifacts import hash_folder, read_json, sha256_file, write_json
from entrep.config import PROFILES, RunConfig
from entrep.kaggle_rules import MANIFEST_FILE, read_dataset, read_kernel, slugify, write_manifest
from entrep.notebook import declared_parameters
from entrep.pipeline import NOTEBOOKS
from entrep.registry import weights_folder

ROOT = Path(__file__).resolve().parents[1]
TABLE = kaggle_build.load_table(ROOT / "kaggle" / "kernels.py")


def load_bootstrap():
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "kaggle" / "bootstrap.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bootstrap(tmp_path, monkeypatch):
    """The first cell as a module whose /kaggle lies in a temporary folder."""
    monkeypatch.setenv("KAGGLE_ROOT", str(tmp_path / "kaggle"))
    for name in ("HF_HUB_OFFLINE", "PIP_NO_INDEX", "ENTREP_INPUTS"):
        monkeypatch.setenv(name, "")  # and so put back after the test
    module = load_bootstrap()
    for name in module.OFFLINE:
        monkeypatch.setenv(name, os.environ.get(name, ""))
    module.INPUT.mkdir(parents=True)
    return module


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """A folder with an empty file for each wheel that the table names."""
    folder = tmp_path_factory.mktemp("wheels")
    for pin in kaggle_build.pin_requirements(TABLE.WHEELS, ROOT / "requirements.txt"):
        name, version = pin.split("==")
        (folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return write_small_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def built(tmp_path_factory, wheels, run_folder):
    """A build with everything in it."""
    out = tmp_path_factory.mktemp("built") / "out"
    return kaggle_build.build(
        out,
        owner="someone",
        run_folder=run_folder,
        data="entrep/pictures",
        packs=str(weights_folder()),
        wheels=wheels,
        parameters={"epochs": 3, "demo_size": 0.1},
    )


def cells_of(folder, kernel):
    return read_json(folder / "kernels" / kernel / f"{kernel}.ipynb")["cells"]


def assigned(cells, name):
    """The value that the cells leave in a variable, by the last cell that the build wrote."""
    values: dict = {}
    for cell in cells:
        if cell["id"].startswith("baked"):
            exec("".join(cell["source"]), values)  # plain assignments
    return values[name]


# The table and what is rendered from it


def test_every_kernel_and_data_set_passes_our_own_checks(built):
    for kernel in TABLE.KERNELS:
        about = read_kernel(built / "kernels" / kernel.slug)
        assert about["id"] == f"someone/{slugify(kernel.title)}"
        assert about["enable_internet"] is False
    refs = [read_dataset(folder)["id"] for folder in sorted((built / "datasets").iterdir())]
    assert refs == sorted(f"someone/{slugify(title)}" for title in TABLE.DATASETS.values())
    names = [*(kernel.slug for kernel in TABLE.KERNELS), *map(slugify, TABLE.DATASETS.values())]
    assert all(set(kernel.inputs) <= {"data", *TABLE.DATASETS} for kernel in TABLE.KERNELS)
    assert len(set(names)) == len(names)  # Kaggle lets no kernel share its name with a data set


def test_kernels_mount_what_their_row_names(built, tmp_path, wheels):
    train, submit = (
        read_kernel(built / "kernels" / name) for name in ("entrep-train", "entrep-submit")
    )
    assert train["machine_shape"] == "NvidiaTeslaT4" and train["enable_gpu"] is True
    kit, pictures = "someone/entrep-kit", "entrep/pictures"
    assert train["dataset_sources"] == [kit, pictures, "someone/entrep-model-packs"]
    assert submit["dataset_sources"] == [kit, pictures, "someone/entrep-artifacts"]
    assert submit["kernel_sources"] == [] and submit["enable_gpu"] is False

    packs = "google/vit/pyTorch/base/2"
    other = kaggle_build.build(
        tmp_path / "o", data="entrep", packs=packs, accelerator="cpu", wheels=wheels
    )
    train, submit = (
        read_kernel(other / "kernels" / name) for name in ("entrep-train", "entrep-submit")
    )
    assert train["enable_gpu"] is False and "machine_shape" not in train
    assert train["model_sources"] == [packs] and train["competition_sources"] == ["entrep"]
    assert submit["kernel_sources"] == ["owner/entrep-train"]  # its output, without a run


def test_rendered_notebooks_are_valid_and_hold_their_parameters(built):
    for kernel in TABLE.KERNELS:
        path = built / "kernels" / kernel.slug / f"{kernel.slug}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        first = next(cell for cell in notebook.cells if cell.cell_type == "code")
        assert "def prepare(" in first.source and first.source.rstrip().endswith(
            "gpu=False,\n)"
        ) == (not kernel.gpu)
        compile(first.source, kernel.slug, "exec")
        assert "/home/me" not in path.read_text("utf-8")
    # Whatever a configuration takes, one of the notebooks that train does.
    fields = {field.name for field in dataclasses.fields(RunConfig)}
    folder = ROOT / "notebooks"
    assert fields == {
        name
        for step in NOTEBOOKS[:-1]
        for name in declared_parameters(folder / f"{step.name}.ipynb")
    }
    train = cells_of(built, "entrep-train")
    assert assigned(train, "profile") == "full"
    settings = assigned(train, "settings")
    assert settings == {"epochs": 3, "demo_size": 0.1, "time_budget_min": 600.0}
    walk = cells_of(built, "entrep-walkthrough")
    assert assigned(walk, "profile") == "demo" and assigned(walk, "epochs") == 3
    # Six notebooks and a last word, each with nothing of the one before in memory.
    assert sum(cell["source"] == "%reset -f" for cell in walk) == len(NOTEBOOKS)
    code = {"".join(cell["source"]) for cell in walk}
    for step in NOTEBOOKS:
        for cell in read_json(ROOT / "notebooks" / f"{step.name}.ipynb")["cells"]:
            assert "".join(cell["source"]) in code


@pytest.mark.parametrize("path", sorted((ROOT / "kaggle").glob("*.ipynb")), ids=lambda p: p.stem)
def test_bodies_are_stored_clean_and_explain_themselves(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert notebook.cells[0].cell_type == "markdown"
    assert len(notebook.cells) - len(code) >= 0.4 * len(notebook.cells)
    for cell in code:
        assert not cell.outputs and cell.execution_count is None
        assert len(cell.source.splitlines()) <= 25


@pytest.mark.parametrize("data", ["", "entrep/pictures"])
def test_the_profile_follows_from_what_is_given(data, tmp_path, wheels):
    out = kaggle_build.build(tmp_path / "o", data=data, wheels=wheels)
    profile = assigned(cells_of(out, "entrep-train"), "profile")
    assert profile == ("mini" if data else "demo") and profile in PROFILES


def test_building_twice_gives_the_same_bytes(built, tmp_path, wheels, run_folder):
    moved = shutil.copytree(run_folder, tmp_path / "run elsewhere")
    options = {"owner": "someone", "run_folder": moved, "data": "entrep/pictures"}
    options |= {"packs": str(weights_folder()), "wheels": wheels}
    options["parameters"] = {"epochs": 3, "demo_size": 0.1}
    out = tmp_path / "again"
    for _ in range(2):  # new, then over what an earlier build made
        assert hash_folder(kaggle_build.build(out, **options)) == hash_folder(built)
    assert [path.name for path in tmp_path.iterdir()].count("again") == 1


@pytest.mark.parametrize(
    ("options", "gist"),
    [
        ({"owner": "Some One"}, "id: expected owner/slug in lower case, got 'Some One/"),
        ({"data": "a/b/c"}, "dataset_sources: expected owner/slug, got 'a/b/c'"),
        ({"parameters": {"work_dir": "x"}}, "work_dir: a kernel sets it itself"),
        ({"parameters": {"epochs": 0}}, "epochs: expected 1 to 1000"),
        ({"packs": "nowhere"}, "--packs: there is no model pack below nowhere"),
        ({"run_folder": "nowhere"}, "SHA256SUMS is not there; give the folder of a run"),
    ],
)
def test_a_wrong_build_is_refused_and_leaves_nothing(options, gist, tmp_path, wheels):
    with pytest.raises((ValueError, FileNotFoundError), match=gist):
        kaggle_build.build(tmp_path / "out", wheels=wheels, **options)
    assert not any(tmp_path.iterdir())


def test_a_folder_of_somebody_is_never_replaced(tmp_path, wheels):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="was not made by a build"):
        kaggle_build.build(tmp_path, wheels=wheels)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


# What Kaggle would refuse, or take wrongly


@pytest.mark.parametrize(
    ("change", "gist"),
    [
        ({"enable_internte": False}, "enable_internte: there is no such key"),
        ({"enable_internet": None}, "enable_internet: missing"),
        ({"enable_internet": True}, "enable_internet: expected false"),
        ({"enable_gpu": "true"}, "enable_gpu: expected bool, got 'true'"),
        ({"title": "ENTRep train!!"}, None),
        ({"title": "Another"}, "the slug 'another' of the title 'Another'"),
        ({"title": "x" * 51}, "title: expected 5 to 50 characters, got 51"),
        ({"language": "r"}, "language: expected 'python'"),
        ({"machine_shape": "A100"}, "machine_shape: expected one of"),
        ({"enable_tpu": True}, "a TPU in one of them only"),
        ({"kernel_sources": ["train"]}, "kernel_sources: expected owner/slug, got 'train'"),
        ({"model_sources": ["a/b/c/d"]}, "model_sources: expected owner/model/framework"),
        ({"competition_sources": ["a", "a"]}, "the same source twice"),
        ({"keywords": ["util-script"]}, "keywords: expected none"),
        ({"code_file": "../x.ipynb"}, "code_file: expected a notebook in this folder"),
    ],
)
def test_kernel_metadata_is_checked_strictly(change, gist, built, tmp_path):
    folder = shutil.copytree(built / "kernels" / "entrep-train", tmp_path / "kernel")
    about = {**read_json(folder / kaggle_rules.KERNEL_FILE), **change}
    about = {key: value for key, value in about.items() if value is not None}
    write_json(folder / kaggle_rules.KERNEL_FILE, about)
    if gist is None:
        assert read_kernel(folder) == about
        return
    with pytest.raises(ValueError, match=re.escape(kaggle_rules.KERNEL_FILE)) as caught:
        read_kernel(folder)
    assert gist in str(caught.value)


def test_a_notebook_that_kaggle_would_refuse_is_refused_here(built, tmp_path):
    folder = shutil.copytree(built / "kernels" / "entrep-submit", tmp_path / "kernel")
    path = folder / "entrep-submit.ipynb"
    notebook = read_json(path)
    write_json(path, {**notebook, "metadata": {}})
    with pytest.raises(ValueError, match="no notebook with a kernelspec"):
        read_kernel(folder)
    notebook["cells"][0]["source"] = "x" * 900_000
    write_json(path, notebook)
    with pytest.raises(ValueError, match="bytes; Kaggle takes about 800,000"):
        read_kernel(folder)


@pytest.mark.parametrize(
    ("name", "gist"),
    [
        ("weights.pt", "weights.pt: Kaggle unpacks such files"),
        ("sdist.tar.gz", "sdist.tar.gz: Kaggle unpacks such files"),
        ("a@b.txt", "a@b.txt: Kaggle refuses some characters"),
        ("folder/file.txt", "folder: only plain files are uploaded"),
    ],
)
def test_files_that_a_data_set_cannot_keep_are_refused(name, gist, built, tmp_path):
    folder = shutil.copytree(built / "datasets" / "entrep-artifacts", tmp_path / "data")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("x")
    with pytest.raises(ValueError, match=gist):
        read_dataset(folder)


def test_more_files_than_kaggle_takes_are_refused(built, tmp_path):
    folder = shutil.copytree(built / "datasets" / "entrep-artifacts", tmp_path / "data")
    for number in range(60):
        (folder / f"{number}.txt").write_text("x")
    with pytest.raises(ValueError, match="62 files; expected 1 to 50"):
        read_dataset(folder)


# The first cell


def mount(bootstrap, built, layout):
    """Mount the built data sets as one of Kaggle's two layouts has them."""
    for folder in (built / "datasets").iterdir():
        place = bootstrap.INPUT / folder.name
        if layout == "new":
            place = bootstrap.INPUT / "datasets" / "someone" / folder.name
        shutil.copytree(folder, place)
        (place / kaggle_rules.DATASET_FILE).unlink()
    pictures = bootstrap.INPUT / "pictures"  # somebody's data set
    pictures.mkdir()
    (pictures / "weights.bin").write_bytes(b"no archive")


def inputs_of(built, kernel):
    """The dictionary that the kernel's first cell calls `prepare` with."""
    found = {}
    source = next(c["source"] for c in cells_of(built, kernel) if c["id"] == "bootstrap")
    call = source[source.rindex("\nprepare(") :]
    exec(call, {"prepare": lambda **given: found.update(given)})
    return found


@pytest.mark.parametrize("layout", ["old", "new"])
def test_both_layouts_are_found_checked_and_unpacked(layout, bootstrap, built, monkeypatch):
    mount(bootstrap, built, layout)
    installed = []
    monkeypatch.setattr(bootstrap, "install", installed.append)
    monkeypatch.setattr(bootstrap, "check_gpu", lambda: None)
    for kernel in ("entrep-train", "entrep-submit"):
        bootstrap.prepare(**inputs_of(built, kernel))
        found = json.loads(os.environ["ENTREP_INPUTS"])
        assert found.pop("scratch") == str(bootstrap.SCRATCH)
        assert (Path(found["kit"]) / "06_submission.ipynb").is_file()
        assert found["data"] == str(bootstrap.INPUT / "pictures")
        assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert sha256_file(Path(found["artifacts"]) / "artifacts" / "config.json")
    assert not list(bootstrap.SCRATCH.rglob("fold0.safetensors"))
    pack = bootstrap.SCRATCH / "packs" / "demo-clip"
    assert hash_folder(pack) == hash_folder(weights_folder() / "demo-clip")
    assert len(installed) == 2


@pytest.mark.parametrize(
    ("spoil", "gist"),
    [
        (lambda kit: (kit / "01_eda.ipynb").unlink(), "01_eda.ipynb is missing. Upload someone/"),
        (lambda kit: (kit / "01_eda.ipynb").write_text("{}"), "01_eda.ipynb was altered"),
        (lambda kit: (kit / MANIFEST_FILE).unlink(), "MANIFEST.json is missing"),
        (
            lambda kit: write_manifest(kit, ["01_eda.ipynb"]),
            "is not the someone/entrep-kit that this kernel was built with",
        ),
        (shutil.rmtree, "The dataset someone/entrep-kit is not mounted"),
    ],
    ids=["missing", "altered", "no manifest", "other version", "not mounted"],
)
def test_a_spoiled_bundle_is_one_error_before_any_work(spoil, gist, bootstrap, built, monkeypatch):
    mount(bootstrap, built, "new")
    spoil(bootstrap.INPUT / "datasets" / "someone" / "entrep-kit")
    monkeypatch.setattr(bootstrap, "pip", lambda *_: pytest.fail("worked before it checked"))
    with pytest.raises(bootstrap.NotReady, match=gist) as caught:
        bootstrap.prepare(**inputs_of(built, "entrep-submit"))
    assert "push" in str(caught.value)  # the mend
    assert not bootstrap.SCRATCH.exists()


def test_a_source_is_also_found_by_its_marker(bootstrap):
    place = bootstrap.INPUT / "datasets" / "renamed" / "kit"
    place.mkdir(parents=True)
    (place / "kit.whl").touch()
    (bootstrap.INPUT / "entrep-kit").mkdir()  # of another one: without the marker
    assert bootstrap.find_input("dataset", "me/entrep-kit", "kit.whl") == place
    deep = bootstrap.INPUT.joinpath(*"abcde")
    deep.mkdir(parents=True)
    (deep / "deep.bin").touch()
    with pytest.raises(bootstrap.NotReady, match="for deep.bin down to 4 folders"):
        bootstrap.find_input("dataset", "me/deep", "deep.bin")
    twin = shutil.copytree(place, bootstrap.INPUT / "datasets" / "another" / "kit")
    with pytest.raises(bootstrap.NotReady, match=f"it is in each of {twin}, {place}"):
        bootstrap.find_input("dataset", "me/entrep-kit", "kit.whl")


@pytest.mark.parametrize(
    ("kind", "ref", "new", "old"),
    [
        ("dataset", "me/data", "datasets/me/data", "data"),
        ("kernel", "me/train", "notebooks/me/train", "train"),
        ("competition", "entrep", "competitions/entrep", "entrep"),
        ("model", "me/m/pytorch/v/1", "models/me/m/pytorch/v/1", "m/pytorch/v/1"),
    ],
)
def test_each_kind_of_source_has_two_places(kind, ref, new, old, bootstrap):
    (bootstrap.INPUT / old).mkdir(parents=True)
    assert bootstrap.find_input(kind, ref) == bootstrap.INPUT / old
    (bootstrap.INPUT / new).mkdir(parents=True)
    assert bootstrap.find_input(kind, ref) == bootstrap.INPUT / new


def test_only_wheels_that_are_missing_or_too_old_are_installed(bootstrap, tmp_path, monkeypatch):
    for name in ("entrep-1.0", "timm-2.0", "peft-2.0", "ftfy-6.0", "open_clip_torch-3.0"):
        (tmp_path / f"{name}-py3-none-any.whl").touch()
    there = {"torch": "2.9.0+cpu", "timm": "1.0.9", "peft": "0.17.0", "open-clip-torch": "3.1"}
    needs = [
        "timm>=1.0.20",
        "peft>=0.17",
        "open_clip_torch>=3.0",
        "torch>=2.6",
        "x>=1; extra == 'y'",
    ]
    calls = []

    def pip(kit, wheels):
        calls.append([Path(wheel).name.partition("-py3")[0] for wheel in wheels])
        for name in calls[-1]:
            package, _, version = name.partition("-")
            there[package] = version

    monkeypatch.setattr(bootstrap, "pip", pip)
    monkeypatch.setattr(bootstrap, "version_of", lambda n: there.get(bootstrap.plain(n), "none"))
    monkeypatch.setattr(bootstrap.metadata, "requires", lambda _: needs)
    bootstrap.install(tmp_path)
    assert calls == [["--force-reinstall", "entrep-1.0"], ["ftfy-6.0", "timm-2.0"]]

    needs.append("seaborn>=0.13")
    with pytest.raises(bootstrap.NotReady, match="lacks seaborn>=0.13 .it has seaborn none."):
        bootstrap.install(tmp_path)
    needs.pop()
    monkeypatch.setattr(bootstrap, "pip", lambda *_: there.update(torch="2.15"))
    with pytest.raises(bootstrap.NotReady, match="changed torch from 2.9.0.cpu to 2.15"):
        bootstrap.install(tmp_path)


def test_an_image_that_cannot_do_says_so(bootstrap, monkeypatch):
    with pytest.raises(bootstrap.NotReady, match="the kit needs 3.8 or later, before 3.9"):
        bootstrap.check_python(("3.8", "3.9"))
    bootstrap.check_python(("3.11", "3.14"))
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(bootstrap.NotReady, match="Choose 'GPU T4 x2'"):
        bootstrap.check_gpu()


def test_the_first_cell_needs_the_standard_library_only():
    text = (ROOT / "kaggle" / "bootstrap.py").read_text("utf-8")
    top = set(re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE))
    assert top <= sys.stdlib_module_names


def test_the_folder_does_not_hide_the_kaggle_client():
    assert not (ROOT / "kaggle" / "__init__.py").exists()
