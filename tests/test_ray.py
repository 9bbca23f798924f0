"""Sweeps and bulk embedding on a local Ray of two workers, which are killed on the way."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from PIL import Image
from test_runner import write_notebook

from entrep import cli
from entrep.archive import build_index
from entrep.artifacts import hash_folder
from entrep.bulk import Settings, ShardEncoder, embed_folder
from entrep.embed import embed_pictures
from entrep.encoders import load_encoder
from entrep.index import open_index
from entrep.pipeline import Step
from entrep.ray_cluster import open_ray
from entrep.ray_embed import RayEncoders
from entrep.ray_sweep import RayTasks
from entrep.sweep import make_plan

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="runs where Ray is installed: entrep[ray]"
)
STEPS = (Step("01_first"), Step("02_second", upstream=("01_first",)))
# The first time that a worker comes here with epochs 2, it waits to be killed.
SECOND = """\
import time
if epochs == 2 and Path({waits!r}).exists():
    Path({waits!r}).rename({waited!r})
    time.sleep(600)
write_json(folder / 'metrics.json', {{'heldout': {{'accuracy': (epochs + seed) / 10}}}})
"""


@pytest.fixture(scope="module")
def ray():
    """A local Ray of two workers, once for all tests here."""
    pytest.importorskip("ray", reason="runs where Ray is installed: entrep[ray]")
    with open_ray("local", 2) as started:
        yield started


def kill_worker(name: str) -> int:
    """End one of our Ray workers that is at work on this, as a crash would; how many there were."""
    found = [
        process
        for process in psutil.process_iter(["cmdline"])
        if " ".join(process.info["cmdline"] or []).startswith(f"ray::{name}")
    ]
    if found:
        found[0].kill()
    return len(found)


# Sweeps


@pytest.fixture
def notebooks(tmp_path: Path) -> Path:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    write_notebook(folder, "01_first", "", "write_json(folder / 'metrics.json', {'seed': seed})")
    body = SECOND.format(waits=str(tmp_path / "waits"), waited=str(tmp_path / "waited"))
    write_notebook(folder, "02_second", "epochs: int = None", body)
    return folder


def table_of(out: Path) -> pd.DataFrame:
    """The sweep's table without what two runs differ in: time and memory."""
    table = pd.read_parquet(out / "table.parquet")
    cost = [name for name in table.columns if "seconds" in name or name == "peak_gb"]
    return table.drop(columns=cost)


@needs_ray
def test_a_sweep_on_ray_whose_workers_are_killed_gives_the_same_table(
    ray, notebooks, tmp_path, monkeypatch
):
    monkeypatch.setitem(make_plan.__kwdefaults__, "steps", STEPS)
    monkeypatch.setattr("entrep.ray_sweep.open_ray", lambda *_: nullcontext(ray))
    command = ["sweep", "-p", "epochs=1,2", "--notebooks", str(notebooks), "--threads", "1"]
    assert cli.main([*command, "--out", str(tmp_path / "here")]) == 0

    (tmp_path / "waits").touch()
    killed = []

    def kill():
        while not (tmp_path / "waited").exists():
            time.sleep(0.05)
        while not killed or killed[-1] != 1:  # the one that waits is the last
            killed.append(kill_worker("run_on_worker"))
            time.sleep(0.2)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    assert cli.main([*command, "--out", str(tmp_path / "ray"), "--ray", "auto"]) == 0
    thread.join()
    assert killed[-1] == 1
    found, expected = (table_of(tmp_path / out) for out in ("ray", "here"))
    pd.testing.assert_frame_equal(found, expected)
    assert (pd.read_parquet(tmp_path / "ray" / "table.parquet")["peak_gb"] > 0).all()


class FakeRay:
    """A cluster of one machine, as far as it is asked what it offers."""

    def __init__(self, **resources):
        self.resources = resources

    def nodes(self):
        return [
            {"Alive": True, "Resources": self.resources},
            {"Alive": False, "Resources": {"CPU": 99, "GPU": 9}},
        ]

    def cluster_resources(self):
        return self.resources

    def remote(self, function):
        return function


@pytest.mark.parametrize(
    ("threads", "device", "words"),
    [(2, "cpu", ""), (3, "cpu", "num_cpus 3"), (1, "cuda", "num_cpus 1, num_gpus 1")],
)
def test_what_no_machine_offers_is_refused_and_not_waited_for(notebooks, threads, device, words):
    parameters = "device: str = None\nthreads: int = None"
    write_notebook(notebooks, "02_second", parameters, "pass")
    axes = {"device": (device,)}
    plan = make_plan(axes, "out", threads=threads, notebooks=notebooks, steps=STEPS)
    if not words:
        RayTasks(FakeRay(CPU=2), plan, 0)
        return
    with pytest.raises(ValueError, match=f"no machine of the cluster offers {words};"):
        RayTasks(FakeRay(CPU=2), plan, 0)


def test_an_encoder_takes_a_gpu_where_its_device_is_one():
    settings = Settings("pictures", "demo-clip", device="cuda")
    with pytest.raises(ValueError, match="offers num_gpus 1;"):
        RayEncoders(FakeRay(CPU=2), settings)


