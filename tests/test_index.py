"""The index folder: what it holds, what it refuses, and exact search in it."""

import dataclasses
import json
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entrep import exact
from entrep.artifacts import sha256_json
from entrep.exact import search_exact
from entrep.index import (
    MANIFEST,
    Index,
    Recipe,
    claimed,
    commit,
    describe_part,
    display_name,
    name_fault,
    open_index,
    sweep,
    write_segment,
)
from entrep.retrieval import rank_gallery

RECIPE = Recipe("net", "fp32", "f" * 64, "p" * 64, True, "torch 0")


def make_index(folder, names, vectors, *, rows=4, dtype="fp32"):
    """An index of these vectors, in segments of so many rows."""
    index = Index(folder, RECIPE, "/pictures", dtype, vectors.shape[1])
    for start in range(0, len(names), rows):
        part = slice(start, start + rows)
        digests = [f"{start + n:064x}" for n in range(len(names[part]))]
        index.segments += (write_segment(index, names[part], digests, vectors[part]),)
    commit(index)
    return open_index(folder)


def unit(vectors):
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def ten(tmp_path):
    """Ten pictures in three segments."""
    vectors = unit(np.random.default_rng(0).standard_normal((10, 6)))
    names = [f"sub/{n}.png" for n in range(10)]
    return make_index(tmp_path / "index", names, vectors), names, vectors


def test_an_index_gives_back_what_was_written(ten):
    index, names, vectors = ten
    assert len(index) == 10 and [segment.rows for segment in index.segments] == [4, 4, 2]
    read = np.concatenate([index.vectors(segment) for segment in index.segments])
    assert np.array_equal(read, vectors)
    assert index.all_keys() == {name: (f"{n:064x}", n) for n, name in enumerate(names)}


def test_the_nearest_comes_first_with_its_similarity_and_digest(tmp_path):
    vectors = np.array([[0.0, 1.0], [0.6, 0.8], [1.0, 0.0]], np.float32)
    index = make_index(tmp_path, ["a", "b", "c"], vectors, rows=2)
    hits = search_exact(index, np.array([[1.0, 0.0]], np.float32), k=2)[0]
    assert [(hit.name, hit.similarity) for hit in hits] == [("c", 1.0), ("b", 0.6)]
    assert hits[0].sha256 == f"{2:064x}"


def test_more_answers_than_pictures_gives_all_of_them(ten):
    index, names, vectors = ten
    assert {hit.name for hit in search_exact(index, vectors[:1], k=99)[0]} == set(names)
    assert search_exact(index, np.empty((0, 6), np.float32)) == []


@given(st.data())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_exact_search_equals_brute_force_ties_included(tmp_path_factory, monkeypatch, data):
    monkeypatch.setattr(exact, "BLOCK", data.draw(st.sampled_from([32, 64, 8192]), "block"))
    monkeypatch.setattr(exact, "MOST_CANDIDATES", data.draw(st.sampled_from([8, 1 << 19]), "most"))
    monkeypatch.setattr(exact, "QUERIES_AT_ONCE", data.draw(st.sampled_from([2, 1024]), "at once"))
    count, width = data.draw(st.integers(1, 200), "rows"), data.draw(st.integers(1, 5), "width")
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6), "seed"))
    # Small whole numbers: many rows are the same, or equally far from a query.
    values = rng.integers(0, data.draw(st.sampled_from([1, 2, 50]), "spread") + 1, (count, width))
    values[:, 0] += 1
    names = [f"{name:03}é.png" for name in rng.permutation(count)]
    dtype, k = data.draw(st.sampled_from(["fp16", "fp32"])), data.draw(st.integers(1, 12), "k")
    folder = tmp_path_factory.mktemp("index")
    index = make_index(folder, names, unit(values), rows=int(rng.integers(1, 90)), dtype=dtype)
    stored = np.concatenate([index.vectors(segment) for segment in index.segments])
    queries = unit(rng.standard_normal((5, width)) + 0.1)
    want = rank_gallery(queries, stored, names, k=k)
    found = search_exact(index, queries, k=k)
    assert [[(hit.name, hit.similarity) for hit in hits] for hits in found] == want


