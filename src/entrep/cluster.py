"""Ray as the engine: sweeps as its tasks and encoders as its actors, here or on more machines.

Every machine must see the checkout (or the installed package), the data and the output folder
under the same paths, as on a shared folder, and have the same Python environment.
"""

from __future__ import annotations

import os
import queue
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from entrep.bulk import Settings, Shard, ShardEncoder
from entrep.index import Recipe
from entrep.notebook import RunError
from entrep.sweep import Plan, count_cores
from entrep.sweep_node import LocalProcesses, Outcome, Task, await_leftover, reason_of

_RETRIES = 3  # of a task or a shard whose worker is lost; a picture that kills each is given up
_EACH = 2  # shards that an actor has at a time: one at work and the next


def find_ray() -> ModuleType:
    """The installed Ray, told to keep to itself.

    Raises:
        ValueError: if there is none.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # it would report to its makers
    # Whoever did not ask for a GPU sees none; later versions would let it take another's.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    try:
        import ray
    except ImportError as error:
        raise ValueError("--ray: Ray is not installed; pip install 'entrep[ray]'.") from error
    return ray


@contextmanager
def open_ray(address: str, cpus: int) -> Iterator[ModuleType]:
    """Join a cluster, or start Ray on this machine, while the block runs.

    What is at work there is ended with the block, however it ends.

    Args:
        address: "local" starts Ray here, "auto" joins the one that runs here, anything else is
            the address of a cluster's head, such as 10.0.0.1:6379.
        cpus: that a Ray started here offers.

    Raises:
        ConnectionError: if there is no Ray at the address.
        ValueError: if Ray is not installed.
    """
    ray = find_ray()
    home = str(Path(__file__).resolve().parents[1])
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    options = {
        "address": address,
        "log_to_driver": False,
        "logging_level": "ERROR",
        "runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}},
    }
    if address == "local":
        options |= {"num_cpus": cpus, "include_dashboard": False}
    polite = signal.getsignal(signal.SIGTERM)
    try:
        try:
            ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConnectionError(
                f"--ray {address}: no Ray answers there ({_first_line(error)}). Start one with "
                "'ray start --head', or take --ray local, which does it for this command."
            ) from error
        finally:
            signal.signal(signal.SIGTERM, polite)  # Ray takes it, and would skip our cleaning up
        yield ray
    finally:
        ray.shutdown()


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
        for gpus in {_gpus(node.parameters.get("device", "")) for node in plan.nodes.values()}:
            _check_room(ray, self._needs(plan.threads, gpus))

    def submit(self, task: Task) -> Future[Outcome]:
        """Run a task as soon as there is room; where its worker is lost, run it again."""
        gpus = _gpus(task.arguments["parameters"].get("device", ""))
        needs = self._needs(task.threads, gpus)
        run = self._run.options(**needs, max_retries=_RETRIES)
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


@contextmanager
def ray_encoders(address: str, jobs: int = 0) -> Iterator[Callable[[Settings], RayEncoders]]:
    """What `embed_folder` takes as `start`, while the block runs.

    Args:
        address: see `open_ray`.
        jobs: encoders at a time; 0: as many as there are CPUs, or GPUs if they take one each.

    Raises:
        ConnectionError: if there is no Ray at the address.
        ValueError: if Ray is not installed.
    """
    with open_ray(address, jobs or count_cores()) as ray:
        yield lambda settings: RayEncoders(ray, settings, jobs)


class RayEncoders:
    """Actors that keep the encoder loaded and embed shards: one on each CPU, or each GPU.

    Plain actors and not Ray Data: a shard is the unit that is sent, retried and committed, and
    its result comes back in order, so that the index has the same bytes whoever worked. Ray
    Data cuts and joins blocks as it sees fit and does not know what the index already holds.
    """

    def __init__(self, ray: ModuleType, settings: Settings, jobs: int = 0) -> None:
        """Start the actors and compare them; see `ray_encoders`."""
        self._ray = ray
        gpus = _gpus(settings.device)
        offered = ray.cluster_resources()
        room = int(offered.get("GPU" if gpus else "CPU", 0))
        cpus = max(1, int(offered.get("CPU", 0) / room)) if gpus and room else 1
        _check_room(ray, {"num_cpus": cpus, "num_gpus": gpus})
        # One that has a core to itself decodes in threads; beside a GPU processes keep up.
        settings = replace(settings, workers=None if gpus else 0)
        actor = ray.remote(ShardEncoder).options(
            num_cpus=cpus, num_gpus=gpus, max_restarts=-1, max_task_retries=_RETRIES
        )
        self._actors = [actor.remote(settings) for _ in range(min(jobs or room, room))]
        with self._told_plainly():
            recipes = ray.get([each.recipe.remote() for each in self._actors])
        self._recipe = recipes[0]
        for other in recipes:
            if other != self._recipe:
                raise ValueError(
                    "The cluster's machines would not embed alike; give all the same versions, "
                    f"weights and kind of device: {self._recipe} and {other}."
                )

    def recipe(self) -> Recipe:
        """How the vectors are made, the same on all machines."""
        return self._recipe

    def embed_all(self, shards: Iterable[Sequence[str]]) -> Iterator[Shard]:
        """Embed shards; what came of them, in the same order.

        A bounded number is under way, those that wait for an earlier one included: memory
        stays flat however many come.
        """
        free: queue.SimpleQueue = queue.SimpleQueue()
        for actor in self._actors * _EACH:
            free.put(actor)
        waiting: deque[Future[Shard]] = deque()
        most = 2 * _EACH * len(self._actors)
        for shard in shards:
            actor = free.get()
            future = actor.embed.remote(shard).future()
            future.add_done_callback(lambda _, actor=actor: free.put(actor))
            waiting.append(future)
            while waiting and (waiting[0].done() or len(waiting) >= most):
                yield self._take(waiting)
        while waiting:
            yield self._take(waiting)

    def _take(self, waiting: deque[Future[Shard]]) -> Shard:
        with self._told_plainly():
            return waiting.popleft().result()

    @contextmanager
    def _told_plainly(self) -> Iterator[None]:
        """Ray wraps what a worker raised in its own long story."""
        try:
            yield
        except self._ray.exceptions.RayError as error:
            told = str(error).strip().splitlines()[-1]
            raise RunError(
                f"embedding on Ray failed ({told}); what is finished is kept, the same command "
                "goes on from there."
            ) from error


def _gpus(device: str) -> int:
    """GPUs that a device asks for; with "auto" it is as without Ray where there is none."""
    return int(device.startswith("cuda"))


def _check_room(ray: ModuleType, needs: Mapping[str, float]) -> None:
    """Refuse what no machine of the cluster offers: Ray would wait for ever."""
    offered = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    keys = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
    for one in offered:
        if all(one.get(keys[name], 0) >= value for name, value in needs.items()):
            return
    wanted = ", ".join(f"{name} {value}" for name, value in needs.items() if value)
    raise ValueError(f"--ray: no machine of the cluster offers {wanted}; ask for less.")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
