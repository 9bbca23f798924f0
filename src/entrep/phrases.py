"""Finding phrases: brought to one spelling, read for the place they name, mirrored and expanded.

Everything here returns new text for an encoder or numbers for a ranking. A submission is keyed
by the phrase as it stands in the challenge's list, to the letter: keep that, and never one of
these, as the key.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import numpy as np

from entrep.labels import CLASS_NAMES, SITE_NAMES, SITE_OF
from entrep.vocabulary import (
    DESCRIPTION_ENDINGS,
    DESCRIPTIONS,
    FINDING_ENDINGS,
    FINDINGS_ALONE,
    GLOSSARY,
    IDIOMS,
    JOINED,
    JOINING_WITH,
    NOUNS,
    SPELLINGS,
    STRUCTURES,
    SYNONYMS,
    VOCABULARY,
    WORDS,
)

MAX_CHARS = 2_000  # a description of a picture is a sentence or two; this is a page

T = TypeVar("T")

# Numbers keep their point ("2.5"), words an apostrophe ("reinke's"); the rest separates.
_WORD = re.compile(r"\d+(?:[.,/]\d+)+|[^\W_]+(?:'[^\W_]+)*|%")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
# Letters that Vietnamese alone has, French or Portuguese not.
_VIETNAMESE = re.compile("[đăơưĩũ\u1ea0-\u1ef9]")


def _plural(noun: str) -> str:
    if noun.endswith("y"):
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "ch")) else f"{noun}s"


_PLURALS = {_plural(noun): noun for noun in NOUNS}
_MIRRORED = {"right": "left", "rightward": "leftward", "rightwards": "leftwards"}
_MIRRORED |= {"rightmost": "leftmost", "phải": "trái"}
_MIRRORED |= {other: word for word, other in _MIRRORED.items()}
_IDIOM = "|".join(idiom.replace(" ", r"\s+") for idiom in IDIOMS)
_SIDE = "|".join(sorted(_MIRRORED, key=len, reverse=True))
_SIDES = re.compile(rf"(?<!\w)(?:{_IDIOM}|(?P<side>{_SIDE}))(?!\w)", re.IGNORECASE)
_JOINTS = re.compile(
    r"(?P<open>[(\[{])|(?P<close>[)\]}])|(?P<strong>[;+]|\.(?=\s))|,(?!\d)"
    r"|(?<!\S)(?:and|with|và|kèm(?:\s+theo)?)(?!\S)",
    re.IGNORECASE,
)
_JOINING = re.compile(rf"\b(?:{'|'.join(sorted(JOINING_WITH))})\s+with\Z", re.IGNORECASE)
# Both read well around a noun ("cerumen") and around a sentence ("the cords are red").
_TEMPLATES = ("Endoscopic image: {}.", "ENT endoscopy finding: {}.")
_TEMPLATES_VI = ("Hình ảnh nội soi: {}.", "Nội soi tai mũi họng: {}.")


def normalise_phrase(text: str) -> str:
    """The phrase in lower case, one spelling and one blank between words.

    Punctuation, brackets and emoji go, what stands in brackets stays; British spellings, known
    misspellings and plurals of ENT nouns are replaced; Vietnamese keeps its letters (composed,
    NFKC).
    Normalising twice changes nothing more.

    Raises:
        ValueError: if the phrase is longer than `MAX_CHARS`.
    """
    return " ".join(_tokens(text))


def is_vietnamese(text: str) -> bool:
    """Whether a phrase has a letter that Vietnamese alone has, or a term of the glossary."""
    tokens = _tokens(text)
    if _VIETNAMESE.search(" ".join(tokens)):
        return True
    return any(value is not None for _, value in _longest_terms(tokens, GLOSSARY))


def to_english(text: str) -> str:
    """A Vietnamese phrase in English words, for a text tower that knows no other language.

    The terms of the glossary are replaced, longest first, in Vietnamese word order; other words
    stay, normalised. A phrase that is not Vietnamese comes back as it is.
    """
    return " ".join(_english_tokens(text)) if is_vietnamese(text) else text


def named_classes(text: str) -> np.ndarray:
    """Which classes a phrase in English or Vietnamese allows: (7,) bool in `CLASS_NAMES` order.

    A class is ruled out by the name of another site or of the other side, or, where the phrase
    names the vocal cords, of their other state. Both sides, or both states, rule out neither.
    "Incomplete glottic closure" reads as closed: closure is judged while the cords close.
    A phrase that names nothing, or is empty, allows all.
    """
    said = _longest_terms(_english_tokens(text), VOCABULARY)
    tags = {tag for _, value in said for tag in value or ()}
    sites = tags.intersection(SITE_NAMES) or set(SITE_NAMES)
    ruled_out = set()
    for one, other in (("right", "left"), ("open", "closed")):
        if (one in tags) != (other in tags):
            ruled_out.add(other if one in tags else one)
    if "both" in tags:
        ruled_out -= {"right", "left"}
    if "vc" not in tags:
        ruled_out -= {"open", "closed"}  # a mouth may be open, a perforation closed
    parts = [name.partition("-") for name in CLASS_NAMES]
    return np.array([site in sites and state not in ruled_out for site, _, state in parts])


def fine_prior(text: str, floor: float = 0.1) -> np.ndarray:
    """Probability of each class given what the phrase names: (7,), sums to 1.

    Args:
        text: a phrase.
        floor: how probable a class that the phrase rules out is next to one that it allows,
            0 < floor <= 1. Soft, since the reading may err and pictures are misfiled.

    Raises:
        ValueError: if `floor` is out of its range or the phrase too long.
    """
    return _soften(named_classes(text), floor)


def site_prior(text: str, floor: float = 0.1) -> np.ndarray:
    """`fine_prior` of the sites: (4,) in `SITE_NAMES` order, sums to 1.

    Not the sum of `fine_prior` over classes: a phrase that names nothing must be uniform here
    as well, and the throat, which is one class, must not come out behind.
    """
    allowed = named_classes(text)
    return _soften(np.isin(np.arange(len(SITE_NAMES)), np.array(SITE_OF)[allowed]), floor)


def log_evidence(prior: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """How well each picture's class or site agrees with each phrase: (Q, G), at most 0.

    log sum_s prior[q, s] * p(s | picture g): what to add to log-similarities (similarity
    over temperature) to multiply the one with the other. A uniform prior gives all pictures
    the same, so a phrase that names nothing leaves the ranking alone.

    Args:
        prior: (Q, S) rows of `site_prior` (S = 4) or `fine_prior` (S = 7).
        probs: (G, S) calibrated probabilities of the pictures, rows sum to 1.

    Raises:
        ValueError: if the widths differ.
    """
    if prior.ndim != 2 or probs.ndim != 2 or prior.shape[1] != probs.shape[1]:
        raise ValueError(
            f"prior is {prior.shape}, probs {probs.shape}; want (Q, S) and (G, S) of the same "
            "S: 4 sites with site_prior, 7 classes with fine_prior."
        )
    return np.log(np.asarray(prior, dtype=np.float64) @ probs.T.astype(np.float64))


def mirror_phrase(text: str) -> str:
    """The phrase of the mirrored picture: left and right change places, in both languages.

    Whole words only, in the case they are written in; idioms such as "left over", "all right"
    and "không phải" (is not) stay. Mirroring twice gives the phrase back, in NFC.
    """

    def swap(match: re.Match[str]) -> str:
        word = match["side"]
        if word is None or word.lower() not in _MIRRORED:  # without case, "ı" counts as "i"
            return match[0]
        other = _MIRRORED[word.lower()]
        return other.upper() if word.isupper() else other.title() if word[0].isupper() else other

    return _SIDES.sub(swap, unicodedata.normalize("NFC", _checked(text)))


def split_findings(text: str) -> list[str]:
    """The findings that a phrase joins, in order, each usable by itself; else the phrase alone.

    A phrase may part at ";", "+", ",", "and", "with" and their Vietnamese words, and at the
    end of a sentence, outside brackets. A part must hold a finding ("cerumen") or describe a
    place ("red eardrum"). So words that only describe go with the noun that follows ("red and
    swollen vocal cords"), a place goes with what precedes ("patches on the tonsils and
    posterior wall"), and a finding that names no site stays with a next one that does ("edema
    and erythema of the cords"), whose site it may share. Read the site from the whole phrase.
    """
    text = unicodedata.normalize("NFC", _checked(text))
    pieces = _pieces(text)
    parts: list[_Piece] = []
    for index, piece in enumerate(pieces):
        after = pieces[index + 1] if index + 1 < len(pieces) else None
        if parts and parts[-1].waits:
            parts[-1] = _joined(parts[-1], piece)
        elif parts and not piece.usable and not (after and piece.goes_right(parts[-1])):
            parts[-1] = _joined(parts[-1], piece)
        else:
            parts.append(piece)
        part = parts[-1]
        shares = after and not after.apart and after.usable and after.site and not part.site
        parts[-1] = part._replace(waits=bool(after) and (not part.usable or bool(shares)))
    return [text[part.start : part.end] for part in parts] if len(parts) > 1 else [text]


def combine_parts(whole: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Similarity of a phrase to the gallery from those of the whole and of its parts: (G,).

    A picture must show every finding, so the parts meet by their minimum: a mean would let one
    plain finding make up for another that is absent. Each part is first centred on its mean
    over the gallery, since phrases differ in how similar they are to any picture, and the
    lowest would decide alone. The whole has half the say: it holds what splitting loses.

    Args:
        whole: (G,) similarities of the phrase.
        parts: (P, G) similarities of its parts, P >= 1; `whole` itself as the only part
            gives `whole` back.

    Raises:
        ValueError: if the shapes do not fit.
    """
    if whole.ndim != 1 or parts.ndim != 2 or not len(parts) or parts.shape[1:] != whole.shape:
        raise ValueError(f"whole is {whole.shape}, parts {parts.shape}; want (G,) and (P, G).")
    centred = parts - parts.mean(axis=1, keepdims=True)
    return (whole + whole.mean() + centred.min(axis=0)) / 2


def phrase_variants(text: str, limit: int = 8) -> list[str]:
    """A handful of wordings of a phrase; a caller averages their embeddings.

    The phrase as it is comes first, then normalised, in two templates, and with one term at a
    time replaced by its synonym; no two are equal, and at most `limit` are given. The language
    stays: an English-only text tower takes `phrase_variants(to_english(text))`.

    Raises:
        ValueError: if `limit` is below 1 or the phrase too long.
    """
    if limit < 1:
        raise ValueError(f"limit is {limit}; want 1 or more.")
    plain = normalise_phrase(text)
    if not plain:
        return [text]
    templates = _TEMPLATES_VI if is_vietnamese(text) else _TEMPLATES
    variants = [text, plain, *(template.format(plain) for template in templates)]
    for group in SYNONYMS:
        for new in group:
            table = {old: new for old in group if old != new}
            variants.append(" ".join(_replaced(plain.split(), table)))
    return list(dict.fromkeys(variants))[:limit]


def _checked(text: str) -> str:
    if len(text) > MAX_CHARS:
        raise ValueError(
            f"the phrase {text[:40]!r}... has {len(text):,} characters, at most {MAX_CHARS:,} "
            "are read; give one finding phrase at a time."
        )
    return text


def _tokens(text: str) -> list[str]:
    return _words(_checked(text))


def _words(text: str) -> list[str]:
    # Folding case may undo the composition of letters, hence NFKC before and after.
    folded = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).casefold()
    folded = unicodedata.normalize("NFKC", folded).replace("\u2019", "'")
    return _replaced([_spelt(word) for word in _WORD.findall(folded)], JOINED)


