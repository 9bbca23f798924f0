import dataclasses

import numpy as np
import pytest

from entrep import spaces
from entrep.adapter import Adapter
from entrep.config import load_config
from entrep.labels import SITE_OF
from entrep.lessons import collect_lessons


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def adapter_that(width, shift):
    """An adapter that adds `shift` to whatever it moves."""
    return Adapter(np.zeros(width) - 1, np.zeros(width) + 1 / width, np.tile(shift, (width, 1)),
                   np.zeros((width, width)))  # fmt: skip


def test_each_part_is_judged_by_an_adapter_that_never_saw_it():
    rows, away = unit(np.array([[1.0, 0.0], [4.0, 1.0], [1.0, 4.0]])), np.array([0.0, 9.0])
    adapters = (adapter_that(2, away * 0), adapter_that(2, away))
    space = spaces.Space(rows, np.eye(2), adapters=adapters)
    assert space.judges(0) == [adapters[0]] and space.judges(1) == [adapters[1]]
    assert space.judges(-1) == list(adapters)
    assert dataclasses.replace(space, strength=0.0).judges(1) == [None]
    still = space.pictures(np.arange(3), adapters[0])
    np.testing.assert_allclose(still, space.rows[:3], atol=1e-9)
    assert (space.pictures(np.arange(3), adapters[1])[:, 1] > 0.98).all()


def test_a_fold_s_adapter_does_not_depend_on_its_own_labels():
    rng = np.random.default_rng(0)
    rows, fold = rng.normal(size=(42, 12)), np.repeat([0, 1, 2], 14)
    target = np.tile(np.arange(7), 6)
    ids = [str(i) for i in range(42)]
    texts = unit(rng.normal(size=(2, 8)))
    canary = target.copy()
    canary[fold == 1] = (canary[fold == 1] + 1) % 7

    def learn(labels):
        described = [f"t{label % 2}" for label in labels]
        lessons, _ = collect_lessons(ids, labels, SITE_OF, described, [], [])
        space = spaces.Space(rows, texts)
        return spaces.learn_space(space, lessons, fold, epochs=1, seed=0).adapters

    usual, changed = learn(target), learn(canary)
    np.testing.assert_array_equal(usual[1].pictures, changed[1].pictures)
    assert np.abs(usual[0].pictures - changed[0].pictures).max() > 0


def test_a_fold_s_probe_does_not_depend_on_its_own_descriptions():
    rng = np.random.default_rng(0)
    fold, said = np.repeat([0, 1, -1], 14), np.tile(["wax", "polyp"], 21)
    rows = np.eye(2)[(said == "wax").astype(int)] @ rng.normal(size=(2, 12))
    rows += rng.normal(0, 0.1, rows.shape)
    ids = [str(i) for i in range(42)]

    def learn(described):
        known = np.where(fold >= 0, described, "")
        lessons, _ = collect_lessons(ids, np.zeros(42, int), SITE_OF, known, [], [])
        return spaces.learn_says(spaces.Space(rows, np.eye(2, 8)), lessons, fold)

    canary = np.where(fold == 0, np.where(said == "wax", "polyp", "wax"), said)
    usual, changed = learn(said), learn(canary)
    np.testing.assert_array_equal(usual[fold == 0], changed[fold == 0])
    assert np.abs(usual - changed)[fold == 1].min() > 0
    right = usual.argmax(axis=1) == (said == "wax")  # "polyp" is the first of the known phrases
    assert right.all()


