"""Words of ENT endoscopy: how they are spelt, what place they name, what they are in Vietnamese.

Tables only; `phrases` reads with them. They come from general medical knowledge and the
challenge's way of filing pictures by route (a laryngoscope's picture is `vc`, whatever part of
the larynx it shows); nothing was fitted to pictures or to the challenge's answers.
Keys are in the form that `phrases.normalise_phrase` gives.
"""

from __future__ import annotations


def _pairs(text: str) -> dict[str, str]:
    """Read "key = value" lines; "a | b = value" is two keys."""
    table: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        keys, value = line.split(" = ")
        for key in keys.split(" | "):
            if key in table:
                raise ValueError(f"vocabulary: {key!r} stands twice.")
            table[key] = value
    return table


def _terms(text: str) -> list[str]:
    return [" ".join(term.split()) for term in text.split(",")]


# British beginnings of words, and what they become.
SPELLINGS = {
    "oedem": "edem",
    "haem": "hem",
    "tumour": "tumor",
    "colour": "color",
    "discolour": "discolor",
    "grey": "gray",
    "leuco": "leuko",
    "oesophag": "esophag",
}

# One word for another: misspellings, then spellings and Latin plurals that no rule covers.
WORDS = _pairs(
    """
    timpanic | tymphanic | tympanicc | tympannic | typanic | tympanik = tympanic
    membrance | membran | memebrane | mebrane | membrain | membrene = membrane
    eardum | eardrumm | eadrum | eardrom = eardrum
    perforaton | perferation | perforartion | perforetion | perfortion = perforation
    perferated | perforeted | perforrated = perforated
    ceruman | cerumin | cerrumen | cerumem | cermen = cerumen
    auditary | auditry | audotory | auditiory = auditory
    cannal | canel = canal
    exernal | extrenal | extenal | externel = external
    mallus | maleus | malleous = malleus
    cholesteotoma | colesteatoma | cholestatoma = cholesteatoma
    turbinat | turbinete | turbunate | turbinatte | tubinate = turbinate
    septem | septume | septumm = septum
    nasel | nassal = nasal
    nostrel | nostrill = nostril
    sinussitis | sinusits | sinusitus = sinusitis
    epistaxsis | epitaxis | epistaxix = epistaxis
    meatis | meatous | meatuss = meatus
    chord | coord = cord
    chords | coords = cord
    vocle | vocall = vocal
    glotic | glottal = glottic
    glotis | glottiss = glottis
    epiglotis | epiglotiss = epiglottis
    epiglotitis = epiglottitis
    aritenoid | arytanoid | arythenoid | arytnoid = arytenoid
    larnyx | larinx | laryx | laranyx = larynx
    laryngal | larnygeal | larangeal | laringeal = laryngeal
    laryngitus | larnygitis | laringitis = laryngitis
    pharnyx | pharinx | pharyx | pharnx = pharynx
    pharyngal | pharangeal | pharnygeal | pharingeal = pharyngeal
    pharyngitus | pharangitis | pharingitis = pharyngitis
    nasopharnyx | nasopharinx | nasopharynxx = nasopharynx
    oropharnyx | oropharinx = oropharynx
    hypopharnyx | hypopharinx = hypopharynx
    tonsill | tonsile | tonsle = tonsil
    tonsills | tonsiles | tonsles = tonsil
    tonsilar = tonsillar
    tonsilitis | tonsillitus = tonsillitis
    uvulla | uvual = uvula
    pallate | palete = palate
    adnoid | adenoide = adenoid
    mucossa | mucousa | mucosae = mucosa
    purulant | puralent = purulent
    mucopurulant = mucopurulent
    discharg | dischage | disharge | dischrage = discharge
    edemetous | edamatous | edematus | edemateous = edematous
    erythma | erythemia | eritema = erythema
    hypertropy | hypertrophi | hypertrofy | hypetrophy = hypertrophy
    papiloma | papillomata = papilloma
    granulama | granulma = granuloma
    polip | poylp | polpy = polyp
    polypi | polips = polyp
    nodul | noddule = nodule
    inflammed | infalmed = inflamed
    retratced | retacted = retracted
    efussion | effussion | effusoin = effusion
    leukoplekia | leukoplacia = leukoplakia
    swolen | swollan = swollen
    foriegn | foregin = foreign
    incomplet | imcomplete | incomlete = incomplete
    rinkes | reinkes = reinke
    rosenmüller | rosenmueller = rosenmuller
    rhinorrhoea = rhinorrhea
    otorrhoea = otorrhea
    mould = mold
    hyperaemic = hyperemic
    hyperaemia = hyperemia
    fibre = fiber
    sinuses = sinus
    choanae = choana
    conchae = concha
    bullae = bulla
    fungi = fungus
    exostoses = exostosis
    larynges = larynx
    pharynges = pharynx
    septa = septum
    amiđan | amydan | amidal | amygdale = amidan
    thuỳ = thùy
    """
)

