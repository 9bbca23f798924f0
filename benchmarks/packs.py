"""Model packs without a network: do they load, and how long does it take?

    python benchmarks/packs.py [--dir FOLDER] [--rounds 5] [--threads 2]

Writes BiomedCLIP (196 M parameters) and SurgeNet's DINOv2-B at 336 px with random weights, in the
layouts that their publishers use, and packs them. Then, in fresh interpreters whose sockets are
blocked: each pack embeds 16 pictures (and 16 texts); the reference notebook's way of loading is
tried; and loading is timed against reading the file and building the module, by turns. Prints
Markdown. --dir keeps the files (2.3 GB) for the next run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from published import BLOCK_NETWORK, write_biomedclip, write_surgenet  # noqa: E402

from entrep.packs import make_pack  # noqa: E402
from entrep.registry import BIOMEDCLIP  # noqa: E402

NAMES = ("biomedclip", "surgenet-dinov2-b")

EMBED = """
import sys, time
import torch
from entrep.encoders import load_encoder
name, folder, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
start = time.perf_counter()
encoder = load_encoder(name, device="cpu", weights_dir=folder, precision="fp32")
loaded = time.perf_counter()
size = encoder.spec.image_size
pictures = torch.randint(0, 256, (16, 3, size, size), dtype=torch.uint8)
rows = encoder.encode_pictures(pictures)
seen = time.perf_counter()
text = "no texts"
if encoder.tokenizer is not None:
    texts = encoder.encode_texts([f"polyp number {i} in the left nasal cavity" for i in range(16)])
    text = f"16 texts to {tuple(texts.shape)} in {time.perf_counter() - seen:.1f} s"
parameters = sum(p.numel() for p in encoder.model.parameters()) / 1e6
print(f"| {name} | {parameters:.0f} M | {loaded - start:.1f} s "
      f"| 16 pictures to {tuple(rows.shape)} in {seen - loaded:.1f} s; {text} |")
"""

REFERENCE = """
import open_clip
try:
    open_clip.create_model_from_pretrained("hf-hub:REPOSITORY")
except Exception as error:
    print(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
else:
    print("it loaded")
"""

TIME = """
import gc, json, sys, time
from pathlib import Path
import torch
from safetensors.torch import load_file
from entrep.artifacts import read_json
from entrep.encoders import CONFIG_FILE, TEXT_FOLDER, WEIGHTS_FILE, build_network, load_encoder
from entrep.registry import read_pack
name, folder, rounds, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
folder = Path(folder)
spec, _ = read_pack(folder)

def plain():
    # The file is mapped; a copy reads every byte of it.
    tensors = {k: t.clone() for k, t in load_file(folder / WEIGHTS_FILE[spec.library]).items()}
    return tensors, build_network(spec, read_json(folder / CONFIG_FILE[spec.library]),
                                  folder / TEXT_FOLDER)

def packed():
    return load_encoder(name, device="cpu", weights_dir=folder, precision="fp32")

times = {"plain": [], "packed": []}
for turn in range(int(rounds) + 1):  # the first one warms up
    for key, task in (("plain", plain), ("packed", packed)):
        start = time.perf_counter()
        kept = task()
        if turn:
            times[key].append(time.perf_counter() - start)
        del kept
        gc.collect()
print(json.dumps(times))
"""


def run_cut_off(code: str, *arguments: object) -> str:
    """Run code in a fresh interpreter that can reach no network; returns what it printed."""
    with tempfile.TemporaryDirectory() as home:  # without anybody's cache
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "HF_HOME": home}
        done = subprocess.run(
            [sys.executable, "-c", BLOCK_NETWORK + code, *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def write_packs(folder: Path) -> dict[str, Path]:
    """Write the published files and pack them, unless that was done before."""
    packs = {name: folder / "packs" / name for name in NAMES}
    if not packs["biomedclip"].is_dir():
        sources = write_biomedclip(folder / "published", tiny=False)
        make_pack("biomedclip", sources, packs["biomedclip"])
    if not packs["surgenet-dinov2-b"].is_dir():
        file = folder / "published" / "DINOv2_ViTb14_size336_SurgeNetXL.pth"
        state = write_surgenet(file, "vit_base_patch14_dinov2", image_size=336)
        # What is known of the published file.
        assert len(state) == 175 and sum(t.numel() for t in state.values()) == 85_971_456
        make_pack("surgenet-dinov2-b", [file], packs["surgenet-dinov2-b"])
    return packs


def measure(folder: Path, rounds: int, threads: int) -> None:
    """Print the tables."""
    packs = write_packs(folder)
    print("\nWithout a network:\n")
    print("| pack | parameters | loaded in | embedded |\n|---|--:|--:|---|")
    for name, pack in packs.items():
        lines = run_cut_off(EMBED, name, pack, threads).splitlines()
        print(next(line for line in lines if line.startswith("|")))
    answer = run_cut_off(REFERENCE.replace("REPOSITORY", BIOMEDCLIP)).strip().splitlines()[-1]
    print(f"\nThe reference notebook's way, create_model_from_pretrained('hf-hub:…'): {answer}\n")

    print("| pack | file | read and build | load_encoder | ratio |\n|---|--:|--:|--:|--:|")
    for name, pack in packs.items():
        lines = run_cut_off(TIME, name, pack, rounds, threads).splitlines()
        times = json.loads(next(line for line in lines if line.startswith("{")))
        plain, packed = (statistics.median(times[key]) for key in ("plain", "packed"))
        size = next(pack.glob("*.safetensors")).stat().st_size / 1e6
        print(f"| {name} | {size:.0f} MB | {plain:.2f} s | {packed:.2f} s | {packed / plain:.2f} |")


def main() -> None:
    """Parse the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, help="keep the files here (a temporary folder)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        measure(options.dir or Path(temporary), options.rounds, options.threads)
    print(
        f"\nMedians of {options.rounds}, by turns, files in the page cache; "
        f"{options.threads} threads of {os.cpu_count()} cores, {platform.machine()}, "
        f"Python {platform.python_version()}; {time.perf_counter() - start:.0f} s in all.\n"
        f"Command: python benchmarks/packs.py {' '.join(sys.argv[1:])}"
    )


if __name__ == "__main__":
    main()
