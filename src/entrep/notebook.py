"""One notebook through papermill: its parameters, its progress line, the cell that failed."""

from __future__ import annotations

import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from entrep.artifacts import read_json, sha256_json


class RunError(RuntimeError):
    """A notebook that failed, or a run folder that cannot be used."""


def declared_parameters(notebook: Path) -> tuple[str, ...]:
    """Names in the notebook's cell tagged `parameters`, in its order."""
    import papermill  # half a second; `entrep --help` does without

    return tuple(papermill.inspect_notebook(_plain(notebook)))


def _plain(path: Path) -> str:
    """A path for papermill, which takes braces for fields of a format string."""
    return str(path).replace("{", "{{").replace("}", "}}")


def hash_code(notebook: Path) -> str:
    """SHA-256 over the code cells: prose may be mended without a rerun."""
    cells = read_json(notebook)["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return sha256_json(code)


def execute_notebook(
    notebook: Path,
    partial: Path,
    parameters: Mapping[str, object],
    folder: Path,
    progress: Progress,
) -> None:
    """Execute a notebook into `partial`, kernel in `folder`; a failure becomes a `RunError`."""
    import papermill
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from papermill.exceptions import PapermillExecutionError, strip_color

    class ThisInterpreter(AsyncKernelManager):
        """Starts this very Python, whatever a user has registered as kernel "python3"."""

        @property
        def kernel_spec(self) -> KernelSpec:
            # Quiet, or it warns of plain loopback at each start and logs a Ctrl-C as an error.
            return KernelSpec(**get_kernel_dict(["--log-level=CRITICAL"]))

    kept = f"Partial notebook: {partial}\nMend the cause and run the same command again."
    try:
        papermill.execute_notebook(
            _plain(notebook),
            _plain(partial),
            dict(parameters),
            kernel_name="python3",
            kernel_manager_class=ThisInterpreter,
            cwd=str(folder),
            progress_bar=False,
            stderr_file=progress,
            on_cell_start=progress.start_cell,
            start_timeout=180,
            coalesce_streams=True,  # a progress bar is one line of the executed copy
        )
    except PapermillExecutionError as error:
        place = f"In [{error.exec_count}]"
        heading = _heading_of(notebook, error.source)
        last = strip_color("\n".join(error.traceback)).rstrip().splitlines()[-12:]
        raise RunError(
            f"notebook {notebook.stem} failed in cell {place}"
            + (f" (section {heading!r})" if heading else "")
            + f", {error.ename}:\n"
            + "\n".join(f"    {line}" for line in last)
            + f"\n{kept}"
        ) from error
    except RuntimeError as error:  # nbclient's, for a kernel that does not start or dies
        raise RunError(
            f"notebook {notebook.stem}: its kernel stopped ({error}). Often the memory was "
            f"used up: close other programs, or lower -p batch_size=….\n{kept}"
        ) from error


def _heading_of(notebook: Path, source: str) -> str:
    """The Markdown heading above the cell with this source; empty if there is none."""
    heading = ""
    for cell in read_json(notebook)["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heading = (re.findall(r"^#+ +(.+)$", text, flags=re.MULTILINE) or [heading])[-1]
        elif text == source:
            return heading
    return ""


@contextmanager
def kernel_environment(profile: str) -> Iterator[None]:
    """What kernels inherit while the block runs, beside this process's own environment."""
    changes = {"PYDEVD_DISABLE_FILE_VALIDATION": "1"}  # debugpy's warning at every start
    if profile != "full":  # a name that is not shipped must fail at once, not ask a hub
        changes |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    # The package of this process, also where it runs from a checkout without being installed.
    home = Path(__file__).resolve().parents[1]
    if home.name != "site-packages":
        inherited = os.environ.get("PYTHONPATH")
        changes["PYTHONPATH"] = os.pathsep.join([str(home), *([inherited] if inherited else [])])
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class Progress:
    """The line of the notebook that runs: redrawn on a terminal, printed once in a log.

    It is also the file that the kernel's stderr is copied to, where tqdm draws its bars: the
    last line of it stands at the end of ours.
    """

    def __init__(self, label: str, notebook: Path, stream: TextIO | None = None) -> None:
        self.label, self.stream = label, stream or sys.stdout
        cells = [c for c in read_json(notebook)["cells"] if c["cell_type"] == "code"]
        self.total, self.cell, self.note, self.result = len(cells) + 1, 0, "", ""  # + injected
        self._over = threading.Event()

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._redraw, daemon=True)
        if self.stream.isatty():
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if self._thread.ident:
            self._thread.join()
            self._show("")
            self.stream.write("\r")
        self.stream.write(f"{self.label} {self.result}\n")
        self.stream.flush()

    def start_cell(self, cell: Mapping[str, object], cell_index: int) -> None:
        """Count a code cell (nbclient calls this before each cell, prose too)."""
        if cell["cell_type"] == "code":
            self.cell, self.note = self.cell + 1, ""

    def write(self, text: str) -> None:
        """Take what the kernel wrote to stderr."""
        lines = [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]
        self.note = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", lines[-1]) if lines else self.note

    def flush(self) -> None:
        """Do nothing: files have it."""

    def _redraw(self) -> None:
        while not self._over.wait(0.25):
            seconds = time.monotonic() - self._started
            line = f"{self.label} {seconds:7.0f} s  cell {self.cell} of {self.total}  {self.note}"
            self._show(line)

    def _show(self, line: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        self.stream.write("\r" + line[:width].ljust(width))
        self.stream.flush()
