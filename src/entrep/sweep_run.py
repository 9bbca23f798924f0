"""A sweep at work: nodes in parallel, failures that cost their runs only, and one table.

The folder of a sweep holds `steps/` (a run folder for each node), `runs/` (one for each run, of
hard links), `cache/` (embeddings and decoded pictures, for all), `log.jsonl` (what started and
how it ended) and the table. What is finished is known from the nodes' own manifests.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from datetime import UTC, datetime
from graphlib import TopologicalSorter
from pathlib import Path

from tqdm import tqdm

from entrep import __version__
from entrep.artifacts import link_file, link_folder, read_json, write_json
from entrep.notebook import RunError
from entrep.pipeline import owned_folders
from entrep.runner import claim_folder, read_manifest, run, stale, surroundings
from entrep.sweep import Node, Plan, PlannedRun, count_cores
from entrep.sweep_node import Outcome, Task, await_leftover, reason_of
from entrep.sweep_table import write_record, write_tables

MARK = "sweep.json"  # makes a folder a sweep's
_ROOM = 16 * 2**20  # bytes; a disk with less is full


def choose_threads(out: str | Path, threads: int, jobs: int) -> int:
    """Threads of each run: as asked; else as the folder's sweep had it; else cores / jobs.

    Training depends on them, so a sweep that goes on with other jobs keeps its threads.
    """
    before = Path(out) / MARK
    if threads or not before.is_file():
        return threads or max(1, count_cores() // jobs)
    return int(read_json(before)["threads"])


@contextlib.contextmanager
def open_sweep(plan: Plan) -> Iterator[None]:
    """Make the sweep's folder and hold its lock.

    Raises:
        RunError: if another sweep is at work there, or the folder is somebody else's.
    """
    if plan.out.is_dir() and any(plan.out.iterdir()) and not (plan.out / MARK).is_file():
        raise RunError(
            f"--out: {plan.out} is not empty and is no sweep's folder ({MARK} is not in it); "
            "choose another, so that nothing of yours is overwritten."
        )
    with claim_folder(plan.out):
        write_json(plan.out / MARK, {"entrep": __version__, "threads": plan.threads})
        for lock in plan.out.glob("steps/*/.lock"):
            await_leftover(lock.parent)
        yield


def find_finished(plan: Plan) -> set[str]:
    """Ids of the nodes that need not run; reads only."""
    around = surroundings(plan.data)
    finished: set[str] = set()
    for node in plan.nodes.values():
        if finished.issuperset(node.upstream.values()) and _is_finished(plan, node, around):
            finished.add(node.id)
    return finished


def run_sweep(
    plan: Plan, submit: Callable[[Task], Future[Outcome]], *, jobs: int, retries: int = 0
) -> list[str]:
    """Run what is not finished, gather the runs, write the table; within `open_sweep`.

    Args:
        plan: the sweep.
        submit: starts a task, here (`LocalProcesses.submit`) or elsewhere.
        jobs: tasks at a time.
        retries: how often a notebook that failed is tried again.

    Returns:
        For each run why it failed; empty text for those that are done.
    """
    work = _Work(plan, submit, jobs, retries)
    try:
        work.run()
    finally:
        for planned in work.unrecorded:
            work.record(planned)
        write_tables(plan.out)
    return [work.reasons[run.id] for run in plan.runs]


class _Work:
    """One call of `run_sweep`."""

    def __init__(self, plan: Plan, submit: Callable, jobs: int, retries: int) -> None:
        self.plan, self.submit, self.jobs, self.retries = plan, submit, jobs, retries
        self.log = _Log(plan.out / "log.jsonl")
        self.around = surroundings(plan.data)
        self.reasons: dict[str, str] = {}  # of the runs that are settled
        self.unrecorded: list[PlannedRun] = []  # as the disk was full
        self._ended: dict[str, str] = {}  # nodes, and why they failed
        self._tries = Counter()

    def run(self) -> None:
        graph = {node.id: node.upstream.values() for node in self.plan.nodes.values()}
        place = {node: number for number, node in enumerate(self.plan.nodes)}
        sorter = TopologicalSorter(graph)
        sorter.prepare()
        ready: list[str] = []
        running: dict[Future[Outcome], str] = {}
        with tqdm(total=len(graph), desc="sweep", unit="notebook", disable=None) as self.bar:
            while True:
                # In the plan's order: the first runs are complete first.
                ready = sorted([*ready, *sorter.get_ready()], key=place.get)
                if ready and len(running) < self.jobs:
                    node = ready.pop(0)
                    if self._start(node, running):
                        sorter.done(node)
                    continue
                if not running:
                    return
                # With a limit, or Windows would not hear of Ctrl-C.
                for future in wait(running, timeout=1, return_when=FIRST_COMPLETED).done:
                    node = running.pop(future)
                    if self._try_again(node, _outcome_of(future)):
                        ready.append(node)
                    elif not self._ended[node]:
                        sorter.done(node)

    def _start(self, node: str, running: dict[Future[Outcome], str]) -> bool:
        """Start a node; true if there is nothing to do, as it is finished."""
        planned = self.plan.nodes[node]
        try:
            _link_upstream(self.plan, planned)
            if _is_finished(self.plan, planned, self.around):
                if node not in self.log.finished:  # a kill came before the line
                    self.log.write("found", node)
                self._end(node, "")
                return True
            task = make_task(self.plan, planned)
        except OSError as error:  # a full disk
            self._end(node, reason_of(error))
            return False
        self.log.write("started", node, notebook=planned.step.name)
        self._tries[node] += 1
        running[self.submit(task)] = node
        return False

    def _try_again(self, node: str, outcome: Outcome) -> bool:
        """Take note of how a node ended; true if it shall run once more."""
        if not outcome.reason:
            self.log.write("finished", node, peak_gb=outcome.peak_gb)
            self._end(node, "")
            return False
        self._make_room(node)
        self.log.write("failed", node, reason=outcome.reason, peak_gb=outcome.peak_gb)
        if self._tries[node] <= self.retries:
            return True
        self._end(node, outcome.reason)
        return False

    def _make_room(self, node: str) -> None:
        """Where a node fails on a full disk, what it left must not cost the other runs theirs."""
        if shutil.disk_usage(self.plan.out).free < _ROOM:
            planned = self.plan.nodes[node]
            for owned in owned_folders(planned.step, self.plan.data):
                shutil.rmtree(self.plan.node_folder(planned) / owned, ignore_errors=True)

    def _end(self, node: str, reason: str) -> None:
        """A node is done or given up: settle the runs whose fate that decides."""
        self._ended[node] = reason
        self.bar.update()
        for planned in self.plan.runs:
            if node in planned.nodes.values() and planned.id not in self.reasons:
                self._settle(planned)

    def _settle(self, planned: PlannedRun) -> None:
        ended = {name: self._ended.get(node) for name, node in planned.nodes.items()}
        why = next((f"{name}: {reason}" for name, reason in ended.items() if reason), "")
        if not why and None in ended.values():
            return  # there is more to come
        if not why:
            try:
                gather_run(self.plan, planned, self.around)
            except (OSError, RunError) as error:
                why = reason_of(error)
        self.reasons[planned.id] = why
        self.bar.write(f"{self.plan.describe_run(planned)}: {why or 'done'}")
        try:
            self.record(planned)
        except OSError as error:
            self.bar.write(f"{error}; its record is written at the end.")
            self.unrecorded.append(planned)

    def record(self, planned: PlannedRun) -> None:
        """Write what came of a run."""
        why = self.reasons[planned.id]
        write_record(self.plan, planned, why, self.log.attempts, self.log.peaks)


def _outcome_of(future: Future[Outcome]) -> Outcome:
    """How a task ended, also where its process could not even be started."""
    error = future.exception()
    return Outcome(reason_of(error)) if error else future.result()


def make_task(plan: Plan, node: Node) -> Task:
    """What an executor is given to run a node."""
    folder = plan.node_folder(node)
    folder.parent.mkdir(exist_ok=True)
    links = tuple((str(source), str(target)) for source, target in _upstream_links(plan, node))
    return Task(_arguments(plan, node), links, plan.threads, f"{folder}.log")


def gather_run(plan: Plan, planned: PlannedRun, around: Mapping[str, object]) -> None:
    """Make a run's folder of its nodes' files: one like any other, that `entrep run` goes on with.

    Raises:
        RunError: if what the nodes were made of has changed since.
    """
    out = plan.run_folder(planned)
    out.mkdir(parents=True, exist_ok=True)
    (out / "notebooks").mkdir(exist_ok=True)
    entries = {}
    for node in plan.nodes_of(planned):
        name, folder = node.step.name, plan.node_folder(node)
        for owned in owned_folders(node.step, plan.data):
            link_folder(folder / owned, out / owned)
        link_file(folder / "notebooks" / f"{name}.ipynb", out / "notebooks" / f"{name}.ipynb")
        entries[name] = read_manifest(folder)[name]
    write_json(out / "manifest.json", {"entrep": __version__, "notebooks": entries})
    arguments = {
        **_common(plan),
        "out": str(out),
        "only": list(entries),
        "parameters": plan.parameters_of(planned),
    }
    changed = {name: why for name, why in stale(**arguments, around=around).items() if why}
    if changed:
        why = ", ".join(f"{name}: {reason}" for name, reason in changed.items())
        raise RunError(f"changed while the sweep ran ({why}); run the sweep again.")
    with contextlib.redirect_stdout(io.StringIO()):
        run(**arguments)  # nothing is left to run: writes what sums the folder up


def _common(plan: Plan) -> dict[str, object]:
    return {
        "profile": plan.profile,
        "data": plan.data,
        "notebooks": str(plan.notebooks),
        "steps": plan.steps,
    }


def _arguments(plan: Plan, node: Node) -> dict[str, object]:
    """What `run` and `stale` take for a node."""
    own = {"only": [node.step.name], "parameters": node.parameters}
    return {**_common(plan), "out": str(plan.node_folder(node)), **own}


def _upstream_links(plan: Plan, node: Node) -> list[tuple[Path, Path]]:
    """Folders upstream that a node reads, and where it looks for them."""
    links = []
    for name in node.upstream.values():
        other = plan.nodes[name]
        for owned in owned_folders(other.step, plan.data):
            links.append((plan.node_folder(other) / owned, plan.node_folder(node) / owned))
    return links


def _link_upstream(plan: Plan, node: Node) -> None:
    """Bring what an earlier sweep linked up to date: upstream may have run again since."""
    if read_manifest(plan.node_folder(node)):
        for source, target in _upstream_links(plan, node):
            link_folder(source, target)


def _is_finished(plan: Plan, node: Node, around: Mapping[str, object]) -> bool:
    if node.step.name not in read_manifest(plan.node_folder(node)):
        return False
    return not any(stale(**_arguments(plan, node), around=around).values())


class _Log:
    """What started and how it ended, a line each, only ever added to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.attempts: Counter[str] = Counter()
        self.peaks: dict[str, float] = {}
        self.finished: set[str] = set()  # and not started again since
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for line in lines:
            with contextlib.suppress(ValueError):  # the line that a kill cut off
                self._count(json.loads(line))
        if lines:
            with open(path, "a", encoding="utf-8") as file:
                file.write("\n")  # ends that line

    def write(self, event: str, node: str, **more: object) -> None:
        entry = {"event": event, "node": node, **more}
        self._count(entry)
        entry["at"] = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        except OSError as error:  # what is finished is known without it
            tqdm.write(f"{self.path}: cannot be written ({error}).")

    def _count(self, entry: Mapping[str, object]) -> None:
        event, node = entry["event"], entry["node"]
        self.attempts[node] += event == "started"
        if event in ("finished", "found"):
            self.finished.add(node)
        else:
            self.finished.discard(node)
        if entry.get("peak_gb"):
            self.peaks[node] = entry["peak_gb"]
