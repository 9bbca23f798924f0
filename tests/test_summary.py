import numpy as np

from entrep.margins import margin_table
from entrep.summary import summarise_run

SCORES = {
    "pictures": 10,
    "coarse": 1.0,
    "coarse_low": 0.9,
    "coarse_high": 1.0,
    "fine": 0.8,
    "fine_low": 0.6,
    "fine_high": 0.9,
    "macro_f1": 0.75,
}
METHODS = {
    name: {"heldout": SCORES} for name in ("prototypes", "baseline", "reference", "combined")
}
RANKING = {"queries": 4, "recall@1": 0.5, "low": 0.2, "high": 0.8}
RANKING |= {"recall@5": 0.75, "recall@10": 1.0, "mrr": 0.6, "chance": 0.05}


def metrics(**retrieval):
    return {
        "04_hybrid": {"decision": "combined", "threshold": 0.5, **METHODS},
        "05_retrieval": retrieval,
    }


def test_the_page_tells_scores_answers_and_hashes(tmp_path):
    (tmp_path / "track1.json").write_text("{}")
    answers, margins = {1: {"a.png": 6, "b.png": 0}}, margin_table({1: np.array([0.5, 0.1])}, 1e-7)
    page = summarise_run("demo", {1: "private"}, answers, metrics(image=RANKING), tmp_path, margins)
    assert "| combined | held-out pictures | 10 | 100.0% (90.0% to 100.0%) | 80.0%" in page
    assert "| image | 4 | 0.500 (0.200 to 0.800)" in page
    assert "track 1: 2 answers to the private list, 2 of them distinct" in page
    assert "nose-right 1," in page and "throat 1." in page
    assert "leads by 0.100000, 1000000 times the noise of a cosine here (1.0e-07); 0 of 2" in page
    assert "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a  track1.json" in page


def test_the_page_says_that_noise_was_not_measured(tmp_path):
    margins = margin_table({1: np.array([0.5])}, None)
    page = summarise_run("demo", {1: "private"}, {1: {"a": 6}}, metrics(), tmp_path, margins)
    assert "leads by 0.500000, the noise of this machine was not measured; 0 of 1" in page


def test_without_test_lists_the_page_says_so(tmp_path):
    page = summarise_run("mini", {}, {}, metrics(), tmp_path, margin_table({}, None))
    assert "no test lists, so there is nothing to submit" in page
    assert "neither pairs nor phrases" in page
