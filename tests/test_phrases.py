import time
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrep.findings import FINDINGS
from entrep.labels import CLASS_NAMES, MIRROR_CLASS, SITE_NAMES, SITE_OF
from entrep.phrases import (
    MAX_CHARS,
    combine_parts,
    fine_prior,
    is_vietnamese,
    log_evidence,
    mirror_phrase,
    named_classes,
    normalise_phrase,
    phrase_variants,
    site_prior,
    split_findings,
    to_english,
)
from entrep.vocabulary import GLOSSARY, IDIOMS, JOINED, NOUNS, SYNONYMS, VOCABULARY, WORDS

KNOWN = [
    (finding.site, phrase) for finding in FINDINGS.values() for phrase in finding.phrases
]  # every phrase of the phantoms, with its site
READERS = (
    normalise_phrase,
    is_vietnamese,
    to_english,
    named_classes,
    fine_prior,
    site_prior,
    mirror_phrase,
    split_findings,
    phrase_variants,
)
# Words that meet each other's rules more often than arbitrary letters do.
WORDY = st.lists(
    st.sampled_from(
        "right LEFT Left all over next to phải TRÁI không ear drum Drums oedema a mi đan v".split()
        + "chords polyps haem post nasal và and with , ; ( ) + 's Reinke's's 2.5 %".split()
        + ["\u00ad", "\u0301"]
    ),
    max_size=12,
).map(" ".join)
ANY_TEXT = st.one_of(st.text(max_size=60), WORDY)


def sites(text):
    """The sites that a phrase allows, as a sentence of their names."""
    allowed = named_classes(text)
    return " ".join(s for i, s in enumerate(SITE_NAMES) if allowed[np.array(SITE_OF) == i].any())


def classes(text):
    return " ".join(np.array(CLASS_NAMES)[named_classes(text)])


# ---------------------------------------------------------------- spelling


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Foreign body (a hair), LEFT ear!", "foreign body a hair left ear"),
        ("The vocal chords are oedematous.", "the vocal cord are edematous"),
        ("Haemorrhage;  tumour\tand\u00a0leucoplakia", "hemorrhage tumor and leukoplakia"),
        ("timpanic membran perferation", "tympanic membrane perforation"),
        ("polyps, cords, patches, biopsies, sinuses", "polyp cord patch biopsy sinus"),
        ("pus narrows the meatus: pars tensa", "pus narrows the meatus pars tensa"),
        ("Reinke\u2019s edema, 2.5 mm (50%)", "reinke edema 2.5 mm 50 %"),
        ("ear drums / ear wax / post-nasal", "eardrum earwax postnasal"),
        ("tym\u00adpanic\u200b membrane\ufeff", "tympanic membrane"),
        (unicodedata.normalize("NFD", "Thủng MÀNG NHĨ"), "thủng màng nhĩ"),
        ("a-mi-đan, V.A.", "amidan va"),
        ("🙂 ?! …", ""),
        ("", ""),
    ],
)
def test_one_spelling(text, plain):
    assert normalise_phrase(text) == plain


@given(ANY_TEXT)
def test_normalising_twice_changes_nothing_more(text):
    plain = normalise_phrase(text)
    assert normalise_phrase(plain) == plain
    assert to_english(to_english(plain)) == to_english(plain)


def test_the_tables_are_in_the_form_that_they_are_looked_up_in():
    for term in (*VOCABULARY, *GLOSSARY, *NOUNS, *(t for group in SYNONYMS for t in group)):
        assert normalise_phrase(term) == term
    for wrong, right in (WORDS | JOINED).items():
        assert normalise_phrase(wrong) == normalise_phrase(right) == right
    # What is joined cannot be part of another pair to join.
    assert not set(JOINED.values()) & {word for term in JOINED for word in term.split()}


# ---------------------------------------------------------------- sites, sides, states


