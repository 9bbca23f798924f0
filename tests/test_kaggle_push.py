"""Push, status, output and submission against a fake Kaggle, the official client in between."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from fake_kaggle import KEY, TOKEN, fake_kaggle
from kaggle_builds import WHEEL, write_build, write_dataset, write_kernel

from entrep import kaggle_client, kaggle_push
from entrep.cli import main

SUBMIT = ("submit-kernel", "entrep-submit/3", "--competition", "entrep", "--yes")
SUBMIT += ("--file", "track1.zip", "-m", "first try")
PUSH = ("push", "entrep-submit", "--yes", "--datasets", "--timeout-min", "0.5")
KIT, PACKS = "alice/entrep-kit", "alice/entrep-packs"

# Ends the process when it looks for anything but this machine, whoever catches an exception.
LOOPBACK_ONLY = """
import os, sys

def refuse(event, arguments):
    host = {"socket.connect": 1, "socket.sendto": 1, "socket.getaddrinfo": 0}.get(event)
    if host is not None:
        name = arguments[host] if event == "socket.getaddrinfo" else arguments[host][0]
        if name not in ("127.0.0.1", "localhost"):
            print(event, name, file=sys.stderr, flush=True)
            os._exit(99)

sys.addaudithook(refuse)
from entrep.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    """A fake Kaggle that the client in this process asks; no other address can be reached."""
    home = tmp_path / "home"
    home.mkdir()
    for name in list(os.environ):
        if name.startswith(("KAGGLE_", "VERBOSE")):
            monkeypatch.delenv(name)
    connect, resolve = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self, address):
        assert address[0] == "127.0.0.1", f"a real request, to {address}"
        return connect(self, address)

    def guarded_resolve(host, *arguments, **options):
        assert host == "127.0.0.1", f"a real request, to {host}"
        return resolve(host, *arguments, **options)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_resolve)
    with fake_kaggle() as server:
        for name, value in server.environment(home).items():
            monkeypatch.setenv(name, value)
        pytest.importorskip("kaggle", reason="runs where the kaggle package is installed")
        from kaggle.api.kaggle_api_extended import KaggleApi

        # What the class reads of the environment when it is first imported, maybe long ago.
        monkeypatch.setattr(KaggleApi, "args", ["--local"])
        monkeypatch.setattr(KaggleApi, "config_dir", str(home))
        monkeypatch.setattr(KaggleApi, "config", str(home / "kaggle.json"))
        monkeypatch.setattr(tempfile, "tempdir", str(home))
        monkeypatch.setattr(kaggle_client, "POLL_S", 0.01)
        monkeypatch.setattr(kaggle_push, "LISTED_S", 0.1)
        yield server
        assert not server.called("CONNECT")


@pytest.fixture
def build(tmp_path) -> Path:
    return write_build(tmp_path / "build")


@pytest.fixture
def run(kaggle, build, capsys):
    """Runs `entrep kaggle ...`; gives the status and all that was printed."""

    def run(*arguments: str) -> tuple[int, str]:
        status = main(["kaggle", *arguments, "--build", str(build)])
        out, err = capsys.readouterr()
        assert KEY not in out + err and TOKEN not in out + err
        return status, out + err

    return run


def contents(build: Path, ref: str) -> dict[str, bytes]:
    folder = build / "datasets" / ref.split("/")[1]
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "dataset-metadata.json"}


def publish(kaggle, build: Path) -> None:
    for ref in (KIT, PACKS):
        kaggle.datasets[ref] = contents(build, ref)


# Push


