"""A small kernel, made by hand, runs as on Kaggle; whatever Kaggle forbids fails the run."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path

import nbformat
import pytest

from entrep.cli import main
from entrep.kaggle_rules import write_manifest
from entrep.simulate import describe_simulation, simulate

if sys.platform == "win32":
    pytest.skip("runs on Linux and macOS; Windows has no sandbox", allow_module_level=True)

PACKAGES = ("ipykernel", "papermill")  # of the stand-in for Kaggle's image
BOOTSTRAP = Path(__file__).resolve().parents[1] / "kaggle" / "bootstrap.py"
ROOT = "import os, pathlib; root = pathlib.Path(os.environ.get('KAGGLE_ROOT', '/kaggle'))"
# What a kernel sees and does, left in its output.
WORK = """
import json, sys
files = sorted(p.relative_to(root).as_posix() for p in root.glob("input/**/*") if p.is_file())
seen = dict(files=files, path=sys.path, environment=dict(os.environ), here=os.getcwd())
pathlib.Path("seen.json").write_text(json.dumps(seen))
pathlib.Path("submissions").mkdir()
pathlib.Path("submissions/track1.json").write_text("{}")
(root / "temp" / "scratch.bin").write_bytes(bytes(100_000))
print("worked")
"""
SWALLOWED = """
import socket
try:
    socket.create_connection(("192.0.2.1", 80))
except OSError:
    print("never mind")