@pytest.mark.parametrize(("site", "phrase"), KNOWN, ids=[p.en for _, p in KNOWN])
def test_a_known_phrase_is_read_as_its_own_class_in_both_languages(site, phrase):
    assert sites(phrase.en) == sites(phrase.vi) == site
    assert classes(phrase.en) == classes(phrase.vi)
    if phrase.class_name:
        assert classes(phrase.en) == phrase.class_name


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("foreign body (a hair) in the external auditory canal", "ear"),
        ("white ear discharge in the external auditory canal", "ear"),
        ("incomplete glottic closure", "vc"),
        ("the vocal cords are edematous", "vc"),
        ("EARDRUM: perforated", "ear"),
        ("malleus handle, cone of light lost", "ear"),
        ("timpanic membrance", "ear"),
        ("bulging TM", "ear"),
        ("VA quá phát", "nose throat"),
        ("VA độ 3", "nose throat"),
        ("middle ear", "ear"),
        ("middle meatus", "nose"),
        ("external acoustic meatus", "ear"),
        ("middle turbinate, nasal septum", "nose"),
        ("nasal polyp", "nose"),
        ("vocal chord polyp", "vc"),
        ("inverted papilloma", "nose"),
        ("maxillary sinus", "nose"),
        ("pyriform sinus", "vc throat"),
        ("preauricular sinus", "ear"),
        ("arytenoids, epiglottis, larynx", "vc"),
        ("trachea below the glottis", "vc"),
        ("uvula, soft palate, tonsils", "throat"),
        ("posterior pharyngeal wall", "throat"),
        ("base of the tongue", "vc throat"),
        ("lingual tonsil", "vc throat"),
        ("tongue", "throat"),
        ("nasopharynx", "nose throat"),
        ("adenoids near the torus tubarius", "nose throat"),
        ("post-nasal drip", "nose throat"),
        ("rhinosinusitis and otitis media", "nose ear"),
        ("growth close to the left arytenoid", "vc"),
        ("vòm họng", "nose throat"),
        ("xoang lê hai bên", "vc throat"),
        ("Viêm xoang", "nose"),
        ("đáy lưỡi", "vc throat"),
        ("nắp thanh môn", "vc"),
        ("amiđan", "throat"),
    ],
)
def test_a_site_is_read(text, named):
    assert sites(text) == named


@pytest.mark.parametrize(
    "text",
    ["", "  ", "?!", "🙂🙂", "mucosa", "discharge", "polyp", "effusion", "oedema", "nodules"]
    + ["foreign body", "nearly heard a nosegay", "Tai mũi họng", "ear, nose and throat", "niêm mạc"]
    + ["open", "closed", "membrane", "posterior wall", "<p>&nbsp;</p>"],
)
def test_a_phrase_without_a_site_allows_all_alike(text):
    assert named_classes(text).all()
    np.testing.assert_allclose(site_prior(text), np.full(4, 0.25))
    np.testing.assert_allclose(fine_prior(text), np.full(7, 1 / 7))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("right middle turbinate", "nose-right"),
        ("Left-sided nasal polyp", "nose-left"),
        ("bilateral nasal polyps, larger on the right", "nose-right nose-left"),
        ("polyps in the left and right nasal cavity", "nose-right nose-left"),
        ("the nasal septum leans to the left", "nose-right nose-left"),
        ("left over cerumen in the right ear", "ear-right"),
        ("effusion right behind the eardrum", "ear-right ear-left"),
        ("right side", "nose-right ear-right vc-open vc-closed throat"),
        ("right tonsil", "throat"),
        ("left vocal cord polyp", "vc-open vc-closed"),
        ("adducted", "vc-closed"),
        ("the vocal cords are wide open", "vc-open"),
        ("glottic closure, then abduction", "vc-open vc-closed"),
        ("open mouth, tonsils", "throat"),
        ("tumor close to the vocal cord", "vc-open vc-closed"),
        ("tai phải", "ear-right"),
        ("màng nhĩ hai bên", "ear-right ear-left"),
        ("vẹo vách ngăn sang trái", "nose-right nose-left"),
        ("dây thanh mở", "vc-open"),
        ("dây thanh khép", "vc-closed"),
        ("mở khí quản", "vc-open vc-closed"),
        ("tai trái, không phải u", "ear-left"),
    ],
)
def test_a_side_or_a_state_is_read(text, named):
    assert classes(text) == named


def test_priors_keep_a_soft_floor():
    # one site of four: 1 against 0.1 three times; one class of seven: 1 against 0.1 six times
    np.testing.assert_allclose(site_prior("eardrum"), np.array([0.1, 1, 0.1, 0.1]) / 1.3)
    np.testing.assert_allclose(fine_prior("left ear", 0.1)[3], 1 / 1.6)
    np.testing.assert_allclose(site_prior("eardrum", floor=1), np.full(4, 0.25))


@given(ANY_TEXT, st.floats(1e-6, 1))
def test_priors_are_probabilities(text, floor):
    for prior in (site_prior(text, floor), fine_prior(text, floor)):
        assert prior.min() > 0
        assert prior.sum() == pytest.approx(1)


