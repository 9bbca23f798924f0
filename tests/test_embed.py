import multiprocessing
import os
import pickle
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from entrep import decode, embed
from entrep.artifacts import sha256_file
from entrep.preprocess import as_batch, prepare_picture

SIZE = 32


@dataclass
class Network:
    """Stands in for an encoder: a small random network, and a diary of its passes."""

    fingerprint: str = "weights"
    fits: int = 1000  # pictures or texts a pass
    passes: list = field(default_factory=list)
    spec: object = field(
        default_factory=lambda: SimpleNamespace(name="net", family="joint", image_size=SIZE)
    )
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self):
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 8, 4), torch.nn.GELU(), torch.nn.Flatten(), torch.nn.LazyLinear(7)
        )
        self.model(torch.zeros(1, 3, SIZE, SIZE))
        self.model.to(self.device)

    def _pass(self, count):
        self.passes.append(count)
        if count > self.fits:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ...")

    @torch.inference_mode()
    def encode_pictures(self, batch):
        assert batch.dtype == torch.uint8 and batch.shape[1:] == (3, SIZE, SIZE)
        self._pass(len(batch))
        batch = batch.to(self.device, non_blocking=True)
        return functional.normalize(self.model(batch.float() / 255 - 0.5), dim=-1)

    def encode_texts(self, texts):
        self._pass(len(texts))
        counts = torch.tensor([[text.count(c) + 0.5 for c in "abc"] for text in texts])
        return functional.normalize(counts, dim=-1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """13 pictures of several shapes in two folders; 03 and 11 are the same bytes."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "sub").mkdir()
    rng = np.random.default_rng(0)
    for n in range(13):
        pixels = rng.integers(60, 255, (40 + n, 50, 3), np.uint8)
        Image.fromarray(pixels).save(folder / ("sub" if n > 8 else "") / f"{n:02}.png")
    (folder / "sub/11.png").write_bytes((folder / "03.png").read_bytes())
    return folder


PATHS = [f"{'sub/' if n > 8 else ''}{n:02}.png" for n in range(13)]


@pytest.fixture
def broken(folder, tmp_path):
    """The pictures, with one cut off, one that is text, and one missing."""
    for path in PATHS:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes((folder / path).read_bytes())
    content = (folder / "02.png").read_bytes()
    (tmp_path / "02.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "05.png").write_bytes(b"no picture")
    (tmp_path / "08.png").unlink()
    return tmp_path


def one_by_one(encoder, root, paths, crop=True):
    """The obvious loop."""
    pictures = [prepare_picture(root / path, SIZE, crop=crop) for path in paths]
    return np.concatenate(
        [encoder.encode_pictures(as_batch(np.stack([p]))).numpy() for p in pictures]
    )


def test_every_way_agrees_with_a_plain_loop(folder, tmp_path):
    expected = one_by_one(Network(), folder, PATHS)
    order = np.random.default_rng(1).permutation(len(PATHS))
    ways = [
        {},
        {"batch_size": 1},
        {"batch_size": 5, "workers": 1},
        {"batch_size": 4, "workers": 2},
        {"cache": tmp_path},
        {"cache": tmp_path},
        {"cache": tmp_path / "other", "keep_pixels": True},
        {"cache": tmp_path / "other", "sha256": [sha256_file(folder / p) for p in PATHS]},
    ]
    for way in ways:
        done = embed.embed_pictures(Network(), folder, PATHS, **way)
        assert done.keys == PATHS and done.skipped == {} and done.matrix.dtype == np.float32
        np.testing.assert_allclose(done.matrix, expected, atol=1e-6, rtol=0, err_msg=str(way))
        shuffled = [PATHS[n] for n in order]
        way = {name: way[name] for name in way if name != "sha256"}
        done = embed.embed_pictures(Network(), folder, shuffled, **way)
        np.testing.assert_allclose(done.matrix, expected[order], atol=1e-6, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_a_gpu_agrees_with_the_plain_loop(folder, workers, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    encoder = Network(device=torch.device("cuda"))
    done = embed.embed_pictures(encoder, folder, PATHS * 20, batch_size=2, workers=workers)
    expected = one_by_one(Network(), folder, PATHS)
    np.testing.assert_allclose(done.matrix[:13], expected, atol=1e-5)
    parts = embed.stream_embeddings(encoder, folder, PATHS * 20, batch_size=2, workers=workers)
    matrix = np.concatenate([part.matrix for part in parts])
    np.testing.assert_allclose(matrix, np.tile(expected, (20, 1)), atol=1e-5)


def test_a_whole_frame_is_another_picture(folder, tmp_path):
    whole = embed.embed_pictures(Network(), folder, PATHS, crop=False, cache=tmp_path)
    expected = one_by_one(Network(), folder, PATHS, crop=False)
    np.testing.assert_allclose(whole.matrix, expected, atol=1e-6)
    cropped = embed.embed_pictures(Network(), folder, PATHS, cache=tmp_path)
    np.testing.assert_allclose(cropped.matrix, one_by_one(Network(), folder, PATHS), atol=1e-6)


def test_the_cache_computes_only_what_is_new(folder, tmp_path):
    first, again, more = Network(), Network(), Network()
    before = embed.embed_pictures(first, folder, PATHS[:-1], cache=tmp_path).matrix
    assert sum(first.passes) == 11, "the same bytes twice are embedded once"
    warm = embed.embed_pictures(again, folder, PATHS[:-1], cache=tmp_path).matrix
    assert again.passes == [] and warm.tobytes() == before.tobytes()
    both = embed.embed_pictures(more, folder, PATHS[::-1], cache=tmp_path).matrix
    assert more.passes == [1], "one picture more, one forward pass"
    assert both[:0:-1].tobytes() == before.tobytes()
    other = Network(fingerprint="other weights")
    embed.embed_pictures(other, folder, PATHS, cache=tmp_path)
    embed.embed_pictures(other, folder, PATHS, cache=tmp_path, flip_tta=True)
    assert sum(other.passes) == 12 + 2 * 12


def test_flip_tta_is_the_mean_of_both_views(folder):
    encoder = Network()
    batch = as_batch(np.stack([prepare_picture(folder / p, SIZE) for p in PATHS]))
    both = encoder.encode_pictures(batch) + encoder.encode_pictures(batch.flip(-1))
    done = embed.embed_pictures(encoder, folder, PATHS, flip_tta=True).matrix
    np.testing.assert_allclose(done, functional.normalize(both, dim=-1), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(done, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_pictures_are_skipped_and_reported(broken, workers, capsys):
    done = embed.embed_pictures(
        Network(), broken, PATHS, on_error="skip", workers=workers, batch_size=1
    )
    good = [path for path in PATHS if path not in ("02.png", "05.png", "08.png")]
    assert done.keys == good
    np.testing.assert_allclose(done.matrix, one_by_one(Network(), broken, good), atol=1e-6)
    assert list(done.skipped) == ["02.png", "05.png", "08.png"]
    assert "02.png: not a readable picture" in done.skipped["02.png"]
    assert "08.png: there is no such picture" in done.skipped["08.png"]
    assert "3 of 13 pictures skipped" in capsys.readouterr().out


def test_unreadable_pictures_stop_the_run_but_not_the_work(broken, folder, tmp_path):
    (broken / "08.png").write_bytes((folder / "08.png").read_bytes())
    encoder, cache = Network(), tmp_path / "cache"
    with pytest.raises(ValueError, match=r"02\.png: not a readable picture"):
        embed.embed_pictures(encoder, broken, PATHS, batch_size=2, cache=cache)
    assert sum(encoder.passes) == 3, "00, 01 and the neighbour of the broken one"
    for path in ("02.png", "05.png"):
        (broken / path).write_bytes((folder / path).read_bytes())
    mended = Network()
    embed.embed_pictures(mended, broken, PATHS, batch_size=2, cache=cache)
    assert sum(mended.passes) == 12 - 3, "what was done before the stop is not done again"


def test_a_missing_picture_stops_the_run(broken):
    with pytest.raises(FileNotFoundError, match=r"08\.png: there is no such picture"):
        embed.embed_pictures(Network(), broken, PATHS)
    with pytest.raises(FileNotFoundError, match=r"08\.png: there is no such picture"):
        embed.embed_pictures(Network(), broken, PATHS[6:], sha256=PATHS[6:])


def test_equal_broken_files_are_all_reported(broken):
    (broken / "06.png").write_bytes(b"no picture")
    done = embed.embed_pictures(Network(), broken, ["06.png", "01.png", "05.png"], on_error="skip")
    assert list(done.skipped) == ["06.png", "05.png"]
    assert all(path in reason for path, reason in done.skipped.items())


def test_nothing_readable_is_an_error_and_nothing_asked_is_not(broken):
    with pytest.raises(ValueError, match=r"None of 1 pictures.*05\.png"):
        embed.embed_pictures(Network(), broken, ["05.png"], on_error="skip")
    assert embed.embed_pictures(Network(), broken, []).matrix.shape == (0, 0)


def test_kept_pixels_are_decoded_once(folder, tmp_path, monkeypatch):
    def embed_with(fingerprint, paths):
        encoder = Network(fingerprint=fingerprint)
        options = {"cache": tmp_path, "keep_pixels": True, "workers": 0}
        return embed.embed_pictures(encoder, folder, paths, **options).matrix

    first = embed_with("one", PATHS)
    embed_with("two", PATHS[:3])
    with monkeypatch.context() as patch:
        patch.setattr("entrep.decode.prepare_picture", None)
        np.testing.assert_array_equal(embed_with("three", PATHS), first)
        embed_with("two", PATHS)
    assert len(list(tmp_path.glob("pixels-*.npy"))) == 2
    embed_with("three", PATHS[::-1])
    assert len(list(tmp_path.glob("pixels-*.npy"))) == 2, "nothing to decode, nothing to keep"


def test_kept_pixels_and_unreadable_pictures(broken, tmp_path):
    options = {"cache": tmp_path / "cache", "keep_pixels": True}
    with pytest.raises(ValueError, match=r"02\.png"):
        embed.embed_pictures(Network(), broken, PATHS[:8], **options)
    assert not list((tmp_path / "cache").glob("pixels*"))
    for fingerprint in ("one", "two"):
        encoder = Network(fingerprint=fingerprint)
        done = embed.embed_pictures(encoder, broken, PATHS, on_error="skip", **options)
        assert list(done.skipped) == ["02.png", "05.png", "08.png"] and len(done.keys) == 10
    np.testing.assert_allclose(done.matrix, one_by_one(Network(), broken, done.keys), atol=1e-6)


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError, MemoryError])
def test_out_of_memory_halves_the_pass_and_goes_on(folder, capsys, error, monkeypatch):
    encoder = Network(fits=3)
    count = encoder._pass

    def refuse(pictures):
        try:
            count(pictures)
        except RuntimeError as known:
            raise error(*known.args) from None

    monkeypatch.setattr(encoder, "_pass", refuse)
    done = embed.embed_pictures(encoder, folder, PATHS, batch_size=8)
    np.testing.assert_allclose(done.matrix, one_by_one(Network(), folder, PATHS), atol=1e-6)
    assert encoder.passes == [8, 4, 2, 2, 2, 2, 2, 2], "it remembers the size that fitted"
    assert "out of memory with 8 pictures a pass; goes on with 4" in capsys.readouterr().out


def test_not_even_one_picture_fits(folder):
    with pytest.raises(RuntimeError, match="not even one picture fits into the memory of cpu"):
        embed.embed_pictures(Network(fits=0), folder, PATHS)


def test_other_errors_of_a_network_are_not_swallowed(folder, monkeypatch):
    encoder = Network()
    monkeypatch.setattr(encoder, "model", torch.nn.Linear(2, 3))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        embed.embed_pictures(encoder, folder, PATHS)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"on_error": "ignore"}, "expected 'stop' or 'skip', got 'ignore'"),
        ({"sha256": ["1"]}, "13 paths, but 1 digests"),
        ({"batch_size": 0}, "batch_size: expected 1 or more, got 0"),
        ({"workers": -1}, "workers: expected 0 or more, got -1"),
        ({"keep_pixels": True}, "name one in `cache`"),
    ],
)
def test_options_that_make_no_sense(folder, options, words):
    with pytest.raises(ValueError, match=words):
        embed.embed_pictures(Network(), folder, PATHS, **options)


def test_texts_come_in_order_and_equal_ones_once(tmp_path):
    texts = ["ab", "c", "abc", "ab", ""]
    encoder = Network()
    done = embed.embed_texts(encoder, texts, batch_size=2, cache=tmp_path)
    assert done.keys == texts and encoder.passes == [2, 2]
    np.testing.assert_allclose(done.matrix, Network().encode_texts(texts), atol=1e-6)
    warm = Network()
    again = embed.embed_texts(warm, [*texts, "new"], cache=tmp_path).matrix
    assert warm.passes == [1] and again[:5].tobytes() == done.matrix.tobytes()
    np.testing.assert_array_equal(embed.embed_texts(Network(fits=2), texts).matrix, done.matrix)
    assert embed.embed_texts(encoder, []).matrix.shape == (0, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_is_read_a_little_ahead_only(folder, workers):
    read = []

    def endless():
        while True:
            for path in PATHS:
                read.append(path)
                yield path

    stream = embed.stream_embeddings(Network(), folder, endless(), batch_size=3, workers=workers)
    parts = [next(stream) for _ in range(4)]
    stream.close()
    assert [key for part in parts for key in part.keys] == PATHS[:12]
    matrix = np.concatenate([part.matrix for part in parts])
    np.testing.assert_allclose(matrix, one_by_one(Network(), folder, PATHS[:12]), atol=1e-6)
    assert len(read) <= 12 + 3 * 5


def test_a_stream_hands_over_what_came_before_a_broken_picture(broken):
    stream = embed.stream_embeddings(Network(), broken, PATHS, batch_size=2)
    keys = []
    with pytest.raises(ValueError, match=r"02\.png"):
        for part in stream:
            keys += part.keys
    assert keys == ["00.png", "01.png", "03.png"]


def test_a_stream_may_skip(broken):
    parts = list(
        embed.stream_embeddings(Network(), broken, PATHS, on_error="skip", batch_size=2, workers=0)
    )
    assert [list(part.skipped) for part in parts if part.skipped] == [
        ["02.png"], ["05.png"], ["08.png"]
    ]  # fmt: skip


def embed_alone(folder, cache, answers):
    torch.set_num_threads(1)  # a forked process cannot use its parent's threads
    done = embed.embed_pictures(Network(), folder, PATHS, cache=cache, batch_size=1, workers=0)
    answers.put((done.keys, done.matrix.tobytes()))


def test_two_processes_that_fill_one_cache_agree(folder, tmp_path):
    # Forked where that is possible: it takes a tenth of a second instead of ten.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if "fork" in methods else "spawn")
    answers = context.Queue()
    arguments = (folder, tmp_path, answers)
    both = [context.Process(target=embed_alone, args=arguments) for _ in range(2)]
    for process in both:
        process.start()
    said = [answers.get(timeout=120) for _ in both]
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    warm = Network()
    done = embed.embed_pictures(warm, folder, PATHS, cache=tmp_path)
    assert warm.passes == []
    assert said == [(PATHS, done.matrix.tobytes())] * 2


def test_a_decoder_that_is_killed_is_named(folder, monkeypatch):
    if multiprocessing.get_start_method() != "fork":
        pytest.skip("runs where processes are forked, as they take the patch along")
    monkeypatch.setattr("entrep.decode.prepare_picture", lambda *_, **__: os._exit(1))
    with pytest.raises(RuntimeError, match="decodes pictures was killed.*fewer `workers`"):
        embed.embed_pictures(Network(), folder, PATHS, workers=1)


def test_pictures_can_be_sent_to_processes_that_did_not_fork(folder):
    pictures = pickle.loads(pickle.dumps(decode._Pictures(folder, SIZE, True)))
    path, pixels = pictures["00.png"]
    np.testing.assert_array_equal(pixels, prepare_picture(folder / path, SIZE))


def test_processes_are_chosen_where_they_pay_off(monkeypatch):
    cpu, gpu, megabyte = torch.device("cpu"), torch.device("cuda"), 2**20
    monkeypatch.setattr(decode, "count_cores", lambda: 8)
    monkeypatch.setattr(decode.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**36))
    monkeypatch.setattr(decode.multiprocessing, "get_start_method", lambda: "fork")
    assert decode.choose_workers(cpu, 100, megabyte) == 0
    assert decode.choose_workers(cpu, 10_000, megabyte) == decode.WORKERS_ON_CPU
    assert decode.choose_workers(gpu, None, megabyte) == 8
    monkeypatch.setattr(decode.multiprocessing, "get_start_method", lambda: "spawn")
    assert decode.choose_workers(gpu, 1000, megabyte) == 0


def test_little_shared_memory_means_fewer_processes(monkeypatch):
    monkeypatch.setattr(decode, "count_cores", lambda: 8)
    monkeypatch.setattr(decode.Path, "is_dir", lambda _: True)
    monkeypatch.setattr(decode.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**26))
    gpu = torch.device("cuda")
    assert decode.choose_workers(gpu, None, 32 * 224 * 224 * 3) == 2
    assert decode.choose_workers(gpu, None, 128 * 336 * 336 * 3) == 0


def test_cores_are_those_that_may_be_used():
    assert 1 <= decode.count_cores() <= os.cpu_count()
