import dataclasses

import numpy as np
import pandas as pd
import pytest
from six_pictures import first, six_pictures, whole

from entrep import questions, spaces
from entrep.adapter import Adapter


@pytest.fixture
def matcher():
    return six_pictures()


def test_every_picture_described_in_the_same_words_is_a_right_answer():
    said = {"image_id": list("abc"), "description_en": ["wax", "wax", ""]}
    train = pd.DataFrame(said, index=[1, 4, 5])
    queries, right = questions.pairs_to_ask(train, [("a", "c"), ("c", "b")])
    assert queries.tolist() == [1, 5] and right == [{1, 4, 5}, {4}]
    listed = [("wax", "c"), ("polyp", "a")]
    assert questions.phrases_to_ask(train, listed) == (["wax", "polyp"], [{1, 4, 5}, {1}])
    queries, right = questions.pairs_to_ask(train, [])
    assert queries.dtype == int and not len(queries) and right == []


def test_queries_are_asked_in_their_own_part_and_phrases_in_all(matcher):
    fold = np.array([0, 0, 0, 1, 1, -1])
    parts = questions.parts_of(fold, np.ones(6, bool))
    assert [(number, rows.tolist()) for number, rows in parts] == [
        (-1, [5]), (0, [0, 1, 2]), (1, [3, 4])
    ]  # fmt: skip
    found = questions.ask_pictures(matcher, parts, np.array([0, 3, 5]), [{1, 3}, {4}, {5}])
    assert [(one.query, one.ranked, one.relevant) for one in found] == [
        (0, ["b", "c"], {"b"}), (1, ["e"], {"e"})
    ]  # fmt: skip
    # b's only right answer is its copy, which may not answer.
    assert questions.ask_pictures(matcher, parts, np.array([1]), [{2}]) == []
    found = questions.ask_phrases(matcher, parts, whole(["x"], np.eye(2)[:1]), [{2, 4}])
    assert [(one.ranked, one.relevant) for one in found] == [
        (["a", "b", "c"], {"c"}), (["d", "e"], {"e"})
    ]  # fmt: skip


def test_an_adapter_that_harms_is_not_chosen(matcher):
    fold = np.array([0, 0, 0, 0, 0, 0])
    parts = questions.parts_of(fold, np.ones(6, bool))
    confuse = Adapter(np.zeros(2), np.ones(2), np.array([[0, 0], [0, -9.0]]), np.zeros((2, 2)))
    space = dataclasses.replace(matcher.joint, adapters=(confuse,))
    image = spaces.Space(np.array([[1.0, 0.0]] * 6))  # tells nothing apart
    harmed = dataclasses.replace(matcher, spaces=(space, image), weights=(0.5, 0.5), joint=space)
    queries, right = np.array([0, 4]), [{5}, {2}]
    chosen = questions.choose_for_pictures(harmed, parts, queries, right, (0.0, 1.0))
    assert first(chosen.answer_pictures(queries, np.arange(6), fold=0)) == ["f", "c"]
    asked = (whole(["y"], np.eye(2)[1:]), [{2}])
    assert questions.choose_for_phrases(harmed, parts, *asked).joint.strength == 0
    # Without anything to choose by: what is known to be safe.
    assert questions.choose_for_pictures(
        harmed, parts, np.array([], int), [], (0.0, 1.0)
    ).weights == (0.0, 1.0)
    none = (whole([], np.empty((0, 2))), [])
    assert questions.choose_for_phrases(harmed, parts, *none).joint.strength == 0