@pytest.mark.parametrize("floor", [0, -0.1, 1.5, float("nan")])
def test_a_floor_outside_its_range_is_refused(floor):
    with pytest.raises(ValueError, match="want 0 < floor <= 1"):
        site_prior("ear", floor)


def test_evidence_is_the_log_of_the_expected_prior():
    prior = np.array([[0.7, 0.1, 0.1, 0.1], [0.25] * 4])
    probs = np.array([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0, 1.0]], dtype=np.float32)
    want = np.log([[0.7, 0.4, 0.1], [0.25] * 3])  # a uniform prior moves no picture
    np.testing.assert_allclose(log_evidence(prior, probs), want)
    with pytest.raises(ValueError, match="4 sites with site_prior, 7 classes with fine_prior"):
        log_evidence(prior, np.eye(7))


# ---------------------------------------------------------------- mirror


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("Right ear, LEFT nose; left-sided", "Left ear, RIGHT nose; right-sided"),
        ("septum deviated to the left", "septum deviated to the right"),
        ("bright leftover, rightful", "bright leftover, rightful"),
        ("wax left over in the right ear", "wax left over in the left ear"),
        ("all right now", "all right now"),
        ("Tai phải, bên TRÁI", "Tai trái, bên PHẢI"),
        ("không phải u, tai phải", "không phải u, tai trái"),
        (unicodedata.normalize("NFD", "mũi phải"), "mũi trái"),
        ("rıght", "rıght"),  # equals "right" to a search that ignores case
        ("", ""),
    ],
)
def test_a_mirrored_phrase_swaps_sides_and_nothing_else(text, mirrored):
    assert mirror_phrase(text) == mirrored


@given(ANY_TEXT)
def test_mirroring_twice_gives_the_phrase_back(text):
    assert mirror_phrase(mirror_phrase(text)) == unicodedata.normalize("NFC", text)


@given(WORDY)
def test_a_mirrored_phrase_is_read_as_the_mirrored_classes(text):
    mirrored = named_classes(mirror_phrase(text))
    np.testing.assert_array_equal(mirrored, named_classes(text)[list(MIRROR_CLASS)])


def test_idioms_stay_idioms_in_the_mirror():
    swap = {"right": "left", "left": "right", "phải": "trái", "trái": "phải"}
    assert {" ".join(swap.get(w, w) for w in idiom.split()) for idiom in IDIOMS} == set(IDIOMS)


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize(
    "text",
    [
        "cerumen | a perforated eardrum | erythema",
        "red and swollen vocal cords",
        "dull, retracted eardrum without a cone of light",
        "both tonsils and posterior wall",
        "white patches on the tonsils and posterior wall",
        "edema and erythema of the vocal cords",
        "left and right nasal polyps",
        "polyps in the left and right nasal cavities",
        "cerumen impaction, left ear",
        "the eardrum is red and swollen | pus",
        "cerumen | red and swollen eardrum",
        "acute myringitis | congested eardrum",
        "otitis media with effusion (amber drum, air bubbles)",
        "ear canal filled with cerumen",
        "foreign body (hair, wax and pus) in the canal | red drum",
        "perforation of 2,5 mm | pus",
        "polyp mũi | mủ ở khe giữa",
        "màng nhĩ mờ, lõm | mất nón sáng",
        "họng miệng và lưỡi gà bình thường",
        "band, sandal | without",
        "cyst (unclosed, bracket",
    ],
)
def test_a_phrase_parts_where_each_part_is_usable(text):
    parts = text.split(" | ")
    if text == "band, sandal | without":
        parts = ["band, sandal; without"]  # no finding at all
    for joint in ("; ", ", ", " + ", " and ", " with ", " và ", " kèm theo "):
        assert split_findings(joint.join(parts)) == parts


def test_empty_pieces_are_no_parts():
    assert split_findings("") == [""]
    assert split_findings(";;, and") == [";;, and"]
    assert split_findings("; cerumen;; , epistaxis.") == ["cerumen", "epistaxis."]


def test_a_semicolon_parts_findings_that_a_comma_leaves_together():
    assert split_findings("discharge, septal spur") == ["discharge, septal spur"]  # share a site?
    assert split_findings("discharge; septal spur") == ["discharge", "septal spur"]
    assert split_findings("Discharge. Septal spur.") == ["Discharge", "Septal spur."]


@given(WORDY)
def test_parts_stand_in_the_phrase_in_order(text):
    parts, start = split_findings(text), 0
    for part in parts:
        assert part.strip() or len(parts) == 1
        start = unicodedata.normalize("NFC", text).index(part, start) + len(part)


