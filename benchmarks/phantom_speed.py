"""How long a phantom takes, per class, on one core; and the contact sheet of the documentation.

    python benchmarks/phantom_speed.py [--pictures 20] [--difficulty 0.4]
    python benchmarks/phantom_speed.py --sheet docs/phantoms.png

Prints a Markdown table of milliseconds of processor time a picture: drawing, PNG encoding, both.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from entrep.anatomy import FINDINGS_OF_CLASS, draw_picture
from entrep.brush import Draws
from entrep.labels import CLASS_NAMES
from entrep.phantom import encode_png


def measure(pictures: int, difficulty: float) -> None:
    """Print the table."""
    print("| class | draw, ms | encode, ms | together, ms | file, kB |")
    print("|---|--:|--:|--:|--:|")
    totals = []
    for class_name in CLASS_NAMES:
        draw, encode, sizes = [], [], []
        for index in range(pictures):
            finding = FINDINGS_OF_CLASS[class_name][index % 4]
            draws = Draws("speed", class_name, index)
            start = time.process_time()
            picture = draw_picture(class_name, finding, draws, difficulty=difficulty)
            middle = time.process_time()
            sizes.append(len(encode_png(picture)) / 1000)
            draw.append(1000 * (middle - start))
            encode.append(1000 * (time.process_time() - middle))
        totals += [a + b for a, b in zip(draw, encode, strict=True)]
        means = [statistics.mean(values) for values in (draw, encode)]
        print(
            f"| {class_name} | {means[0]:.1f} | {means[1]:.1f} | {sum(means):.1f} "
            f"| {statistics.mean(sizes):.0f} |"
        )
    mean, worst = statistics.mean(totals), sorted(totals)[int(0.95 * len(totals))]
    print(f"\n{len(totals)} pictures, difficulty {difficulty}: {mean:.1f} ms on average, ", end="")
    print(f"95 % within {worst:.1f} ms (target: under 40 ms).")
    print(f"Python {platform.python_version()}, numpy {np.__version__}, {platform.machine()}")


def contact_sheet(*, side_px: int = 136, difficulty: float = 0.3) -> Image.Image:
    """7 classes (rows) by 6 pictures: normal and five findings."""
    sheet = Image.new("RGB", (6 * side_px, 7 * (side_px + 14)))
    pen = ImageDraw.Draw(sheet)
    for row, class_name in enumerate(CLASS_NAMES):
        findings = FINDINGS_OF_CLASS[class_name][1:]
        if class_name.endswith(("-left", "-closed")):
            findings = findings[::-1]  # a site's second row shows what its first row does not
        for column, finding in enumerate(("normal", *findings[:5])):
            draws = Draws("sheet", class_name, column)
            picture = draw_picture(class_name, finding, draws, difficulty=difficulty)
            lit = np.flatnonzero(picture[200:280].max(axis=(0, 2)) > 24)
            left = min(max((int(lit[0]) + int(lit[-1])) // 2 - 240, 0), 160)
            disc = Image.fromarray(picture[:, left : left + 480])
            x, y = column * side_px, row * (side_px + 14)
            sheet.paste(disc.resize((side_px, side_px), Image.Resampling.LANCZOS), (x, y + 14))
            text = class_name if column == 0 else finding.replace("_", " ")
            pen.text((x + 3, y + 1), text, fill=(235, 220, 120))
    return sheet.quantize(256, kmeans=2, dither=Image.Dither.NONE)


def main() -> None:
    """Measure, or write the sheet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=20, help="pictures a class (20)")
    parser.add_argument("--difficulty", type=float, default=0.4)
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="write the contact sheet")
    options = parser.parse_args()
    if options.sheet:
        contact_sheet().save(options.sheet, optimize=True)
        print(f"{options.sheet}: {options.sheet.stat().st_size / 1000:.0f} kB")
    else:
        print(
            "python benchmarks/phantom_speed.py "
            f"--pictures {options.pictures} --difficulty {options.difficulty}\n"
        )
        measure(options.pictures, options.difficulty)


if __name__ == "__main__":
    main()
