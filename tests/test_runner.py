"""The runner, on three tiny notebooks that stand in for the six."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from entrep import runner
from entrep.notebook import Progress, RunError
from entrep.pipeline import Step
from entrep.runner import run, stale

_HASH_PACKAGE = runner._hash_package
STEPS = (
    Step("01_first", extra_outputs=("data",)),
    Step("02_second", upstream=("01_first",)),
    Step("03_third", upstream=("01_first",), extra_outputs=("submissions",)),
)
BASE = """\
profile: str = "demo"  # demo, mini or full
data_path: str = ""
work_dir: str = "runs/demo"
seed: int = 0
device: str = "auto"
"""
WRITE = """\
from pathlib import Path
from entrep.artifacts import write_json, write_text
folder = Path(work_dir) / {name!r}
"""
FIRST = "write_json(folder / 'metrics.json', {'seed': seed})"
SECOND = "write_json(folder / 'metrics.json', {'epochs': epochs})"
THIRD = "write_text(Path(work_dir) / 'submissions' / 'track1.json', str(folds))"


def write_notebook(folder: Path, name: str, own: str, body: str, *, tags=("parameters",)) -> None:
    cells = [
        new_markdown_cell(f"# {name}"),
        new_code_cell(BASE + own, metadata={"tags": list(tags)}),
        new_markdown_cell("## Write it"),
        new_code_cell(WRITE.format(name=name) + body),
    ]
    notebook = new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, folder / f"{name}.ipynb")


@pytest.fixture
def notebooks(tmp_path: Path) -> Path:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    write_notebook(folder, "01_first", "", FIRST)
    write_notebook(folder, "02_second", "epochs: int = None  # None: the profile's", SECOND)
    write_notebook(folder, "03_third", "folds: int = None", THIRD)
    return folder


@pytest.fixture
def start(notebooks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # The package's files may be edited while the tests run.
    monkeypatch.setattr(runner, "_hash_package", lambda: "package")

    def start(**options):
        options = {"out": tmp_path / "run", "notebooks": notebooks, "steps": STEPS, **options}
        return run(**options)

    return start


def sums_of(out: Path) -> dict[str, str]:
    lines = (out / "SHA256SUMS").read_text().splitlines()
    return {name: digest for digest, name in (line.split("  ") for line in lines)}


# Before anything runs


def test_a_notebook_that_embeds_nothing_runs_without_weights_and_pictures(
    start, notebooks, tmp_path
):
    write_notebook(notebooks, "02_second", "epochs: int = None\ntext_encoder: str = None", SECOND)
    # The folder of somebody's run on real pictures, moved here without them.
    (tmp_path / "run" / "01_first").mkdir(parents=True)
    last = Step("03_third", upstream=("01_first",), encoders=False)
    with pytest.raises(FileNotFoundError, match="the weights of .* are not here"):
        start(profile="full", only=["02"])
    assert start(profile="full", only=["03"], steps=(STEPS[0], last)) == {"03_third": "new"}


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"parameters": {"epoch": 3}}, ValueError, "epoch: there is no such.*mean 'epochs'"),
        ({"parameters": {"epochs": 0}}, ValueError, "epochs: expected 1 to 1000"),
        ({"parameters": {"patience": 3}}, ValueError, "none of 01_first.*no notebook does"),
        (
            {"parameters": {"epochs": 3}, "only": ["01"]},
            ValueError,
            "none of 01_first takes.*02_second does; --only",
        ),
        ({"parameters": {"work_dir": "x"}}, ValueError, "give it with --out"),
        ({"profile": "dmeo"}, ValueError, "expected one of demo, mini, full"),
        ({"profile": "mini"}, ValueError, "--data DIR"),
        ({"data": "not/there"}, FileNotFoundError, "no such folder"),
        ({"only": ["02"]}, FileNotFoundError, "02_second needs what 01_first writes"),
        ({"notebooks": "not/there"}, FileNotFoundError, "--notebooks DIR"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    start, tmp_path, options, error, words
):
    with pytest.raises(error, match=words):
        start(**options)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_somebody_elses_is_left_alone(start, tmp_path):
    (tmp_path / "thesis" / "data").mkdir(parents=True)
    with pytest.raises(RunError, match="no run folder"):
        start(out=tmp_path / "thesis")
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="is a file; choose a folder"):
        start(out=tmp_path / "file")
    with pytest.raises(RunError, match="cannot write to"):
        start(out=tmp_path / "file" / "below")
    with pytest.raises(ValueError, match="lies inside the data"):
        start(data=tmp_path / "thesis", out=tmp_path / "thesis" / "run")


# Running


def test_a_run_writes_everything_and_a_second_one_skips_all(start, tmp_path, capsys):
    out = tmp_path / "run {a} ü"
    assert start(out=out) == {"01_first": "new", "02_second": "new", "03_third": "new"}
    names = "config.json", "versions.json", "metrics.json", "manifest.json", "SHA256SUMS"
    assert all((out / name).is_file() for name in names)
    executed = sorted(path.name for path in (out / "notebooks").iterdir())
    assert executed == ["01_first.ipynb", "02_second.ipynb", "03_third.ipynb"]
    scores = json.loads((out / "metrics.json").read_text())
    assert scores == {"01_first": {"seed": 0}, "02_second": {"epochs": None}}
    assert json.loads((out / "config.json").read_text())["work_dir"] == str(out)

    before = {path: path.read_bytes() for path in out.rglob("*.json")}
    started = time.monotonic()
    assert set(start(out=out).values()) == {"unchanged"}
    assert time.monotonic() - started < 5
    assert {path: path.read_bytes() for path in out.rglob("*.json")} == before
    assert "Submissions:" in capsys.readouterr().out


def test_sums_are_those_of_the_files(start, tmp_path):
    import hashlib

    start()
    out = tmp_path / "run"
    sums = sums_of(out)
    assert {"submissions/track1.json", "metrics.json", "02_second/metrics.json"} <= set(sums)
    assert not any(name.startswith(("data", "notebooks")) for name in sums)
    for name, digest in sums.items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest


def test_only_what_depends_on_a_change_runs_again(start, notebooks, tmp_path, capsys):
    start()
    changed = start(parameters={"epochs": 3})
    assert changed == {
        "01_first": "unchanged",
        "02_second": "parameters changed",
        "03_third": "unchanged",
    }
    (tmp_path / "run" / "submissions" / "track1.json").write_text("edited")
    (tmp_path / "run" / "submissions" / "old.json").write_text("left over")
    again = start(parameters={"epochs": 3})
    assert again["03_third"] == "outputs changed"
    assert [p.name for p in (tmp_path / "run" / "submissions").iterdir()] == ["track1.json"]

    write_notebook(notebooks, "01_first", "", FIRST.replace("seed}", "seed + 1}"))
    capsys.readouterr()
    assert start(only=["01"]) == {"01_first": "notebook changed"}
    assert "Not up to date any more: 02_second, 03_third" in capsys.readouterr().out
    assert start(parameters={"epochs": 3}) == {
        "01_first": "unchanged",
        "02_second": "upstream changed",
        "03_third": "upstream changed",
    }


def test_what_would_run_can_be_asked_without_running(start, notebooks, tmp_path):
    own = "epochs: int = None\nbackbone: str = None\ncache_dir: str = None"
    write_notebook(notebooks, "02_second", own, SECOND)
    asked = {"out": tmp_path / "run", "notebooks": notebooks, "steps": STEPS, "only": ["1", "2"]}
    with pytest.raises(FileNotFoundError, match="02_second needs what 01_first writes"):
        stale(**{**asked, "only": ["2"]})
    start(only=["1", "2"])
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert stale(**asked) == {"01_first": "", "02_second": ""}
    assert stale(**asked, parameters={"seed": 1})["01_first"] == "parameters changed"
    # An encoder is the business of the notebooks that load it, and a cache is but a place.
    assert stale(**asked, parameters={"backbone": "effnet-lite0"}) == {
        "01_first": "",
        "02_second": "parameters and encoders changed",
    }
    assert set(stale(**asked, parameters={"cache_dir": str(tmp_path)}).values()) == {""}
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_a_run_folder_may_be_moved(start, tmp_path):
    start()
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert set(start(out=moved).values()) == {"unchanged"}


def test_prose_may_change_without_a_rerun(start, notebooks):
    start(only=["01"])
    path = notebooks / "01_first.ipynb"
    path.write_text(path.read_text().replace("## Write it", "## Write it down"))
    assert start(only=["01"]) == {"01_first": "unchanged"}
    assert start(only=["01"], force=True) == {"01_first": "forced"}


def test_a_rerun_keeps_only_what_the_notebook_checks_itself(start, tmp_path):
    steps = (STEPS[0], Step("02_second", upstream=("01_first",), kept="fold*"), STEPS[2])
    start(steps=steps)
    folder = tmp_path / "run" / "02_second"
    (folder / "fold0.safetensors").write_bytes(b"weights")
    (folder / "old.csv").write_text("of other parameters")
    start(steps=steps, parameters={"epochs": 3})
    assert sorted(path.name for path in folder.iterdir()) == ["fold0.safetensors", "metrics.json"]


def test_a_changed_package_runs_everything_again(start, monkeypatch):
    start(only=["01"])
    monkeypatch.setattr(runner, "_hash_package", lambda: "another")
    assert start(only=["01"]) == {"01_first": "package changed"}
    assert len(_HASH_PACKAGE()) == 64


def test_a_failure_names_notebook_cell_and_section_and_the_next_run_resumes(
    start, notebooks, tmp_path
):
    body = "write_text(folder / 'half.txt', 'x')\nraise ValueError('the disc is dark')"
    write_notebook(notebooks, "02_second", "epochs: int = None", body)
    with pytest.raises(RunError) as caught:
        start()
    message = str(caught.value)
    for words in ("notebook 02_second failed in cell In [3] (section 'Write it'), ValueError",
                  "the disc is dark", "02_second.partial.ipynb", "same command again"):  # fmt: skip
        assert words in message
    out = tmp_path / "run"
    assert (out / "notebooks" / "02_second.partial.ipynb").is_file()
    assert not (out / "notebooks" / "02_second.ipynb").exists()
    assert not (out / "SHA256SUMS").exists()

    write_notebook(notebooks, "02_second", "epochs: int = None", SECOND)
    assert start() == {"01_first": "unchanged", "02_second": "new", "03_third": "new"}
    assert not (out / "02_second" / "half.txt").exists()
    assert not (out / "notebooks" / "02_second.partial.ipynb").exists()


def test_a_kernel_that_dies_is_an_error_with_a_hint(start, notebooks):
    write_notebook(notebooks, "01_first", "", "import os\nos._exit(9)")
    with pytest.raises(RunError, match="01_first: its kernel stopped .*\n?.*batch_size"):
        start()


def test_kernels_use_this_python_offline_whatever_is_registered(
    start, notebooks, tmp_path, monkeypatch
):
    other = tmp_path / "jupyter" / "kernels" / "python3"
    other.mkdir(parents=True)
    spec = {
        "argv": ["no-such-python", "{connection_file}"],
        "display_name": "x",
        "language": "python",
    }
    (other / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    body = (
        "import os, sys\n"
        "write_json(folder / 'metrics.json', [sys.prefix, os.environ['HF_HUB_OFFLINE']])"
    )
    write_notebook(notebooks, "01_first", "", body)
    start(only=["01"])
    found = json.loads((tmp_path / "run" / "01_first" / "metrics.json").read_text())
    assert found == [sys.prefix, "1"]
    assert "HF_HUB_OFFLINE" not in os.environ


def test_folders_are_found_from_where_the_command_was_given(
    start, notebooks, tmp_path, monkeypatch
):
    (tmp_path / "packs").mkdir()
    body = "assert Path(weights_dir).is_dir() and Path(cache_dir).is_dir()"
    write_notebook(notebooks, "01_first", "weights_dir: str = None\ncache_dir: str = None", body)
    monkeypatch.chdir(tmp_path)
    given = {"weights_dir": "packs", "cache_dir": "packs"}
    assert start(only=["01"], parameters=given) == {"01_first": "new"}


def test_pictures_that_the_kit_did_not_draw_are_never_removed(start, tmp_path):
    start(only=["01"])
    mine = tmp_path / "run" / "data" / "mine.png"
    mine.parent.mkdir()
    mine.write_bytes(b"x")
    start(only=["01"], force=True)
    assert mine.is_file()
    (mine.parent / "phantom.json").write_text("{}")
    start(only=["01"], force=True)
    assert not mine.exists()


def test_two_runs_do_not_share_a_folder(start, tmp_path):
    with runner.claim_folder(tmp_path / "run"):
        with pytest.raises(RunError, match="another run or sweep is at work"):
            start()
    start(only=["01"])


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_live_line_shows_the_cell_and_the_last_line_of_stderr(notebooks):
    progress = Progress("1/3 01_first", notebooks / "01_first.ipynb", Terminal())
    with progress:
        progress.start_cell({"cell_type": "markdown"}, 0)
        progress.start_cell({"cell_type": "code"}, 1)
        progress.write("a warning\n\r\x1b[31mfold 1:  50%\x1b[0m")
        time.sleep(0.6)
        progress.result = "2.0 s"
    lines = [line.rstrip() for line in progress.stream.getvalue().split("\r")]
    assert any(line.endswith("cell 1 of 3  fold 1:  50%") for line in lines)
    assert lines[-1] == "1/3 01_first 2.0 s"


def test_in_a_log_a_notebook_is_one_line(notebooks):
    progress = Progress("1/3 01_first", notebooks / "01_first.ipynb", io.StringIO())
    with progress:
        progress.write("fold 1")
        progress.result = "2.0 s"
    assert progress.stream.getvalue() == "1/3 01_first 2.0 s\n"


SLEEP = """\
from entrep.artifacts import atomic_path
import time
with atomic_path(folder / 'big.bin') as temporary:
    temporary.write_bytes(b'half')
    (Path(work_dir) / '01_first' / 'reached').write_text('')
    time.sleep(60)
