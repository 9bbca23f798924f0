"""How fast pictures become embeddings, next to what the network alone and the decoder can do.

    python benchmarks/embedding_rate.py [--data DIR] [--rounds 3] [--pictures 64]

CPU: ViT-B/16 at 224 px in float32. The bare network on ready tensors, the engine from PNG files
to the matrix, and the loop of typical notebooks (open, transform, one picture a pass) take turns
in every round, so that a busy machine slows all of them; medians count, and the ratios are
medians of the rounds' ratios. Then 1,300 pictures cold and warm through a small network.
CUDA: ViT-B/16 at 224 px and ViT-L/14 at 336 px in bf16.

The weights are random, which costs the same time as trained ones. The pictures are phantoms of
640x480, or the PNG files below --data. Prints Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import PIL
import timm
import torch
from PIL import Image
from torchvision import transforms

from entrep import embed
from entrep.anatomy import FINDINGS_OF_CLASS, draw_picture
from entrep.artifacts import sha256_file
from entrep.brush import Draws
from entrep.decode import count_cores, decode_pictures
from entrep.encoders import Encoder, pooled_features
from entrep.labels import CLASS_NAMES
from entrep.phantom import encode_png
from entrep.preprocess import prepare_picture
from entrep.registry import IMAGENET_MEAN, IMAGENET_STD, EncoderSpec

WARM_PICTURES = 1300


def build(architecture: str, size: int, device: str, dtype: torch.dtype, **options) -> Encoder:
    """A timm network with random weights as an encoder."""
    torch.manual_seed(0)
    model = timm.create_model(architecture, pretrained=False, num_classes=0, **options)
    model = model.eval().requires_grad_(False).to(device, dtype)
    spec = EncoderSpec(architecture, "image", "timm", architecture, size, 0, "", "file")
    return Encoder(spec, model, torch.device(device), dtype, f"random {architecture} {dtype}")


def lay_out(data: Path | None, folder: Path, distinct: int, count: int) -> list[str]:
    """Fill `folder` with `count` PNG files of different bytes, from `distinct` pictures."""
    if data:
        sources = [path.read_bytes() for path in sorted(data.rglob("*.png"))[:distinct]]
    else:
        sources = []
        for index in range(distinct):
            name = CLASS_NAMES[index % len(CLASS_NAMES)]
            finding = FINDINGS_OF_CLASS[name][index % 4]
            draws = Draws("rate", name, index)
            sources.append(encode_png(draw_picture(name, finding, draws, difficulty=0.4)))
    names = [f"{n:05}.png" for n in range(count)]
    for n, name in enumerate(names):
        # Behind its end a PNG may hold anything: other bytes, the same pixels.
        content = sources[n % len(sources)]
        (folder / name).write_bytes(content + (b"" if n < len(sources) else b"%d" % n))
    return names


def seconds(work: Callable[[], object], device: torch.device | None = None) -> float:
    """Wall-clock time of `work`, its progress bars and messages aside."""
    quiet = io.StringIO()
    start = time.perf_counter()
    with contextlib.redirect_stderr(quiet), contextlib.redirect_stdout(quiet):
        work()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def bare_forward(encoder: Encoder, pictures: int, batch_size: int) -> Callable[[], None]:
    """The network alone on tensors that lie ready on its device."""
    size = encoder.spec.image_size
    batch = torch.randn(batch_size, 3, size, size).to(encoder.device, encoder.dtype)

    @torch.inference_mode()
    def run() -> None:
        for _ in range(pictures // batch_size):
            pooled_features(encoder.model, batch)

    return run


def notebook_loop(encoder: Encoder, root: Path, paths: list[str]) -> Callable[[], None]:
    """What notebooks do: open, transform, one picture a pass, no crop to the disc."""
    size = encoder.spec.image_size
    transform = transforms.Compose(
        [
            transforms.Resize(size),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )

    def run() -> None:
        rows = []
        for path in paths:
            picture = transform(Image.open(root / path).convert("RGB")).unsqueeze(0)
            with torch.no_grad():
                row = pooled_features(encoder.model, picture.to(encoder.device, encoder.dtype))
            rows.append(row.float().cpu().numpy())

    return run


def print_rates(rates: dict[str, list[float]], base: str) -> None:
    """Table of medians, and of each round's ratio to `base`."""
    print(f"| | pictures/s, median (best) | of {base} |")
    print("|---|--:|--:|")
    for name, values in rates.items():
        ratio = statistics.median(v / b for v, b in zip(values, rates[base], strict=True))
        print(f"| {name} | {statistics.median(values):.2f} ({max(values):.2f}) | {ratio:.3f} |")
    print(flush=True)


def decode_limit(root: Path, paths: list[str], size: int) -> float:
    """Pictures/s that all cores together decode, crop and resize, with nothing else to do."""
    warm = iter(decode_pictures(root, paths, size, workers=count_cores()))
    first = len(next(warm)[0])  # starting the processes is not decoding
    taken = seconds(lambda: [None for _ in warm])
    return (len(paths) - first) / taken


