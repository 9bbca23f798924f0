import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrep.retrieval import chance_recall, copies_of, rank_gallery, relevant_pictures


def names_of(ranking):
    return [[name for name, _ in row] for row in ranking]


def test_rank_gallery_puts_the_most_similar_first():
    gallery = np.array([[0.0, 1.0], [0.6, 0.8], [1.0, 0.0]])  # cosine 0.0, 0.6, 1.0
    ranking = rank_gallery(np.array([[1.0, 0.0]]), gallery, ["a", "b", "c"], k=2)
    assert ranking == [[("c", 1.0), ("b", 0.6)]]


@given(st.permutations(range(6)))
def test_reading_order_of_the_gallery_does_not_matter(order):
    rng = np.random.default_rng(0)
    gallery = rng.normal(size=(6, 4))
    gallery[1] = gallery[4]  # a tie
    query, ids = rng.normal(size=(3, 4)), [f"{c}.png" for c in "fbadec"]
    shuffled = rank_gallery(query, gallery[order], [ids[i] for i in order])
    assert names_of(shuffled) == names_of(rank_gallery(query, gallery, ids))


def test_last_bit_differences_do_not_change_the_order():
    gallery = np.array([[1.0, 1e-9], [1.0, 0.0]])
    ranking = rank_gallery(np.array([[1.0, 1.0]]), gallery, ["b.png", "a.png"])
    assert names_of(ranking) == [["a.png", "b.png"]]


def test_excluded_pictures_never_answer():
    gallery, ids = np.eye(3), ["a", "b", "c"]
    ranking = rank_gallery(np.eye(3)[:1], gallery, ids, excluded=[{"a", "c"}])
    assert names_of(ranking) == [["b"]]
    with pytest.raises(ValueError, match="all 3 gallery pictures are excluded"):
        rank_gallery(np.eye(3)[:1], gallery, ids, excluded=[set(ids)])


def test_embeddings_of_two_encoders_do_not_meet():
    with pytest.raises(ValueError, match="query is 3 wide, gallery is 2 wide"):
        rank_gallery(np.eye(3), np.eye(2), ["a", "b"])


def test_copies_are_all_names_of_the_same_bytes():
    copies = copies_of(["a", "b", "c", "a"], ["1", "1", "2", "3"])
    assert copies == {"a": {"a", "b"}, "b": {"a", "b"}, "c": {"c"}}


def test_pictures_described_in_the_same_words_are_right_too():
    described = {"a": "polyp", "b": "polyp", "c": "", "d": "spur"}
    assert relevant_pictures(["a", "c"], ["polyp", ""], described) == [{"a", "b"}, {"c"}]


def test_chance_is_the_mean_share_of_right_candidates():
    assert chance_recall([{"a"}, {"b", "c"}], list("abcd"), [set(), {"d", "b"}]) == 0.375
