#!/usr/bin/env python3
"""Run or test the ENTRep kit on a machine that has nothing but Python.

    python kit.py run  [options of `entrep run`]    the notebooks, from pictures to submissions
    python kit.py test [options of pytest]          the tests
    python kit.py notebooks                         the notebooks in Jupyter
    python kit.py setup                             only install

The first call makes a virtual environment in `.venv` beside this file (or in the folder that
the variable ENTREP_VENV names) and installs requirements.txt into it, with uv where it is on
the PATH, else with pip. Later calls start at once, until requirements.txt changes. Standard
library only.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent
OLDEST, NEWEST = (3, 11), (3, 13)
# Options of pytest: files of tests side by side; `-n 0` behind them runs one after the other.
SPREAD = ("-n", "logical", "--maxprocesses", "4", "--dist", "loadfile", "--no-loadscope-reorder")
DISK_GB = 8  # what an installation takes, PyTorch's GPU libraries on Linux included
MARK = ".entrep-kit"  # file in the environment: UNFINISHED, or the stamp of what it holds
MADE = ".entrep-kit-made"  # file in an environment of our own making; others are never cleared
UNFINISHED = "unfinished\n"
WINDOWS = os.name == "nt"


class StepFailed(Exception):
    """A step that did not work, with the way to mend it."""


def main(arguments: list[str]) -> int:
    command, rest = (arguments or [""])[0], arguments[1:]
    if command not in ("run", "test", "notebooks", "setup"):
        print(__doc__)
        return 0 if command in ("-h", "--help") else 2
    try:
        check_python()
        python = install(Path(os.environ.get("ENTREP_VENV") or ROOT / ".venv").absolute())
    except StepFailed as error:
        print(f"\nkit.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nkit.py: interrupted; the same command starts it again.", file=sys.stderr)
        return 130
    if command == "setup":
        print(f"Ready: {python}")
        return 0
    if command == "test":
        os.chdir(ROOT)  # where the tests and pytest's settings are
    module = {
        "run": ["entrep", "run"],
        "test": ["pytest", *SPREAD],
        "notebooks": ["jupyter", "lab", str(ROOT / "notebooks")],
    }[command]
    return hand_over([str(python), "-m", *module, *rest])


def check_python() -> None:
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        raise StepFailed(
            f"this is Python {sys.version.split()[0]}; the kit runs on Python 3.11, 3.12 and "
            "3.13.\nStart kit.py with one of them: `python3.12 kit.py ...`, on Windows "
            "`py -3.12 kit.py ...`, or `uv run --no-project --python 3.12 kit.py ...`."
        )


def install(venv: Path) -> Path:
    """Make sure that the environment is whole and up to date; give its Python."""
    python = venv / ("Scripts/python.exe" if WINDOWS else "bin/python")
    if is_ready(venv, python):
        return python
    with only_one(venv):
        if is_ready(venv, python):  # another kit.py did it while this one waited
            return python
        started = time.monotonic()
        make_environment(venv, python)
        write_mark(venv, UNFINISHED)
        install_packages(venv, python)
        write_mark(venv, stamp())
        print(f"Installed in {time.monotonic() - started:.0f} s.\n", flush=True)
    return python


def is_ready(venv: Path, python: Path) -> bool:
    return read_mark(venv) == stamp() and python.exists()


def stamp() -> str:
    """Change it, and the environment is brought up to date: files, Python, place of the kit."""
    digest = hashlib.sha256(f"{sys.version}\n{ROOT}\n".encode())
    for name in ("requirements.txt", "pyproject.toml"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest() + "\n"


def read_mark(venv: Path) -> str:
    try:
        return (venv / MARK).read_text(encoding="utf-8")
    except OSError:
        return ""


def write_mark(venv: Path, text: str) -> None:
    temporary = venv / f"{MARK}.new"
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, venv / MARK)


def make_environment(venv: Path, python: Path) -> None:
    """Leave a working environment of this Python in `venv`; clear our own if it is cut off."""
    found, ours = python_version(python), (venv / MADE).exists()
    if found == sys.version and not (ours and read_mark(venv) == UNFINISHED):
        return
    broken = (venv / "pyvenv.cfg").exists() and not found
    if not ours and not broken and venv.exists() and (not venv.is_dir() or any(venv.iterdir())):
        what = f"is for Python {found.split()[0]}" if found else "is no virtual environment"
        raise StepFailed(
            f"{venv} {what} and was not made by kit.py. Set ENTREP_VENV to another folder."
        )
    was = f" (it was made with Python {found.split()[0]})" if found not in ("", sys.version) else ""
    print(f"Making the environment {venv}{was} ...", flush=True)
    try:
        if ours or broken:
            shutil.rmtree(venv)
        venv.mkdir(parents=True, exist_ok=True)
        (venv / MADE).touch()
        write_mark(venv, UNFINISHED)  # from here on a cut-off is noticed
    except OSError as error:
        raise StepFailed(
            f"making the environment failed: {error}.\nClose programs that use {venv}, or set "
            "ENTREP_VENV to a folder that you may write to."
        ) from error
    # Not sys.executable: that may be the interpreter in the environment cleared just now.
    interpreter = getattr(sys, "_base_executable", None) or sys.executable
    run_step(
        "making the environment",
        # Without pip: that works where the system keeps pip's wheel in a package of its own.
        [interpreter, "-m", "venv", "--without-pip", str(venv)],
        "On Debian and Ubuntu: `sudo apt-get install python3-venv`.",
    )


def python_version(python: Path) -> str:
    """`sys.version` of an interpreter; empty if it does not start."""
    try:
        command = [str(python), "-c", "import sys; print(sys.version)"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def install_packages(venv: Path, python: Path) -> None:
    packages = ["-r", str(ROOT / "requirements.txt"), "-e", str(ROOT)]
    uv = shutil.which("uv")
    if uv:
        installer = [uv, "pip", "install", "--python", str(python)]
    else:
        installer = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
        if subprocess.run([*installer[:3], "--version"], capture_output=True).returncode:
            run_step(
                "installing pip",
                [str(python), "-m", "ensurepip", "--upgrade"],
                "On Debian and Ubuntu: `sudo apt-get install python3-venv`; or install uv.",
            )
    print(f"Installing the requirements with {'uv' if uv else 'pip'}; once ...", flush=True)
    free_gb = shutil.disk_usage(venv).free / 1e9
    disk = f"\n- Disk: {free_gb:.1f} GB are free, about {DISK_GB} are needed."
    run_step(
        "installing the requirements",
        [*installer, *packages],
        "The last lines above say why. Then run the same command again.\n"
        "- Network: the package registry must be reachable (proxy: HTTPS_PROXY; mirror: "
        "PIP_INDEX_URL, with uv UV_DEFAULT_INDEX).\n"
        "- 'No matching distribution': PyTorch wants 64-bit Python; on a Mac, macOS 14 on "
        "Apple silicon." + (disk if free_gb < DISK_GB else ""),
    )


def run_step(name: str, command: list[str], mend: str) -> None:
    code = subprocess.call(command)
    if code:
        raise StepFailed(f"{name} failed (exit status {code}): {' '.join(command)}\n{mend}")


@contextmanager
def only_one(venv: Path):
    """Hold a lock file beside the environment, so that two kit.py do not install at once."""
    lock = venv.with_name(venv.name + ".lock")
    try:
        venv.parent.mkdir(parents=True, exist_ok=True)
        file = open(lock, "a+b")
    except OSError as error:
        raise StepFailed(
            f"cannot write to {venv.parent} ({error.strerror}). Set ENTREP_VENV to a folder "
            "that you may write to."
        ) from error
    with file:
        if not try_lock(file):
            print("Another kit.py is installing; waiting for it ...", flush=True)
            while not try_lock(file):
                time.sleep(1)
        yield  # the system frees the lock when the file is closed, or when this process dies


def try_lock(file) -> bool:
    try:
        if WINDOWS:
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the words of POSIX and of Windows for "taken"
        return False
    except OSError:
        return True  # a file system without locks
    return True


def hand_over(command: list[str]) -> int:
    """Become `command`; where a process cannot, run it and give its exit status."""
    if not WINDOWS:
        sys.stdout.flush()
        os.execv(command[0], command)
    process = subprocess.Popen(command)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            pass  # the console sends Ctrl-C to both: the program cleans up, this one waits


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