def test_a_push_sends_data_sets_then_the_kernel_and_waits_for_the_run(kaggle, build, run):
    kaggle.statuses[PACKS] = ["NOT_YET_PERSISTED", "BLOBS_RECEIVED"]
    kaggle.runs = [("QUEUED", ""), ("RUNNING", ""), ("RUNNING", ""), ("COMPLETE", "")]
    status, said = run(*PUSH, "--wait")
    assert status == 0
    for state in ("not yet persisted", "blobs received", "as built"):
        assert f"Data set {PACKS}: {state}" in said
    for state in ("QUEUED", "RUNNING", "COMPLETE"):
        assert f"Kernel alice/entrep-submit/1: {state}" in said
    assert kaggle.datasets == {ref: contents(build, ref) for ref in (KIT, PACKS)}
    assert all(body["isPrivate"] for body in kaggle.called("CreateDataset"))
    order = [name for name, _ in kaggle.calls]
    assert max(i for i, name in enumerate(order) if name == "ListDatasetFiles") < order.index(
        "SaveKernel"
    )
    (sent,) = kaggle.kernels["alice/entrep-submit"]
    assert sent["enableInternet"] is False and sent["isPrivate"] is True
    assert json.loads(sent["text"])["cells"][0]["source"] == "import entrep\nprint(1)"
    assert {body["versionLabel"] for body in kaggle.called("GetKernelSessionStatus")} == {"v1"}


def test_a_second_push_sends_only_what_changed(kaggle, build, run):
    assert run(*PUSH)[0] == 0
    kaggle.calls.clear()
    write_dataset(build, PACKS, {"weights.bin": b"better"})
    kaggle.late = {PACKS}  # Kaggle goes on calling the previous version ready for a while
    status, said = run(*PUSH)
    assert status == 0, said
    kaggle.late = set()
    assert [body["name"] for body in kaggle.called("StartBlobUpload")].count("weights.bin") == 1
    assert not kaggle.called("CreateDataset")
    assert [body["datasetSlug"] for body in kaggle.called("CreateDatasetVersion")] == [
        "entrep-packs"
    ]
    assert kaggle.datasets[PACKS] == contents(build, PACKS)
    assert "version 2 is on its way" in said


def test_without_datasets_the_kernel_goes_only_where_its_data_sets_are(kaggle, build, run):
    status, said = run("push", "entrep-submit", "--yes")
    assert status == 1 and "alice/entrep-kit: not there on Kaggle; send it with --datasets" in said
    publish(kaggle, build)
    kaggle.datasets[PACKS]["MANIFEST.json"] = b"{}"
    status, said = run("push", "entrep-submit", "--yes")
    assert status == 1 and f"{PACKS}: another version on Kaggle" in said
    del kaggle.datasets[PACKS]["MANIFEST.json"]
    status, said = run("push", "entrep-submit", "--yes")
    assert status == 1 and f"{PACKS}: another version on Kaggle" in said
    assert not kaggle.kernels
    publish(kaggle, build)
    assert run("push", "entrep-submit", "--yes")[0] == 0
    assert not kaggle.called("StartBlobUpload")


def test_an_upload_that_breaks_off_goes_on_where_it_stopped(kaggle, build, run):
    kaggle.uploads["weights.bin"] = [503, 503]
    assert run(*PUSH)[0] == 0
    assert kaggle.datasets[PACKS] == contents(build, PACKS)
    sent = [call for call in kaggle.called("PUT") if call["name"] == "weights.bin"]
    assert [call["range"] for call in sent] == [
        "",
        "bytes */10240",
        "bytes 5120-10239/10240",
        "bytes */10240",
        "bytes 7680-10239/10240",
    ]
    assert sum(call["bytes"] for call in sent) == 10240 + 5120 + 2560


def test_a_client_that_is_told_to_slow_down_does(kaggle, run):
    busy = (429, {"code": 429, "message": "Too many requests"}, {"Retry-After": "0.01"})
    kaggle.answers = {"StartBlobUpload": [busy, busy], "CreateDataset": [busy]}
    assert run(*PUSH)[0] == 0
    assert kaggle.kernels


def refused(code: int, message: str = "no", **headers: str):
    return code, {"code": code, "message": message}, headers