# Nouns that lose a plural "s" (and "es", "ies"). Verbs ("narrows", "covers") are not among
# them, nor do they need to be told from "pus", "meatus" or "pars tensa".
NOUNS = _terms(
    """
    abscess, adenoid, adhesion, arytenoid, biopsy, blister, bubble, canal, cavity, clot, cord,
    crust, cyst, discharge, drum, ear, eardrum, band, commissure, concha, recess, tonsillolith,
    edema, effusion, exudate, finding, fold, granuloma, grommet, hair, hemorrhage, hemangioma,
    infection, insect, lesion, lobe, mass, membrane, mucosa, nerve, nodule, nose, nostril,
    ossicle, palate, papilloma, patch, perforation, pillar, plaque, polyp, pouch, scar, secretion,
    side, spot, spur, stone, stripe, structure, surface, synechia, throat, tonsil, tube, tumor,
    turbinate, ulcer, uvula, vallecula, vessel, wall
    """
)

# Words written apart that are one.
JOINED = {
    term: term.replace(" ", "")
    for term in _terms(
        """
        ear drum, ear wax, ear ache, nose bleed, post nasal, naso pharynx, naso pharyngeal, oro
        pharynx, oro pharyngeal, hypo pharynx, hypo pharyngeal, laryngo pharynx, laryngo
        pharyngeal, supra glottic, sub glottic, inter arytenoid, ary epiglottic, muco purulent,
        sero mucous, peri tonsillar, v a
        """
    )
} | {"a mi đan": "amidan"}

# Idioms in which "left" and "right" are no sides. Mirrored, each must be an idiom too, or
# mirroring twice would not give the phrase back; hence both words stand in every frame.
IDIOMS = tuple(
    frame.format(word)
    for words, frames in (
        (
            ("right", "left"),
            "all {}, {} away, {} now, {} next to, {} behind, {} over, {} alone, {} untreated, "
            "{} in place, {} in situ",
        ),
        (("phải", "trái"), "không {}, cần {}, mắc {}, gặp {}"),
    )
    for frame in _terms(frames)
    for word in words
)

