"""A sandbox holds what it promises at each level, or says why it cannot."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from entrep.preinstalled import make_interpreter
from entrep.sandbox import LEVELS, open_sandbox, stop
from entrep.unplugged import is_local

if sys.platform == "win32":
    pytest.skip("runs on Linux and macOS; Windows has no sandbox", allow_module_level=True)


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sandbox")
    return folder, make_interpreter(folder, ["tqdm"])


@pytest.fixture(scope="module", params=LEVELS)
def opened(request, interpreter):
    try:
        return open_sandbox(*interpreter, request.param)
    except RuntimeError as error:
        pytest.skip(f"runs where the system allows it; {error}")


@pytest.fixture
def sandbox(opened):
    """A sandbox in which nothing was attempted yet."""
    for log in opened.folder.glob("venv/*.log"):
        log.unlink()
    return opened


def run(sandbox, code: str, **variables: str) -> str:
    """What a program prints in a sandbox, to both streams."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = sandbox.start(["-c", code], variables, **streams)
    output = process.communicate(timeout=60)[0]
    stop(process)
    assert process.returncode == 0, output
    return output


def test_it_has_only_the_named_packages_and_no_way_to_the_repository(sandbox):
    code = """
import importlib.util, json, os, sys
names = ("tqdm", "numpy", "entrep", "pytest")
found = [name for name in names if importlib.util.find_spec(name)]
print(json.dumps([found, sys.path, os.path.exists("CHECKOUT")]))
"""
    checkout = str(Path(__file__).resolve().parents[1])
    found, path, seen = json.loads(run(sandbox, code.replace("CHECKOUT", checkout)))
    assert found == ["tqdm"]
    assert not any(place.startswith(checkout) for place in path)
    assert seen == (sandbox.level == "plain")


def test_its_environment_has_nothing_of_ours(sandbox, monkeypatch):
    monkeypatch.setenv("KAGGLE_KEY", "secret")
    code = "import os, json; print(json.dumps(dict(os.environ)))"
    variables = json.loads(run(sandbox, code, GIVEN="1"))
    places = {"PATH", "HOME", "PYTHONUSERBASE"}
    if sandbox.level == "plain":
        places |= {"KAGGLE_ROOT", "TMPDIR", "http_proxy", "https_proxy", "all_proxy", "no_proxy"}
    assert variables.keys() - {"LC_CTYPE"} == places | {"GIVEN"}
    assert variables["HOME"] != os.environ.get("HOME") or sandbox.level != "plain"


def test_it_starts_in_a_working_folder_that_is_kept_and_has_scratch_that_is_not(sandbox):
    code = """
import os, tempfile
open("kept.txt", "w").write("x")
open("../temp/scratch.txt", "w").write("x")
print(os.getcwd(), tempfile.gettempdir())
"""
    folder, temporary = run(sandbox, code).split()
    if sandbox.level != "plain":
        assert (folder, temporary) == ("/kaggle/working", "/tmp")
    assert (sandbox.kaggle / "working" / "kept.txt").is_file()
    assert not (sandbox.kaggle / "working" / "scratch.txt").exists()


def test_inputs_cannot_be_written_to(sandbox):
    if sandbox.level == "plain":
        pytest.skip("runs with namespaces; at this level the simulation compares hashes")
    (sandbox.kaggle / "input" / "a.txt").write_text("a")
    code = """
import os
for way in (lambda: open("/kaggle/input/a.txt", "a"), lambda: os.remove("/kaggle/input/a.txt")):
    try:
        way()
        print("written")
    except OSError as error:
        print(error.strerror)
"""
    assert run(sandbox, code).splitlines() == ["Read-only file system"] * 2


ATTEMPTS = """
import socket, urllib.request
for attempt in (
    lambda: socket.create_connection(("192.0.2.1", 80)),
    lambda: socket.socket().connect_ex(("192.0.2.2", 80)),
    lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.3", 80)),
    lambda: socket.gethostbyname("example.org"),
    lambda: urllib.request.urlopen("http://example.com/"),
):
    try:
        attempt()
    except OSError as error:
        print(error)
"""


def test_attempts_to_leave_fail_and_are_noticed_though_they_are_swallowed(sandbox):
    assert run(sandbox, ATTEMPTS).count("no network") == 5
    proxy = sandbox.level == "plain"  # where a page is asked of the dead proxy
    for seen, place in zip(
        sandbox.attempts,
        [
            "192.0.2.1",
            "192.0.2.2",
            "192.0.2.3",
            "example.org",
            "port 9" if proxy else "example.com",
        ],
        strict=True,
    ):
        assert place in seen


@pytest.mark.skipif(not shutil.which("bash"), reason="runs where there is bash")
def test_an_attempt_of_another_program_is_noticed(sandbox):
    if sandbox.level == "plain":
        pytest.skip("runs with namespaces; at this level only Python's attempts are noticed")
    run(sandbox, "import os; os.system('bash -c \"exec 3<>/dev/tcp/192.0.2.1/80\"')")
    assert sandbox.attempts == ["the system counted 1"]


def test_loopback_is_no_attempt(sandbox):
    code = """
import socket
with socket.create_server(("localhost", 0)) as server:
    socket.create_connection(("127.0.0.1", server.getsockname()[1])).close()
print(socket.gethostbyname(socket.gethostname()) != "")
"""
    assert run(sandbox, code).strip() == "True"
    assert sandbox.attempts == []


@pytest.mark.parametrize(
    ("host", "port", "local"),
    [
        ("localhost", 80, True),
        ("127.0.1.1", 80, True),
        (b"::1", 80, True),
        ("::ffff:127.0.0.1", 80, True),
        (None, 0, True),
        ("127.0.0.1", 9, False),  # the dead proxy
        ("192.0.2.1", 80, False),
        ("localhost.example.org", None, False),
        ("::ffff:192.0.2.1", 80, False),
    ],
)
def test_local_is_this_machine_but_for_the_dead_proxy(host, port, local):
    assert is_local(host, port) == local


def test_a_level_that_does_not_work_is_passed_over_with_its_reason(
    interpreter, monkeypatch, capsys
):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert open_sandbox(*interpreter).level == "plain"
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "A sandbox of level 'root' does not work here: it wants root.",
        "A sandbox of level 'user' does not work here: "
        "there is no program unshare (Linux, package util-linux).",
    ]
    with pytest.raises(RuntimeError, match="'user' does not work here"):
        open_sandbox(*interpreter, "user")
    with pytest.raises(ValueError, match="expected auto, root, user, plain; got 'best'"):
        open_sandbox(*interpreter, "best")


def test_a_system_that_forbids_mounts_is_noticed_by_trying(interpreter, monkeypatch, tmp_path):
    forbidden = tmp_path / "mount"
    forbidden.write_text("#!/bin/sh\necho 'mount: permission denied.' >&2\nexit 1\n")
    forbidden.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(RuntimeError, match="'user' does not work here: "):
        open_sandbox(*interpreter, "user")