LATER = {"Retry-After": "7"}
SAVED = {"versionNumber": 4, "url": "https://kaggle.example/4"}
FAULTS = {
    "error-in-200": ("SaveKernel", (200, {"error": "Maximum batch GPU"}), ["Maximum", "two GPU"]),
    "code-in-200": ("SaveKernel", (200, {"code": 409, "message": "x"}), ["(409)", "kernels.py"]),
    "no-version": ("SaveKernel", (200, {"url": "u"}), ["no version", "its page"]),
    "data-set": (
        "SaveKernel",
        (200, {"invalidDatasetSources": ["bob/pictures"], **SAVED}),
        ["bob/pictures", "not shared", "not ready", "Version 4", "cancel"],
    ),
    "competition": (
        "SaveKernel",
        (200, {"invalidCompetitionSources": ["entrep"], **SAVED}),
        ["entrep (competitions: ", "rules not accepted"],
    ),
    "kernel": (
        "SaveKernel",
        (200, {"invalidKernelSources": ["alice/entrep-train"], **SAVED}),
        ["alice/entrep-train", "push these first"],
    ),
    "model": (
        "SaveKernel",
        (200, {"invalidModelSources": ["a/b/c/d/1"], **SAVED}),
        ["a/b/c/d/1", "OWNER/MODEL/FRAMEWORK/VARIATION/VERSION"],
    ),
    "tags": (
        "SaveKernel",
        (200, {"invalidTags": ["x"], **SAVED}),
        ["x (keywords", "take them out"],
    ),
    "too-large": ("SaveKernel", refused(400), ["0.9 MB", "smaller"]),
    "unauthorised": ("SaveKernel", refused(401), ["does not accept the login", "settings/api"]),
    "forbidden": ("SaveKernel", refused(403), ["may not do that", "owner"]),
    "not-found": ("SaveKernel", refused(404, "Notebook not found"), ["Notebook not found", "slug"]),
    "slug-conflict": ("SaveKernel", refused(409), ["taken", "title in kaggle/kernels.py"]),
    "too-many": (
        "SaveKernel",
        refused(429, **LATER),
        ["Retry-After 7", "run the same command again"],
    ),
    "trouble": ("SaveKernel", (502, {}), ["(502)", "in trouble"]),
    "data-set-refused": ("CreateDataset", (200, {"error": "bad licence"}), ["bad licence", KIT]),
    "data-set-conflict": ("CreateDataset", refused(409), ["taken", KIT]),
    "upload-forbidden": ("StartBlobUpload", refused(403), ["may not do that", KIT]),
    "status-unauthorised": ("GetDatasetStatus", refused(401), ["does not accept the login"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_kaggle_refuses_fails_with_the_mend(kaggle, run, fault):
    method, answer, words = FAULTS[fault]
    kaggle.answers[method] = [answer]
    status, said = run(*PUSH)
    assert status == 1
    assert "entrep: error: " in said
    message = said.partition("entrep: error: ")[2]
    assert all(word in message for word in words), message
    assert "on its way" not in said
    assert len(kaggle.called("SaveKernel")) == (method == "SaveKernel")


def test_a_file_that_cannot_be_uploaded_stops_the_push(kaggle, run):
    kaggle.uploads["weights.bin"] = [400]
    status, said = run(*PUSH)
    assert status == 1 and f"{PACKS}: Upload unsuccessful: weights.bin" in said
    assert KIT in kaggle.datasets and PACKS not in kaggle.datasets | kaggle.waiting
    assert not kaggle.kernels
    assert run(*PUSH)[0] == 0
    assert len(kaggle.called("CreateDataset")) == 2


def test_a_file_that_kaggle_lost_stops_the_push(kaggle, run):
    kaggle.lost = {WHEEL}
    status, said = run(*PUSH)
    assert status == 1 and f"{KIT}: without {WHEEL} on Kaggle" in said
    assert not kaggle.kernels
    kaggle.lost = set()
    assert run(*PUSH)[0] == 0
    assert len(kaggle.called("CreateDatasetVersion")) == 1


@pytest.mark.parametrize(
    ("statuses", "words"),
    [
        (["FAILED"], "failed on Kaggle; see its page"),
        (["BLOBS_RECEIVED"] * 999, "blobs received after 0 min. It may still go on"),
    ],
)
def test_a_data_set_that_never_gets_ready_stops_the_push(kaggle, run, statuses, words):
    kaggle.statuses[KIT] = statuses
    status, said = run(*PUSH, "--timeout-min", "0.001")
    assert status == 1 and f"Data set {KIT}: " in said and words in said
    assert not kaggle.kernels


def test_a_build_for_another_owner_is_not_sent(kaggle, build, run):
    write_kernel(build, owner="carol")
    status, said = run(*PUSH)
    assert status == 1 and "entrep kaggle build --owner alice" in said
    assert not kaggle.calls


# Login


def test_a_missing_login_is_one_message_that_says_how_to_get_one(kaggle, run, monkeypatch):
    monkeypatch.delenv("KAGGLE_KEY")
    status, said = run(*PUSH)
    message = said.partition("entrep: error: ")[2]
    assert status == 1 and "There is no valid login" in message and "settings/api" in message
    assert "Authentication required" not in said  # the client's own page of help
    assert not kaggle.calls


def test_a_token_is_a_login_unless_it_has_run_out(kaggle, run, monkeypatch):
    monkeypatch.delenv("KAGGLE_KEY")
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    assert run("status", "entrep-submit")[0] == 0
    monkeypatch.setenv("KAGGLE_API_TOKEN", f"old-{TOKEN}")
    status, said = run("status", "entrep-submit")
    assert status == 1 and "There is no valid login" in said


def test_the_login_is_not_printed_even_if_the_client_is_told_to_talk(kaggle, run, monkeypatch):
    import base64

    from kaggle.api.kaggle_api_extended import KaggleApi

    monkeypatch.setattr(KaggleApi, "args", ["--local", "--verbose"])
    status, said = run(*PUSH)
    assert status == 0 and kaggle.kernels
    assert base64.b64encode(f"alice:{KEY}".encode()).decode() not in said
    assert "Authorization" not in said


def test_without_the_client_one_message_says_what_to_install(kaggle, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaggle.api.kaggle_api_extended", None)
    status, said = run(*PUSH)
    assert status == 1 and "pip install 'entrep[kaggle]'" in said


def test_an_unreachable_kaggle_is_said_plainly(kaggle, run, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("HTTP_PROXY", nobody)
    monkeypatch.setenv("http_proxy", nobody)
    status, said = run("status", "entrep-submit")
    assert status == 1 and "no connection to Kaggle" in said


# Status


@pytest.mark.parametrize("state", ["QUEUED", "RUNNING", "COMPLETE"])
def test_status_shows_how_the_run_goes(kaggle, run, state):
    kaggle.runs = [(state, "")]
    assert run("status", "entrep-submit") == (0, f"Kernel alice/entrep-submit: {state}\n")


@pytest.mark.parametrize("state", ["ERROR", "CANCEL_REQUESTED", "CANCEL_ACKNOWLEDGED"])
@pytest.mark.parametrize("wait", [(), ("--wait",)], ids=["once", "wait"])
def test_a_run_that_failed_fails_with_kaggles_reason(kaggle, run, state, wait):
    kaggle.runs = [("RUNNING", "")] * len(wait) + [(state, "out of memory")]
    status, said = run("status", "entrep-submit", *wait)
    assert status == 1 and f"ended with {state}: out of memory" in said
    assert "entrep kaggle output alice/entrep-submit" in said


def test_waiting_outlasts_a_short_failure_of_kaggle(kaggle, run):
    fine = (200, {"status": "RUNNING"})
    kaggle.answers["GetKernelSessionStatus"] = [fine, (503, {}), refused(429), refused(500)]
    status, said = run("status", "entrep-submit/2", "--wait")
    assert status == 0
    assert "no answer" in said and "Kernel alice/entrep-submit/2: COMPLETE" in said


def test_a_kaggle_that_never_answered_is_not_waited_for(kaggle, run):
    kaggle.answers["GetKernelSessionStatus"] = [(503, {})]
    status, said = run("status", "entrep-submit", "--wait")
    assert status == 1 and "(503)" in said and "in trouble" in said


def test_waiting_ends_at_its_limit(kaggle, run):
    kaggle.runs = [("RUNNING", "")]
    status, said = run("status", "entrep-submit", "--wait", "--timeout-min", "0.001")
    assert status == 1 and "RUNNING after 0 min" in said


def test_a_kernel_that_kaggle_does_not_show_is_not_waited_for(kaggle, run):
    kaggle.answers["GetKernelSessionStatus"] = [refused(403, "Permission was denied")]
    status, said = run("status", "entrep-submit", "--wait")
    assert status == 1 and "Permission was denied (403)" in said and "owner" in said
    assert "benchmark" not in said  # the client's own guess


# Output


def with_outputs(kaggle) -> dict[str, bytes]:
    files = {f"submissions/track{i}.zip": f"track {i}".encode() for i in (1, 2, 3)}
    files["figure 1.png"] = b"png"
    kaggle.outputs, kaggle.page = list(files.items()), 3
    return files


def local_run(folder: Path, **changes: bytes) -> Path:
    (folder / "submissions").mkdir(parents=True)
    for i in (1, 2, 3):
        content = changes.get(f"track{i}", f"track {i}".encode())
        (folder / "submissions" / f"track{i}.zip").write_bytes(content)
    return folder


def test_output_fetches_all_pages_and_the_same_submissions_pass(kaggle, run, tmp_path):
    files = with_outputs(kaggle)
    to, here = tmp_path / "fetched", local_run(tmp_path / "run")
    status, said = run("output", "entrep-submit", "--to", str(to), "--compare", str(here))
    assert status == 0, said
    assert len(kaggle.called("ListKernelSessionOutput")) == 2
    found = {path.relative_to(to).as_posix() for path in to.rglob("*") if path.is_file()}
    assert found == {*files, "entrep-submit.log"}
    assert all((to / name).read_bytes() == content for name, content in files.items())
    digest = hashlib.sha256(b"track 2").hexdigest()
    assert f"track2.zip    {digest}  {digest}  same" in said
    assert not list(tmp_path.glob(".fetched-*"))


def test_output_says_which_submissions_differ(kaggle, run, tmp_path):
    with_outputs(kaggle)
    to, here = tmp_path / "fetched", local_run(tmp_path / "run", track3=b"other")
    status, said = run("output", "entrep-submit", "--to", str(to), "--compare", str(here))
    assert status == 1
    assert "entrep: error: track3.zip: not the bytes of the local run" in said
    assert [line.split()[-1] for line in said.splitlines() if line.startswith("track")] == [
        "same",
        "same",
        "DIFFERENT",
    ]


def test_a_missing_submission_is_a_difference(kaggle, run, tmp_path):
    with_outputs(kaggle)
    del kaggle.outputs[0]
    here = local_run(tmp_path / "run")
    arguments = ("--to", str(tmp_path / "fetched"), "--compare", str(here))
    status, said = run("output", "entrep-submit", *arguments)
    assert status == 1 and "track1.zip: not the bytes" in said


@pytest.mark.parametrize("name", ["../escaped.txt", "/escaped.txt", "a/../../../escaped.txt"])
def test_a_file_name_cannot_leave_the_folder(kaggle, run, tmp_path, name):
    name = name if name[0] != "/" else str(tmp_path / "escaped.txt")
    kaggle.outputs = [("fine.txt", b"fine"), (name, b"gotcha")]
    status, said = run("output", "entrep-submit", "--to", str(tmp_path / "deep" / "fetched"))
    assert status == 1 and "Refusing to download" in said
    assert not [path for path in tmp_path.rglob("*") if path.name in ("escaped.txt", "fine.txt")]
    assert not (tmp_path / "deep" / "fetched").exists()


def test_output_does_not_write_over_what_is_there(kaggle, run, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    status, said = run("output", "entrep-submit", "--to", str(tmp_path))
    assert status == 2 and "give a new or empty folder" in said
    assert not kaggle.calls or not kaggle.called("ListKernelSessionOutput")


def test_output_wants_a_run_to_compare_with_before_it_downloads(kaggle, run, tmp_path):
    arguments = ("--to", str(tmp_path / "fetched"), "--compare", str(tmp_path))
    status, said = run("output", "entrep-submit", *arguments)
    assert status == 2 and "holds no submissions; give the folder of a run" in said
    assert not kaggle.calls


# Submission of a kernel


def test_a_submission_is_confirmed_by_the_list(kaggle, run):
    status, said = run(*SUBMIT)
    assert status == 0 and "listed, PENDING" in said
    (sent,) = kaggle.called("CreateCodeSubmission")
    assert sent == {
        "competitionName": "entrep",
        "kernelOwner": "alice",
        "kernelSlug": "entrep-submit",
        "kernelVersion": 3,
        "fileName": "track1.zip",
        "submissionDescription": "first try",
    }


def test_a_submission_that_is_not_listed_has_failed(kaggle, run):
    kaggle.submissions = None
    status, said = run(*SUBMIT)
    assert status == 1 and "not in the list yet" in said and "no such output file" in said


def test_an_earlier_submission_of_the_same_name_does_not_count(kaggle, run):
    assert run(*SUBMIT)[0] == 0
    kaggle.answers["CreateCodeSubmission"] = [(200, {"message": "limit reached"})]
    status, said = run(*SUBMIT)
    assert status == 1 and "limit reached" in said


def test_a_submission_that_kaggle_refuses_fails_with_the_mend(kaggle, run):
    kaggle.answers["CreateCodeSubmission"] = [refused(403, "rules")]
    status, said = run(*SUBMIT)
    assert status == 1 and "rules accepted" in said


def test_a_submission_that_kaggle_cannot_score_fails_with_the_reason(kaggle, run):
    entry = {"ref": 7, "description": "first try", "status": "ERROR", "errorDescription": "no zip"}
    kaggle.answers["ListSubmissions"] = [(200, {}), (200, {"submissions": [entry]})]
    status, said = run(*SUBMIT)
    assert status == 1 and "could not score it: no zip" in said


# The whole way, as a user starts it


def test_the_command_reaches_kaggles_client_and_nothing_else(build, tmp_path):
    pytest.importorskip("kaggle", reason="runs where the kaggle package is installed")
    home = tmp_path / "home"
    home.mkdir()
    with fake_kaggle() as server:
        server.runs = [("COMPLETE", "")]
        with_outputs(server)
        kept = {k: v for k, v in os.environ.items() if not k.startswith("KAGGLE_")}
        environment = {**kept, **server.environment(home), "VERBOSE": "1"}

        def entrep(*arguments: str) -> subprocess.CompletedProcess:
            command = [sys.executable, "-c", LOOPBACK_ONLY, "kaggle", *arguments]
            command += ["--build", str(build)]
            return subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=120
            )

        done = entrep(*PUSH, "--wait")
        assert done.returncode == 0, done.stderr
        assert "version 1 is on its way" in done.stdout
        assert "Kernel alice/entrep-submit/1: COMPLETE" in done.stderr
        assert KEY not in done.stdout + done.stderr
        assert "Authorization" not in done.stdout + done.stderr
        here = local_run(tmp_path / "run")
        to = tmp_path / "fetched"
        done = entrep("output", "entrep-submit/1", "--to", str(to), "--compare", str(here))
        assert done.returncode == 0, done.stderr
        assert not server.called("CONNECT")
        # Without the fake's variables it would be Kaggle itself: the guard does its work.
        for name in ("KAGGLE_API_ENVIRONMENT", "HTTP_PROXY", "HTTPS_PROXY"):
            environment.pop(name)
            environment.pop(name.lower(), None)
        done = entrep("status", "entrep-submit")
        assert done.returncode == 99 and "socket.getaddrinfo" in done.stderr