# What a term says: sites, a side, a state of the cords; "both" undoes a side. Longest term
# first, so "middle ear" and "middle meatus" differ, and a term that says nothing can shield
# words that would ("close to" is no closure). Left out on purpose: what occurs at
# several sites (mucosa, discharge, polyp, effusion, edema, nodule, foreign body).
_SAID = {
    # "To the left" is where a septum leans, seen from either nostril.
    "": """
        ear nose and throat, ear nose throat, close to, to the left, to the right, to left, to
        right, toward the left, toward the right, towards the left, towards the right, sinus
        tract""",
    "right": "right, rightsided",
    "left": "left, leftsided",
    "both": "both, bilateral, bilaterally, two side, either side, each side",
    "open": "open, opened, inspiration, inhalation, breathing, respiration",
    "closed": "closed, close, closing, closure",
    "vc open": "abducted, abduction, abducting",
    "vc closed": "adducted, adduction, adducting, phonation, phonating, phonatory",
    "nose": """
        nasal, nose, intranasal, endonasal, nostril, naris, nares, turbinate, inferior concha,
        middle concha, superior concha, concha bullosa, nasal concha, septum, septal, meatus
        medius, middle meatus, inferior meatus, superior meatus, common meatus, osteomeatal,
        ostiomeatal, sinus, sinusitis, rhinosinusitis, sinonasal, rhinitis, rhinorrhea,
        rhinoscopy, epistaxis, nosebleed, ethmoid, ethmoidal, sphenoid, maxillary, antrum,
        antrochoanal, frontal recess, uncinate, olfactory cleft, kiesselbach, little area, choana,
        choanal, vomer, hiatus semilunaris, agger nasi, inverted papilloma, sphenoethmoidal
        recess, columella, nasolacrimal canal""",
    "ear": """
        ear, tm, eac,
        aural, otic, auricle, auricular, pinna, tragus, preauricular, preauricular sinus,
        eardrum, drum, tympanic, tympanum, hemotympanum, tympanosclerosis, myringosclerosis,
        myringitis, tympanostomy, myringotomy, grommet, ventilation tube, auditory, acoustic,
        canal, external meatus, cerumen, earwax, wax, malleus, incus, stapes, ossicle, ossicular,
        umbo, pars tensa, pars flaccida, attic, retraction pocket, cone of light, light reflex,
        light cone, middle ear, mastoid, mastoid antrum, mastoiditis, cholesteatoma, otitis,
        otomycosis, otorrhea, otoscopy, otoscopic, otalgia, earache, sinus tympani, promontory,
        exostosis""",
    "vc": """
        vocal, vocalis, cord, glottis, glottic, supraglottic, supraglottis, subglottic,
        subglottis, transglottic, larynx, laryngeal, laryngitis, laryngoscopy, laryngomalacia,
        laryngocele, endolarynx, presbylarynx, arytenoid, interarytenoid, aryepiglottic,
        epiglottis, epiglottic, epiglottitis, ventricular band, ventricular fold, vestibular fold,
        false fold, anterior commissure, posterior commissure, reinke, trachea, tracheal,
        tracheostomy, cricoid, hoarseness, dysphonia""",
    "throat": """
        throat, pharynx, pharyngeal, pharyngitis, oropharynx, oropharyngeal, retropharyngeal,
        tonsil, tonsillar, tonsillitis, tonsillolith, tonsillectomy, peritonsillar, uvula, uvular,
        palate, palatal, palatine, velum, palatoglossal, palatopharyngeal, faucial, fauces,
        anterior pillar, posterior pillar, tongue, mouth, oral, torus palatinus""",
    # Reached through the nose or past the palate.
    "nose throat": """
        nasopharynx, nasopharyngeal, nasopharyngitis, va, adenoid, adenoidal, adenoiditis,
        velopharyngeal, pharyngeal tonsil, postnasal, torus, torus tubarius, fossa of rosenmuller,
        rosenmuller, rosenmuller fossa""",
    "nose ear throat": "eustachian, eustachian tube",
    # Between the mouth and the larynx; a laryngoscope shows them as well.
    "vc throat": """
        hypopharynx, hypopharyngeal, laryngopharynx, laryngopharyngeal, vallecula, piriform sinus,
        pyriform sinus, piriform fossa, pyriform fossa, piriform, pyriform, base of tongue, base
        of the tongue, tongue base, lingual tonsil, postcricoid""",
}
VOCABULARY: dict[str, tuple[str, ...]] = {
    term: tuple(tags.split()) for tags, terms in _SAID.items() for term in _terms(terms)
} | dict.fromkeys(IDIOMS, ())

