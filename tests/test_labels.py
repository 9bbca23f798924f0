"""The official indices, and what mirroring does to a label."""

from __future__ import annotations

from entrep.labels import (
    CLASS_NAMES,
    CLASS_TO_INDEX,
    FINE_PAIRS,
    FINE_SITES,
    MIRROR_CLASS,
    SITE_NAMES,
    SITE_OF,
)


def test_class_indices_are_the_servers():
    # Typed out once more on purpose: several public solutions had 4 and 5 the wrong way round.
    assert CLASS_TO_INDEX == {
        "nose-right": 0,
        "nose-left": 1,
        "ear-right": 2,
        "ear-left": 3,
        "vc-open": 4,
        "vc-closed": 5,
        "throat": 6,
    }
    assert tuple(CLASS_TO_INDEX) == CLASS_NAMES


def test_sites_follow_from_the_classes():
    assert SITE_NAMES == ("nose", "ear", "vc", "throat")
    assert SITE_OF == (0, 0, 1, 1, 2, 2, 3)


def test_each_site_but_the_throat_asks_one_binary_question():
    assert FINE_PAIRS == {"nose": (0, 1), "ear": (2, 3), "vc": (4, 5)}
    assert FINE_SITES == ("nose", "ear", "vc")


def test_mirroring_swaps_sides_and_leaves_cords_and_throat():
    assert MIRROR_CLASS == (1, 0, 3, 2, 4, 5, 6)


def test_mirroring_twice_changes_nothing_and_keeps_the_site():
    for index, mirrored in enumerate(MIRROR_CLASS):
        assert MIRROR_CLASS[mirrored] == index
        assert SITE_OF[mirrored] == SITE_OF[index]