def test_all_findings_count_and_not_the_most_striking_one():
    whole = np.zeros(3)
    parts = np.array([[0.9, 0.5, 0.0], [0.0, 0.4, 0.1]])  # a mean would choose picture 0
    assert combine_parts(whole, parts).argmax() == 1


def test_a_part_that_is_far_from_all_pictures_does_not_decide_alone():
    parts = np.array([[0.80, 0.82, 0.50], [0.1, 0.1, 0.1]])
    assert combine_parts(np.zeros(3), parts).argmin() == 2
    raised = combine_parts(np.zeros(3), parts + [[0], [5]])
    np.testing.assert_allclose(combine_parts(np.zeros(3), parts), raised, atol=1e-12)


def test_a_phrase_that_is_its_only_part_stays_as_it_is():
    whole = np.array([0.3, -0.1, 0.7])
    np.testing.assert_allclose(combine_parts(whole, whole[None]), whole)
    with pytest.raises(ValueError, match=r"want \(G,\) and \(P, G\)"):
        combine_parts(whole, np.zeros((2, 4)))


# ---------------------------------------------------------------- wordings, Vietnamese


def test_variants_begin_with_the_phrase_to_the_letter():
    assert phrase_variants("Cerumen on the ear drum.") == [
        "Cerumen on the ear drum.",
        "cerumen on the eardrum",
        "Endoscopic image: cerumen on the eardrum.",
        "ENT endoscopy finding: cerumen on the eardrum.",
        "cerumen on the tympanic membrane",
        "earwax on the eardrum",
    ]
    assert phrase_variants("Cerumen", limit=2) == ["Cerumen", "cerumen"]
    assert phrase_variants("") == [""]
    with pytest.raises(ValueError, match="limit is 0"):
        phrase_variants("ear", limit=0)


@given(ANY_TEXT)
def test_variants_are_few_different_and_repeatable(text):
    variants = phrase_variants(text)
    assert variants[0] == text
    assert len(set(variants)) == len(variants) <= 8
    assert variants == phrase_variants(text)


@pytest.mark.parametrize(("site", "phrase"), KNOWN, ids=[p.en for _, p in KNOWN])
def test_every_wording_of_a_known_phrase_says_the_same_class(site, phrase):
    for variant in phrase_variants(phrase.en, limit=99):
        assert classes(variant) == classes(phrase.en), variant


def test_vietnamese_variants_stay_vietnamese():
    variants = phrase_variants("Thủng màng nhĩ")
    assert variants[0] == "Thủng màng nhĩ"
    assert all(is_vietnamese(variant) for variant in variants)


@pytest.mark.parametrize("text", ["thủng màng nhĩ", "polyp mũi", "Tai", "hai bên", "ĐỎ"])
def test_vietnamese_is_known_by_a_letter_or_a_term(text):
    assert is_vietnamese(text)


@pytest.mark.parametrize("text", ["", "polyp", "café naïve", "fosse nasale à gauche", "u-shaped"])
def test_other_languages_are_not_vietnamese(text):
    assert not is_vietnamese(text)
    assert to_english(text) == text


@pytest.mark.parametrize(("site", "phrase"), KNOWN, ids=[p.en for _, p in KNOWN])
def test_known_phrases_are_translated_to_the_last_word(site, phrase):
    assert is_vietnamese(phrase.vi) and not is_vietnamese(to_english(phrase.vi))
    assert not is_vietnamese(phrase.en)


def test_the_longest_term_is_translated_and_an_unknown_word_kept():
    assert to_english("Viêm họng hạt") == "granular pharyngitis"
    assert to_english("Viêm họng") == "pharyngitis"
    assert to_english("Polyp mũi hiếm") == "nasal polyp hiếm"


# ---------------------------------------------------------------- hostile phrases


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_ten_megabytes_are_no_phrase(reader):
    start = time.perf_counter()
    with pytest.raises(ValueError, match="10,000,000 characters, at most 2,000"):
        reader("a" * 10_000_000)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
@pytest.mark.parametrize(
    "unit",
    ["a", " ", "(", "a,", "1.", "a'", "'s", "right ", "all ", "không ", "kèm ", "kèm    ", "red, "]
    + ["and ", "media with ", "cerumen; ", "viêm tai ", "ear nose and ", "\u0301", "\ufdfa", "<b>"],
)
def test_the_longest_phrase_takes_less_than_a_second(reader, unit):
    start = time.perf_counter()
    reader((unit * MAX_CHARS)[:MAX_CHARS])
    assert time.perf_counter() - start < 1
