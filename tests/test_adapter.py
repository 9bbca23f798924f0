import dataclasses

import numpy as np
import pytest

from entrep import adapter
from entrep.labels import CLASS_NAMES, SITE_OF
from entrep.lessons import collect_lessons

WIDTH, LEVELS = 16, 24


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def study():
    """84 pictures: class (side) and finding are in the levels only, not in the embedding."""
    rng = np.random.default_rng(0)
    class_index, finding = np.tile(np.arange(7), 12), np.repeat(np.arange(3), 28)
    sites = np.eye(WIDTH)[np.array(SITE_OF)[class_index]]
    seen = np.concatenate([np.eye(7)[class_index], np.eye(3)[finding]], axis=1)
    seen = np.concatenate([seen, np.zeros((84, LEVELS - 10))], axis=1)
    rows = np.concatenate([unit(sites), unit(seen)], axis=1) + rng.normal(0, 0.05, (84, 40))
    texts = unit(rng.normal(size=(3, WIDTH)))
    ids = [f"{i:02}.png" for i in range(84)]
    described = [f"finding {f}" for f in finding]
    lessons, known = collect_lessons(ids, class_index, SITE_OF, described, [], [])
    assert known == ["finding 0", "finding 1", "finding 2"]
    prompts = unit(rng.normal(size=(len(CLASS_NAMES), WIDTH)))
    return rows, texts, prompts, lessons, class_index, finding


def right_at_1(vectors, same):
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    return same[np.arange(len(vectors)), similarity.argmax(axis=1)].mean()


def test_an_adapter_starts_as_the_frozen_encoder(study):
    rows, texts, prompts, lessons, *_ = study
    fresh = adapter.fit_adapter(rows, texts, prompts, lessons, epochs=0)
    np.testing.assert_allclose(fresh.move_pictures(rows), unit(rows[:, :WIDTH]), atol=1e-6)
    np.testing.assert_allclose(fresh.move_texts(texts), texts, atol=1e-6)
    learned = adapter.fit_adapter(rows, texts, prompts, lessons, epochs=2)
    back = learned.move_pictures(rows, strength=0)
    np.testing.assert_allclose(back, unit(rows[:, :WIDTH]), atol=1e-6)
    assert np.abs(learned.move_pictures(rows) - back).max() > 1e-3


def test_it_learns_class_and_finding_of_pictures_it_has_not_seen(study):
    rows, texts, prompts, lessons, class_index, finding = study
    new = np.arange(84) // 7 % 2 == 0
    train = ~new
    learned = adapter.fit_adapter(rows[train], texts, prompts, lessons.of(train), epochs=200)
    same = (class_index[:, None] == class_index) & (finding[:, None] == finding)
    frozen, moved = unit(rows[:, :WIDTH]), learned.move_pictures(rows)
    before, after = (right_at_1(v[new], same[np.ix_(new, new)]) for v in (frozen, moved))
    assert before < 0.4 and after > before + 0.3
    said = learned.move_texts(texts) @ moved[new].T
    assert (finding[new][said.argmax(axis=1)] == [0, 1, 2]).all()


def test_an_image_only_encoder_learns_from_classes_alone(study):
    rows, _, _, lessons, class_index, _ = study
    rows = rows * np.where(np.arange(40) < WIDTH, 1, 0.05)  # the site drowns the rest
    nothing = dataclasses.replace(lessons, carries=np.zeros((84, 0), bool), finding=np.arange(84))
    learned = adapter.fit_adapter(rows, None, None, nothing, epochs=20)
    same = class_index[:, None] == class_index
    assert right_at_1(unit(rows), same) < 0.8
    assert right_at_1(learned.move_pictures(rows), same) > 0.95


def test_the_same_seed_learns_the_same_and_leaves_the_generator_alone(study):
    import torch

    rows, texts, prompts, lessons, *_ = study
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, two = (adapter.fit_adapter(rows, texts, prompts, lessons, epochs=2) for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    np.testing.assert_array_equal(one.pictures, two.pictures)
    other = adapter.fit_adapter(rows, texts, prompts, lessons, epochs=2, seed=1)
    assert np.abs(one.pictures - other.pictures).max() > 0


def test_rows_that_are_not_finite_stop_the_fit(study):
    rows, texts, prompts, lessons, *_ = study
    broken = rows.copy()
    broken[3, 5] = np.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        adapter.fit_adapter(broken, texts, prompts, lessons, epochs=1)


def test_where_nothing_is_known_the_encoder_stays_as_it_is():
    rows = np.random.default_rng(0).normal(size=(7, WIDTH))
    ids, classes = list("abcdefg"), np.arange(7)  # no two of a class, nothing said
    lessons, _ = collect_lessons(ids, classes, SITE_OF, [""] * 7, [], [])
    learned = adapter.fit_adapter(rows, None, None, lessons, epochs=1)
    np.testing.assert_allclose(learned.move_pictures(rows), unit(rows))