def test_kept_adapters_are_taken_as_they_are_until_what_they_learned_from_changes(tmp_path):
    rng = np.random.default_rng(0)
    rows, fold = rng.normal(size=(28, 12)), np.repeat([0, 1, 2, -1], 7)
    target, ids = np.tile(np.arange(7), 4), [str(i) for i in range(28)]

    def learn(noise=0.0, labels=target, **changed):
        lessons, _ = collect_lessons(ids, labels, SITE_OF, [""] * 28, [], [])
        options = {"epochs": 2, "seed": 0, "kept": tmp_path / "a", "identity": "x", **changed}
        space = spaces.Space(rows + noise)
        return [
            one.pictures for one in spaces.learn_space(space, lessons, fold, **options).adapters
        ]

    first = learn()
    assert len(list(tmp_path.iterdir())) == 3
    # The last bits of another machine do not reach what was learned.
    np.testing.assert_array_equal(learn(noise=1e-7), first)
    for changed in ({"epochs": 3}, {"seed": 1}, {"identity": "y"}, {"labels": 6 - target}):
        assert np.abs(np.subtract(learn(noise=1e-7, **changed), first)).max() > 0
        np.testing.assert_array_equal(learn(), first)
    assert not learn(epochs=0) and not list(tmp_path.iterdir())


def test_both_spaces_learn_what_the_configuration_asks_for(tmp_path):
    rng = np.random.default_rng(0)
    fold, said = np.repeat([0, 1, -1], 14), np.tile(["wax", "polyp"], 21)
    ids, known = [str(i) for i in range(42)], np.where(fold >= 0, said, "")
    lessons, _ = collect_lessons(ids, np.zeros(42, int), SITE_OF, known, [], [])
    joint = spaces.Space(rng.normal(size=(42, 12)), np.eye(2, 8))
    image = spaces.Space(rng.normal(size=(42, 5)))

    def learn(identity="x", **changed):
        config = load_config(**{"adapter_epochs": 1, **changed})
        options = {"kept": tmp_path, "identity": [identity]}
        return spaces.learn_spaces(joint, image, lessons, fold, config, **options)

    def kept():
        return {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}

    learned, says = learn()
    assert [len(space.adapters) for space in learned] == [2, 2]
    assert np.abs(says - spaces.says_by_cosine(joint)).min() > 0
    first = kept()
    assert sorted(first) == [
        *(f"learned_phrases{i}.safetensors" for i in range(3)),
        *(f"learned_space{n}_{i}.safetensors" for n in range(2) for i in range(2)),
    ]
    learn()
    assert kept() == first
    learn(identity="y")
    assert not kept().items() & first.items()
    learned, says = learn(adapter_epochs=0, phrase_probe=False, whiten_dims=3)
    assert not any(space.adapters for space in learned) and learned[1].rows.shape == (42, 3)
    np.testing.assert_array_equal(says, spaces.says_by_cosine(joint))


def test_a_whitened_space_varies_alike_in_all_directions_and_refuses_phrases():
    rows = np.random.default_rng(0).normal(size=(50, 4)) @ np.diag([9.0, 3.0, 1.0, 0.1])
    known = np.arange(50) < 40
    found = spaces.whiten(spaces.Space(rows), known, dims=3)
    np.testing.assert_allclose(np.cov(found.rows[known].T), np.eye(3), atol=1e-9)
    assert spaces.whiten(spaces.Space(rows), known, dims=99).rows.shape == (50, 4)
    with pytest.raises(ValueError, match="meet its phrases"):
        spaces.whiten(spaces.Space(rows, texts=np.eye(4)), known, dims=2)


def test_phrases_are_embedded_in_english_and_as_several_wordings():
    seen = []

    def embed(texts):
        seen.append(list(texts))
        return np.tile([[3.0, 4.0]], (len(texts), 1)) / 5

    rows = spaces.embed_phrases(["Ear wax", "thủng màng nhĩ"], embed)
    assert rows.shape == (2, 2) and seen[0][0] == "Ear wax"
    assert "perforation" in seen[0][1] and "ĩ" not in seen[0][1]
    spaces.embed_phrases(["Ear wax"], embed, variants=True)
    assert len(seen[1]) > 2 and seen[1][0] == "Ear wax"
    assert spaces.embed_phrases([], embed).shape == (0, 2)