# Vietnamese to English, word for word in Vietnamese order. No key may be an English phrase.
# Of `IDIOMS` the mirror image is here too, though nobody says it: the mirrored phrase must be
# read as the mirrored class.
GLOSSARY = _pairs(
    """
    tai mũi họng = ear nose throat
    nội soi = endoscopy
    hình ảnh = image
    mũi = nose
    hốc mũi = nasal cavity
    lỗ mũi | cửa mũi = nostril
    cửa mũi sau = choana
    sàn mũi = nasal floor
    cuốn mũi | cuốn = turbinate
    cuốn mũi dưới | cuốn dưới = inferior turbinate
    cuốn mũi giữa | cuốn giữa = middle turbinate
    cuốn mũi trên | cuốn trên = superior turbinate
    khe giữa | khe mũi giữa = middle meatus
    khe dưới | khe mũi dưới = inferior meatus
    khe trên | khe mũi trên = superior meatus
    vách ngăn | vách ngăn mũi | vách mũi = nasal septum
    gai vách ngăn | gai vách ngăn mũi = nasal septal spur
    vẹo vách ngăn | vẹo vách ngăn mũi | lệch vách ngăn = deviated nasal septum
    gai = spur
    vẹo | lệch = deviated
    xoang = sinus
    viêm xoang = sinusitis
    viêm mũi = rhinitis
    viêm mũi xoang = rhinosinusitis
    viêm mũi dị ứng = allergic rhinitis
    chảy máu mũi = epistaxis
    chảy mũi = rhinorrhea
    vòm | vòm họng | vòm mũi họng | họng mũi = nasopharynx
    vòi nhĩ | lỗ vòi nhĩ = eustachian tube
    gờ vòi | loa vòi = torus tubarius
    sùi vòm | viêm va | va quá phát | amidan vòm = adenoid
    tai = ear
    tai ngoài = external ear
    tai giữa = middle ear
    vành tai = auricle
    rò luân nhĩ = preauricular sinus
    ống tai = ear canal
    ống tai ngoài = external auditory canal
    màng nhĩ | màng tai = tympanic membrane
    màng chùng = pars flaccida
    màng căng = pars tensa
    hòm nhĩ | hòm tai = middle ear
    thượng nhĩ = attic
    xương búa = malleus
    cán búa | cán xương búa = handle of the malleus
    xương con = ossicle
    xương đe = incus
    xương bàn đạp = stapes
    xương chũm | chũm = mastoid
    nón sáng | tam giác sáng = cone of light
    ráy tai = cerumen
    nút ráy tai | nút ráy = cerumen impaction
    dịch tai = ear discharge
    chảy dịch tai | chảy tai = otorrhea
    chảy mủ tai = purulent otorrhea
    viêm tai = otitis
    viêm tai giữa = otitis media
    viêm tai ngoài = otitis externa
    viêm tai giữa ứ dịch = otitis media with effusion
    nấm tai | nấm ống tai = otomycosis
    ống thông khí = ventilation tube
    ứ dịch = effusion
    thủng = perforation
    thủng nhĩ | thủng màng nhĩ = tympanic membrane perforation
    xơ nhĩ = tympanosclerosis
    túi co kéo = retraction pocket
    dây thanh | dây thanh âm = vocal cord
    dây thanh giả | băng thanh thất = ventricular fold
    thanh môn = glottis
    hạ thanh môn = subglottis
    thượng thanh môn = supraglottis
    thanh quản = larynx
    viêm thanh quản = laryngitis
    thanh thiệt | nắp thanh môn | nắp thanh quản | nắp thanh thiệt | sụn nắp = epiglottis
    sụn phễu = arytenoid
    nẹp phễu thanh thiệt | nếp phễu thanh thiệt = aryepiglottic fold
    liên phễu = interarytenoid
    mép trước = anterior commissure
    mép sau = posterior commissure
    khí quản = trachea
    mở khí quản = tracheostomy
    khép không kín | khép hở | đóng không kín = incomplete closure
    thanh môn khép không kín = incomplete glottic closure
    hít vào = inspiration
    phát âm = phonation
    mở = open
    khép | khép kín | đóng | đóng kín = closed
    họng | cổ họng = throat
    họng miệng = oropharynx
    hạ họng = hypopharynx
    họng thanh quản = laryngopharynx
    thành sau họng = posterior pharyngeal wall
    thành họng = pharyngeal wall
    niêm mạc họng = pharyngeal mucosa
    viêm họng = pharyngitis
    viêm họng hạt = granular pharyngitis
    amidan = tonsil
    amidan khẩu cái = palatine tonsil
    amidan đáy lưỡi = lingual tonsil
    viêm amidan = tonsillitis
    lưỡi gà = uvula
    lưỡi = tongue
    đáy lưỡi = base of tongue
    xoang lê = piriform sinus
    hố lưỡi thanh thiệt = vallecula
    khẩu cái = palate
    khẩu cái mềm | màn hầu | vòm khẩu cái mềm = soft palate
    vòm khẩu cái = palate
    trụ trước = anterior pillar
    trụ sau = posterior pillar
    miệng = mouth
    phải | bên phải = right
    trái | bên trái = left
    sang phải | sang bên phải = to the right
    sang trái | sang bên trái = to the left
    không phải | không trái = not
    cần phải | cần trái = must
    mắc phải | gặp phải | mắc trái | gặp trái = acquired
    hai = both
    hai bên | 2 bên = on both sides
    bên = side
    bình thường = normal
    niêm mạc = mucosa
    phù | phù nề = edematous
    nề = swollen
    sung huyết = congested
    xung huyết = congested
    viêm = inflammation
    đỏ = red
    trắng | màu trắng = white
    vàng | màu vàng = yellow
    xám | màu xám = gray
    nhợt | nhợt nhạt | nhợt màu | nhạt màu = pale
    hồng = pink
    đen = black
    nâu = brown
    sạch = clean
    sáng = bright
    thông thoáng = patent
    nhẵn = smooth
    mờ = dull
    lõm = retracted
    phồng = bulging
    mủ = pus
    mủ vàng = yellow pus
    dịch = fluid
    dịch mủ = purulent discharge
    dịch đục = turbid fluid
    dịch nhầy = mucous discharge
    dịch nhầy mủ | dịch mủ nhầy = mucopurulent discharge
    máu = blood
    chảy máu = bleeding
    polyp mũi = nasal polyp
    quá phát | phì đại = hypertrophy
    hai bên to = enlarged on both sides
    amidan to = enlarged tonsil
    làm hẹp = narrowing
    chạm = touching
    che = covering
    bóng khí = air bubbles
    chất bã = debris
    chất bã trắng = whitish debris
    dị vật = foreign body
    sợi tóc = hair
    nấm = fungus
    khối u | khối = tumor
    u nhú = papilloma
    u máu = hemangioma
    u nang | nang = cyst
    u hạt = granuloma
    hạt = granules
    hạt xơ = nodules
    hạt nhỏ = small nodules
    có hạt = granular
    bờ tự do = free edge
    bạch sản = leukoplakia
    mảng trắng = white patch
    mảng = plaque
    giả mạc = exudate
    loét = ulcer
    xuất tiết = secretion
    tụ máu = hematoma
    mạch máu = vessel
    bít = blocking
    sẹo = scar
    liệt = paralysis
    khe hở = gap
    hình thoi = spindle shaped
    nhiều thùy = lobed
    thành sau = posterior wall
    cấp | cấp tính = acute
    mạn | mạn tính | mãn tính = chronic
    trung tâm = central
    nhỏ = small
    lớn = large
    một = one
    mất = without
    không = no
    không có = without
    có = with
    và = and
    kèm | kèm theo = with
    trong | ở = in
    trên = on
    dưới = under
    trước = in front of
    sau = behind
    từ = from
    khi = when
    """
)

