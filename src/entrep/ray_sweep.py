"""A sweep's tasks on Ray: each asks for what it needs, and outlives the worker that ran it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from entrep.notebook import RunError
from entrep.ray_cluster import RETRIES, check_room, count_gpus, open_ray
from entrep.sweep import Plan
from entrep.sweep_node import LocalProcesses, Outcome, Task, await_leftover, reason_of


@contextmanager
def ray_tasks(address: str, plan: Plan, jobs: int, memory_gb: float = 0.0) -> Iterator[RayTasks]:
    """Run a sweep's tasks on Ray while the block runs.

    Args:
        address: see `open_ray`.
        plan: the sweep.
        jobs: tasks at a time.
        memory_gb: of all together, in GB (10⁹ bytes), as for `LocalProcesses`.

    Raises:
        ConnectionError: if there is no Ray at the address.
        ValueError: if Ray is not installed, or no machine of it has what a task asks for.
    """
    with open_ray(address, jobs * plan.threads) as ray:
        yield RayTasks(ray, plan, memory_gb / jobs)


class RayTasks:
    """Submits tasks to Ray: CPUs as the sweep's threads, one GPU where `device` is cuda."""

    def __init__(self, ray: ModuleType, plan: Plan, limit_gb: float) -> None:
        """Refuse what would wait for ever; see `ray_tasks`."""
        self.limit_gb = limit_gb
        self._ray, self._run = ray, ray.remote(run_on_worker)
        for gpus in {count_gpus(node.parameters.get("device", "")) for node in plan.nodes.values()}:
            check_room(ray, self._needs(plan.threads, gpus))

    def submit(self, task: Task) -> Future[Outcome]:
        """Run a task as soon as there is room; where its worker is lost, run it again."""
        gpus = count_gpus(task.arguments["parameters"].get("device", ""))
        needs = self._needs(task.threads, gpus)
        run = self._run.options(**needs, max_retries=RETRIES)
        return run.remote(task, self.limit_gb).future()

    def _needs(self, threads: int, gpus: int) -> dict[str, float]:
        needs = {"num_cpus": threads, "num_gpus": gpus}
        return needs | ({"memory": int(self.limit_gb * 1e9)} if self.limit_gb else {})


def run_on_worker(task: Task, limit_gb: float) -> Outcome:
    """Run one notebook in a process of its own on a Ray worker.

    In a process, as on one machine: it is watched, logs to its file, and shuts its kernel down
    when the worker is killed.
    """
    folder = Path(task.arguments["out"])
    try:
        if folder.is_dir():
            await_leftover(folder)  # the worker that was lost may have left a kernel
    except RunError as error:
        return Outcome(reason_of(error))
    with LocalProcesses(1, limit_gb) as processes:
        return processes.submit(task).result()
