"""The answers of a search as one HTML file that asks nothing of any network."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

from entrep.artifacts import write_text
from entrep.index import Hit, display_name
from entrep.readers import check_picture

THUMBNAIL_PX = 240
MOST_OF_TITLE = 200  # characters

# The policy forbids the browser every request, should anything slip through.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 16px sans-serif; margin: 2em; background: #fff; color: #222; }}
ol {{ display: flex; flex-wrap: wrap; gap: 1.5em; padding: 0; list-style-position: inside; }}
li, figure {{ width: {side}px; margin: 0; overflow-wrap: anywhere; }}
img, .none {{ width: {side}px; height: {side}px; object-fit: contain; background: #111; }}
.none {{ display: grid; place-items: center; color: #ccc; text-align: center; }}
.note {{ border-left: 4px solid #c80; padding-left: 1em; }}
</style>
</head>
<body>
<h1>{title}</h1>
{notes}{query}
<ol>
{items}
</ol>
</body>
</html>
"""


def write_page(
    file: str | Path,
    hits: Sequence[Hit],
    pictures: str | Path,
    *,
    image: str | Path | None = None,
    text: str = "",
    notes: Sequence[str] = (),
) -> None:
    """Write the answers with thumbnails, names and similarities, atomically.

    A picture is shown only if its bytes are those that were indexed; else the page says why
    not. Everything that comes from outside is escaped.

    Args:
        file: the .html.
        hits: answers, best first.
        pictures: folder that the hits' names are relative to.
        image: the query, if it was a picture.
        text: the query, if it was a phrase.
        notes: what must be said above the answers.
    """
    query = ""
    if image is not None:
        query = f"<figure>{_thumbnail(Path(image))}</figure>\n"
    asked = display_name(text or Path(image or "").name)
    if len(asked) > MOST_OF_TITLE:
        asked = asked[:MOST_OF_TITLE] + " …"
    items = [
        f"<li>{hit.similarity:.4f}{_thumbnail(Path(pictures) / hit.name, hit.sha256)}"
        f"<br>{escape(display_name(hit.name))}</li>"
        for hit in hits
    ]
    page = _PAGE.format(
        title=f"Nearest to: {escape(asked)}",
        side=THUMBNAIL_PX,
        notes="".join(f'<p class="note">{escape(display_name(note))}</p>\n' for note in notes),
        query=query,
        items="\n".join(items),
    )
    write_text(file, page)


def _thumbnail(path: Path, sha256: str = "") -> str:
    """A small JPEG within the page, or why there is none."""
    if not path.is_file():
        return '<div class="none">the picture is not there any more</div>'
    checked = check_picture(path)
    if sha256 and checked.sha256 != sha256:
        return '<div class="none">the picture has changed since it was indexed</div>'
    if checked.trouble:
        return f'<div class="none">{escape(display_name(checked.fault))}</div>'
    try:
        with Image.open(path) as picture:
            picture.draft("RGB", (2 * THUMBNAIL_PX, 2 * THUMBNAIL_PX))
            small = picture.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        return f'<div class="none">cannot be decoded: {escape(display_name(str(error)))}</div>'
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    packed = io.BytesIO()
    small.save(packed, "JPEG", quality=80)  # without the original's metadata
    data = base64.b64encode(packed.getvalue()).decode("ascii")
    return f'<img alt="" src="data:image/jpeg;base64,{data}">'
