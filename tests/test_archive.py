"""Building an index of a folder, keeping it up to date, asking it; also when it is killed."""

import itertools
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from entrep import archive
from entrep.archive import (
    build_index,
    caveat,
    describe_report,
    load_index_encoder,
    search_index,
)
from entrep.artifacts import sha256_file
from entrep.index import open_index

SIZE = 32


@dataclass
class Network:
    """Stands in for an encoder: a fixed random projection, and a count of what it saw."""

    fingerprint: str = "weights"
    seen: int = 0
    fails_at: int = 10**9  # pictures
    dtype: torch.dtype = torch.float32
    spec: object = field(
        default_factory=lambda: SimpleNamespace(name="net", family="joint", image_size=SIZE)
    )
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @torch.inference_mode()
    def encode_pictures(self, batch):
        self.seen += len(batch)
        if self.seen > self.fails_at:
            raise KeyboardInterrupt
        weights = torch.randn(3 * SIZE * SIZE, 12, generator=torch.Generator().manual_seed(0))
        return functional.normalize((batch.flatten(1).float() / 255 - 0.5) @ weights, dim=-1)

    @torch.inference_mode()
    def encode_texts(self, texts):
        return functional.normalize(torch.ones(len(texts), 12), dim=-1)


@pytest.fixture
def network(monkeypatch):
    network = Network()
    monkeypatch.setattr(archive, "load_encoder", lambda name, **options: network)
    return network


@pytest.fixture
def pictures(tmp_path):
    """12 pictures in two folders, rubbish beside them."""
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for n in range(12):
        draw(folder / ("sub" if n > 7 else "") / f"{n:02}.png", n)
    (folder / "._00.png").write_bytes(b"rubbish")
    (folder / ".DS_Store").write_bytes(b"rubbish")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX/00.png").write_bytes(b"rubbish")
    return folder


