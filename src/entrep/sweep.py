"""What a sweep consists of: its runs, the notebooks that they share, the time it will take.

Nothing runs here. A *node* is one notebook with all that it depends on: its own parameters and
the nodes upstream. Runs that agree on these share the node, and it runs once.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from entrep.artifacts import sha256_json
from entrep.config import RunConfig, load_config, need_pictures
from entrep.notebook import declared_parameters
from entrep.pipeline import (
    NOTEBOOKS,
    PLACES,
    Step,
    check_encoders,
    choose_parameters,
    find_notebooks,
    select_steps,
)
from entrep.runner import read_manifest

LISTED = 12  # runs that are shown before the rest is counted


@dataclass(frozen=True)
class Node:
    """One notebook with one set of inputs."""

    id: str
    step: Step
    parameters: dict[str, object]  # those that the notebook declares, as `run` takes them
    upstream: dict[str, str]  # ids of the nodes whose artefacts it reads, by notebook


@dataclass(frozen=True)
class PlannedRun:
    """One combination of values."""

    id: str
    parameters: dict[str, object]  # as given
    nodes: dict[str, str]  # ids by notebook, in running order


@dataclass(frozen=True)
class Plan:
    """All runs of a sweep, and the nodes that they share."""

    out: Path  # the sweep's folder
    profile: str
    data: str
    notebooks: Path
    steps: tuple[Step, ...]
    threads: int  # of each run
    varied: tuple[str, ...]  # parameters with more than one value
    runs: tuple[PlannedRun, ...]
    nodes: dict[str, Node]  # by id; upstream before downstream, the first run's first

    def node_folder(self, node: Node) -> Path:
        """Where a node runs: a run folder of one notebook and of what it reads."""
        return self.out / "steps" / node.id

    def run_folder(self, run: PlannedRun) -> Path:
        """Where a run's notebooks are gathered: a run folder like any other."""
        return self.out / "runs" / run.id

    def nodes_of(self, run: PlannedRun) -> list[Node]:
        """The run's nodes in running order."""
        return [self.nodes[node] for node in run.nodes.values()]

    def parameters_of(self, run: PlannedRun) -> dict[str, object]:
        """All that its notebooks are given, as `entrep.runner.run` takes it."""
        own = (node.parameters.items() for node in self.nodes_of(run))
        return dict(itertools.chain.from_iterable(own))

    def describe_run(self, run: PlannedRun) -> str:
        """The run's id and the values that set it apart from the others."""
        return " ".join([run.id, *(f"{name}={run.parameters[name]}" for name in self.varied)])


def make_plan(
    axes: Mapping[str, tuple],
    out: str | Path,
    *,
    profile: str = "demo",
    data: str = "",
    only: Sequence[str] = (),
    threads: int = 1,
    notebooks: str | Path | None = None,
    steps: Sequence[Step] = NOTEBOOKS,
    max_runs: int = 1000,
) -> Plan:
    """Say what a sweep consists of, and refuse what could not run; nothing is written.

    Args:
        axes: parameters and their values (`sweep_spec.make_axes`); every combination is a run.
        out: the sweep's folder.
        profile: "demo", "mini" or "full".
        data: the challenge's folder; empty: notebook 01 draws pictures.
        only: stems or numbers of the notebooks that are wanted, those upstream of them run,
            too; empty: all.
        threads: CPU threads of each run; the notebooks that take them are given them.
        notebooks: folder of the notebooks; None: that of the checkout.
        steps: the notebooks' table, in running order.
        max_runs: more are refused.

    Raises:
        ValueError: for a parameter that no notebook takes, a value that `RunConfig` refuses,
            too many runs, or data on which a run could not be right.
        FileNotFoundError: if the data, the notebooks or an encoder are missing.
    """
    _check_count(axes, max_runs)
    out, data = Path(out).resolve(), _check_data(data)
    if data and out.is_relative_to(data):
        raise ValueError(f"--out: {out} lies inside the data; choose a folder outside.")
    wanted = _with_upstream(select_steps(only, steps), steps)
    source = find_notebooks(notebooks, wanted)
    declared = {step.name: declared_parameters(source / f"{step.name}.ipynb") for step in wanted}
    for_all = {"threads": threads, "cache_dir": str(out / "cache")}

    nodes: dict[str, Node] = {}
    runs = []
    for values in itertools.product(*axes.values()):
        given = dict(zip(axes, values, strict=True))
        config = load_config(profile, **{**for_all, **given, "data_path": data})
        need_pictures(config)
        if not runs:
            choose_parameters(config, axes, wanted, source, steps)  # refuses what none takes
        for step in wanted:
            check_encoders(config, step, source)
        mine = _make_nodes(config, {**for_all, **given}, wanted, declared)
        nodes |= {node.id: nodes.get(node.id, node) for node in mine}
        ids = {node.step.name: node.id for node in mine}
        runs.append(PlannedRun(sha256_json(ids)[:12], given, ids))
    varied = tuple(name for name, values in axes.items() if len(values) > 1)
    chosen = (out, profile, data, source, tuple(steps), threads)
    return Plan(*chosen, varied, tuple(runs), nodes)


def _check_count(axes: Mapping[str, tuple], max_runs: int) -> None:
    count = math.prod(len(values) for values in axes.values())
    if count > max_runs:
        sizes = " x ".join(f"{len(values)} of {name}" for name, values in axes.items())
        raise ValueError(
            f"{sizes} make {count:,} runs, more than {max_runs:,}; "
            "give fewer values, or allow it with --max-runs N."
        )


