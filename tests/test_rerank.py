import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrep.ranking_metrics import answer_counts, hubness, recall_at_k
from entrep.rerank import (
    average_spaces,
    csls,
    expand,
    inverted_softmax,
    k_reciprocal,
    phrase_distribution,
    prefer_same_class,
    prefer_same_finding,
    rank_one_to_one,
)
from entrep.retrieval import rank_similarities, ranked_names

seeds = st.integers(0, 2**32 - 1)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class World:
    """Three queries, seven pictures, a bank of five: everything that a step may ask for."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        # Tenths: many similarities are tied.
        self.similarity = rng.integers(-3, 10, (3, 7)) / 10
        self.bank = rng.integers(-3, 10, (5, 7)) / 10
        self.similarity[rng.random((3, 7)) < 0.2] = -np.inf
        self.bank[rng.random((5, 7)) < 0.2] = -np.inf
        self.similarity[:, 6], self.bank[4] = 0.3, 0.1  # something is always allowed
        self.query_probs, self.gallery_probs = (rng.dirichlet(np.ones(4), n) for n in (3, 7))

    def shuffled(self, order):
        other = World(0)
        other.similarity, other.bank = self.similarity[:, order], self.bank[:, order]
        other.query_probs, other.gallery_probs = self.query_probs, self.gallery_probs[order]
        return other


STEPS = {
    "class": lambda w, weight: prefer_same_class(
        w.similarity, w.query_probs, w.gallery_probs, weight=weight
    ),
    "finding": lambda w, weight: prefer_same_finding(
        w.similarity, w.query_probs, w.gallery_probs, weight=weight
    ),
    "csls": lambda w, weight: csls(w.similarity, w.bank, k=2, weight=weight),
    "inverted softmax": lambda w, weight: inverted_softmax(
        w.similarity, w.bank, temperature=0.05, weight=weight
    ),
    "inverted softmax of hubs": lambda w, weight: inverted_softmax(
        w.similarity, w.bank, temperature=0.05, weight=weight, only_hubs=True
    ),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@given(seeds)
def test_weight_zero_changes_nothing(step, seed):
    world = World(seed)
    np.testing.assert_array_equal(step(world, 0.0), world.similarity)


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@given(seeds, st.permutations(range(7)))
def test_permuting_the_gallery_permutes_the_result(step, seed, order):
    world = World(seed)
    np.testing.assert_allclose(step(world.shuffled(order), 0.6), step(world, 0.6)[:, order])


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@given(seeds)
def test_a_forbidden_pair_stays_forbidden_and_no_other_becomes_so(step, seed):
    world = World(seed)
    before = world.similarity.copy()
    changed = step(world, 1.0)
    np.testing.assert_array_equal(np.isneginf(changed), np.isneginf(before))
    assert not np.isnan(changed).any()
    np.testing.assert_array_equal(world.similarity, before)  # what was given is left alone


@given(seeds)
def test_class_and_finding_agree_with_plain_loops(seed):
    world = World(seed)
    by_class, by_finding = STEPS["class"](world, 0.3), STEPS["finding"](world, 0.3)
    for q, g in zip(*np.nonzero(np.isfinite(world.similarity)), strict=True):
        s = world.similarity[q, g]
        pairs = list(zip(world.query_probs[q], world.gallery_probs[g], strict=True))
        same = sum(a * b for a, b in pairs)
        assert by_class[q, g] == pytest.approx(s + 0.3 * math.log(0.001 + 0.999 * same))
        agreement = sum(math.sqrt(a * b) for a, b in pairs)
        assert by_finding[q, g] == pytest.approx(0.7 * s + 0.3 * agreement)


@given(seeds, st.integers(1, 9))
def test_hubness_corrections_agree_with_plain_loops(seed, k):
    world = World(seed)
    found = csls(world.similarity, world.bank, k=k)
    inverted = inverted_softmax(world.similarity, world.bank, temperature=0.1)

    def largest(values):
        kept = sorted((v for v in values if v > -np.inf), reverse=True)[:k]
        return sum(kept) / len(kept)

    for q, g in zip(*np.nonzero(np.isfinite(world.similarity)), strict=True):
        s, near = world.similarity[q, g], largest(world.bank[:, g])
        assert found[q, g] == pytest.approx(2 * s - largest(world.similarity[q]) - near)
        exps = [math.exp(v / 0.1) for v in world.bank[:, g] if v > -np.inf]
        want = math.exp(s / 0.1) / (sum(exps) / len(exps))
        assert math.exp(inverted[q, g] / 0.1) == pytest.approx(want)


def test_csls_by_hand():
    similarity = [[0.8, 0.6]]
    bank = [[0.9, 0.2], [0.7, 0.4], [-1.0, 0.3]]  # means of the best two: 0.8 and 0.35
    # The query's own mean is 0.7: 1.6 - 0.7 - 0.8 and 1.2 - 0.7 - 0.35.
    np.testing.assert_allclose(csls(similarity, bank, k=2), [[0.1, 0.15]])


def test_only_queries_that_a_hub_answers_are_corrected():
    similarity = np.array([[0.9, 0.8, 0.1], [0.1, 0.2, 0.9]])
    bank = np.array([[0.7, 0.1, 0.2], [0.6, 0.5, 0.3]])  # the first picture is both's nearest
    every = inverted_softmax(similarity, bank, temperature=0.1)
    hubs = inverted_softmax(similarity, bank, temperature=0.1, only_hubs=True)
    np.testing.assert_array_equal(hubs, [every[0], similarity[1]])
    assert hubs[0].argmax() == 1


def planted_hub(seed=0):
    """Similarities to 40 right pictures and, last, to one that is near every query; a bank."""
    rng = np.random.default_rng(seed)
    common = np.eye(64)[0]
    own = unit(rng.normal(size=(80, 64)))
    queries = unit(own + common)
    pictures = unit(own[:40] + 0.3 * common + 0.11 * rng.normal(size=(40, 64)))
    gallery = np.vstack([pictures, unit(common[None] + 0.05 * rng.normal(size=(1, 64)))])
    return queries[:40] @ gallery.T, queries[40:] @ gallery.T


@pytest.mark.parametrize(
    "correct",
    [
        lambda similarity, bank: csls(similarity, bank),
        lambda similarity, bank: inverted_softmax(similarity, bank, temperature=0.05),
        lambda similarity, bank: inverted_softmax(
            similarity, bank, temperature=0.05, only_hubs=True
        ),
    ],
    ids=["csls", "inverted softmax", "inverted softmax of hubs"],
)
def test_a_planted_hub_is_removed(correct):
    similarity, bank = planted_hub()
    names = [f"{i:02}.png" for i in range(40)] + ["hub.png"]
    plain = ranked_names(rank_similarities(similarity, names))
    corrected = ranked_names(rank_similarities(correct(similarity, bank), names))
    assert answer_counts(plain, names, k=1)[-1] > 15
    assert answer_counts(corrected, names, k=1)[-1] == 0
    assert recall_at_k(plain, names[:40], 1) < 0.6 < 0.9 < recall_at_k(corrected, names[:40], 1)
    before, after = (hubness(answer_counts(r, names, k=1)) for r in (plain, corrected))
    assert after < before


def test_a_planted_wrong_side_neighbour_gives_way_where_the_side_is_known():
    similarity = [[0.95, 0.90, 0.2]]  # the mirror image, the same finding, another site
    gallery = [[0.1, 0.9, 0.0], [0.9, 0.1, 0.0], [0.0, 0.0, 1.0]]
    sure = prefer_same_class(similarity, [[0.95, 0.05, 0.0]], gallery, weight=0.1)
    assert rank_similarities(sure, ["mirror", "same", "other"])[0][0][0] == "same"
    unsure = prefer_same_class(similarity, [[0.5, 0.5, 0.0]], gallery, weight=0.1)
    assert rank_similarities(unsure, ["mirror", "same", "other"])[0][0][0] == "mirror"


def test_a_phrase_that_names_no_site_is_answered_as_before():
    world = World(1)
    nothing = prefer_same_class(
        world.similarity, np.full((3, 4), 0.25), world.gallery_probs, weight=2.0
    )
    order = np.argsort(-np.round(nothing, 6), axis=1, kind="stable")
    plain = np.argsort(-np.round(world.similarity, 6), axis=1, kind="stable")
    np.testing.assert_array_equal(order, plain)


def test_the_floor_bounds_what_a_sure_error_costs():
    found = prefer_same_class([[0.5]], [[1.0, 0.0]], [[0.0, 1.0]], weight=0.1, floor=0.01)
    assert found[0, 0] == pytest.approx(0.5 + 0.1 * math.log(0.01))
    assert prefer_same_class([[0.5]], [[0.0, 1.0]], [[0.0, 1.0]], weight=0.1)[0, 0] == 0.5


def test_pictures_of_one_finding_meet_in_their_phrases_though_they_look_apart():
    to_phrases = np.array([[0.8, 0.2, 0.1], [0.1, 0.7, 0.2], [0.7, 0.2, 0.0]])
    said = phrase_distribution(to_phrases, 0.1)
    np.testing.assert_allclose(said.sum(axis=1), 1)
    assert said[0, 0] / said[0, 1] == pytest.approx(math.exp(6))
    similarity = np.array([[0.6, 0.5]])  # the one that looks alike has another finding
    assert prefer_same_finding(similarity, said[:1], said[1:], weight=0.3).argmax() == 1
    alike = prefer_same_finding(similarity, said[:1], said[[0, 0]], weight=1.0)
    np.testing.assert_allclose(alike, 1.0)


def test_k_reciprocal_by_hand():
    a_b, a_c, a_d, b_c, b_d, c_d = 0.9, 0.5, 0.1, 0.8, 0.2, 0.7
    pool = [[1, a_b, a_c, a_d], [a_b, 1, b_c, b_d], [a_c, b_c, 1, c_d], [a_d, b_d, c_d, 1]]
    # Each one's nearest: a-b, b-a, c-b, d-c. Only a and b are so to each other: they are
    # described by (1, exp(-0.1)) and (exp(-0.1), 1), c and d by themselves alone.
    found = k_reciprocal(np.array(pool), [0, 2], k1=1, k2=1, weight=0.7)
    shared = math.exp(-0.1)  # (shared + shared) / (1 + 1)
    want = [[1, 0.3 * a_b + 0.7 * shared, 0.3 * a_c, 0.3 * a_d]]
    want += [[0.3 * a_c, 0.3 * b_c, 1, 0.3 * c_d]]
    np.testing.assert_allclose(found, want)


def jaccard_by_loops(pool, k1, k2):
    """Zhong et al. in sets and dictionaries."""
    everyone = range(len(pool))

    def nearest(p, k):
        others = sorted((round(pool[p, g], 6) for g in everyone if g != p), reverse=True)
        least = others[min(k, len(others)) - 1] if k else np.inf
        return {p} | {g for g in everyone if g != p and round(pool[p, g], 6) >= least}

    def reciprocal(p, k):
        return {g for g in nearest(p, k) if p in nearest(g, k)}

    def described(p):
        own = reciprocal(p, k1)
        widened = set(own)
        for other in own:
            theirs = reciprocal(other, math.ceil(k1 / 2))
            if len(own & theirs) * 3 >= len(theirs) * 2:
                widened |= theirs
        return {g: 1.0 if g == p else math.exp(min(pool[p, g], 1) - 1) for g in widened}

    single = [described(p) for p in everyone]
    mean = []
    for p in everyone:
        near = nearest(p, k2 - 1)
        mean.append([sum(single[n].get(g, 0) for n in near) / len(near) for g in everyone])
    return [
        [sum(map(min, a, b)) / sum(map(max, a, b)) for b in mean]  # smaller over larger
        for a in mean
    ]


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(2, 12), st.integers(1, 8), st.integers(1, 4), st.booleans())
def test_k_reciprocal_agrees_with_plain_loops(seed, size, k1, k2, tied):
    rng = np.random.default_rng(seed)
    vectors = unit(rng.normal(size=(size, 3)))
    pool = vectors @ vectors.T
    pool = np.round(pool, 1) if tied else pool
    found = k_reciprocal(pool, np.arange(size), k1=k1, k2=k2, weight=1.0)
    np.testing.assert_allclose(found, jaccard_by_loops(pool, k1, k2), atol=1e-12)
    order = rng.permutation(size)
    shuffled = k_reciprocal(pool[np.ix_(order, order)], [0], k1=k1, k2=k2, weight=0.4)
    blended = k_reciprocal(pool, [order[0]], k1=k1, k2=k2, weight=0.4)
    np.testing.assert_allclose(shuffled, blended[:, order], atol=1e-12)
    np.testing.assert_array_equal(k_reciprocal(pool, [0, 1], weight=0.0), pool[:2])


def test_k_reciprocal_takes_the_whole_pool_where_k1_is_larger():
    pool = np.array([[1.0, 0.5], [0.5, 1.0]])
    np.testing.assert_array_equal(
        k_reciprocal(pool, [0], k1=99, k2=9), k_reciprocal(pool, [0], k1=1, k2=2)
    )


@given(seeds, st.integers(0, 8), st.sampled_from([0.0, 1.0, 3.0]))
def test_expansion_agrees_with_plain_loops(seed, neighbours, alpha):
    rng = np.random.default_rng(seed)
    queries, gallery = unit(rng.normal(size=(3, 5))), unit(rng.normal(size=(6, 5)))
    by = rng.permuted(np.tile(np.arange(6.0), (3, 1)), axis=1)  # an order of its own, untied
    by[0, 0] = -np.inf
    found = expand(queries, gallery, by, neighbours=neighbours, alpha=alpha)
    for q in range(3):
        want = queries[q].copy()
        nearest = [g for g in sorted(range(6), key=lambda g: -by[q, g]) if by[q, g] > -np.inf]
        for g in nearest[:neighbours]:
            cosine = queries[q] @ gallery[g]
            if cosine > 0:
                want += cosine**alpha * gallery[g]
        np.testing.assert_allclose(found[q], want / np.linalg.norm(want))
    order = rng.permutation(6)
    again = expand(queries, gallery[order], by[:, order], neighbours=neighbours, alpha=alpha)
    np.testing.assert_allclose(again, found)
    np.testing.assert_allclose(expand(queries, gallery, by, neighbours=0), queries)


def test_augmenting_a_gallery_by_itself_draws_its_clusters_together():
    rng = np.random.default_rng(0)
    cluster = np.repeat([0, 1], 6)
    gallery = unit(np.eye(8)[cluster] + 0.4 * rng.normal(size=(12, 8)))
    similarity = gallery @ gallery.T
    np.fill_diagonal(similarity, -np.inf)
    augmented = expand(gallery, gallery, similarity, neighbours=3)
    same = cluster[:, None] == cluster
    assert (augmented @ augmented.T)[same].mean() > (gallery @ gallery.T)[same].mean() + 0.1


def test_averaging_agrees_with_a_plain_loop():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 4, 9))
    second[1, 3] = -np.inf
    found = average_spaces([first, second], [1, 3])
    for q in range(4):
        a, b = first[q], second[q][np.isfinite(second[q])]
        want = 0.25 * (a - a.mean()) / a.std() + 0.75 * (second[q] - b.mean()) / b.std()
        np.testing.assert_allclose(found[q], want)
    assert np.isneginf(found[1, 3])
    order = rng.permutation(9)
    shuffled = average_spaces([first[:, order], second[:, order]], [1, 3])
    np.testing.assert_allclose(shuffled, found[:, order])


@given(seeds, st.floats(0.1, 10), st.floats(-5, 5))
def test_the_scale_of_a_space_does_not_count(seed, scale, shift):
    first, second = np.random.default_rng(seed).normal(size=(2, 3, 6))
    scaled = average_spaces([scale * first + shift, second])
    np.testing.assert_allclose(scaled, average_spaces([first, second]), atol=1e-9)


def test_one_space_keeps_its_order_and_one_without_contrast_has_no_say():
    rng = np.random.default_rng(0)
    space = rng.normal(size=(3, 6))
    np.testing.assert_array_equal(np.argsort(average_spaces([space])), np.argsort(space))
    flat = 0.7 + 1e-9 * rng.normal(size=(3, 6))
    np.testing.assert_allclose(average_spaces([space, flat]), average_spaces([space]) / 2)
    np.testing.assert_allclose(average_spaces([space, flat], [1, 0]), average_spaces([space]))


@settings(deadline=None)
@given(seeds, st.integers(1, 4), st.integers(0, 2))
def test_one_to_one_finds_the_best_of_all_assignments(seed, queries, more):
    rng = np.random.default_rng(seed)
    size = queries + more
    similarity = rng.integers(0, 6, (queries, size)) / 5
    names = [f"{i}.png" for i in rng.permutation(size)]
    excluded = [{n for n in names if rng.random() < 0.2} for _ in range(queries)]
    barred = np.array([[n in x for n in names] for x in excluded])
    totals = {
        columns: sum(similarity[q, c] for q, c in enumerate(columns))
        for columns in itertools.permutations(range(size), queries)
        if not any(barred[q, c] for q, c in enumerate(columns))
    }
    if not totals:
        with pytest.raises(ValueError, match="cannot each have an answer of their own"):
            rank_one_to_one(similarity, names, excluded=excluded)
        return
    ranking = rank_one_to_one(similarity, names, k=size, excluded=excluded)
    firsts = [answers[0] for answers in ranking]
    assert len({name for name, _ in firsts}) == queries
    assert sum(value for _, value in firsts) == pytest.approx(max(totals.values()))
    plain = rank_similarities(similarity, names, k=size, excluded=excluded)
    for answers, usual in zip(ranking, plain, strict=True):
        assert answers[1:] == [answer for answer in usual if answer != answers[0]]
    order = rng.permutation(size)
    shuffled = [names[c] for c in order]
    assert ranking == rank_one_to_one(similarity[:, order], shuffled, k=size, excluded=excluded)


def test_one_to_one_gives_the_contested_picture_to_who_loses_less_by_it():
    similarity = np.array([[0.9, 0.8, 0.1], [0.8, 0.2, 0.1]])  # both like a best
    ranking = rank_one_to_one(similarity, ["a", "b", "c"], k=2)
    assert ranking == [[("b", 0.8), ("a", 0.9)], [("a", 0.8), ("b", 0.2)]]


def test_one_to_one_keeps_k_answers_where_the_assigned_one_comes_from_far_behind():
    similarity = np.array([[0.9, 0.8, 0.1], [0.9, 0.8, 0.1], [0.9, 0.1, 0.0]])
    ranking = rank_one_to_one(similarity, ["a", "b", "c"], k=2)
    assert sorted(map(len, ranking)) == [2, 2, 2]
    assert ranking[2] == [("a", 0.9), ("b", 0.1)]
    assert {ranking[0][0], ranking[1][0]} == {("b", 0.8), ("c", 0.1)}


def test_last_bit_differences_change_neither_neighbours_nor_assignment():
    noise = 1e-9 * np.array([[1, 0, 0, 2]])
    queries, gallery = np.eye(4)[:1], unit(np.eye(4) + 0.5)
    moved = [expand(queries, gallery, 0.8 + n, neighbours=1) for n in (noise, 0 * noise)]
    np.testing.assert_array_equal(*moved)
    names = ["d", "b", "a", "c"]
    assert rank_one_to_one(0.8 + noise, names)[0][0] == ("a", 0.8)


def test_steps_go_together():
    similarity, bank = planted_hub()
    names = [f"{i:02}.png" for i in range(41)]
    joined = average_spaces([csls(similarity, bank), similarity])
    sites = np.eye(2)[np.arange(41) % 2]
    joined = prefer_same_class(joined, sites[:40], sites, weight=0.5)
    assert recall_at_k(ranked_names(rank_similarities(joined, names)), names[:40], 1) == 1.0


two, three = np.zeros((2, 3)), np.full((3, 2), 0.5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: prefer_same_class(two, three[:1], three, weight=1), "one row a query"),
        (lambda: prefer_same_class(two, three[:2], three[:, :1], weight=1), "equally wide"),
        (lambda: prefer_same_class(two, three[:2] * 4, three, weight=1), "apply softmax"),
        (lambda: prefer_same_class(two, three[:2], three, weight=-1), "weight: expected 0 or"),
        (lambda: prefer_same_class(two, three[:2], three, weight=1, floor=0), "floor"),
        (lambda: prefer_same_finding(two, three[:2], three, weight=1.5), "from 0 to 1, got 1.5"),
        (lambda: phrase_distribution(two, 0), "temperature: expected more than 0"),
        (lambda: inverted_softmax(two, two, temperature=-1), "temperature: expected more"),
        (lambda: csls(two, two, k=0), "k: expected at least 1"),
        (lambda: csls(two, two[:, :2]), "bank 2; compare both with the same gallery"),
        (lambda: csls(two, np.full((1, 3), -np.inf)), "3 gallery picture.s. have no query"),
        (lambda: csls(np.zeros(3), two), "expected a matrix"),
        (lambda: k_reciprocal(two, [0]), "pool's pictures against each other"),
        (lambda: k_reciprocal(np.eye(2), [0], k1=0), "expected at least 1, got 0 and 6"),
        (lambda: expand(three[:2], three, two, neighbours=-1), "0 neighbours or more"),
        (lambda: average_spaces([]), "one or more matrices"),
        (lambda: average_spaces([two, two.T]), "of one shape"),
        (lambda: average_spaces([two], [0]), "one above 0"),
        (lambda: rank_one_to_one(two.T, ["a", "b"]), "3 queries cannot each .* among 2 pictures"),
        (lambda: rank_one_to_one(two, ["a"]), "there are 1 names"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
