"""The page of a search: self-contained, escaped, and honest about pictures that changed."""

import base64
import io
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from entrep.artifacts import sha256_file
from entrep.index import Hit
from entrep.search_page import THUMBNAIL_PX, write_page

EVIL = '<img src=x onerror=alert(1)>"&\x1b.png'


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (400, 600, 3), np.uint8)
    for name in ("a.png", "b.jpg"):
        Image.fromarray(pixels).save(folder / name)
    return folder


class Tags(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.words = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words += data


def page_of(tmp_path, *arguments, **options):
    write_page(tmp_path / "out.html", *arguments, **options)
    return Tags((tmp_path / "out.html").read_text(encoding="utf-8"))


def hit(folder, name, similarity=0.5):
    return Hit(name, similarity, sha256_file(folder / name))


def test_answers_stand_in_their_order_with_thumbnails(pictures, tmp_path):
    hits = [hit(pictures, "b.jpg", 0.98765), hit(pictures, "a.png", 0.5)]
    page = page_of(tmp_path, hits, pictures, image=pictures / "a.png", notes=["mind the gap"])
    assert re.search(r"mind the gap.*0\.9877\s*b\.jpg.*0\.5000\s*a\.png", page.words, re.DOTALL)
    shown = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(shown) == 3
    for source in shown:
        kind, _, data = source.partition(",")
        assert kind == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert picture.size == (THUMBNAIL_PX, THUMBNAIL_PX * 2 // 3)


def test_the_page_asks_nothing_of_a_network(pictures, tmp_path):
    page_of(tmp_path, [hit(pictures, "a.png")], pictures, text="http://example.org/x.png")
    text = (tmp_path / "out.html").read_text(encoding="utf-8")
    for attribute in re.findall(r'(?:src|href|action|data)="([^"]*)"', text):
        assert attribute.startswith("data:image/jpeg;base64,")
    assert "default-src 'none'" in text and "url(" not in text and "<script" not in text


def test_names_phrases_and_notes_that_inject_are_escaped(pictures, tmp_path):
    evil = EVIL if os.name != "nt" else "a'&.png"
    hits = [hit(pictures, "a.png"), Hit(evil, 0.1, "0" * 64)]
    page = page_of(tmp_path, hits, pictures, text="</title><script>x</script>", notes=["<b>n</b>"])
    assert {tag for tag, _ in page.tags} == {
        *("html", "head", "meta", "title", "style", "body", "h1", "p", "ol", "li", "img"),
        *("br", "div"),
    }
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert evil.replace("\x1b", "�") in page.words and "<b>n</b>" in page.words


def test_an_injecting_name_that_is_there_is_shown_and_escaped(pictures, tmp_path):
    if os.name == "nt":
        pytest.skip("runs where a file may be named so")
    name = "<script>alert(1)<|script>.png"
    (pictures / "a.png").rename(pictures / name)
    page = page_of(tmp_path, [hit(pictures, name)], pictures, image=pictures / name)
    assert "script" not in {tag for tag, _ in page.tags}
    assert [tag for tag, _ in page.tags].count("img") == 2 and name in page.words


def test_what_cannot_be_shown_is_said(pictures, tmp_path):
    (pictures / "text.png").write_bytes(b"no picture")
    Image.new("1", (8000, 8000)).save(pictures / "big.png")
    hits = [
        Hit("gone.png", 0.9, "0" * 64),
        Hit("a.png", 0.8, "0" * 64),
        hit(pictures, "text.png"),
        hit(pictures, "big.png"),
    ]
    page = page_of(tmp_path, hits, pictures, text="x")
    assert "img" not in {tag for tag, _ in page.tags}
    for words in ("not there any more", "has changed since", "neither PNG", "50 megapixels"):
        assert words in page.words


def test_a_name_that_is_no_text_can_be_written(pictures, tmp_path):
    page = page_of(tmp_path, [Hit("\udcff.png", 0.5, "0" * 64)], pictures, text="long " * 400)
    assert "�.png" in page.words and len(page.words) < 3000