def test_a_thousand_copies_of_one_picture_go_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(exact, "MOST_CANDIDATES", 64)
    names = [f"{n:04}" for n in np.random.default_rng(0).permutation(1000)]
    index = make_index(tmp_path, names, np.tile(unit([[3, 4]]), (1000, 1)), rows=300)
    hits = search_exact(index, unit([[1, 1], [3, 4]]), k=3)
    assert [[hit.name for hit in row] for row in hits] == [["0000", "0001", "0002"]] * 2


def test_a_query_that_does_not_fit_is_refused(ten):
    index, _, vectors = ten
    with pytest.raises(ValueError, match=r"6 wide; embed them with its encoder, net"):
        search_exact(index, np.ones((1, 5), np.float32))
    with pytest.raises(ValueError, match="k: expected 1 or more, got 0"):
        search_exact(index, vectors, k=0)
    with pytest.raises(ValueError, match="no numbers"):
        search_exact(index, np.full((1, 6), np.nan, np.float32))


def test_vectors_that_are_no_numbers_are_not_written(ten):
    index, _, _ = ten
    with pytest.raises(ValueError, match="expected 1 finite vectors of width 6"):
        write_segment(index, ["a"], ["0" * 64], np.full((1, 6), np.inf))


# What somebody may have done to an index -------------------------------------------------------


def resign(folder, change):
    """Change the manifest's content and let its own checksum fit again."""
    file = folder / MANIFEST
    value = json.loads(file.read_text())
    value.pop("sha256")
    change(value)
    file.write_text(json.dumps({**value, "sha256": sha256_json(value)}))


@pytest.mark.parametrize("ending", ["vectors.npy", "keys.npy"])
@pytest.mark.parametrize("number", [1, 3])
def test_one_changed_byte_is_refused_before_any_answer(ten, ending, number):
    index, _, vectors = ten
    file = index.folder / f"segments/{number:06}.{ending}"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    opened = open_index(index.folder)  # same sizes
    with pytest.raises(ValueError, match=rf"{number:06}.{ending} is not as the manifest says"):
        search_exact(opened, vectors, k=10)


def test_cut_off_vectors_are_refused_when_opened(ten):
    index, _, _ = ten
    file = index.folder / "segments/000002.vectors.npy"
    os.truncate(file, file.stat().st_size - 8)
    with pytest.raises(ValueError, match=r"has 216 bytes, the manifest says 224.* anew"):
        open_index(index.folder)


def test_a_missing_file_is_named(ten):
    index, _, vectors = ten
    (index.folder / "segments/000002.keys.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"000002.keys.npy: the index lacks this file"):
        open_index(index.folder)
    with pytest.raises(FileNotFoundError, match="is being built just now, search again"):
        search_exact(index, vectors, k=10)


def test_no_index_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="Make it: entrep index PICTURES --out"):
        open_index(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '"x"', "[" * 100_000, '{"format": 1}', "\ud800", '{"a": NaN}'],
)
def test_a_damaged_manifest_is_refused(ten, text):
    folder = ten[0].folder
    (folder / MANIFEST).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=r"index.json is damaged or no manifest"):
        open_index(folder)


def test_a_manifest_cut_off_anywhere_is_refused(ten):
    file = ten[0].folder / MANIFEST
    content = file.read_bytes()
    for end in range(0, len(content) - 2, 97):
        file.write_bytes(content[:end])
        with pytest.raises(ValueError, match="is damaged"):
            open_index(ten[0].folder)


def test_a_manifest_of_another_format_says_so(ten):
    resign(ten[0].folder, lambda value: value.update(format=2))
    with pytest.raises(ValueError, match="is of format 2, this kit reads 1; use the kit's version"):
        open_index(ten[0].folder)


