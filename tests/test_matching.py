import dataclasses

import numpy as np
import pytest

from entrep import matching
from entrep.adapter import Adapter
from entrep.config import load_config
from entrep.labels import CLASS_NAMES, SITE_OF
from entrep.lessons import collect_lessons

PLAIN = dataclasses.replace(
    load_config(),
    same_class_weight=0.0,
    named_class_weight=0.0,
    finding_weight=0.0,
    hubness="none",
)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def adapter_that(width, shift):
    """An adapter that adds `shift` to whatever it moves."""
    return Adapter(np.zeros(width) - 1, np.zeros(width) + 1 / width, np.tile(shift, (width, 1)),
                   np.zeros((width, width)))  # fmt: skip


@pytest.fixture
def matcher():
    """Six pictures of two dimensions, named a to f, in folds 0, 0, 0, 1, 1 and outside."""
    angles = np.deg2rad([0, 10, 80, 5, 60, 2])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    probs = np.full((6, 7), 1 / 7)
    space = matching.Space(rows, texts=np.eye(2))
    return matching.Matcher(
        np.array(list("abcdef")), np.array(list("aBBdef")), np.arange(6), probs,
        (space,), (1.0,), space, matching.says_by_cosine(space), PLAIN,
    )  # fmt: skip


def whole(texts, rows):
    """Phrases that join nothing."""
    return matching.Phrases(tuple(texts), rows, tuple(row[None] for row in rows))


def first(ranking):
    return [answers[0][0] for answers in ranking]


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


def test_each_part_is_judged_by_an_adapter_that_never_saw_it(matcher):
    away = np.array([0.0, 9.0])
    adapters = (adapter_that(2, away * 0), adapter_that(2, away))
    space = dataclasses.replace(matcher.joint, adapters=adapters)
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
        space = matching.Space(rows, texts)
        return matching.learn_space(space, lessons, fold, epochs=1, seed=0).adapters

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
        return matching.learn_says(matching.Space(rows, np.eye(2, 8)), lessons, fold)

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
        space = matching.Space(rows + noise)
        return [
            one.pictures for one in matching.learn_space(space, lessons, fold, **options).adapters
        ]

    first = learn()
    assert len(list(tmp_path.iterdir())) == 3
    # The last bits of another machine do not reach what was learned.
    np.testing.assert_array_equal(learn(noise=1e-7), first)
    for changed in ({"epochs": 3}, {"seed": 1}, {"identity": "y"}, {"labels": 6 - target}):
        assert np.abs(np.subtract(learn(noise=1e-7, **changed), first)).max() > 0
        np.testing.assert_array_equal(learn(), first)
    assert not learn(epochs=0) and not list(tmp_path.iterdir())


def test_queries_are_asked_in_their_own_part_and_phrases_in_all(matcher):
    fold = np.array([0, 0, 0, 1, 1, -1])
    parts = matching.parts_of(fold, np.ones(6, bool))
    assert [(number, rows.tolist()) for number, rows in parts] == [
        (-1, [5]), (0, [0, 1, 2]), (1, [3, 4])
    ]  # fmt: skip
    found = matching.ask_pictures(matcher, parts, np.array([0, 3, 5]), [{1, 3}, {4}, {5}])
    assert [(one.query, one.ranked, one.relevant) for one in found] == [
        (0, ["b", "c"], {"b"}), (1, ["e"], {"e"})
    ]  # fmt: skip
    # b's only right answer is its copy, which may not answer.
    assert matching.ask_pictures(matcher, parts, np.array([1]), [{2}]) == []
    found = matching.ask_phrases(matcher, parts, whole(["x"], np.eye(2)[:1]), [{2, 4}])
    assert [(one.ranked, one.relevant) for one in found] == [
        (["a", "b", "c"], {"c"}), (["d", "e"], {"e"})
    ]  # fmt: skip


