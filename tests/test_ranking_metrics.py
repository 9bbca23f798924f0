import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import moment
from sklearn.metrics import label_ranking_average_precision_score, top_k_accuracy_score

from entrep import ranking_metrics
from entrep.ranking_metrics import (
    answer_counts,
    first_right_rank,
    hubness,
    median_rank,
    mrr,
    recall_at_k,
    score_ranking,
    score_ranking_by,
)
from entrep.retrieval import rank_similarities, ranked_names

# Few distinct ids, so that right answers are often found, repeated or missing.
ids = st.sampled_from("abcdefgh")
queries = st.lists(
    st.tuples(st.lists(ids, max_size=8, unique=True), st.sets(ids, min_size=1, max_size=3)),
    min_size=1,
    max_size=10,
)


def test_docstring_examples_run():
    results = doctest.testmod(ranking_metrics)
    assert results.attempted > 8
    assert results.failed == 0


@given(queries, st.integers(1, 9))
def test_ranking_scores_agree_with_brute_force(rows, k):
    ranked, relevant = zip(*rows, strict=True)
    found, reciprocal, ranks = [], [], []
    for answers, right in rows:
        hits = [position + 1 for position in range(len(answers)) if answers[position] in right]
        found.append(any(answer in right for answer in answers[:k]))
        reciprocal.append(max((1 / hit for hit in hits), default=0.0))
        ranks.append(min(hits, default=np.inf))
    ranks.sort()
    middle = len(ranks) // 2
    median = ranks[middle] if len(ranks) % 2 else (ranks[middle - 1] + ranks[middle]) / 2
    assert recall_at_k(ranked, relevant, k) == pytest.approx(sum(found) / len(rows))
    assert mrr(ranked, relevant) == pytest.approx(sum(reciprocal) / len(rows))
    assert median_rank(ranked, relevant) == median


def test_recall_is_one_for_a_perfect_ranking_and_near_chance_for_a_random_one():
    names = [f"{i:03}.png" for i in range(100)]
    assert recall_at_k([[name] for name in names], names, k=1) == 1.0
    generator = np.random.default_rng(0)
    shuffled = [list(generator.permutation(names)) for _ in range(500)]
    chance = recall_at_k(shuffled, [names[0]] * 500, k=10)
    assert 0.05 < chance < 0.15


def test_score_ranking_joins_the_single_scores():
    ranked, relevant = [["a", "b"], ["b", "a"], ["c"]], ["a", {"a"}, "z"]
    scores = score_ranking(ranked, relevant, seed=1)
    assert scores["queries"] == 3
    assert scores["recall@1"] == pytest.approx(1 / 3)
    assert scores["recall@5"] == scores["recall@10"] == pytest.approx(2 / 3)
    assert scores["mrr"] == pytest.approx(1.5 / 3)
    assert scores["median_rank"] == 2.0
    assert 0.0 <= scores["low"] <= 1 / 3 <= scores["high"] <= 1.0


def test_one_right_answer_given_as_text_is_not_taken_apart():
    assert first_right_rank([["a", "ab"]], ["ab"]).tolist() == [2.0]


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(2, 9), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_ranking_scores_agree_with_scikit_learn_ties_included(count, size, levels, seed):
    generator = np.random.default_rng(seed)
    # At most four values, so that most similarities are tied.
    similarity = generator.integers(levels, size=(count, size)) / 4
    names = [f"{i}.png" for i in generator.permutation(size)]
    right = generator.random((count, size)) < 0.3
    right[np.arange(count), generator.integers(size, size=count)] = True
    relevant = [{names[c] for c in np.flatnonzero(row)} for row in right]
    ranked = ranked_names(rank_similarities(similarity, names, k=size))

    # scikit-learn breaks ties by column or shares them; ours go to the smaller name. A step
    # smaller than any difference takes the ties away and says the same to both.
    strict = similarity - np.argsort(np.argsort(names)) / 1000
    # scikit-learn knows one right answer a query. Of several only the best placed counts, so
    # that one stands for all in column 0; the wrong ones follow.
    best = np.where(right, strict, -np.inf).max(axis=1)
    collapsed = np.column_stack([best, np.where(right, -9, strict)])
    truth = np.zeros(count, int)
    for k in range(1, size + 1):
        options = {"k": k, "labels": np.arange(size + 1)}
        want = top_k_accuracy_score(truth, collapsed, **options)
        assert recall_at_k(ranked, relevant, k) == pytest.approx(want)
    one_hot = np.eye(size + 1)[truth]
    want = label_ranking_average_precision_score(one_hot, collapsed)
    assert mrr(ranked, relevant) == pytest.approx(want)

    # And the definition: better ones come first, of equal ones those with a smaller name.
    by_hand = []
    for row, answers in zip(similarity, relevant, strict=True):
        keys = sorted((-value, name) for value, name in zip(row, names, strict=True))
        by_hand.append(1 + min(place for place, (_, name) in enumerate(keys) if name in answers))
    assert first_right_rank(ranked, relevant).tolist() == by_hand
    assert median_rank(ranked, relevant) == np.median(by_hand)