# Embedding


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(208):
        pixels = rng.integers(0, 255, (24, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    (folder / "zz-broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def alone(pictures, tmp_path_factory) -> Path:
    """The index that one process makes."""
    folder = tmp_path_factory.mktemp("alone")
    report = embed_folder(pictures, folder, shard_size=16, progress=False)
    assert report.added == report.embedded == len(report.index) == 208
    assert list(report.skipped) == ["zz-broken.png"]
    assert open_index(folder).unfinished == 0
    return folder


def segments(folder: Path) -> dict[str, str]:
    return hash_folder(folder / "segments")


class Interrupted:
    """Embeds like another, but is stopped when it has done some shards."""

    def __init__(self, settings, shards):
        self.inner, self.shards, self.asked = ShardEncoder(settings), shards, []

    def recipe(self):
        return self.inner.recipe()

    def embed_all(self, shards):
        for number, names in enumerate(shards):
            if number == self.shards:
                raise KeyboardInterrupt
            self.asked += names
            yield self.inner.embed(names)


def test_a_driver_that_was_stopped_repeats_only_what_is_missing(pictures, alone, tmp_path):
    asked = []

    def start(shards):
        def start(settings):
            encoders = Interrupted(settings, shards)
            asked.append(encoders.asked)
            return encoders

        return start

    options = {"shard_size": 16, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        embed_folder(pictures, tmp_path / "out", start=start(5), **options)
    index = open_index(tmp_path / "out")
    assert len(index) == 80 and index.unfinished == 129
    embed_folder(pictures, tmp_path / "out", start=start(None), **options)
    first, second = asked
    assert len(first) == 80 and not set(first) & set(second)
    assert segments(tmp_path / "out") == segments(alone)


def test_the_index_and_the_cache_read_what_was_embedded(pictures, alone, tmp_path, monkeypatch):
    found = build_index(pictures, alone, progress=False)
    assert found.added == found.removed == 0 and len(found.index) == 208
    cache = tmp_path / "cache"
    options = {"shard_size": 64, "cache": cache, "dtype": "fp32", "progress": False}
    index = embed_folder(pictures, tmp_path / "out", **options).index
    paths = [f"{number:03}.png" for number in range(208)]
    encoder = load_encoder("demo-clip")
    monkeypatch.setattr(
        "entrep.embed.decode_pictures", lambda *_, **__: pytest.fail("nothing is left to embed")
    )
    kept = embed_pictures(encoder, pictures, paths, cache=cache, progress=False)
    matrix = np.concatenate([index.vectors(segment) for segment in index.segments])
    np.testing.assert_array_equal(kept.matrix, matrix)


def test_a_picture_that_changes_while_it_is_read_is_left_out(pictures, tmp_path, monkeypatch):
    encoder = ShardEncoder(Settings(str(pictures), "demo-clip"))
    changed = {"001.png": "0" * 64}
    monkeypatch.setattr(
        "entrep.bulk.hash_pictures", lambda root, names: dict.fromkeys(names, "") | changed
    )
    known = {"000.png": "", "001.png": "1" * 64}
    monkeypatch.setattr("entrep.bulk.hash_named", lambda *_: known)
    shard = encoder.embed(list(known))
    assert shard.names == ["000.png"] and shard.matrix.shape[0] == 1
    assert "it changed while it was read" in shard.skipped["001.png"]


def test_an_index_of_another_folder_is_refused(pictures, alone, tmp_path):
    (tmp_path / "other").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "other" / "a.png")
    with pytest.raises(ValueError, match="is an index of .*, not of .*other"):
        embed_folder(tmp_path / "other", alone, progress=False)


@needs_ray
def test_embedding_on_ray_whose_worker_is_killed_gives_the_same_bytes(
    ray, pictures, alone, tmp_path
):
    class Killing(RayEncoders):
        """Loses a worker after the second shard."""

        def embed_all(self, shards):
            for number, shard in enumerate(super().embed_all(shards)):
                if number == 2:
                    assert kill_worker("MapWorker(Map(_EmbedShard))") == 2
                yield shard

    options = {"shard_size": 16, "progress": False}
    report = embed_folder(
        pictures, tmp_path / "out", start=lambda settings: Killing(ray, settings), **options
    )
    assert report.added == 208 and list(report.skipped) == ["zz-broken.png"]
    assert segments(tmp_path / "out") == segments(alone)


@needs_ray
def test_a_worker_that_would_embed_otherwise_refuses(ray, pictures):
    encoders = RayEncoders(ray, Settings(str(pictures), "demo-clip"), jobs=1)
    encoders._recipe = replace(encoders.recipe(), fingerprint="0" * 64)
    with pytest.raises(RuntimeError, match="embedding on Ray failed .*would not embed alike"):
        list(encoders.embed_all([["000.png"]]))


@needs_ray
def test_an_error_on_a_worker_is_told_plainly(ray, pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("entrep.ray_embed.open_ray", lambda *_: nullcontext(ray))
    place = ["--out", str(tmp_path / "out"), "--ray", "auto", "--jobs", "1"]
    assert cli.main(["embed", str(pictures), *place, "--encoder", "biomedclip"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("entrep: error: embedding on Ray failed (") and "biomedclip" in told
    assert told.count("\n") <= 3


# Refusals


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:1", "no Ray answers there"),
        ("ray://127.0.0.1:10001", "expected local, auto, or HOST:PORT"),
        ("127.0.0.1", "expected local, auto, or HOST:PORT"),
    ],
)
@needs_ray
def test_an_address_without_a_ray_is_one_error(address, words, pictures, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["embed", str(pictures), "--out", str(out), "--ray", address]) == 2
    assert words in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize("command", ["embed", "sweep"])
def test_without_ray_it_says_what_to_install(command, pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    given = [str(pictures)] if command == "embed" else ["--seeds", "0-1"]
    assert cli.main([command, *given, "--out", str(tmp_path / "out"), "--ray", "local"]) == 2
    assert "pip install 'entrep[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
