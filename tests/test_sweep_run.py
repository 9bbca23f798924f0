"""A sweep at work, on two tiny notebooks: failures, kills, retries, the table."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from test_runner import write_notebook

from entrep import cli, sweep
from entrep.notebook import RunError
from entrep.pipeline import Step
from entrep.runner import claim_folder, run
from entrep.sweep import make_plan
from entrep.sweep_node import LocalProcesses, Outcome
from entrep.sweep_run import choose_threads, find_finished, make_task, open_sweep, run_sweep

STEPS = (Step("01_first"), Step("02_second", upstream=("01_first",)))
FIRST = "write_json(folder / 'metrics.json', {'seed': seed})"
# What a parameter plants, until the file MENDED is there.
SECOND = """\
import os, signal
if not Path({mended!r}).exists():
    if epochs == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if epochs == 2:
        raise ValueError('the disc is dark')
    if epochs == 3:
        Path('/dev/full').write_text('x')  # a disk without room
scores = {{'accuracy': epochs / 10, 'threads': int(os.environ['OMP_NUM_THREADS'])}}
write_text(folder / 'predictions.csv', f'answers of {{epochs}}')
write_json(folder / 'metrics.json', {{'heldout': scores}})
"""
posix = pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals; runs on Linux and macOS")


@pytest.fixture
def notebooks(tmp_path: Path) -> Path:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    write_notebook(folder, "01_first", "", FIRST)
    body = SECOND.format(mended=str(tmp_path / "mended"))
    write_notebook(folder, "02_second", "epochs: int = None\nthreads: int = None", body)
    return folder


@pytest.fixture
def command(notebooks, tmp_path, monkeypatch) -> list[str]:
    """`entrep sweep` of the tiny notebooks."""
    monkeypatch.setitem(make_plan.__kwdefaults__, "steps", STEPS)
    place = ["--out", str(tmp_path / "sweep"), "--notebooks", str(notebooks)]
    return ["sweep", *place, "--threads", "1"]


def plan_of(notebooks: Path, out: Path, **axes) -> sweep.Plan:
    return make_plan(axes, out, notebooks=notebooks, steps=STEPS)


def events_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines() if line]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="runs where there is /dev/full: Linux")
def test_crash_exception_and_full_disk_cost_their_runs_only(command, tmp_path, capsys):
    command = [*command, "-p", "epochs=1,2,3,4"]
    assert cli.main(command) == 1
    out = tmp_path / "sweep"
    table = pd.read_parquet(out / "table.parquet").set_index("epochs")
    assert table["status"].to_dict() == {1: "failed", 2: "failed", 3: "failed", 4: "done"}
    assert "02_second: its kernel stopped" in table["reason"][1]
    assert (
        "02_second failed in cell In [3] (section 'Write it'), ValueError: the disc is dark"
        in (table["reason"][2])
    )
    assert "OSError: [Errno 28] No space left on device" in table["reason"][3]
    assert table["02_second.heldout.accuracy"].to_dict()[4] == 0.4
    assert table["02_second.heldout.accuracy"].isna().sum() == 3
    assert table["02_second.heldout.threads"][4] == table["threads"][4] == 1
    assert (table["peak_gb"] > 0).all()
    assert "Runs: 1 done, 3 failed" in capsys.readouterr().out
    assert any("the disc is dark" in log.read_text() for log in out.glob("steps/*.log"))

    (tmp_path / "mended").touch()
    assert cli.main(command) == 0
    table = pd.read_csv(out / "table.csv").set_index("epochs")
    assert set(table["status"]) == {"done"} and table["reason"].isna().all()
    assert table["attempts"].to_dict() == {1: 2, 2: 2, 3: 2, 4: 1}
    assert table["sha256.02_second/predictions.csv"].nunique() == 4
    started = Counter(e["notebook"] for e in events_of(out) if e["event"] == "started")
    assert started == {"01_first": 1, "02_second": 7}


KILLED = """\
import sys
sys.path.insert(0, sys.argv[1])
from test_sweep_run import STEPS, cli, make_plan
make_plan.__kwdefaults__["steps"] = STEPS
sys.exit(cli.main(sys.argv[2:]))
"""


@posix
def test_a_killed_sweep_goes_on_and_nothing_is_lost_or_done_twice(command, tmp_path):
    command = [*command, "-p", "epochs=4", "--seeds", "0-1"]
    (tmp_path / "mended").touch()
    out = tmp_path / "sweep"
    here = str(Path(__file__).parent)
    process = subprocess.Popen([sys.executable, "-c", KILLED, here, *command])
    deadline = time.monotonic() + 120
    while not any(path.exists() for path in out.glob("steps/*/02_second/metrics.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()

    assert cli.main(command) == 0
    table = pd.read_csv(out / "table.csv")
    assert len(table) == 2 and set(table["status"]) == {"done"}
    ends = Counter()
    for event in events_of(out):
        assert event["event"] != "started" or not ends[event["node"]], "done, and started again"
        ends[event["node"]] += event["event"] in ("finished", "found")
    assert sorted(ends.values()) == [1] * 4
    assert (table["attempts"] <= 2).all()


def test_a_run_of_a_sweep_is_a_run_folder_like_any_other(notebooks, tmp_path):
    (tmp_path / "mended").touch()
    plan = plan_of(notebooks, tmp_path / "sweep", epochs=(4,))
    with open_sweep(plan), LocalProcesses(1) as processes:
        assert run_sweep(plan, processes.submit, jobs=1) == [""]
    folder = plan.run_folder(plan.runs[0])
    moved = folder.rename(tmp_path / "moved")
    same = {"out": moved, "notebooks": notebooks, "steps": STEPS}
    given = {"epochs": 4, "threads": 1}
    assert set(run(**same, parameters=given).values()) == {"unchanged"}
    assert (moved / "SHA256SUMS").is_file()
    assert json.loads((moved / "config.json").read_text())["epochs"] == 4
    assert find_finished(plan) == set(plan.nodes)
    # Another run of the same sweep would share notebook 01, and only that.
    more = plan_of(notebooks, tmp_path / "sweep", epochs=(4, 5))
    assert find_finished(more) == set(plan.nodes) and len(more.nodes) == 3


def failing(reason: str, asked: list):
    """An executor whose every task fails."""

    def submit(task):
        asked.append(task.arguments["only"])
        future = Future()
        future.set_result(Outcome(reason))
        return future

    return submit


def test_retries_are_counted_and_what_lies_downstream_is_not_tried(notebooks, tmp_path):
    plan = plan_of(notebooks, tmp_path / "sweep", seed=(0, 1), epochs=(4, 5))
    asked = []
    with open_sweep(plan):
        reasons = run_sweep(plan, failing("no luck", asked), jobs=2, retries=2)
    assert reasons == ["01_first: no luck"] * 4
    assert asked == [["01_first"]] * 6
    table = pd.read_csv(plan.out / "table.csv")
    assert table["attempts"].tolist() == [3] * 4


def test_what_fails_on_a_full_disk_leaves_room_for_the_others(notebooks, tmp_path, monkeypatch):
    plan = plan_of(notebooks, tmp_path / "sweep", epochs=(4,))
    left = plan.node_folder(next(iter(plan.nodes.values()))) / "01_first" / "half.bin"
    for free, kept in ((10**9, True), (10**6, False)):
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr("entrep.sweep_run.shutil.disk_usage", lambda _, found=usage: found)
        with open_sweep(plan):
            left.parent.mkdir(parents=True, exist_ok=True)
            left.write_bytes(b"half")
            run_sweep(plan, failing("No space left on device", []), jobs=1)
        assert left.exists() == kept


def test_a_process_that_takes_more_than_its_part_of_the_memory_is_ended(notebooks, tmp_path):
    plan = plan_of(notebooks, tmp_path / "sweep", epochs=(4,))
    with open_sweep(plan), LocalProcesses(1, memory_gb=0.02) as processes:
        outcome = processes.submit(make_task(plan, next(iter(plan.nodes.values())))).result()
    assert "more than its part of 0.02 GB" in outcome.reason
    assert outcome.peak_gb > 0.02


def test_two_sweeps_do_not_share_a_folder(command, tmp_path, capsys):
    with claim_folder(tmp_path / "sweep"):
        (tmp_path / "sweep" / "sweep.json").write_text('{"threads": 1}')
        assert cli.main(command) == 1
    assert "another run or sweep is at work in this folder" in capsys.readouterr().err
    assert not (tmp_path / "sweep" / "log.jsonl").exists()


def test_a_folder_of_somebody_elses_is_left_alone(notebooks, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    with pytest.raises(RunError, match="is no sweep's folder"):
        with open_sweep(plan_of(notebooks, tmp_path / "thesis")):
            pass
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]


def test_a_sweep_keeps_its_threads_when_it_goes_on_with_other_jobs(tmp_path):
    cores = sweep.count_cores()
    assert choose_threads(tmp_path, 0, jobs=cores) == 1
    assert choose_threads(tmp_path, 0, jobs=2 * cores) == 1
    (tmp_path / "sweep.json").write_text('{"threads": 3}')
    assert choose_threads(tmp_path, 0, jobs=1) == 3
    assert choose_threads(tmp_path, 5, jobs=1) == 5


def test_a_line_that_a_kill_cut_off_does_not_spoil_the_log(notebooks, tmp_path):
    plan = plan_of(notebooks, tmp_path / "sweep", epochs=(4,))
    with open_sweep(plan):
        (plan.out / "log.jsonl").write_text('{"event": "started", "node": "a')
        run_sweep(plan, failing("no luck", []), jobs=1)
    lines = (plan.out / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines[1:]] == ["started", "failed"]