def test_score_ranking_draws_whole_groups_of_queries():
    ranked = [["a"], ["b"]] * 20
    relevant = ["a"] * 40  # the first of each pair is right
    alone = score_ranking(ranked, relevant)
    in_pairs = score_ranking(ranked, relevant, groups=np.arange(40) // 2)
    assert alone["low"] < 0.5 < alone["high"]
    assert in_pairs["low"] == in_pairs["high"] == in_pairs["mrr_low"] == 0.5


def test_scores_by_label_are_those_of_the_label_alone():
    generator = np.random.default_rng(0)
    ranked = [list(generator.permutation(list("abcd"))) for _ in range(30)]
    relevant = [{"a", "b"} if query % 3 else "c" for query in range(30)]
    sites = ["nose", "ear", "nose", "throat", "ear"] * 6
    groups = np.arange(30) // 3
    table = score_ranking_by(ranked, relevant, sites, groups=groups, seed=2)
    assert table.index.tolist() == ["all", "nose", "ear", "throat"]
    assert table["queries"].tolist() == [30, 12, 12, 6]
    assert table.loc["all"].to_dict() == score_ranking(ranked, relevant, groups=groups, seed=2)
    ears = [query for query in range(30) if sites[query] == "ear"]
    want = score_ranking(
        [ranked[q] for q in ears], [relevant[q] for q in ears], groups=groups[ears], seed=2
    )
    assert table.loc["ear"].to_dict() == want
    weighted = table["recall@1"].iloc[1:] @ table["queries"].iloc[1:] / 30
    assert weighted == pytest.approx(table.loc["all", "recall@1"])


def test_queries_of_one_text_keep_their_own_rows():
    ranked = [["a", "b"], ["a", "b"]]  # one phrase, two pictures that it was written for
    assert first_right_rank(ranked, ["a", "b"]).tolist() == [1.0, 2.0]
    assert score_ranking_by(ranked, ["a", "b"], ["polyp", "polyp"])["queries"].tolist() == [2, 2]


def test_answer_counts_agree_with_a_plain_loop():
    generator = np.random.default_rng(0)
    names = list("abcdef")
    ranked = [list(generator.permutation(names))[: generator.integers(1, 7)] for _ in range(20)]
    for k in (1, 3, 9):
        want = [sum(name in answers[:k] for answers in ranked) for name in names]
        assert answer_counts(ranked, names, k=k).tolist() == want


def test_hubness_is_the_third_standardised_moment():
    counts = np.random.default_rng(0).poisson(2, 50)
    want = moment(counts, 3) / moment(counts, 2) ** 1.5
    assert hubness(counts) == pytest.approx(want)
    assert hubness(np.append(counts, 40)) > hubness(counts)
    assert hubness(np.full(9, 3)) == 0.0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: recall_at_k([["a"]], ["a"], 0), "k: expected at least 1"),
        (lambda: recall_at_k([], [], 1), "at least 1"),
        (lambda: mrr([["a"]], ["a", "b"]), "1 queries, relevant 2"),
        (lambda: mrr([["a"]], [[]]), "query 0 has no right answer"),
        (lambda: score_ranking([["a"]], ["a"], groups=[1, 2]), "one group a value"),
        (lambda: score_ranking_by([["a"]], ["a"], []), "0 labels for 1 queries"),
        (lambda: score_ranking_by([["a"]], ["a"], ["all"]), "rename it"),
        (lambda: answer_counts([["a"]], ["a"], k=0), "k: expected at least 1"),
        (lambda: answer_counts([["a", "z"]], ["a"]), "not in the gallery, such as 'z'"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
