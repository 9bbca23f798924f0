"""What can be seen at a site and how a doctor would put it, in English and Vietnamese."""

from __future__ import annotations

from typing import NamedTuple


class Phrase(NamedTuple):
    """A description in two languages; `class_name` limits it to one class ("" does not)."""

    en: str
    vi: str
    class_name: str = ""


class Finding(NamedTuple):
    """What can be seen at a site, and how a doctor would put it."""

    site: str
    type: str  # "normal" or "abnormal"
    phrases: tuple[Phrase, ...]


def _normal(site: str, *phrases: tuple[str, ...]) -> Finding:
    return Finding(site, "normal", tuple(Phrase(*phrase) for phrase in phrases))


def _abnormal(site: str, *phrases: tuple[str, ...]) -> Finding:
    return Finding(site, "abnormal", tuple(Phrase(*phrase) for phrase in phrases))


# (site, finding) -> type and phrases. Every English phrase occurs once.
FINDINGS: dict[tuple[str, str], Finding] = {
    ("nose", "normal"): _normal(
        "nose",
        ("normal nasal cavity", "hốc mũi bình thường"),
        ("normal right nasal cavity", "hốc mũi phải bình thường", "nose-right"),
        ("normal left nasal cavity", "hốc mũi trái bình thường", "nose-left"),
    ),
    ("nose", "polyp"): _abnormal(
        "nose",
        ("nasal polyp", "polyp mũi"),
        ("polyp in the right nasal cavity", "polyp hốc mũi phải", "nose-right"),
        ("polyp in the left nasal cavity", "polyp hốc mũi trái", "nose-left"),
        ("a smooth grey polyp in the middle meatus", "polyp nhẵn màu xám ở khe giữa"),
    ),
    ("nose", "septal_spur"): _abnormal(
        "nose",
        ("septal spur", "gai vách ngăn mũi"),
        ("nasal septal spur touching the inferior turbinate", "gai vách ngăn chạm cuốn mũi dưới"),
        ("deviated nasal septum with a spur", "vẹo vách ngăn mũi có gai"),
    ),
    ("nose", "pale_mucosa"): _abnormal(
        "nose",
        ("pale nasal mucosa", "niêm mạc mũi nhợt nhạt"),
        ("the inferior turbinate is pale", "cuốn mũi dưới nhợt màu"),
    ),
    ("nose", "mucopurulent_discharge"): _abnormal(
        "nose",
        ("mucopurulent discharge in the nasal cavity", "dịch nhầy mủ trong hốc mũi"),
        ("yellow pus in the middle meatus", "mủ vàng ở khe giữa"),
        ("mucopurulent discharge on the nasal floor (sinusitis)", "dịch mủ ở sàn mũi (viêm xoang)"),
    ),
    ("nose", "turbinate_hypertrophy"): _abnormal(
        "nose",
        ("inferior turbinate hypertrophy", "quá phát cuốn mũi dưới"),
        (
            "hypertrophy of the right inferior turbinate",
            "quá phát cuốn mũi dưới bên phải",
            "nose-right",
        ),
        (
            "hypertrophy of the left inferior turbinate",
            "quá phát cuốn mũi dưới bên trái",
            "nose-left",
        ),
        ("a swollen turbinate narrows the nasal cavity", "cuốn mũi phù nề làm hẹp hốc mũi"),
    ),
    ("nose", "nasal_blood"): _abnormal(
        "nose",
        ("blood in the nasal cavity", "máu trong hốc mũi"),
        ("epistaxis from the nasal septum", "chảy máu mũi từ vách ngăn"),
    ),
    ("ear", "normal"): _normal(
        "ear",
        ("normal tympanic membrane", "màng nhĩ bình thường"),
        ("normal right tympanic membrane", "màng nhĩ phải bình thường", "ear-right"),
        ("normal left tympanic membrane", "màng nhĩ trái bình thường", "ear-left"),
    ),
    ("ear", "cerumen"): _abnormal(
        "ear",
        ("cerumen in the external auditory canal", "ráy tai trong ống tai ngoài"),
        ("ear wax covering the tympanic membrane", "ráy tai che màng nhĩ"),
        ("cerumen impaction, right ear", "nút ráy tai bên phải", "ear-right"),
        ("cerumen impaction, left ear", "nút ráy tai bên trái", "ear-left"),
    ),
    ("ear", "perforation"): _abnormal(
        "ear",
        ("tympanic membrane perforation", "thủng màng nhĩ"),
        ("central perforation of the eardrum", "thủng màng nhĩ trung tâm"),
        ("perforated right eardrum", "thủng màng nhĩ phải", "ear-right"),
        ("perforated left eardrum", "thủng màng nhĩ trái", "ear-left"),
    ),
    ("ear", "effusion"): _abnormal(
        "ear",
        ("middle ear effusion", "ứ dịch tai giữa"),
        (
            "otitis media with effusion (amber drum, air bubbles)",
            "viêm tai giữa ứ dịch, có bóng khí",
        ),
    ),
    ("ear", "white_discharge"): _abnormal(
        "ear",
        (
            "white ear discharge in the external auditory canal",
            "dịch tai màu trắng trong ống tai ngoài",
        ),
        ("whitish debris on the eardrum", "chất bã trắng trên màng nhĩ"),
    ),
    ("ear", "foreign_body"): _abnormal(
        "ear",
        (
            "foreign body (a hair) in the external auditory canal",
            "dị vật (sợi tóc) trong ống tai ngoài",
        ),
        ("a hair in front of the eardrum", "sợi tóc trước màng nhĩ"),
    ),
    ("ear", "retraction"): _abnormal(
        "ear",
        ("retracted tympanic membrane", "màng nhĩ lõm"),
        ("dull, retracted eardrum without a cone of light", "màng nhĩ mờ, lõm, mất nón sáng"),
    ),
    ("ear", "red_drum"): _abnormal(
        "ear",
        ("red tympanic membrane", "màng nhĩ đỏ"),
        ("acute otitis media, congested eardrum", "viêm tai giữa cấp, màng nhĩ sung huyết"),
    ),
    ("vc", "normal"): _normal(
        "vc",
        ("normal vocal cords", "dây thanh bình thường"),
        ("normal larynx, cords abducted", "thanh quản bình thường, dây thanh mở", "vc-open"),
        ("normal larynx, cords adducted", "thanh quản bình thường, dây thanh khép", "vc-closed"),
    ),
    ("vc", "cord_oedema"): _abnormal(
        "vc",
        ("the vocal cords are edematous", "dây thanh phù nề"),
        ("Reinke's edema of both vocal cords", "phù Reinke hai dây thanh"),
    ),
    ("vc", "cord_erythema"): _abnormal(
        "vc",
        ("erythema of the vocal cords", "dây thanh sung huyết đỏ"),
        ("red, inflamed vocal cords (laryngitis)", "dây thanh đỏ, viêm (viêm thanh quản)"),
    ),
    ("vc", "cord_nodule"): _abnormal(
        "vc",
        ("vocal cord nodules", "hạt xơ dây thanh"),
        ("small nodules on both vocal cords", "hạt nhỏ ở hai dây thanh"),
    ),
    ("vc", "cord_polyp"): _abnormal(
        "vc",
        ("vocal cord polyp", "polyp dây thanh"),
        ("a red polyp on the free edge of one vocal cord", "polyp đỏ ở bờ tự do một dây thanh"),
    ),
    ("vc", "leukoplakia"): _abnormal(
        "vc",
        ("leukoplakia of the vocal cord", "bạch sản dây thanh"),
        ("a white plaque on the vocal cord", "mảng trắng trên dây thanh"),
    ),
    ("vc", "incomplete_closure"): _abnormal(
        "vc",
        ("incomplete glottic closure", "thanh môn khép không kín"),
        (
            "a spindle-shaped gap between the closed vocal cords",
            "khe hở hình thoi khi dây thanh khép",
        ),
    ),
    ("throat", "normal"): _normal(
        "throat",
        ("normal throat", "họng bình thường"),
        ("normal oropharynx and uvula", "họng miệng và lưỡi gà bình thường"),
    ),
    ("throat", "tonsil_hypertrophy"): _abnormal(
        "throat",
        ("tonsillar hypertrophy", "amidan quá phát"),
        ("enlarged tonsils on both sides", "amidan hai bên to"),
    ),
    ("throat", "pharyngitis"): _abnormal(
        "throat",
        ("erythema of the pharyngeal mucosa", "niêm mạc họng đỏ"),
        ("acute pharyngitis", "viêm họng cấp"),
    ),
    ("throat", "papilloma"): _abnormal(
        "throat",
        ("papilloma of the oropharynx", "u nhú họng miệng"),
        ("a pale, lobed tumour in the throat", "khối u nhạt màu, nhiều thùy ở họng"),
    ),
    ("throat", "granular_wall"): _abnormal(
        "throat",
        ("granular posterior pharyngeal wall", "thành sau họng có hạt"),
        ("chronic granular pharyngitis", "viêm họng hạt mạn tính"),
    ),
    ("throat", "white_exudate"): _abnormal(
        "throat",
        ("white exudate on the tonsils", "giả mạc trắng trên amidan"),
        (
            "white patches on the tonsils and posterior wall",
            "mảng trắng ở amidan và thành sau họng",
        ),
    ),
}


def phrases_of(class_name: str, finding: str) -> list[Phrase]:
    """The phrases that fit a picture of this class with this finding."""
    phrases = FINDINGS[class_name.split("-")[0], finding].phrases
    return [phrase for phrase in phrases if phrase.class_name in ("", class_name)]