"""


def write_kernel(build: Path, *cells: str) -> Path:
    """A built kernel `tiny-kernel` with the code cells, and its data set `tiny-bundle`."""
    home, bundle = build / "kernels" / "tiny-kernel", build / "datasets" / "tiny-bundle"
    home.mkdir(parents=True)
    bundle.mkdir(parents=True)
    metadata = {
        "id": "someone/tiny-kernel",
        "title": "Tiny kernel",
        "code_file": "tiny.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": False,
        "enable_tpu": False,
        "enable_internet": False,
        "keywords": [],
        "dataset_sources": ["someone/tiny-bundle", "entrep/pictures"],
        "competition_sources": [],
        "kernel_sources": [],
        "model_sources": [],
    }
    (home / "kernel-metadata.json").write_text(json.dumps(metadata))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, home / "tiny.ipynb")
    about = {"id": "someone/tiny-bundle", "title": "Tiny bundle", "licenses": [{"name": "other"}]}
    (bundle / "dataset-metadata.json").write_text(json.dumps(about))
    (bundle / "table.csv").write_text("a,b\n")
    (build / "pictures" / "train").mkdir(parents=True)
    (build / "pictures" / "train" / "a.png").write_bytes(b"a")
    return build


def run_tiny(build: Path, **options):
    options = {"data": build / "pictures", "out": build / "out", "preinstalled": PACKAGES} | options
    return simulate("tiny-kernel", build=build, **options)


def log_of(build: Path) -> str:
    entries = json.loads((build / "out" / "tiny-kernel" / "tiny-kernel.log").read_text())
    assert all(entry.keys() == {"stream_name", "time", "data"} for entry in entries)
    return "".join(entry["data"] for entry in entries)


def result_of(build: Path) -> dict:
    return json.loads((build / "out" / "tiny-kernel" / "simulation.json").read_text())


@pytest.mark.parametrize(("level", "layout"), [("root", "new"), ("user", "old"), ("plain", "old")])
def test_a_kernel_finds_what_it_finds_on_kaggle(tmp_path, level, layout, capsys):
    build = write_kernel(tmp_path, ROOT, WORK)
    run_folder = tmp_path / "run"
    (run_folder / "submissions").mkdir(parents=True)
    (run_folder / "submissions" / "track1.json").write_text("{}")
    try:
        result = run_tiny(build, level=level, layout=layout, compare=run_folder, rerun=True)
    except RuntimeError as error:
        pytest.skip(f"runs where the system allows it; {error}")
    assert (result.status, result.problems) == ("COMPLETE", [])
    assert f"level {level!r}" in capsys.readouterr().out
    seen = json.loads((build / "out" / "tiny-kernel" / "working" / "seen.json").read_text())
    newer = ["datasets/entrep/pictures/train/a.png", "datasets/someone/tiny-bundle/table.csv"]
    older = ["pictures/train/a.png", "tiny-bundle/table.csv"]
    places = newer if layout == "new" else older
    assert seen["files"] == [f"input/{place}" for place in places]
    assert seen["environment"]["KAGGLE_KERNEL_RUN_TYPE"] == "Batch"
    assert seen["environment"]["KAGGLE_IS_COMPETITION_RERUN"] == "1"
    assert not {"KAGGLE_KEY", "KAGGLE_USERNAME", "KAGGLE_API_TOKEN"} & seen["environment"].keys()
    assert not any("src" in Path(place).parts for place in seen["path"])
    assert level == "plain" or seen["here"] == "/kaggle/working"
    # Output: the executed notebook too, but nothing from scratch.
    assert (build / "out" / "tiny-kernel" / "working" / "__notebook__.ipynb").is_file()
    assert 0 < result.output_bytes < 50_000
    assert "worked" in log_of(build)
    digest = hashlib.sha256(b"{}").hexdigest()
    assert result.submissions == result.expected == {"track1.json": digest}
    assert describe_simulation(result).splitlines()[-1].split() == [
        *("track1.json", digest, digest, "same")
    ]
    left = {path.name for path in (build / "out" / "tiny-kernel").iterdir()}
    assert left == {"working", "tiny-kernel.log", "simulation.json"}


def test_an_attempt_to_reach_a_network_fails_the_run_though_it_is_swallowed(tmp_path):
    build = write_kernel(tmp_path, SWALLOWED, "print('went on')")
    result = run_tiny(build)
    assert "went on" in log_of(build)
    assert result.status == "ERROR"
    assert "tried to leave the machine" in result.problems[0]
    assert "192.0.2.1" in result.problems[0]


def test_a_failing_cell_written_inputs_and_other_submissions_are_all_said(tmp_path, capsys):
    write = "(root / 'input' / 'note.txt').write_text('x')"
    build = write_kernel(tmp_path, ROOT, write, "raise KeyError('lost')", "print('went on')")
    (tmp_path / "run" / "submissions").mkdir(parents=True)
    (tmp_path / "run" / "submissions" / "track1.json").write_text("{}")
    result = run_tiny(build, level="plain", compare=tmp_path / "run")
    assert result.status == "ERROR"
    assert result.problems == [
        "In [3], KeyError: 'lost'",
        "It changed note.txt in /kaggle/input, which is read-only on Kaggle.",
        "track1.json: not the bytes of the run.",
    ]
    assert "went on" not in log_of(build)
    assert describe_simulation(result).splitlines()[-1].split()[::3] == ["track1.json", "DIFFERENT"]
    assert result_of(build)["status"] == "ERROR"


def test_a_run_is_killed_at_its_time_limit_and_what_it_left_is_kept(tmp_path):
    work = "import time, pathlib\nwhile True: pathlib.Path('alive').touch(); time.sleep(0.05)"
    build = write_kernel(tmp_path, work)
    result = run_tiny(build, level="plain", time_limit_s=6)  # where no namespace helps to kill
    assert result.status == "CANCEL_ACKNOWLEDGED"
    assert result.problems == ["Stopped in cell 1: the time limit is 6 s."]
    alive = build / "out" / "tiny-kernel" / "working" / "alive"
    times = []
    while len(set(times[-2:])) != 1 or len(times) < 2:
        assert len(times) < 20, "it is still at work after 10 s"
        times.append(alive.stat().st_mtime)
        time.sleep(0.5)


def test_a_run_is_killed_when_its_output_is_too_large(tmp_path):
    work = "import time\nopen('big.bin', 'wb').write(bytes(3_000_000))\ntime.sleep(600)"
    result = run_tiny(write_kernel(tmp_path, work), output_limit_gb=0.002)
    assert result.status == "ERROR"
    assert result.problems == [
        "Stopped in cell 1: /kaggle/working holds more than 0.002 GB, Kaggle's limit."
    ]


def test_an_altered_bundle_file_is_one_error_before_any_work(tmp_path, capsys):
    kit = {"kind": "dataset", "ref": "someone/tiny-bundle", "marker": "table.csv", "manifest": ""}
    call = f"prepare(inputs={dict(kit=kit)}, python=('3.11', '3.14'), gpu=False)"
    build = write_kernel(tmp_path, f"{BOOTSTRAP.read_text('utf-8')}\n{call}", ROOT + WORK)
    bundle = build / "datasets" / "tiny-bundle"
    write_manifest(bundle, ["table.csv"])
    (bundle / "table.csv").write_text("a,c\n")
    arguments = ["--build", str(build), "--data", f"{build}/pictures", "--out", f"{build}/out"]
    assert main(["kaggle", "simulate", "tiny-kernel", *arguments]) == 1
    status, problem = capsys.readouterr().out.splitlines()[-2:]
    assert status.startswith("tiny-kernel: ERROR, level ")
    assert problem.startswith("  In [1], NotReady: ") and "table.csv was altered" in problem
    assert "worked" not in log_of(build)


def test_a_folder_that_is_no_simulations_is_left_alone(tmp_path):
    build = write_kernel(tmp_path, "1")
    mine = build / "out" / "tiny-kernel" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(ValueError, match="holds no simulation; choose another --out"):
        run_tiny(build)
    assert mine.read_text() == "mine"


def test_the_command_names_a_kernel_that_is_not_built(tmp_path, capsys):
    assert main(["kaggle", "simulate", "no-kernel", "--build", str(tmp_path)]) == 2
    assert "no-kernel" in capsys.readouterr().err


def test_submissions_to_compare_with_are_looked_for_before_the_run(tmp_path):
    build = write_kernel(tmp_path, "1")
    with pytest.raises(FileNotFoundError, match="--compare"):
        run_tiny(build, compare=tmp_path / "nothing")
    assert not (build / "out").exists()