def on_cpu(root: Path, paths: list[str], rounds: int) -> None:
    """Engine, bare network and notebook loop, in turns."""
    encoder = build("vit_base_patch16_224", 224, "cpu", torch.float32)
    count = len(paths)
    loop_paths = paths[: max(4, count // 4)]
    # The bare network in passes of the engine's size, and in larger ones.
    work = {
        "bare network": (bare_forward(encoder, count, embed.MOST_ON_CPU), count),
        "bare network, 32 a pass": (bare_forward(encoder, 32, 32), 32),
        "engine": (lambda: embed.embed_pictures(encoder, root, paths), count),
        "notebook loop": (notebook_loop(encoder, root, loop_paths), len(loop_paths)),
    }
    bare_forward(encoder, 8, 8)()
    rates: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, (run, pictures) in work.items():
            rates[name].append(pictures / seconds(run))
    print(f"ViT-B/16 at 224 px, float32, CPU; {rounds} rounds of {count} pictures\n")
    print_rates(rates, "bare network")
    ratios = [e / n for e, n in zip(rates["engine"], rates["notebook loop"], strict=True)]
    print(f"Engine over notebook loop: {statistics.median(ratios):.2f}")
    start = time.process_time()
    for path in paths:
        prepare_picture(root / path, 224)
    each = (time.process_time() - start) / count
    print(f"Decoding, crop and resize: {1000 * each:.1f} ms of one core a picture\n", flush=True)


def cold_and_warm(root: Path, paths: list[str], folder: Path) -> None:
    """A small network's cache, empty and full; one new picture."""
    encoder = build("vit_tiny_patch16_224", 224, "cpu", torch.float32)
    digests = [sha256_file(root / path) for path in paths]

    def run(count: int, known: bool) -> float:
        given = digests[:count] if known else None
        return seconds(
            lambda: embed.embed_pictures(encoder, root, paths[:count], sha256=given, cache=folder)
        )

    cold = run(len(paths) - 1, known=True)
    one = run(len(paths), known=True)
    warm = [run(len(paths), known=True) for _ in range(3)]
    hashed = [run(len(paths), known=False) for _ in range(3)]
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    print(
        f"Cache, {len(paths)} pictures of 640x480, vit_tiny at 224 px; the store: {size:.1f} MB\n"
    )
    print("| | s | faster than cold |")
    print("|---|--:|--:|")
    rows = (
        ("cold", cold),
        ("one new picture among them", one),
        ("warm, digests computed", statistics.median(hashed)),
        ("warm, digests given", statistics.median(warm)),
    )
    for name, value in rows:
        print(f"| {name} | {value:.3f} | {cold / value:.0f} |")
    print(flush=True)


def on_cuda(root: Path, paths: list[str], rounds: int, batch_size: int) -> None:
    """Engine against the bare bf16 network and against the decoder."""
    for architecture, size, options in (
        ("vit_base_patch16_224", 224, {}),
        ("vit_large_patch14_dinov2", 336, {"img_size": 336}),
    ):
        encoder = build(architecture, size, "cuda", torch.bfloat16, **options)
        count = len(paths) // batch_size * batch_size
        bare = bare_forward(encoder, count, batch_size)
        seconds(bare, encoder.device)
        rates: dict[str, list[float]] = {"bare network": [], "decode limit": [], "engine": []}
        for _ in range(rounds):
            rates["bare network"].append(count / seconds(bare, encoder.device))
            rates["decode limit"].append(decode_limit(root, paths, size))

            def run(encoder: Encoder = encoder) -> None:
                embed.embed_pictures(encoder, root, paths, batch_size=batch_size)

            rates["engine"].append(len(paths) / seconds(run))
        print(f"{architecture} at {size} px, bf16, {batch_size} a pass, {len(paths)} pictures\n")
        print_rates(rates, "bare network")
        pairs = zip(rates["engine"], rates["decode limit"], rates["bare network"], strict=True)
        of_limit = statistics.median(e / min(d, b) for e, d, b in pairs)
        print(f"Engine of the lower of the two limits: {of_limit:.3f}\n")


def describe_machine() -> str:
    """What the numbers were measured with."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{platform.system()} {platform.machine()}, {count_cores()} cores{gpu}; "
        f"Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}, "
        f"Pillow {PIL.__version__}; {torch.get_num_threads()} threads; "
        f"load before: {os.getloadavg()[0]:.1f}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with PNG files (default: phantoms)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=64, help="a round on the CPU (64)")
    parser.add_argument("--batch-size", type=int, default=128, help="on the GPU (128)")
    options = parser.parse_args()
    print(f"python benchmarks/embedding_rate.py {' '.join(sys.argv[1:])}\n")
    print(describe_machine(), "\n", flush=True)
    folder = Path(tempfile.mkdtemp())
    try:
        pictures, store = folder / "pictures", folder / "store"
        pictures.mkdir()
        cuda = torch.cuda.is_available()
        paths = lay_out(options.data, pictures, 64, 8192 if cuda else WARM_PICTURES)
        if cuda:
            on_cuda(pictures, paths, options.rounds, options.batch_size)
        else:
            on_cpu(pictures, paths[: options.pictures], options.rounds)
        cold_and_warm(pictures, paths[:WARM_PICTURES], store)
        print(f"Decode limit of {count_cores()} cores, PNG 640x480 to 224 px: ", end="")
        print(f"{decode_limit(pictures, paths[:512], 224):.0f} pictures/s")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
