"""A built Kaggle kernel, run here as Kaggle would run it.

Its sources are mounted as the server mounts them; papermill executes its notebook in place, in a
fresh interpreter that has only what Kaggle's image brings, below `/kaggle` and without a network
(see `sandbox`). What is then in `/kaggle/working` is its output; the submissions among it are set
beside those of `entrep run`.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO

from entrep.artifacts import hash_folder, read_json, write_json
from entrep.comparison import (
    compare_submissions,
    expected_submissions,
    find_differences,
    find_submissions,
)
from entrep.kaggle_build import find_checkout
from entrep.kaggle_rules import read_kernel
from entrep.mounts import RESULT_FILE, find_inputs, stage_inputs
from entrep.notebook import Progress, RunError
from entrep.preinstalled import PREINSTALLED, make_interpreter
from entrep.readers import first_three
from entrep.sandbox import Sandbox, open_sandbox, stop

NOTEBOOK = "__notebook__.ipynb"  # what Kaggle calls it while it runs
TIME_LIMIT_S = 12 * 3600.0
OUTPUT_LIMIT_GB = 20.0
# Kaggle's call, but for more patience with the kernel's start, and output that goes to our log.
_PROGRAM = f"""
import sys, papermill
streams = {{"stdout_file": sys.stdout, "stderr_file": sys.stderr}}
papermill.execute_notebook("{NOTEBOOK}", "{NOTEBOOK}", start_timeout=180, **streams)
"""
# What a batch run finds on Kaggle; the values are nobody's.
_ENVIRONMENT = {
    "KAGGLE_KERNEL_RUN_TYPE": "Batch",
    "KAGGLE_URL_BASE": "https://www.kaggle.com",
    "KAGGLE_DATA_PROXY_URL": "https://dp.kaggle.net",
    "KAGGLE_DATA_PROXY_PROJECT": "simulated",
    "KAGGLE_DATA_PROXY_TOKEN": "simulated",
    "KAGGLE_USER_SECRETS_TOKEN": "simulated",
    "KAGGLE_KERNEL_INTEGRATIONS": "",
    "KAGGLE_DOCKER_IMAGE": "simulated",
    "KAGGLE_CONTAINER_NAME": "simulated",
    "MKL_THREADING_LAYER": "GNU",
    "LANG": "C.UTF-8",
}


@dataclass
class Simulation:
    """What became of a run: Kaggle's word for it, what was wrong, and what it left."""

    kernel: str
    layout: str
    level: str  # of the sandbox
    status: str = "RUNNING"  # then COMPLETE, ERROR or CANCEL_ACKNOWLEDGED (out of time)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0
    output_bytes: int = 0
    submissions: dict[str, str] = field(default_factory=dict)  # SHA-256 by file name
    expected: dict[str, str] = field(default_factory=dict)  # the same of `entrep run`