def _spelt(word: str) -> str:
    while word.endswith("'s"):
        word = word[:-2]
    for start, other in SPELLINGS.items():
        if word.startswith(start):
            word = other + word.removeprefix(start)
    word = WORDS.get(word, word)
    return _PLURALS.get(word, word)


def _english_tokens(text: str) -> list[str]:
    tokens = _tokens(text)
    return _words(" ".join(_replaced(tokens, GLOSSARY))) if is_vietnamese(text) else tokens


def _longest_terms(tokens: list[str], table: Mapping[str, T]) -> list[tuple[str, T | None]]:
    """Tokens grouped into terms of a table, from the left and the longest first, and their value.

    A token that begins no term stands alone with None.
    """
    longest = max(term.count(" ") for term in table) + 1
    found: list[tuple[str, T | None]] = []
    start = 0
    while start < len(tokens):
        for length in range(min(longest, len(tokens) - start), 0, -1):
            term = " ".join(tokens[start : start + length])
            if term in table or length == 1:
                found.append((term, table.get(term)))
                start += length
                break
    return found


def _replaced(tokens: list[str], table: Mapping[str, str]) -> list[str]:
    terms = _longest_terms(tokens, table)
    return " ".join(term if new is None else new for term, new in terms).split()


def _soften(allowed: np.ndarray, floor: float) -> np.ndarray:
    if not 0 < floor <= 1:
        raise ValueError(f"floor is {floor}; want 0 < floor <= 1 (1 ignores what is named).")
    weights = np.where(allowed, 1.0, floor)
    return weights / weights.sum()


