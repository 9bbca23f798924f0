"""Bulk embedding with Ray Data: a row is a shard, its actors keep the encoder loaded."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType

from entrep.bulk import Settings, Shard, ShardEncoder
from entrep.decode import count_cores
from entrep.index import Recipe
from entrep.ray_cluster import check_room, count_gpus, open_ray

# Finished shards that may wait to be written, before Ray Data holds the actors back.
_AHEAD = 4  # for each actor
_LEAST_BYTES = 2**28  # of them all


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
    # Ray's core would call the restarts that Ray Data asks for an error.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    with open_ray(address, jobs or count_cores()) as ray:
        yield lambda settings: RayEncoders(ray, settings, jobs)


class RayEncoders:
    """Embeds shards as a Ray Dataset, with an encoder on each CPU, or on each GPU.

    Each row is a whole shard and stays one, so what is lost with a worker is done again and
    counts once; the rows come back in order, so the index has the same bytes whoever worked.
    """

    def __init__(self, ray: ModuleType, settings: Settings, jobs: int = 0) -> None:
        """Ask one worker how it would embed; see `ray_encoders`."""
        self._ray = ray
        gpus = count_gpus(settings.device)
        offered = ray.cluster_resources()
        cpus, room = (int(offered.get(kind, 0)) for kind in ("CPU", "GPU" if gpus else "CPU"))
        self._needs = {"num_gpus": 1} if gpus else {"num_cpus": 1}
        check_room(ray, self._needs)
        self._size = min(jobs or room, room)
        # One that has a core to itself decodes in threads; beside a GPU processes keep up.
        self._settings = replace(settings, workers=max(1, cpus // room) if gpus else 0)
        ask = ray.remote(_recipe_and_width).options(**self._needs)
        with self._told_plainly():
            self._recipe, self._width = ray.get(ask.remote(self._settings))

    def recipe(self) -> Recipe:
        """How the vectors are made; a worker that would make them otherwise refuses to."""
        return self._recipe

    def embed_all(self, shards: Iterable[Sequence[str]]) -> Iterator[Shard]:
        """Embed shards; what came of them, in the same order.

        Finished shards that wait to be taken are bounded: memory stays flat however many come.
        """
        from ray.data import ActorPoolStrategy, ExecutionResources, from_items

        rows = [{"names": list(names)} for names in shards]
        if not rows:
            return
        dataset = from_items(rows, override_num_blocks=len(rows)).map(
            _EmbedShard,
            fn_constructor_args=(self._settings, self._recipe),
            compute=ActorPoolStrategy(size=min(self._size, len(rows))),
            **self._needs,
        )
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are ours to tell
        longest = max(len(row["names"]) for row in rows)
        ahead = _AHEAD * self._size * longest * self._width * 4  # bytes of float32
        context = dataset.context
        context.enable_progress_bars = False  # ours counts pictures
        context.execution_options.preserve_order = True
        context.execution_options.resource_limits = ExecutionResources(
            object_store_memory=max(_LEAST_BYTES, ahead)
        )
        with self._told_plainly():
            for row in dataset.iter_rows():
                yield Shard(**row)

    @contextmanager
    def _told_plainly(self) -> Iterator[None]:
        """Ray wraps what a worker raised in its own long story, and Ray Data that in another."""
        try:
            yield
        except self._ray.exceptions.RayError as error:
            raised = str(error).partition("\n\nThe above exception")[0]
            told = raised.strip().splitlines()[-1]
            raise RuntimeError(
                f"embedding on Ray failed ({told}); what is finished is kept, the same command "
                "goes on from there."
            ) from error


def _recipe_and_width(settings: Settings) -> tuple[Recipe, int]:
    shards = ShardEncoder(settings)
    return shards.recipe(), shards.encoder.spec.width


class _EmbedShard:
    """What an actor runs: a row with a shard's names in, a row with all of `Shard` out."""

    def __init__(self, settings: Settings, recipe: Recipe) -> None:
        self._encoder, self._recipe = ShardEncoder(settings), recipe

    def __call__(self, row: dict) -> dict:
        if (here := self._encoder.recipe()) != self._recipe:
            raise ValueError(
                "The cluster's machines would not embed alike; give all the same versions, "
                f"weights and kind of device: {self._recipe} and {here}."
            )
        return vars(self._encoder.embed(row["names"]))
