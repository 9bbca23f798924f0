import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrep.retrieval import (
    copies_of,
    excluded_answers,
    forbid,
    rank_gallery,
    rank_similarities,
)


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


@given(st.integers(1, 5), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_ranking_by_given_similarities_agrees_with_sorting_each_row(queries, size, seed):
    rng = np.random.default_rng(seed)
    similarity = rng.integers(3, size=(queries, size)) - 1.0  # many ties
    names = [f"{i}.png" for i in rng.permutation(size)]
    excluded = [set(rng.choice(names, size // 2, replace=False)) for _ in range(queries)]
    ranking = rank_similarities(similarity, names, k=3, excluded=excluded)
    for row, forbidden, found in zip(similarity, excluded, ranking, strict=True):
        order = sorted((-value, name) for value, name in zip(row, names, strict=True))
        want = [(name, -value) for value, name in order if name not in forbidden]
        assert found == want[:3]


def test_minus_infinity_and_an_excluded_name_forbid_alike():
    similarity, ids = np.array([[0.3, 0.2, 0.1], [0.1, 0.2, 0.3]]), ["a", "b", "a"]
    barred = forbid(similarity, ids, [{"a", "elsewhere"}, set()])
    assert barred.tolist() == [[-np.inf, 0.2, -np.inf], [0.1, 0.2, 0.3]]
    assert similarity[0, 0] == 0.3  # a copy was changed
    assert rank_similarities(barred, ids)[0] == [("b", 0.2)]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_similarity_that_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match="query 1 has a value that is NaN or infinity"):
        rank_similarities(np.array([[0.0, 1.0], [0.0, value]]), ["a", "b"])


def test_every_column_needs_a_name():
    with pytest.raises(ValueError, match=r"shape \(2, 3\) but there are 2 names"):
        rank_similarities(np.zeros((2, 3)), ["a", "b"])


@pytest.mark.parametrize(
    ("copies", "want"),
    [("none", {"a"}), ("identical", {"a", "b"}), ("near", {"a", "b", "c"})],
)
def test_the_caller_decides_which_copies_may_answer(copies, want):
    options = {"sha256": ["1", "1", "2", "3"], "groups": [0, 9, 0, 1]}
    excluded = excluded_answers(["a", "d"], list("abcd"), copies=copies, **options)
    assert excluded == [want, {"d"}]
    ranking = rank_similarities(np.ones((2, 4)), list("abcd"), excluded=excluded)
    assert names_of(ranking) == [sorted(set("abcd") - want), ["a", "b", "c"]]


def test_excluded_answers_name_what_they_do_not_know():
    options = {"sha256": ["1"], "groups": [0]}
    with pytest.raises(ValueError, match="one of none, identical, near, got 'all'"):
        excluded_answers(["a"], ["a"], copies="all", **options)
    with pytest.raises(ValueError, match="unknown, such as 'z'"):
        excluded_answers(["z"], ["a"], copies="none", **options)


def test_copies_are_all_names_of_the_same_bytes():
    copies = copies_of(["a", "b", "c", "a"], ["1", "1", "2", "3"])
    assert copies == {"a": {"a", "b"}, "b": {"a", "b"}, "c": {"c"}}
