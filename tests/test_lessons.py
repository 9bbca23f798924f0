import numpy as np
import pandas as pd

from entrep.labels import SITE_OF
from entrep.lessons import collect_lessons, development_lessons, soft_phrases


def test_lessons_join_what_lists_say():
    lessons, texts = collect_lessons(
        ["a", "b", "c", "d"],
        np.array([2, 2, 3, 6]),
        SITE_OF,
        ["wax", "", "", ""],
        [("a", "b"), ("b", "c"), ("a", "unknown")],
        [("a polyp", "d"), ("lost", "unknown"), ("perforation", "c")],
    )
    assert texts == ["a polyp", "perforation", "wax"]
    assert len(set(lessons.finding[:3])) == 1 and lessons.finding[3] != lessons.finding[0]
    # What fits one picture of linked pairs fits all of them.
    np.testing.assert_array_equal(lessons.carries[:3], [[False, True, True]] * 3)
    np.testing.assert_array_equal(lessons.carries[3], [True, False, False])
    assert lessons.site.tolist() == [SITE_OF[index] for index in (2, 2, 3, 6)]
    some = lessons.of(np.array([3]))
    assert some.class_index.tolist() == [6] and some.carries.shape == (1, 3)


def test_nothing_is_read_of_what_is_said_of_pictures_outside_development():
    pictures = pd.DataFrame(
        {
            "image_id": ["a", "b", "c", "a"],  # a test picture may have a training picture's name
            "class_index": [2, 2, 3, -1],
            "description_en": ["wax", "", "a secret", ""],
        }
    )
    lists = [("a", "b"), ("b", "c")], [("red", "b"), ("another secret", "c")]
    lessons, texts = development_lessons(pictures, np.array([0, 1, -1, -1]), *lists)
    assert texts == ["red", "wax"]
    np.testing.assert_array_equal(lessons.carries.all(axis=1), [True, True, False, False])
    assert not lessons.carries[2:].any()
    assert lessons.finding[0] == lessons.finding[1] and len(set(lessons.finding)) == 3


def test_soft_phrases_spread_over_what_says_the_same():
    carries = np.array([[True, False, False], [True, False, True], [False, False, False]])
    texts = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # the first two say the same
    np.testing.assert_allclose(
        soft_phrases(carries, texts), [[0.5, 0.5, 0], [0.25, 0.25, 0.5], [0, 0, 0]], atol=1e-9
    )
    np.testing.assert_allclose(soft_phrases(carries, None), [[1, 0, 0], [0.5, 0, 0.5], [0, 0, 0]])
