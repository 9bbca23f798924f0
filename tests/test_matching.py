import dataclasses

import numpy as np
import pytest
from six_pictures import PLAIN, first, six_pictures, whole

from entrep import matching, spaces
from entrep.config import load_config
from entrep.labels import CLASS_NAMES


@pytest.fixture
def matcher():
    return six_pictures()


def test_plain_cosine_answers_with_the_nearest_and_never_with_itself(matcher):
    gallery = np.arange(6)
    ranking = matcher.answer_pictures(np.array([0, 4]), gallery)
    assert first(ranking) == ["f", "c"]
    assert all("a" != name for name, _ in ranking[0])
    assert first(matcher.answer_phrases(whole(["x", "y"], np.eye(2)), gallery)) == ["a", "c"]


def test_copies_answer_only_if_asked(matcher):
    b = np.array([1])  # c has the same bytes
    names = [name for name, _ in matcher.answer_pictures(b, np.arange(6))[0]]
    assert "c" not in names and len(names) == 4
    config = dataclasses.replace(PLAIN, copies="none")
    every = dataclasses.replace(matcher, config=config).answer_pictures(b, np.arange(6))[0]
    assert len(every) == 5


def test_a_picture_of_the_query_s_class_is_preferred(matcher):
    probs = np.full((6, 7), 0.01)
    probs[[0, 2], 3] = probs[[1, 3, 4, 5], 2] = 0.94
    sure = dataclasses.replace(
        matcher, probs=probs, config=dataclasses.replace(PLAIN, same_class_weight=1.0)
    )
    assert first(matcher.answer_pictures(np.array([0]), np.arange(6))) == ["f"]
    assert first(sure.answer_pictures(np.array([0]), np.arange(6))) == ["c"]


def test_a_phrase_prefers_pictures_of_the_place_it_names(matcher):
    probs = np.full((6, 7), 0.01)
    probs[:, CLASS_NAMES.index("throat")] = 0.94
    probs[2] = 0.01
    probs[2, CLASS_NAMES.index("ear-left")] = 0.94
    config = dataclasses.replace(PLAIN, named_class_weight=1.0)
    sure = dataclasses.replace(matcher, probs=probs, config=config)
    texts, asked = ["perforated left eardrum", "something"], np.array([[1.0, 0.0]] * 2)
    assert first(sure.answer_phrases(whole(texts, asked), np.arange(6))) == ["c", "a"]


def test_several_spaces_and_all_steps_work_together(matcher):
    config = dataclasses.replace(
        load_config(), finding_weight=0.3, k_reciprocal_weight=0.3, expansion=1
    )
    image = spaces.Space(np.random.default_rng(0).normal(size=(6, 5)))
    both = dataclasses.replace(
        matcher, spaces=(*matcher.spaces, image), weights=(0.5, 0.5), config=config
    )
    gallery = np.arange(6)
    ranking = both.answer_pictures(gallery, gallery, k=6)
    assert all(np.isfinite([value for _, value in answers]).all() for answers in ranking)
    order = np.array([3, 0, 5, 1, 4, 2])
    assert both.answer_pictures(gallery, order, k=6) == ranking  # the reading order is no matter
    asked = whole(["a red left eardrum", "normal throat"], np.eye(2))
    assert both.answer_phrases(asked, order) == both.answer_phrases(asked, gallery)
    twice = whole(["x", "x"], np.eye(2)[[0, 0]])
    one_to_one = both.answer_phrases(twice, gallery, one_to_one=True)
    assert len(set(first(one_to_one))) == 2


def test_the_ladder_goes_from_plain_cosine_to_the_default(matcher):
    full = dataclasses.replace(matcher, config=load_config())
    steps = matching.ladder(full)
    names = list(steps)
    assert names[0] == "plain cosine" and steps[names[-1]] is full
    plain = steps["plain cosine"]
    assert plain.answer_pictures(np.array([0]), np.arange(6)) == matcher.answer_pictures(
        np.array([0]), np.arange(6)
    )


def test_a_phrase_that_joins_findings_wants_them_all(matcher):
    directions = {"red eardrum": [1.0, 0.0], "polyp": [0.0, 1.0]}

    def embed(texts):
        mean = [np.sum([d for t, d in directions.items() if t in text], axis=0) for text in texts]
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    texts = ["polyp", "red eardrum and a polyp"]
    asked = spaces.read_phrases(texts, embed)
    assert [len(parts) for parts in asked.parts] == [1, 2]
    np.testing.assert_allclose(asked.parts[1], np.eye(2), atol=1e-12)
    assert [len(parts) for parts in spaces.read_phrases(texts, embed, split=False).parts] == [
        1,
        1,
    ]
    assert asked.of([1]).texts == (texts[1],) and len(asked.of([1]).parts[0]) == 2
    # The picture between both, at 60 degrees, is nearer to either than those at the ends.
    assert first(matcher.answer_phrases(asked, np.arange(6))) == ["c", "e"]