def test_an_adapter_that_harms_is_not_chosen(matcher):
    fold = np.array([0, 0, 0, 0, 0, 0])
    parts = matching.parts_of(fold, np.ones(6, bool))
    confuse = Adapter(np.zeros(2), np.ones(2), np.array([[0, 0], [0, -9.0]]), np.zeros((2, 2)))
    space = dataclasses.replace(matcher.joint, adapters=(confuse,))
    image = matching.Space(np.array([[1.0, 0.0]] * 6))  # tells nothing apart
    harmed = dataclasses.replace(matcher, spaces=(space, image), weights=(0.5, 0.5), joint=space)
    queries, right = np.array([0, 4]), [{5}, {2}]
    chosen = matching.choose_for_pictures(harmed, parts, queries, right, (0.0, 1.0))
    assert first(chosen.answer_pictures(queries, np.arange(6), fold=0)) == ["f", "c"]
    asked = (whole(["y"], np.eye(2)[1:]), [{2}])
    assert matching.choose_for_phrases(harmed, parts, *asked).joint.strength == 0
    # Without anything to choose by: what is known to be safe.
    assert matching.choose_for_pictures(
        harmed, parts, np.array([], int), [], (0.0, 1.0)
    ).weights == (0.0, 1.0)
    none = (whole([], np.empty((0, 2))), [])
    assert matching.choose_for_phrases(harmed, parts, *none).joint.strength == 0


def test_several_spaces_and_all_steps_work_together(matcher):
    config = dataclasses.replace(
        load_config(), finding_weight=0.3, k_reciprocal_weight=0.3, expansion=1
    )
    image = matching.Space(np.random.default_rng(0).normal(size=(6, 5)))
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


def test_phrases_are_embedded_in_english_and_as_several_wordings():
    seen = []

    def embed(texts):
        seen.append(list(texts))
        return np.tile([[3.0, 4.0]], (len(texts), 1)) / 5

    rows = matching.embed_phrases(["Ear wax", "thủng màng nhĩ"], embed)
    assert rows.shape == (2, 2) and seen[0][0] == "Ear wax"
    assert "perforation" in seen[0][1] and "ĩ" not in seen[0][1]
    matching.embed_phrases(["Ear wax"], embed, variants=True)
    assert len(seen[1]) > 2 and seen[1][0] == "Ear wax"
    assert matching.embed_phrases([], embed).shape == (0, 2)


def test_a_phrase_that_joins_findings_wants_them_all(matcher):
    directions = {"red eardrum": [1.0, 0.0], "polyp": [0.0, 1.0]}

    def embed(texts):
        mean = [np.sum([d for t, d in directions.items() if t in text], axis=0) for text in texts]
        return unit(np.array(mean))

    texts = ["polyp", "red eardrum and a polyp"]
    asked = matching.read_phrases(texts, embed)
    assert [len(parts) for parts in asked.parts] == [1, 2]
    np.testing.assert_allclose(asked.parts[1], np.eye(2), atol=1e-12)
    assert [len(parts) for parts in matching.read_phrases(texts, embed, split=False).parts] == [
        1,
        1,
    ]
    assert asked.of([1]).texts == (texts[1],) and len(asked.of([1]).parts[0]) == 2
    # The picture between both, at 60 degrees, is nearer to either than those at the ends.
    assert first(matcher.answer_phrases(asked, np.arange(6))) == ["c", "e"]


def test_a_whitened_space_varies_alike_in_all_directions_and_keeps_its_phrases_apart(matcher):
    rows = np.random.default_rng(0).normal(size=(50, 4)) @ np.diag([9.0, 3.0, 1.0, 0.1])
    known = np.arange(50) < 40
    found = matching.whiten(matching.Space(rows), known, dims=3)
    np.testing.assert_allclose(np.cov(found.rows[known].T), np.eye(3), atol=1e-9)
    assert matching.whiten(matching.Space(rows), known, dims=99).rows.shape == (50, 4)
    with pytest.raises(ValueError, match="meet its phrases"):
        matching.whiten(matcher.joint, known[:6], dims=2)
