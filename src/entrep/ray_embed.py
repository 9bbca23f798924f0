"""Encoders that stay loaded on Ray's workers and embed shards of pictures."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType

from entrep.bulk import Settings, Shard, ShardEncoder
from entrep.decode import count_cores
from entrep.index import Recipe
from entrep.ray_cluster import RETRIES, check_room, count_gpus, open_ray

_EACH = 2  # shards that an actor has at a time: one at work and the next


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
        gpus = count_gpus(settings.device)
        offered = ray.cluster_resources()
        room = int(offered.get("GPU" if gpus else "CPU", 0))
        cpus = max(1, int(offered.get("CPU", 0) / room)) if gpus and room else 1
        check_room(ray, {"num_cpus": cpus, "num_gpus": gpus})
        # One that has a core to itself decodes in threads; beside a GPU processes keep up.
        settings = replace(settings, workers=None if gpus else 0)
        actor = ray.remote(ShardEncoder).options(
            num_cpus=cpus, num_gpus=gpus, max_restarts=-1, max_task_retries=RETRIES
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
            raise RuntimeError(
                f"embedding on Ray failed ({told}); what is finished is kept, the same command "
                "goes on from there."
            ) from error
