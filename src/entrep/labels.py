"""The challenge's classes, in the official order, and everything that follows from their names."""

from __future__ import annotations

# The order is the server's: the position is the class index that a submission carries.
CLASS_NAMES = (
    "nose-right",
    "nose-left",
    "ear-right",
    "ear-left",
    "vc-open",
    "vc-closed",
    "throat",
)
CLASS_TO_INDEX = {name: index for index, name in enumerate(CLASS_NAMES)}

# Coarse sites. `SITE_OF[class_index]` is a site index.
SITE_NAMES = ("nose", "ear", "vc", "throat")
SITE_OF = tuple(SITE_NAMES.index(name.split("-")[0]) for name in CLASS_NAMES)

# The binary question of a site: (class of answer 0, class of answer 1). The throat has none.
FINE_PAIRS = {
    site: tuple(i for i, name in enumerate(CLASS_NAMES) if name.startswith(f"{site}-"))
    for site in SITE_NAMES
    if site != "throat"
}
FINE_SITES = tuple(FINE_PAIRS)


def _mirrored(name: str) -> str:
    swap = {"right": "left", "left": "right"}
    return "-".join(swap.get(word, word) for word in name.split("-"))


# `MIRROR_CLASS[class_index]` is the class of the picture mirrored left to right:
# a right nose or ear becomes a left one, vocal cords and throat stay what they are.
MIRROR_CLASS = tuple(CLASS_TO_INDEX[_mirrored(name)] for name in CLASS_NAMES)
