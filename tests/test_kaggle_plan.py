"""What a push would send: checked, described, and sent by nobody."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from kaggle_builds import WHEEL, write_build, write_kernel

from entrep.kaggle_plan import describe_plan, kernel_ref, load_plan

# Ends the process with status 99 when anything opens, names or uses a socket, whoever catches it.
NO_SOCKETS = """
import os, sys

def refuse(event, arguments):
    if event.startswith("socket."):
        print(event, file=sys.stderr, flush=True)
        os._exit(99)

sys.addaudithook(refuse)
from entrep.cli import main
status = main(sys.argv[1:])
assert "kaggle" not in sys.modules and "requests" not in sys.modules
sys.exit(status)
"""


@pytest.fixture
def build(tmp_path) -> Path:
    return write_build(tmp_path / "build")


def run_without_sockets(*arguments: str, environment: dict[str, str]):
    command = [sys.executable, "-c", NO_SOCKETS, "kaggle", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def offline_environment(folder: Path) -> dict[str, str]:
    secret = {"KAGGLE_USERNAME": "alice", "KAGGLE_KEY": "not-a-real-key-5f2a"}
    return {**os.environ, **secret, "KAGGLE_CONFIG_DIR": str(folder), "HOME": str(folder)}


@pytest.mark.parametrize(
    "arguments",
    [
        ("push", "entrep-submit"),
        ("push", "entrep-submit", "--datasets", "--wait"),
        ("submit-kernel", "entrep-submit/3", "--competition", "c", "--file", "f.zip", "-m", "m"),
    ],
    ids=["push", "push-datasets", "submit-kernel"],
)
def test_a_dry_run_opens_no_socket_and_does_not_import_the_client(build, tmp_path, arguments):
    environment = offline_environment(tmp_path)
    done = run_without_sockets(*arguments, "--build", str(build), environment=environment)
    assert done.returncode == 0, done.stderr
    assert "Dry run: nothing was sent." in done.stdout
    assert environment["KAGGLE_KEY"] not in done.stdout + done.stderr


def test_a_real_push_does_open_one(build, tmp_path):
    """Otherwise the test above could not fail."""
    pytest.importorskip("kaggle", reason="runs where the kaggle package is installed")
    environment = offline_environment(tmp_path)
    arguments = ("push", "entrep-submit", "--yes", "--build", str(build))
    done = run_without_sockets(*arguments, environment=environment)
    assert done.returncode == 99 and "socket." in done.stderr


def test_the_plan_says_all_that_is_sent(build):
    said = describe_plan(load_plan(build, "entrep-submit"), datasets=True)
    notebook = build / "kernels" / "entrep-submit" / "06_submission.ipynb"
    for words in (
        "Kernel alice/entrep-submit",
        "ENTRep submit",
        f"{notebook.stat().st_size:,} bytes",
        hashlib.sha256(notebook.read_bytes()).hexdigest(),
        "CPU, internet off",
        "you alone",
        "alice/entrep-kit (of this build)",
        "bob/pictures (must be on Kaggle)",
        "alice/entrep-train",
        "Data set alice/entrep-packs: sent unless Kaggle has it already",
        "apache-2.0",
        f"5 bytes  {hashlib.sha256(b'wheel').hexdigest()}  {WHEEL}",
        "MANIFEST.json",
    ):
        assert words in said


def test_the_plan_names_the_machine_and_what_stays_here(build):
    write_kernel(build, enable_gpu=True, machine_shape="NvidiaTeslaT4")
    said = describe_plan(load_plan(build, "entrep-submit"), datasets=False)
    assert "NvidiaTeslaT4, internet off" in said
    assert "Data set alice/entrep-kit: not sent without --datasets" in said


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda b: (b / WHEEL).write_bytes(b"other"), f"{WHEEL} has changed"),
        (lambda b: (b / WHEEL).unlink(), f"{WHEEL} is missing"),
        (lambda b: (b / "extra.txt").write_text("x"), "extra.txt is not listed"),
        (lambda b: (b / "folder").mkdir(), "folder: only plain files"),
        (lambda b: (b / "MANIFEST.json").write_text("{"), "no manifest of a build"),
        (lambda b: (b / "MANIFEST.json").write_text('{"files": 1}'), "no manifest of a build"),
        (lambda b: (b / "MANIFEST.json").write_text("[]"), "no manifest of a build"),
        (lambda b: (b / "MANIFEST.json").unlink(), "no manifest of a build"),
        (lambda b: (b / "dataset-metadata.json").write_text("{}"), "id: missing"),
    ],
)
def test_a_damaged_data_set_is_not_sent(build, damage, words):
    damage(build / "datasets" / "entrep-kit")
    with pytest.raises(ValueError, match=words):
        load_plan(build, "entrep-submit")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"enable_internet": True}, "enable_internet: expected false"),
        ({"id": "alice/other-name"}, "Kaggle makes the slug 'entrep-submit'"),
        ({"code_file": "../other.ipynb"}, "code_file: expected a notebook in this folder"),
        ({"dataset_source": []}, "there is no such key"),
    ],
)
def test_a_kernel_with_wrong_metadata_is_not_sent(build, changes, words):
    write_kernel(build, **changes)
    with pytest.raises(ValueError, match=words):
        load_plan(build, "entrep-submit")


def test_an_unknown_kernel_is_answered_with_those_that_are_built(build):
    with pytest.raises(FileNotFoundError, match="there are entrep-submit. Run 'entrep kaggle"):
        load_plan(build, "entrep-train")


def test_a_kernel_is_called_by_slug_owner_and_version(build):
    assert kernel_ref("entrep-submit", build) == "alice/entrep-submit"
    assert kernel_ref("entrep-submit/12", build) == "alice/entrep-submit/12"
    assert kernel_ref("carol/other", build) == "carol/other"
    assert kernel_ref("carol/other/3", build, versioned=True) == "carol/other/3"
    for wrong in ("a/b/c", "/other", "a//3"):
        with pytest.raises(ValueError, match="expected SLUG or OWNER/SLUG"):
            kernel_ref(wrong, build)
    with pytest.raises(ValueError, match="which version"):
        kernel_ref("entrep-submit", build, versioned=True)