def simulate(
    kernel: str,
    *,
    build: str | Path = "",
    out: str | Path = "runs/kaggle",
    layout: str = "new",
    data: str | Path = "",
    compare: str | Path = "",
    accelerator: str = "",
    rerun: bool = False,
    level: str = "auto",
    time_limit_s: float = TIME_LIMIT_S,
    output_limit_gb: float = OUTPUT_LIMIT_GB,
    preinstalled: Sequence[str] = PREINSTALLED,
) -> Simulation:
    """Run a built kernel as Kaggle would, into `out/KERNEL`.

    Args:
        kernel: its slug, a folder in `build/kernels`.
        build: what `entrep kaggle build` wrote; empty: `kaggle/build` of the checkout.
        out: folder for the outputs of simulated kernels; a kernel that reads another's output
            finds it there. In `out/KERNEL`: `working/`, `KERNEL.log` and `simulation.json`.
        layout: of the mounts, "new" or "old"; see `mounts.place_of`.
        data: stands for the one source that is not built, such as the challenge's pictures.
        compare: run folder of `entrep run`, whose submissions shall be the same; empty: none.
        accelerator: "cpu" hides this machine's GPUs, "gpu" shows them; empty: as it was built.
        rerun: as in a competition's scoring rerun (KAGGLE_IS_COMPETITION_RERUN is set).
        level: of the sandbox; see `sandbox.open_sandbox`.
        time_limit_s: seconds until the run is killed.
        output_limit_gb: 1e9 bytes that `/kaggle/working` may hold.
        preinstalled: packages that are there before the notebook installs any.

    Returns:
        How it went. A notebook that fails is a result, not an exception.

    Raises:
        FileNotFoundError: if the kernel is not built, or a source or submission is missing.
        ValueError: for a kernel that Kaggle would refuse, or a folder `out/KERNEL` that holds
            something else.
        RuntimeError: if this system can run no sandbox of that level; Windows runs none.
    """
    if sys.platform == "win32":
        raise RunError("The simulation runs on Linux and macOS; on Windows run it in WSL.")
    build = Path(build) if build else find_checkout(None) / "kaggle" / "build"
    home = build / "kernels" / kernel
    metadata = read_kernel(home)
    inputs = find_inputs(metadata, build, Path(out), layout, data)
    expected = expected_submissions(compare) if compare else {}
    target = _claim(Path(out) / kernel)
    with _sandbox(target, preinstalled, level) as sandbox:
        print(f"Sandbox of level {sandbox.level!r}; {layout} layout of the inputs", flush=True)
        result = Simulation(kernel, layout, sandbox.level, expected=expected)
        stage_inputs(inputs, sandbox.kaggle / "input", copy=sandbox.level == "plain")
        working = sandbox.kaggle / "working"
        write_json(working / NOTEBOOK, _as_sent(read_json(home / metadata["code_file"])))
        environment = dict(_ENVIRONMENT)
        if accelerator == "cpu" or not (accelerator or metadata["enable_gpu"]):
            environment["CUDA_VISIBLE_DEVICES"] = ""
        if rerun:
            environment["KAGGLE_IS_COMPETITION_RERUN"] = "1"
        try:
            with _watched(sandbox, result):
                _execute(sandbox, environment, result, time_limit_s, output_limit_gb, target)
        finally:
            working.rename(target / "working")  # also what a killed run left
    _conclude(result, target)
    return result


def _claim(target: Path) -> Path:
    """The kernel's output folder, emptied; one that is not ours is refused."""
    if target.exists() and any(target.iterdir()):
        if not (target / RESULT_FILE).is_file():
            raise ValueError(
                f"{target} is not empty and holds no simulation; choose another --out."
            )
        shutil.rmtree(target)
    target.mkdir(parents=True, exist_ok=True)
    write_json(target / RESULT_FILE, {"status": "RUNNING"})
    return target.resolve()


@contextmanager
def _sandbox(target: Path, preinstalled: Sequence[str], level: str) -> Iterator[Sandbox]:
    """A sandbox with its interpreter, beside the output and gone at the end."""
    with tempfile.TemporaryDirectory(
        prefix=".sandbox-", dir=target, ignore_cleanup_errors=True
    ) as name:
        folder = Path(name)
        readable = make_interpreter(folder, preinstalled)
        yield open_sandbox(folder, readable, level)


def _as_sent(notebook: dict) -> dict:
    """The notebook as Kaggle's client sends it: no outputs, each cell's source one text."""
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
        if "outputs" in cell:
            cell["outputs"] = []
    return notebook


@contextmanager
def _watched(sandbox: Sandbox, result: Simulation) -> Iterator[None]:
    """Note what a kernel must not do, also where it got away with it."""
    # With a namespace the inputs cannot be written to.
    hashed = sandbox.kaggle / "input" if sandbox.level == "plain" else None
    before = hash_folder(hashed) if hashed else {}
    yield
    after = hash_folder(hashed) if hashed else {}
    changed = sorted({name for name, _ in before.items() ^ after.items()})
    if changed:
        result.problems.append(
            f"It changed {first_three(changed)} in /kaggle/input, which is read-only on Kaggle."
        )
    if sandbox.attempts:
        result.problems.append(
            "It tried to leave the machine, and Kaggle's internet is off: "
            f"{first_three(sandbox.attempts)}."
        )