def test_an_edited_manifest_is_refused(ten):
    file = ten[0].folder / MANIFEST
    file.write_text(file.read_text().replace('"crop": true', '"crop": false'))
    with pytest.raises(ValueError, match="was changed by another program"):
        open_index(ten[0].folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value["segments"][0].update(number="../../../etc/passwd"),
        lambda value: value["segments"][0].update(number="/etc/passwd"),
        lambda value: value["segments"][0].update(number=-1),
        lambda value: value["segments"][0].update(number=99),
        lambda value: value["segments"][0].update(number=2),
        lambda value: value["segments"][0].update(number=True),
        lambda value: value["segments"][0].update(rows=0),
        lambda value: value["segments"][0].update(rows=1.5),
        lambda value: value["segments"][0].update(file="../x"),
        lambda value: value["segments"][0]["vectors"].update(sha256="../x"),
        lambda value: value["segments"][0]["vectors"].update(bytes=-1),
        lambda value: value["recipe"].update(encoder=3),
        lambda value: value.update(approximate={"number": "../x"}),
        lambda value: value.update(width=0),
        lambda value: value.update(dtype="object"),
        lambda value: value.update(pictures=None),
        lambda value: value.update(segments={}),
        lambda value: value.pop("recipe"),
    ],
)
def test_a_manifest_that_points_elsewhere_or_makes_no_sense_is_refused(ten, change):
    folder = ten[0].folder
    resign(folder, change)
    with pytest.raises(ValueError, match=r"index.json is damaged or no manifest of an index"):
        open_index(folder)


@pytest.mark.parametrize("key", ["width", "rows"])
def test_a_manifest_whose_shapes_are_not_the_files_is_refused(ten, key):
    folder, vectors = ten[0].folder, ten[2]

    def change(value):
        (value if key == "width" else value["segments"][0])[key] = 3

    resign(folder, change)
    with pytest.raises(ValueError, match="is not as the manifest says"):
        search_exact(open_index(folder), vectors[:, : 3 if key == "width" else 6])


@pytest.mark.parametrize(
    "name", ["../a.png", "a/../../b.png", "/etc/passwd", "C:\\a.png", "..\\a.png", "\\\\host\\a"]
)
def test_a_key_that_leads_out_of_the_pictures_is_refused(tmp_path, name):
    index = make_index(tmp_path, ["good.png", name], unit([[0, 1], [1, 0]]))
    assert search_exact(index, unit([[0, 1]]), k=1)[0][0].name == "good.png"
    with pytest.raises(ValueError, match="do not use this index, build it anew"):
        search_exact(index, unit([[1, 0]]), k=1)
    with pytest.raises(ValueError, match="do not use this index"):
        index.all_keys()


@pytest.mark.parametrize("name", ["a.png", "a b/ü.PNG", "..a.png", "a..b/c.png", "12:30.png"])
def test_ordinary_names_are_fine(name):
    assert name_fault(name) == ""


def test_what_could_steer_a_terminal_is_not_printed():
    assert display_name("a\x1b[31m\n\udc80b.png") == "a�[31m��b.png"


def test_an_object_in_an_array_is_never_unpickled(ten):
    index, _, vectors = ten
    file = index.folder / "segments/000001.vectors.npy"
    np.save(file, np.array([print], dtype=object), allow_pickle=True)

    part = dataclasses.asdict(describe_part(file))
    resign(index.folder, lambda value: value["segments"][0].update(vectors=part))
    with pytest.raises(ValueError, match="is not as the manifest says"):
        search_exact(open_index(index.folder), vectors)


# The folder ------------------------------------------------------------------------------------


def test_sweep_removes_what_killed_builds_left_and_nothing_else(ten):
    index, _, _ = ten
    segments = index.folder / "segments"
    kept = sorted(path.name for path in segments.iterdir())
    for name in ("000009.vectors.npy", ".000009.keys-ab12.npy", ".000009-x.faiss"):
        (segments / name).write_bytes(b"")
    (index.folder / ".index-k3j.json").write_bytes(b"")
    (segments / "notes.txt").write_text("mine")
    sweep(index)
    assert sorted(path.name for path in segments.iterdir()) == [*kept, "notes.txt"]
    assert sorted(path.name for path in index.folder.iterdir()) == ["index.json", "segments"]


def test_two_builds_never_share_a_folder(tmp_path):
    with claimed(tmp_path / "index"), pytest.raises(ValueError, match="another build is at work"):
        with claimed(tmp_path / "index"):
            pass


def test_a_folder_with_other_things_is_not_written_into(tmp_path):
    (tmp_path / "thesis.doc").write_text("mine")
    with pytest.raises(ValueError, match=r"is no index and not empty \(thesis.doc\)"):
        with claimed(tmp_path):
            pass
    with pytest.raises(ValueError, match="is no index and not empty"):
        with claimed(tmp_path / "thesis.doc"):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.doc"]