def draw(path, seed):
    pixels = np.random.default_rng(seed).integers(60, 255, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(autouse=True)
def short_segments(monkeypatch):
    monkeypatch.setattr(archive, "SEGMENT_ROWS", 8)


def build(pictures, out, **options):
    return build_index(pictures, out, progress=False, workers=0, **options)


def content(folder):
    """Digest and vector by path: all that an index holds."""
    index = open_index(folder)
    vectors = [np.array(index.vectors(segment)) for segment in index.segments]
    rows = np.concatenate(vectors)
    return {n: (digest, rows[row].tolist()) for n, (digest, row) in index.all_keys().items()}


def test_a_folder_is_indexed_without_its_rubbish(pictures, network, tmp_path):
    report = build(pictures, tmp_path / "index")
    assert (report.added, report.embedded, report.removed, report.skipped) == (12, 12, 0, {})
    found = content(tmp_path / "index")
    names = [f"{'sub/' if n > 7 else ''}{n:02}.png" for n in range(12)]
    assert sorted(found) == names
    assert all(found[name][0] == sha256_file(pictures / name) for name in names)
    assert "12 pictures, 12 wide, fp16, by demo-clip" in describe_report(report)


def test_every_picture_finds_itself(pictures, network, tmp_path):
    build(pictures, tmp_path / "index", dtype="fp32")
    for name in ("03.png", "sub/09.png"):
        hits = search_index(tmp_path / "index", image=pictures / name, k=3)
        assert (hits[0].name, hits[0].similarity, len(hits)) == (name, 1.0, 3)


def test_copies_of_the_query_may_be_left_out(pictures, network, tmp_path):
    for n in range(3):
        shutil.copy(pictures / "03.png", pictures / f"copy{n}.png")
    report = build(pictures, tmp_path / "index")
    assert (report.added, report.embedded) == (15, 12)
    ask = {"image": pictures / "03.png", "k": 5}
    names = [hit.name for hit in search_index(tmp_path / "index", **ask)]
    assert names[:4] == ["03.png", "copy0.png", "copy1.png", "copy2.png"]
    others = [hit.name for hit in search_index(tmp_path / "index", copies=False, **ask)]
    assert others[0] == names[4] and len(others) == 5 and not set(others) & set(names[:4])
    every = search_index(tmp_path / "index", image=pictures / "03.png", k=99, copies=False)
    assert len(every) == 11


def test_only_new_bytes_are_embedded(pictures, network, tmp_path):
    out = tmp_path / "index"
    build(pictures, out, commit_rows=4)
    before, network.seen = content(out), 0
    assert build(pictures, out, commit_rows=4).added == 0 and network.seen == 0
    draw(pictures / "new.png", 50)  # added
    draw(pictures / "04.png", 51)  # changed
    (pictures / "05.png").rename(pictures / "renamed.png")
    (pictures / "06.png").unlink()
    shutil.copy(pictures / "07.png", pictures / "sub/copy.png")
    report = build(pictures, out, commit_rows=4)
    assert network.seen == 2
    assert (report.added, report.embedded, report.removed) == (4, 2, 3)
    after = content(out)
    same = before.keys() - {"04.png", "05.png", "06.png"}
    assert after.keys() - same == {"04.png", "new.png", "renamed.png", "sub/copy.png"}
    assert all(after[name] == before[name] for name in same)
    assert after["renamed.png"] == before["05.png"] and after["sub/copy.png"] == before["07.png"]
    fresh = build(pictures, tmp_path / "other", commit_rows=4)
    assert content(fresh.index.folder) == after


def test_pictures_that_change_names_with_each_other_are_followed(pictures, network, tmp_path):
    out, names = tmp_path / "index", [f"{n:02}.png" for n in range(8)]
    build(pictures, out)
    before, network.seen = content(out), 0
    for name in names:
        (pictures / name).rename(pictures / f"{name}.tmp")
    for name, other in zip(names, [*names[1:], names[0]], strict=True):
        (pictures / f"{name}.tmp").rename(pictures / other)
    build(pictures, out)
    after = content(out)
    assert network.seen == 0 and after.keys() == before.keys()
    assert all(after[f"{(n + 1) % 8:02}.png"] == before[f"{n:02}.png"] for n in range(8))


def test_an_interrupt_within_a_change_commits_nothing_of_it(
    pictures, network, tmp_path, monkeypatch
):
    out = tmp_path / "index"
    build(pictures, out)
    before = content(out)
    draw(pictures / "new.png", 99)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(archive, "write_segment", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(pictures, out)
    assert content(out) == before


def test_a_removed_picture_leaves_no_vector_on_the_disk(pictures, network, tmp_path):
    out = tmp_path / "index"
    build(pictures, out)
    vector = np.array(content(out)["06.png"][1], "<f2").tobytes()
    holding = [path for path in out.rglob("*") if path.is_file() and vector in path.read_bytes()]
    assert holding
    (pictures / "06.png").unlink()
    build(pictures, out)
    assert not [p for p in out.rglob("*") if p.is_file() and vector in p.read_bytes()]


def test_many_small_additions_leave_few_segments(pictures, network, tmp_path):
    out = tmp_path / "index"
    for n in range(9):
        draw(pictures / f"more{n}.png", 100 + n)
        index = build(pictures, out, commit_rows=8).index
    assert len(index) == 21 and len(index.segments) <= 3
    assert len(list((out / "segments").iterdir())) == 2 * len(index.segments)


def test_an_interrupted_build_keeps_what_is_done_and_goes_on(pictures, network, tmp_path):
    out = tmp_path / "index"
    network.fails_at = 8
    with pytest.raises(KeyboardInterrupt):
        build(pictures, out, commit_rows=4, batch_size=2)
    assert len(open_index(out)) == 6 and open_index(out).unfinished == 6
    network.fails_at, network.seen = 10**9, 0
    index = build(pictures, out, commit_rows=4, batch_size=2).index
    assert network.seen == 6 and index.unfinished == 0
    build(pictures, tmp_path / "whole", commit_rows=4, batch_size=2)
    assert content(out) == content(tmp_path / "whole")


def png_of_size(width, height):
    """A PNG that is a few bytes long and says that it is huge."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_and_broken_pictures_are_left_out_and_named(pictures, network, tmp_path):
    (pictures / "bomb.png").write_bytes(png_of_size(100_000, 100_000))
    (pictures / "big.png").write_bytes(png_of_size(10_000, 9_999))
    (pictures / "text.png").write_bytes(b"no picture")
    (pictures / "text copy.png").write_bytes(b"no picture")
    (pictures / "cut.png").write_bytes((pictures / "00.png").read_bytes()[:2000])
    (pictures / "empty.jpg").write_bytes(b"")
    report = build(pictures, tmp_path / "index")
    assert report.added == 12
    bad = ["big.png", "bomb.png", "cut.png", "empty.jpg", "text copy.png", "text.png"]
    assert sorted(report.skipped) == bad
    assert all(str(pictures / name) in reason for name, reason in report.skipped.items())
    assert "more than 50 megapixels" in report.skipped["bomb.png"]
    assert "6 left out: " in describe_report(report) and " and 3 more" in describe_report(report)
    for name in ("bomb.png", "big.png"):
        with pytest.raises(ValueError, match="more than 50 megapixels; ask with an intact"):
            search_index(tmp_path / "index", image=pictures / name)
    assert build(pictures, tmp_path / "index").added == 0
    assert open_index(tmp_path / "index").unfinished == 0


def test_a_folder_of_broken_pictures_is_refused(network, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="None of 1 pictures could be read; the first: .*a.png"):
        build(tmp_path / "pictures", tmp_path / "index")


@pytest.mark.skipif(os.name == "nt", reason="runs where a file may be named so: not on Windows")
def test_a_name_that_means_another_place_elsewhere_is_left_out(pictures, network, tmp_path):
    draw(pictures / "a\\..\\..\\evil.png", 77)
    report = build(pictures, tmp_path / "index")
    assert report.added == 12 and "rename" in report.skipped["a\\..\\..\\evil.png"]


def test_names_that_are_no_text_are_kept(pictures, network, tmp_path):
    odd = os.fsdecode(b"\xff<b>\n\x1b[31m.png")
    try:
        draw(pictures / odd, 78)
    except (OSError, UnicodeError):
        pytest.skip("runs where the disk takes such a name")
    build(pictures, tmp_path / "index")
    assert search_index(tmp_path / "index", image=pictures / odd, k=1)[0].name == odd


def test_a_picture_that_changes_while_it_is_read_is_left_out(
    pictures, network, tmp_path, monkeypatch
):
    monkeypatch.setattr(archive, "_still", lambda path, digest: path.name != "03.png")
    report = build(pictures, tmp_path / "index")
    assert report.added == 11 and "it changed while it was read" in report.skipped["03.png"]


def test_another_encoder_is_refused_with_both_names(pictures, network, tmp_path):
    out = tmp_path / "index"
    build(pictures, out, encoder="net")
    other = Network(fingerprint="other weights", spec=SimpleNamespace(name="b", image_size=SIZE))
    words = (
        r"built with the encoder net \(fingerprint weights, fp32, torch .*\); this is b "
        r"\(other weight.*whose vectors do not compare.*--out NEW --encoder b"
    )
    with pytest.raises(ValueError, match=words):
        search_index(out, image=pictures / "00.png", encoder=other)
    network.fingerprint = "newer library"
    with pytest.raises(ValueError, match="Take the index's encoder and versions, or build a new"):
        search_index(out, text="an ear drum")
    with pytest.raises(ValueError, match="Take the index's encoder and versions"):
        build(pictures, out)


def test_another_crop_of_the_kit_is_refused(pictures, network, tmp_path, monkeypatch):
    build(pictures, tmp_path / "index")
    monkeypatch.setattr(archive, "preprocessing_identity", lambda size, crop: "newer")
    with pytest.raises(ValueError, match="crops or resizes pictures in another way now"):
        search_index(tmp_path / "index", image=pictures / "00.png")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"encoder": "effnet-lite0"}, "encoder demo-clip, asked is effnet-lite0"),
        ({"dtype": "fp32"}, "dtype fp16, asked is fp32"),
        ({"crop": False}, "crop True, asked is False"),
        ({"dtype": "int8"}, "expected fp16 or fp32, got 'int8'"),
    ],
)
def test_an_index_keeps_the_options_that_it_was_built_with(
    pictures, network, tmp_path, options, words
):
    build(pictures, tmp_path / "index")
    with pytest.raises(ValueError, match=words):
        build(pictures, tmp_path / "index", **options)


def test_a_folder_of_other_pictures_does_not_empty_an_index(pictures, network, tmp_path):
    build(pictures, tmp_path / "index")
    draw_folder = tmp_path / "others"
    draw_folder.mkdir()
    draw(draw_folder / "x.png", 5000)
    with pytest.raises(ValueError, match="none of them is in .*others; give that folder"):
        build(draw_folder, tmp_path / "index")
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        build(tmp_path / "not there", tmp_path / "index")
    assert len(open_index(tmp_path / "index")) == 12


def test_pictures_that_moved_are_followed(pictures, network, tmp_path):
    build(pictures, tmp_path / "index")
    pictures.rename(tmp_path / "moved")
    report = build(tmp_path / "moved", tmp_path / "index")
    assert (report.added, report.removed) == (0, 0)
    assert open_index(tmp_path / "index").pictures == str((tmp_path / "moved").resolve())


def test_a_query_is_one_picture_or_one_sound_phrase(pictures, network, tmp_path):
    out = tmp_path / "index"
    build(pictures, out)
    for wrong in ({}, {"image": "a.png", "text": "a"}):
        with pytest.raises(ValueError, match="either an image or a text"):
            search_index(out, **wrong)
    with pytest.raises(ValueError, match="the phrase has 10,485,760 characters, at most 2,000"):
        search_index(out, text="ear drum " * 1_165_084 + "ear ")
    with pytest.raises(ValueError, match="the phrase is empty"):
        search_index(out, text=" \n")
    with pytest.raises(ValueError, match="no valid Unicode"):
        search_index(out, text="\udc80")
    with pytest.raises(FileNotFoundError, match="no such picture"):
        search_index(out, image=pictures / "not.png")
    assert len(search_index(out, text="an ear drum", k=4)) == 4


def test_answers_of_a_shipped_encoder_carry_a_caveat(pictures, network, tmp_path):
    assert "only seen drawn pictures" in caveat(build(pictures, tmp_path / "a").index)
    report = build(pictures, tmp_path / "b", encoder="effnet-lite0")
    assert caveat(report.index) == ""


def test_real_pictures_find_their_site_at_rank_1(real_sample, tmp_path):
    from entrep.data import find_challenge
    from entrep.labels import SITE_OF

    table = find_challenge(real_sample).pictures
    labelled = table[table.class_index >= 0]
    site = {row.path: SITE_OF[row.class_index] for row in labelled.itertuples()}
    index = build(real_sample, tmp_path / "index", encoder="effnet-lite0").index
    ask = {"k": len(index), "encoder": load_index_encoder(index), "copies": False}
    right = 0
    for path in site:
        hits = search_index(index, image=real_sample / path, **ask)
        first = next(hit.name for hit in hits if hit.name in site)
        right += site[first] == site[path]
    assert right >= 0.9 * len(site)


def need_faiss():
    if sys.platform == "darwin":  # importing it beside PyTorch may end the process
        pytest.skip("runs where FAISS is not refused: not on macOS")
    pytest.importorskip("faiss", reason="runs where faiss-cpu is installed")


# FAISS ------------------------------------------------------------------------------------------


def test_an_approximate_index_is_checked_used_and_dropped_when_pictures_change(
    pictures, network, tmp_path
):
    need_faiss()
    out = tmp_path / "index"
    for n in range(88):
        draw(pictures / f"more{n}.png", 100 + n)
    report = build(pictures, out, approximate=True)
    assert report.index.approximate.recall >= 0.95
    assert "of the 10 nearest in" in describe_report(report)
    ask = {"image": pictures / "03.png", "k": 3}
    found = search_index(out, approximate=True, **ask)
    assert found[0] == search_index(out, **ask)[0]
    faiss_file = next((out / "segments").glob("*.faiss"))
    whole = faiss_file.read_bytes()
    faiss_file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="faiss is not as the manifest says"):
        search_index(out, approximate=True, **ask)
    (pictures / "05.png").unlink()
    report = build(pictures, out)
    assert report.index.approximate is None and not faiss_file.exists()
    assert "--approximate makes it anew" in describe_report(report)
    with pytest.raises(ValueError, match="no approximate index of its present pictures; make one"):
        search_index(out, approximate=True, **ask)


def test_an_approximate_index_that_finds_too_little_is_refused(
    pictures, network, tmp_path, monkeypatch
):
    need_faiss()
    from entrep import approximate

    index = build(pictures, tmp_path / "index").index
    monkeypatch.setattr(approximate, "_recall", lambda true, answers: 0.5)
    with pytest.raises(ValueError, match="finds 0.500 of the true nearest even in all its lists"):
        approximate.build_approximate(index)
    assert open_index(index.folder).approximate is None


@pytest.mark.skipif(
    sys.platform == "darwin", reason="runs where FAISS is not refused: not on macOS"
)
def test_without_faiss_the_error_says_how_to_install_it(pictures, network, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match="pip install faiss-cpu"):
        build(pictures, tmp_path / "index", approximate=True)


# Kill -------------------------------------------------------------------------------------------

# Imports once, then forks a build for every kill: a process that starts with PyTorch takes seconds.
KILLER = """
    import json, os, signal, sys, time
    sys.path.insert(0, sys.argv[1])
    from entrep import archive
    from test_archive import Network

    archive.load_encoder = lambda name, **options: Network()
    archive.SEGMENT_ROWS = 12

    def die_at(operation):
        # Just before the n-th rename, flush to the disk or removal of a file.
        left = [operation]
        def guard(function):
            def guarded(*arguments, **options):
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)
            return guarded
        for name in ("replace", "fsync", "unlink"):
            setattr(os, name, guard(getattr(os, name)))

    for line in sys.stdin:
        pictures, out, wait_s, operation = json.loads(line)
        child = os.fork()
        if child == 0:
            if operation:
                die_at(operation)
            try:
                archive.build_index(pictures, out, workers=0, batch_size=4, commit_rows=8,
                                    progress=False)
            except BaseException as error:
                print(error, file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        start = time.monotonic()
        if wait_s:
            time.sleep(wait_s)
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps([status, time.monotonic() - start]), flush=True)
"""


@pytest.fixture(scope="module")
def run_build():
    """Run `build_index` in a process of its own, killed at a time or operation, if one is given."""
    script = [sys.executable, "-c", textwrap.dedent(KILLER), str(Path(__file__).parent)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(script, **pipes) as helper:

        def run(pictures, out, wait_s=0, operation=0):
            helper.stdin.write(json.dumps([str(pictures), str(out), wait_s, operation]) + "\n")
            helper.stdin.flush()
            return json.loads(helper.stdout.readline())

        yield run
        helper.stdin.close()


@pytest.fixture(scope="module")
def two_states(run_build, tmp_path_factory):
    """Pictures before and after many changes, their indexes, and the seconds of the change."""
    root = tmp_path_factory.mktemp("kill")
    old, new = root / "old", root / "new"
    old.mkdir()
    for n in range(40):
        draw(old / f"{n:02}.png", n)
    shutil.copytree(old, new)
    for n in range(0, 40, 5):
        (new / f"{n:02}.png").rename(new / f"renamed{n:02}.png")
        (new / f"{n + 1:02}.png").unlink()
        draw(new / f"{n + 2:02}.png", 200 + n)
        draw(new / f"new{n:02}.png", 100 + n)
    assert run_build(old, root / "index of old")[0] == 0
    status, took_s = run_build(new, root / "index of new")
    assert status == 0
    return SimpleNamespace(root=root, old=old, new=new, took_s=took_s)


def check_then_complete(run_build, states, out):
    """What a killed build left opens and is true, or does not open; the next build completes it.

    Returns whether it was in the middle.
    """
    before, after = content(states.root / "index of old"), content(states.root / "index of new")
    middle = True
    if (out / "index.json").is_file():
        found = content(out)  # opens, and every file is checked
        assert all(found[name] in (before.get(name), after.get(name)) for name in found)
        middle = found not in (before, after)
        assert open_index(out).unfinished or found in (before, after)
    assert run_build(states.new, out)[0] == 0
    assert content(out) == after and open_index(out).unfinished == 0
    left = {path.name for path in (out / "segments").iterdir()}
    assert len(left) == 2 * len(open_index(out).segments)
    return middle


needs_kill = pytest.mark.skipif(not hasattr(os, "fork"), reason="runs where SIGKILL and fork are")


@needs_kill
def test_a_build_killed_at_ten_random_moments_leaves_the_truth_and_is_completed(
    run_build, two_states, tmp_path
):
    rng, killed, longest = random.Random(0), 0, two_states.took_s
    for attempt in itertools.count():
        out = tmp_path / f"index{attempt}"
        if attempt % 2:  # an index that is brought up to date
            shutil.copytree(two_states.root / "index of old", out)
        wait_s = rng.uniform(0.05, 1) * longest
        status, _ = run_build(two_states.new, out, wait_s=wait_s)
        check_then_complete(run_build, two_states, out)
        if status == -signal.SIGKILL:
            killed += 1
        else:  # it was done before: the machine is less busy than when the time was taken
            assert status == 0 and attempt < 40
            longest = wait_s
        if killed == 10:
            return


@needs_kill
@pytest.mark.parametrize("changing", [False, True])
def test_a_build_killed_at_any_file_operation_leaves_the_truth_and_is_completed(
    run_build, two_states, tmp_path, changing
):
    status, operation, middle = -signal.SIGKILL, 0, 0
    while status == -signal.SIGKILL:
        operation += 1
        out = tmp_path / f"index{operation}"
        if changing:
            shutil.copytree(two_states.root / "index of old", out)
        status, _ = run_build(two_states.new, out, operation=operation)
        middle += check_then_complete(run_build, two_states, out)
    assert status == 0 and operation > 15 and middle > 8