# Different words for one thing; the first is the commonest.
SYNONYMS = (
    ("tympanic membrane", "eardrum"),
    ("cerumen", "earwax"),
    ("epistaxis", "nosebleed"),
    ("edematous", "swollen"),
    ("edema", "swelling"),
    ("external auditory canal", "ear canal"),
    ("vocal cord", "vocal fold"),
    ("erythema", "redness"),
    ("hypertrophy", "enlargement"),
    ("pus", "purulent discharge"),
    ("otorrhea", "ear discharge"),
    ("rhinorrhea", "nasal discharge"),
    ("cord abducted", "cord open"),
    ("cord adducted", "cord closed"),
    ("open vocal cord", "abducted vocal cord"),
    ("closed vocal cord", "adducted vocal cord"),
    ("glottic closure", "vocal cord closure"),
    ("throat", "pharynx"),
    ("nostril", "nasal cavity"),
    ("perforated", "ruptured"),
)

# Words of a finding that stand by themselves; endings below say the same of many more.
FINDINGS_ALONE = frozenset(
    _terms(
        """
        abscess, adhesion, atresia, bleeding, blood, body, bone, granulation, bubble, cerumen,
        closure, clot, crust, cyst, debris, deviation, discharge, earwax, edema, effusion,
        enlargement, epistaxis,
        erythema, exudate, fluid, foreign, fungus, gap, granules, grommet, hair, hemorrhage,
        impaction, infection, inflammation, insect, leak, lesion, mass, mucus, nodule,
        nosebleed, paralysis, patch, perforation, plaque, polyp, pocket, pus, redness,
        retraction, scar, secretion, spur, stenosis, swelling, synechia, tumor, ulcer, wax,
        hemotympanum, abduction, adduction
        """
    )
)
FINDING_ENDINGS = ("itis", "oma", "osis", "rrhea", "plakia", "trophy")
# Words that describe: with a place they make a finding, alone they need a noun. A side does
# not describe: "left ear" is no finding.
DESCRIPTIONS = frozenset(
    _terms(
        """
        red, swollen, pale, dull, white, whitish, yellow, gray, brown, black, amber, clear, thick,
        thin, dry, wet, moist, smooth, soft, hard, round, normal, intact, open, granular, central,
        marginal, acute, chronic, mild, moderate, severe, small, large, big, free, bulging,
        bright, transparent, opaque, mobile, patent, narrow, absent, irregular, hyperemic,
        polypoid, pink, clean, shiny, without, no
        """
    )
)
DESCRIPTION_ENDINGS = ("ed", "ous", "ulent")
# Places that belong to no site.
STRUCTURES = frozenset(
    _terms(
        """
        mucosa, wall, membrane, cavity, floor, surface, edge, fold, vessel, lumen, airway,
        passage, meatus, roof, margin, handle, commissure, recess, vestibule, concha
        """
    )
)
# "Filled with" and the like join a place to what is in it: no place to split.
JOINING_WITH = frozenset(
    _terms(
        """
        filled, covered, coated, blocked, obstructed, occluded, impacted, lined, packed, stained,
        associated, consistent, compatible, contact, together, plugged, media
        """
    )
)