"""
CALL = """\
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_runner import STEPS
import entrep.runner, entrep.cli
entrep.runner.run.__kwdefaults__["steps"] = STEPS
entrep.runner._hash_package = lambda: "package"
sys.exit(entrep.cli.main(["run", "--out", sys.argv[2], "--notebooks", sys.argv[3]]))
"""


@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals; runs on Linux and macOS")
@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_leaves_nothing_half_written_and_resumes(start, notebooks, tmp_path, kill):
    write_notebook(notebooks, "02_second", "epochs: int = None", SLEEP)
    out = tmp_path / "run"
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", CALL, here, str(out), str(notebooks)]
    # A shell starts background jobs with SIGINT ignored, and their children inherit that.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not (out / "01_first" / "reached").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    (out / "01_first" / "reached").unlink()
    process.send_signal(kill)
    _, errors = process.communicate(timeout=30)
    if kill == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert "interrupted; the same command goes on from here" in errors
        assert "Traceback" not in errors
        assert list((out / "02_second").iterdir()) == []
        assert (out / "notebooks" / "02_second.partial.ipynb").is_file()

    write_notebook(notebooks, "02_second", "epochs: int = None", SECOND)
    assert start() == {"01_first": "unchanged", "02_second": "new", "03_third": "new"}
    assert [path.name for path in (out / "02_second").iterdir()] == ["metrics.json"]
