"""One notebook of a sweep, in a process of its own: its share of cores and memory, its end.

`run_task` is all that another executor needs; `LocalProcesses` is this machine's.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from entrep.artifacts import link_folder
from entrep.notebook import RunError
from entrep.runner import run

# Every library's name for it. Two processes with as many threads as cores each wait for one
# another at every step: ten times slower on two cores.
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_LOOK_EVERY_S = 1.0  # at the memory
_GRACE_S = 20.0  # to shut a kernel down
_LEFTOVER_S = 60.0  # for what a killed process left running to end
_REASON_LENGTH = 300


@dataclass(frozen=True)
class Task:
    """One notebook to run; plain values, so that it can be sent anywhere."""

    arguments: Mapping[str, object]  # of `entrep.runner.run`
    links: tuple[tuple[str, str], ...]  # upstream folders, and where the notebook reads them
    threads: int
    log: str  # file that what the process says is added to


@dataclass(frozen=True)
class Outcome:
    """How a task ended."""

    reason: str = ""  # why it failed, in one line; empty: it is done
    peak_gb: float | None = None  # most memory of its processes together, if it was watched


def run_task(task: Task) -> Outcome:
    """Run one notebook in its folder, in this process; one that is up to date is left alone.

    Whatever goes wrong becomes the outcome's reason; the whole error is printed.
    """
    os.environ |= dict.fromkeys(_THREAD_VARIABLES, str(task.threads))
    try:
        for source, target in task.links:
            link_folder(source, target)
        run(**task.arguments)
    except Exception as error:  # whatever it is, it costs this run and no other
        with contextlib.suppress(OSError):  # the log may lie on the full disk, too
            traceback.print_exc()
        return Outcome(reason_of(error))
    return Outcome()


def reason_of(error: BaseException) -> str:
    """An error in one line: for a notebook its cell, and what was raised there."""
    raised = getattr(error.__cause__, "evalue", "")  # papermill's, of the cell that failed
    first = str(error).partition("\n")[0]
    named = first if isinstance(error, RuntimeError) else f"{type(error).__name__}: {first}"
    return " ".join(f"{named} {raised}".split())[:_REASON_LENGTH]


def await_leftover(folder: str | Path) -> None:
    """Wait until nobody is at work in a notebook's folder any more.

    Raises:
        RunError: if somebody still is after a minute.
    """
    try:
        with FileLock(Path(folder) / ".lock", timeout=_LEFTOVER_S):
            pass
    except Timeout:
        raise RunError(
            f"{folder}: a process of an earlier sweep is still at work here; "
            "end it, or wait until it is done."
        ) from None


class LocalProcesses:
    """Runs tasks in processes of this machine; those that are left are ended with the block."""

    def __init__(self, jobs: int, memory_gb: float = 0.0) -> None:
        """Say how many run at a time, and the memory that they share in equal parts.

        Args:
            jobs: processes at a time.
            memory_gb: of all together, in GB (10⁹ bytes); a process that takes more than its
                part is ended. 0: any.
        """
        self.limit_gb = memory_gb / jobs
        self._pool = ThreadPoolExecutor(jobs)
        self._context = multiprocessing.get_context("spawn")  # safe beside our threads
        self._lock = threading.Lock()
        self._running: set[BaseProcess] = set()
        self._over = False

    def __enter__(self) -> LocalProcesses:
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._over = True
            left = list(self._running)
        for process in left:
            process.terminate()
        for process in left:
            _end(process)
        self._pool.shutdown(cancel_futures=True)

    def submit(self, task: Task) -> Future[Outcome]:
        """Run a task as soon as there is room."""
        return self._pool.submit(self._run, task)

    def _run(self, task: Task) -> Outcome:
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_in_child, args=(task, sender))
        with self._lock:
            if self._over:
                return Outcome("the sweep was stopped")
            process.start()
            self._running.add(process)
        sender.close()  # ours; its end in the child is the only one now
        try:
            too_much, peak_gb = _watch(process, self.limit_gb)
        finally:
            with self._lock:
                self._running.discard(process)
        reason = too_much or _outcome_of(process, receiver).reason
        return Outcome(reason, peak_gb)


def _in_child(task: Task, sender: Connection) -> None:
    # A polite kill shuts the kernel down. Ctrl-C reaches us and our parent, who decides.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, lambda *_: None)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with open(task.log, "a", encoding="utf-8") as log:
        for stream in (1, 2):  # what a dying library writes, too
            os.dup2(log.fileno(), stream)
    sender.send(run_task(task))


def _end_with_parent() -> None:
    """A killed sweep must not go on working in folders that the next one uses."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)


def _watch(process: BaseProcess, limit_gb: float) -> tuple[str, float]:
    """Wait for a process; end it if it takes too much memory, and what it leaves behind.

    Returns:
        (the complaint, or empty text; the most GB that were seen).
    """
    peak, complaint, tree = 0.0, "", []
    while process.is_alive():
        with contextlib.suppress(psutil.Error):  # it may end while we look
            parent = psutil.Process(process.pid)
            tree = [parent, *parent.children(recursive=True)]
            peak = max(peak, sum(_resident(one) for one in tree) / 1e9)
        if limit_gb and peak > limit_gb:
            complaint = (
                f"it took {peak:.2f} GB of memory, more than its part of {limit_gb:.2f} GB; "
                "allow more with --memory-gb, or run fewer at a time with --jobs"
            )
            process.terminate()
            _end(process)
        process.join(_LOOK_EVERY_S)
    for one in tree:
        with contextlib.suppress(psutil.Error):  # as a rule, it has ended
            one.kill()
    return complaint, round(peak, 3)


def _end(process: BaseProcess) -> None:
    """Give a process that was asked to end the time to, then end it."""
    process.join(_GRACE_S)
    process.kill()


def _resident(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        return process.memory_info().rss
    return 0


def _outcome_of(process: BaseProcess, receiver: Connection) -> Outcome:
    """What a process that has ended sent before, or how it came to its end."""
    try:
        with receiver:
            return receiver.recv()
    except EOFError:
        code = process.exitcode
        if code < 0:
            why = f"its process was ended by signal {-code}; often the memory was used up"
        else:
            why = f"its process ended with exit status {code}; its log says more"
        return Outcome(why)
