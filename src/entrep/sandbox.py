"""A program that finds its files below /kaggle, and neither the rest of the disk nor a network.

Three levels, from the most to the least faithful:

- `root`: Linux namespaces, made as root. `/kaggle` is really there, `/kaggle/input` cannot be
  written to, of the disk only the system's folders can be read, of networks only loopback is
  there, and an attempt of any program to leave the machine is noticed.
- `user`: the same as a normal user, where the system lets users make namespaces.
- `plain`: no namespaces. KAGGLE_ROOT says where `/kaggle` lies instead, and only Python programs
  are kept from the network and noticed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from entrep import namespace
from entrep.unplugged import DEAD_PORT, LOG_NAME

LEVELS = ("root", "user", "plain")
_SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "etc", "sys", "dev")
_FOLDERS = ("kaggle/input", "kaggle/working", "kaggle/temp", "tmp", "home", "root")
_NAMESPACES = ("--mount", "--net", "--pid", "--uts", "--ipc")
_NOWHERE = "192.0.2.1"  # an address that is nobody's, by RFC 5737


@dataclass(frozen=True)
class Sandbox:
    """One folder with all that a program may write, and what it may read besides.

    Attributes:
        level: one of `LEVELS`.
        folder: holds the interpreter (`preinstalled.make_interpreter`), and `_FOLDERS`.
        readable: folders that the interpreter's links lead to.
    """

    level: str
    folder: Path
    readable: tuple[Path, ...]

    @property
    def kaggle(self) -> Path:
        """The host's folder that the program knows as /kaggle."""
        return self.folder / "kaggle"

    @property
    def attempts(self) -> list[str]:
        """What was tried to leave the machine so far."""
        log = self.folder / "venv" / LOG_NAME
        return log.read_text(encoding="utf-8").splitlines() if log.is_file() else []

    def start(
        self, arguments: Sequence[str], environment: Mapping[str, str], **streams
    ) -> subprocess.Popen:
        """Start the interpreter in /kaggle/working, as the head of its own process group.

        Args:
            arguments: of Python.
            environment: all variables but those that say where things lie.
            streams: "stdout" and so on, of `subprocess.Popen`.
        """
        root = str(self.folder) if self.level == "plain" else "/"
        command = [os.path.join(root, "venv", "bin", "python"), *arguments]
        environment = {**environment, **self._places(root)}
        if self.level != "plain":
            plan = {"command": command, "environment": environment, **self._plan()}
            user = ["--map-root-user"] if self.level == "user" else []
            command = ["unshare", *user, *_NAMESPACES, "--fork", "--kill-child"]
            command += [sys.executable, "-I", namespace.__file__, json.dumps(plan)]
            path = (os.environ.get("PATH", ""), "/usr/sbin", "/sbin")  # where `mount` may be
            environment = {"PATH": os.pathsep.join(path)}
        return subprocess.Popen(
            command, cwd=self.kaggle / "working", env=environment, start_new_session=True, **streams
        )

    def _places(self, root: str) -> dict[str, str]:
        plain = self.level == "plain"
        home = os.path.join(root, "home") if plain else "/root"
        path = (os.path.join(root, "venv", "bin"), "/usr/bin", "/bin")
        places = {"PATH": os.pathsep.join(path), "HOME": home, "PYTHONUSERBASE": f"{home}/.local"}
        if plain:
            places |= {"KAGGLE_ROOT": str(self.kaggle), "TMPDIR": os.path.join(root, "tmp")}
            # For programs other than Python: most go where these say.
            names = ("http_proxy", "https_proxy", "all_proxy")
            places |= dict.fromkeys(names, f"http://127.0.0.1:{DEAD_PORT}")
            places["no_proxy"] = "localhost,127.0.0.1"
        return places

    def _plan(self) -> dict[str, object]:
        """The new root, as `namespace.enter` takes it."""
        # Each look-up leaves the machine, so that it is noticed.
        resolver = self.folder / "resolv.conf"
        resolver.write_text(f"nameserver {_NOWHERE}\n", encoding="utf-8")
        asked = [Path("/etc/resolv.conf").resolve()] if os.path.lexists("/etc/resolv.conf") else []
        system = [Path("/", name) for name in _SYSTEM if Path("/", name).exists()]
        python = [Path(sys.base_prefix), Path(sys.base_exec_prefix), *self.readable]
        python = [p for p in dict.fromkeys(python) if not any(p.is_relative_to(s) for s in system)]
        binds = [
            *((path, path, path.name == "dev") for path in system),
            *((resolver, path, False) for path in asked),
            (self.folder / "venv", "/venv", True),
            (self.folder / "image", "/image", False),
            (self.folder / "tmp", "/tmp", True),
            (self.folder / "home", "/root", True),
            (self.kaggle / "working", "/kaggle/working", True),
            (self.kaggle / "temp", "/kaggle/temp", True),
            (self.kaggle / "input", "/kaggle/input", False),
            *((path, path, False) for path in python),  # last: they may lie below /root or /tmp
        ]
        return {
            "root": str(self.folder / "root"),
            "binds": [(str(source), str(place), writable) for source, place, writable in binds],
            "folder": "/kaggle/working",
            "log": f"/venv/{LOG_NAME}",
        }


def open_sandbox(folder: Path, readable: tuple[Path, ...], level: str = "auto") -> Sandbox:
    """A sandbox of the most faithful level that works here, which is found out by trying.

    Args:
        folder: see `Sandbox`; its interpreter is there already.
        readable: see `Sandbox`.
        level: one of `LEVELS` for that and no other, or "auto".

    Raises:
        ValueError: if there is no such level.
        RuntimeError: if the level, or each of them, does not work; the message says why.
    """
    if level not in ("auto", *LEVELS):
        raise ValueError(f"level: expected auto, {', '.join(LEVELS)}; got {level!r}.")
    for name in _FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    reasons = []
    for name in LEVELS if level == "auto" else (level,):
        sandbox = Sandbox(name, folder, readable)
        reason = _why_not(sandbox)
        if not reason:
            return sandbox
        reasons.append(f"A sandbox of level {name!r} does not work here: {reason}.")
        if level == "auto":
            print(reasons[-1], flush=True)
    raise RuntimeError(" ".join(reasons))


# Run in each level before it is trusted: loopback carries, attempts to leave are noticed, inputs
# are safe, and the kit is not there before its bundle is installed.
_CHECK = """
import importlib.util, os, socket, sys
with socket.create_server(("127.0.0.1", 0)) as server:
    socket.create_connection(server.getsockname()).close()
if "unplugged" not in sys.modules:
    sys.exit("Python starts without noticing what leaves the machine")
if importlib.util.find_spec("entrep"):
    sys.exit("the kit can be imported without its bundle")
if "KAGGLE_ROOT" not in os.environ and os.access("/kaggle/input", os.W_OK):
    sys.exit("/kaggle/input can be written to")
"""


def _why_not(sandbox: Sandbox) -> str:
    """Why a level does not work here; empty if it does."""
    if sandbox.level == "root" and os.geteuid() != 0:
        return "it wants root"
    if sandbox.level != "plain" and not shutil.which("unshare"):
        return "there is no program unshare (Linux, package util-linux)"
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = sandbox.start(["-c", _CHECK], {}, **streams)
    try:
        output, _ = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        return "it does not answer within 60 s"
    finally:
        stop(process)
    lines = output.strip().splitlines() or [f"exit status {process.returncode}"]
    return lines[-1].rstrip(".") if process.returncode else ""


def stop(process: subprocess.Popen) -> None:
    """Kill what is left of a started program's group, and with a namespace all that is in it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # all have ended by themselves
    process.wait()