def _execute(
    sandbox: Sandbox,
    environment: Mapping[str, str],
    result: Simulation,
    time_limit_s: float,
    output_limit_gb: float,
    target: Path,
) -> None:
    """Execute the notebook within its limits and write its log; note what went wrong."""
    working = sandbox.kaggle / "working"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}

    def full() -> bool:
        return _bytes_in(working) > output_limit_gb * 1e9

    with Progress(result.kernel, working / NOTEBOOK) as progress:
        log = _Log(progress)
        process = sandbox.start(["-c", _PROGRAM], environment, **pipes)
        try:
            log.follow(process)
            while process.poll() is None and log.seconds < time_limit_s and not full():
                time.sleep(0.5)
            stopped = process.poll() is None
        finally:
            stop(process)
            log.wait()
            result.seconds = round(log.seconds, 1)
            progress.result = f"{result.seconds:7.1f} s"
            write_json(target / f"{result.kernel}.log", log.entries)
    place = f"Stopped in cell {progress.cell + 1}" if stopped else "At its end"
    if full():
        result.problems.append(
            f"{place}: /kaggle/working holds more than {output_limit_gb:g} GB, Kaggle's limit."
        )
    elif stopped:
        result.status = "CANCEL_ACKNOWLEDGED"
        result.problems.append(f"{place}: the time limit is {time_limit_s:g} s.")
    elif process.returncode:
        result.problems.append(_failure(read_json(working / NOTEBOOK), log.entries))


def _conclude(result: Simulation, target: Path) -> None:
    """Fill in what the output says, and write the result down."""
    working = target / "working"
    if result.status == "RUNNING":
        result.status = "ERROR" if result.problems else "COMPLETE"
    result.output_bytes = _bytes_in(working)
    try:
        result.submissions = find_submissions(working)
    except ValueError as error:  # two sets of them
        result.problems.append(str(error))
    if result.expected:
        different = find_differences(result.submissions, result.expected)
        if different:
            result.problems.append(f"{', '.join(different)}: not the bytes of the run.")
    write_json(target / RESULT_FILE, asdict(result))


class _Log:
    """What a run prints, as Kaggle keeps it: entries of stream_name, time (s) and data."""

    _CELLS = re.compile(r"Executing:.*?(\d+)/(\d+)")  # papermill's own bar

    def __init__(self, progress: Progress) -> None:
        self.entries: list[dict[str, object]] = []
        self._progress, self._started = progress, time.monotonic()
        self._readers: list[threading.Thread] = []

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self._started

    def follow(self, process: subprocess.Popen) -> None:
        """Read both streams of a process until they end, in the background."""
        for name in ("stdout", "stderr"):
            stream = io.TextIOWrapper(getattr(process, name), "utf-8", errors="replace")
            reader = threading.Thread(target=self._read, args=(name, stream), daemon=True)
            self._readers.append(reader)
            reader.start()

    def _read(self, name: str, stream: TextIO) -> None:
        for line in stream:
            entry = {"stream_name": name, "time": round(self.seconds, 3), "data": line}
            self.entries.append(entry)
            bar = self._CELLS.match(line)
            if bar:
                self._progress.cell, self._progress.total = int(bar[1]), int(bar[2])
            else:
                self._progress.write(line)

    def wait(self) -> None:
        """Wait for the last lines; not for long, as a stray program may hold a stream open."""
        for reader in self._readers:
            reader.join(timeout=5)


def _failure(notebook: Mapping, log: Sequence[Mapping]) -> str:
    """Which cell failed and how; without such a cell, the last line of the log."""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            if output["output_type"] == "error":
                where = f"In [{cell['execution_count']}]"
                return f"{where}, {output['ename']}: {output['evalue'].strip()}"
    lines = [entry["data"].strip() for entry in log]
    return next((line for line in reversed(lines) if line), "It ended without a word.")


def _bytes_in(folder: Path) -> int:
    """Size of all files below a folder in which a program may be at work."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size
        except FileNotFoundError:  # renamed just now
            continue
    return total


def describe_simulation(result: Simulation) -> str:
    """The result as text: status, problems, SHA-256 of each submission, of both sides."""
    lines = [
        f"{result.kernel}: {result.status}, level {result.level!r}, {result.layout} layout, "
        f"{result.seconds:.1f} s, {result.output_bytes / 1e6:.1f} MB of output"
    ]
    lines += [f"  {problem}" for problem in result.problems]
    if result.expected:
        lines.append(compare_submissions(result.submissions, result.expected))
    else:
        lines += [f"{digest}  {name}" for name, digest in result.submissions.items()]
    return "\n".join(lines)
