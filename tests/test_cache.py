import multiprocessing
import os
import sqlite3

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrep.cache import VectorStore, open_pixels, write_pixels


def vectors(*keys, width=3, seed=0):
    rng = np.random.default_rng(seed)
    return {key: rng.standard_normal(width, np.float32) for key in keys}


def same(left, right):
    return left.keys() == right.keys() and all(
        left[key].tobytes() == right[key].tobytes() for key in left
    )


def test_vectors_come_back_bit_by_bit(tmp_path):
    store = VectorStore(tmp_path / "new", "open_clip:NAME/TAG", ["weights", 224])
    assert store.read(["a"]) == {}
    assert not store.file.parent.exists(), "reading makes nothing"
    written = vectors("a", "b", "c")
    written["b"][:] = [np.nan, -0.0, 1e-45]
    assert same(store.write(written), written)
    assert store.file.name.startswith("open_clip-NAME-TAG-")
    again = VectorStore(tmp_path / "new", "open_clip:NAME/TAG", ["weights", 224])
    assert same(again.read(["a", "b", "c", "d"]), written)
    assert again.read(["a"])["a"].dtype == np.float32


def test_another_identity_is_another_file(tmp_path):
    VectorStore(tmp_path, "name", ["weights"]).write(vectors("a"))
    assert VectorStore(tmp_path, "name", ["other weights"]).read(["a"]) == {}


def test_more_keys_than_one_query_takes(tmp_path):
    store = VectorStore(tmp_path, "name", 0)
    written = vectors(*map(str, range(1201)))
    store.write(written)
    assert same(store.read(list(written)), written)


def test_the_first_writer_of_a_key_counts(tmp_path):
    first, second = vectors("a", "b"), vectors("b", "c", seed=1)
    VectorStore(tmp_path, "name", 0).write(first)
    kept = VectorStore(tmp_path, "name", 0).write(second)
    assert same(kept, {"b": first["b"], "c": second["c"]})


@settings(max_examples=20, deadline=None)
@given(parts=st.lists(st.sets(st.sampled_from("abcdef")), max_size=4))
def test_any_division_into_writes_keeps_the_same(tmp_path_factory, parts):
    store = VectorStore(tmp_path_factory.mktemp("store"), "name", 0)
    everything = vectors(*"abcdef")
    for part in parts:
        store.write({key: everything[key] for key in part})
    found = store.read(list("abcdef"))
    assert same(found, {key: everything[key] for key in set().union(*parts)})


def fill(folder, start, count):
    store = VectorStore(folder, "name", 0)
    for row in range(count):
        key = str((start + row) % count)
        store.write({key: np.full(4, row, np.float32)})


def test_processes_fill_one_store_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=fill, args=(tmp_path, 7 * n, 40)) for n in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    found = VectorStore(tmp_path, "name", 0).read([str(row) for row in range(40)])
    assert len(found) == 40


def test_a_killed_writer_leaves_the_whole_writes(tmp_path):
    store = VectorStore(tmp_path, "name", 0)
    store.write(vectors("a"))
    pid = os.fork() if hasattr(os, "fork") else pytest.skip("runs where processes can fork")
    if not pid:
        connection = sqlite3.connect(store.file, isolation_level=None)
        connection.execute("PRAGMA cache_spill = 1")
        connection.execute("BEGIN IMMEDIATE")
        for row in range(2000):
            connection.execute("INSERT INTO vectors VALUES (?, ?, 0)", (str(row), bytes(4000)))
        os._exit(9)  # in the middle of a write, with a hot journal on the disk
    os.waitpid(pid, 0)
    assert list(store.read(["a", "5"])) == ["a"]
    assert list(store.write(vectors("b"))) == ["b"]


@pytest.mark.parametrize("how", ["no database", "cut off", "another program's", "flipped bit"])
def test_a_damaged_or_foreign_file_says_to_delete_it(tmp_path, how):
    store = VectorStore(tmp_path, "name", 0)
    written = vectors(*map(str, range(300)), width=200)
    store.write(written)
    content = store.file.read_bytes()
    if how == "no database":
        store.file.write_bytes(b"something else entirely" * 500)
    elif how == "cut off":
        store.file.write_bytes(content[: len(content) // 2])
    elif how == "flipped bit":
        at = content.index(written["7"].tobytes()) + 5
        store.file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    else:
        store.file.unlink()
        with sqlite3.connect(store.file) as connection:
            connection.execute("CREATE TABLE vectors (key, vector, crc32)")
        connection.close()
    with pytest.raises(ValueError, match=rf"{store.file.name}.*delete it and run again"):
        store.read(list(written))


def test_a_renamed_store_is_refused(tmp_path):
    store, other = VectorStore(tmp_path, "name", 0), VectorStore(tmp_path, "name", 1)
    store.write(vectors("a"))
    store.file.rename(other.file)
    with pytest.raises(ValueError, match="made for"):
        other.read(["a"])
    with pytest.raises(ValueError, match="made for"):
        other.write(vectors("b"))


def test_a_folder_that_cannot_be_made_costs_only_the_keeping(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    store = VectorStore(tmp_path / "file" / "folder", "name", 0)
    assert store.read(["a"]) == {}
    for _ in range(2):
        assert list(store.write(vectors("a"))) == ["a"]
    assert capsys.readouterr().out.count("not kept") == 1


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="runs as an ordinary user"
)
def test_a_read_only_store_is_read(tmp_path, capsys):
    store = VectorStore(tmp_path, "name", 0)
    store.write(vectors("a"))
    store.file.chmod(0o444)
    tmp_path.chmod(0o555)
    assert list(store.read(["a"])) == ["a"]
    assert list(store.write(vectors("b"))) == ["b"]
    assert "not kept" in capsys.readouterr().out
    tmp_path.chmod(0o755)


def test_a_store_that_is_being_made_reads_as_empty(tmp_path):
    store = VectorStore(tmp_path, "name", 0)
    store.file.touch()
    assert store.read(["a"]) == {}
    assert list(store.write(vectors("a"))) == ["a"]


def test_pixels_come_back_from_a_map_that_never_changes_the_file(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    file = tmp_path / "new" / "pixels.npy"
    write_pixels(file, pixels.shape, [pixels[:2], pixels[2:]])
    np.testing.assert_array_equal(np.load(file), pixels)
    mapped = open_pixels(file, pixels.shape)
    assert isinstance(mapped, np.memmap)
    mapped[0] = 7
    np.testing.assert_array_equal(open_pixels(file, pixels.shape), pixels)


def test_pixels_are_whole_or_not_there(tmp_path):
    def breaks_off():
        yield np.zeros((1, 4, 4, 3), np.uint8)
        raise ValueError("unreadable")

    with pytest.raises(ValueError, match="unreadable"):
        write_pixels(tmp_path / "pixels.npy", (2, 4, 4, 3), breaks_off())
    assert not list(tmp_path.iterdir())


def test_damaged_pixels_say_to_delete_them(tmp_path):
    file = tmp_path / "pixels.npy"
    write_pixels(file, (2, 4, 4, 3), [np.zeros((2, 4, 4, 3), np.uint8)])
    with pytest.raises(ValueError, match="expected .3, 4, 4, 3. uint8; delete it"):
        open_pixels(file, (3, 4, 4, 3))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="delete it and run again"):
        open_pixels(file, (2, 4, 4, 3))