class _Piece(NamedTuple):
    """What stands between two joints of a phrase, and what its words are."""

    start: int
    end: int
    apart: bool  # after ";", "+" or a sentence, which part more than a comma does
    finding: bool
    describes: bool
    place: bool
    site: bool
    ends_describing: bool
    waits: bool = False  # belongs with the next piece

    @property
    def usable(self) -> bool:
        """Whether it holds a finding, or describes a place."""
        return self.finding or (self.describes and self.place)

    def goes_right(self, before: _Piece) -> bool:
        """Whether it stands before its noun ("left and right"; "red and swollen cords").

        "The eardrum is red and swollen, with pus": here the adjective goes on with the last.
        """
        return not self.place and not before.ends_describing


def _joined(first: _Piece, second: _Piece) -> _Piece:
    return _Piece(
        first.start,
        second.end,
        first.apart,
        first.finding or second.finding,
        first.describes or second.describes,
        first.place or second.place,
        first.site or second.site,
        second.ends_describing,
    )


def _piece(text: str, start: int, end: int, apart: bool) -> _Piece | None:
    """The piece text[start:end] without blanks at its ends; None if it has no word."""
    inner = text[start:end]
    tokens = _english_tokens(inner)
    if not tokens:
        return None
    start += len(inner) - len(inner.lstrip())
    said = _longest_terms(tokens, VOCABULARY)
    site = any(set(tags or ()).intersection(SITE_NAMES) for _, tags in said)
    describing = [t in DESCRIPTIONS or t.endswith(DESCRIPTION_ENDINGS) for t in tokens]
    return _Piece(
        start,
        start + len(inner.strip()),
        apart,
        any(t in FINDINGS_ALONE or t.endswith(FINDING_ENDINGS) for t in tokens),
        any(describing),
        site or not STRUCTURES.isdisjoint(tokens),
        site,
        describing[-1],
    )


def _pieces(text: str) -> list[_Piece]:
    """The pieces of a phrase between its joints outside brackets."""
    pieces: list[_Piece] = []
    start, apart, depth = 0, False, 0
    for joint in _JOINTS.finditer(text):
        if joint["open"] or joint["close"]:
            depth = depth + 1 if joint["open"] else max(depth - 1, 0)
        elif depth == 0 and not _JOINING.search(text, start, joint.end()):
            piece = _piece(text, start, joint.start(), apart)
            pieces += [piece] if piece else []
            start, apart = joint.end(), joint["strong"] is not None or (apart and not piece)
    last = _piece(text, start, len(text), apart)
    return pieces + ([last] if last else [])