def _check_data(data: str) -> str:
    """The data's absolute path; empty text if there are none."""
    if not data:
        return ""
    if not Path(data).is_dir():
        raise FileNotFoundError(f"{data}: there is no such folder; --data wants the challenge's.")
    from entrep.data import find_challenge

    find_challenge(data)  # bad data is one error now, not one in every run
    return str(Path(data).resolve())


def _with_upstream(selected: Sequence[Step], steps: Sequence[Step]) -> tuple[Step, ...]:
    """The selected steps and all that they need, in running order."""
    needed = {step.name for step in selected}
    for step in reversed(steps):
        if step.name in needed:
            needed |= set(step.upstream)
    return tuple(step for step in steps if step.name in needed)


def _make_nodes(
    config: RunConfig,
    given: Mapping[str, object],
    wanted: Sequence[Step],
    declared: Mapping[str, Sequence[str]],
) -> list[Node]:
    """One run's nodes; equal inputs have equal ids, in every run and every sweep."""
    nodes: dict[str, Node] = {}
    for step in wanted:
        parameters = {name: getattr(config, name) for name in declared[step.name] if name in given}
        upstream = {name: nodes[name].id for name in step.upstream}
        own = {name: value for name, value in parameters.items() if name not in PLACES}
        key = sha256_json([step.name, config.profile, config.data_path, own, upstream])
        nodes[step.name] = Node(key[:12], step, parameters, upstream)
    return list(nodes.values())


# What it will take


def earlier_seconds(folders: Iterable[str | Path]) -> dict[str, float]:
    """Mean seconds of each notebook, as earlier runs and sweeps recorded them.

    Raises:
        FileNotFoundError: for a folder that is not there.
    """
    found: dict[str, list[float]] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: there is no such folder of a run or a sweep.")
        for manifest in [*folder.glob("manifest.json"), *folder.glob("steps/*/manifest.json")]:
            for name, entry in read_manifest(manifest.parent).items():
                found.setdefault(name, []).append(entry["seconds"])
    return {name: sum(seconds) / len(seconds) for name, seconds in found.items()}


def estimate_seconds(
    plan: Plan, finished: Collection[str], seconds: Mapping[str, float], jobs: int
) -> float:
    """About how long the sweep will take from now on: the work divided by the jobs.

    No less than the longest chain of notebooks that wait for each other.

    Args:
        plan: the sweep.
        finished: ids of the nodes that need not run.
        seconds: of each notebook (`earlier_seconds`); NaN is returned where one is missing.
        jobs: notebooks at a time.
    """
    cost = {
        node.id: 0.0 if node.id in finished else seconds.get(node.step.name, math.nan)
        for node in plan.nodes.values()
    }
    ends: dict[str, float] = {}
    for node in plan.nodes.values():
        ends[node.id] = cost[node.id] + max((ends[n] for n in node.upstream.values()), default=0)
    return max(sum(cost.values()) / jobs, *ends.values())


def describe_plan(
    plan: Plan,
    finished: Collection[str],
    seconds: Mapping[str, float],
    jobs: int,
    *,
    rows: int,
    cores: int | None,
) -> str:
    """The plan as text: runs, shared notebooks, time, and a warning of too many threads.

    Args:
        plan: the sweep.
        finished: ids of the nodes that need not run.
        seconds: of each notebook (`earlier_seconds`).
        jobs: notebooks at a time.
        rows: how many runs are listed.
        cores: of the machine that does the work; None: a cluster's, not known, so not warned of.
    """
    counts = [f"{len({run.parameters[n] for run in plan.runs})} of {n}" for n in plan.varied]
    many = "s" if len(plan.runs) > 1 else ""
    lines = [f"{len(plan.runs)} run{many}" + (f": {' x '.join(counts)}" if counts else "")]
    lines += [f"  {plan.describe_run(run)}" for run in plan.runs[:rows]]
    if len(plan.runs) > rows:
        lines.append(f"  and {len(plan.runs) - rows} more")
    lines.append(f"\n{'notebook':20} {'runs':>5} {'finished':>9} {'seconds each':>13}")
    for step in dict.fromkeys(node.step for node in plan.nodes.values()):
        ids = {node.id for node in plan.nodes.values() if node.step == step}
        each = f"{seconds[step.name]:.0f}" if step.name in seconds else "unknown"
        lines.append(f"{step.name:20} {len(ids):5} {len(ids & set(finished)):9} {each:>13}")
    alone = sum(len(run.nodes) for run in plan.runs)
    lines.append(f"{len(plan.nodes)} notebooks instead of {alone}: equal ones are shared")
    left = estimate_seconds(plan, finished, seconds, jobs)
    time = f"about {_duration(left)}" if left == left else "unknown, as no earlier run tells"
    threads = f"{plan.threads} thread{'s' if plan.threads > 1 else ''}"
    lines.append(f"{jobs} at a time with {threads} each; time from now: {time}")
    if cores is not None and jobs * plan.threads > cores:
        lines.append(
            f"Mind: {jobs * plan.threads} threads on {cores} cores wait for each other; "
            "fewer jobs or threads are faster."
        )
    return "\n".join(lines)


def count_cores() -> int:
    """Cores that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)  # Linux
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if not minutes:
        return "a minute or less"
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 120 else f"{minutes} min"
