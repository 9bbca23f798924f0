"""The first cell of each kernel: find what is mounted, check it, install it; no network.

`entrep kaggle build` puts this file into the notebook and a call of `prepare` below it. It uses
the standard library only and runs before anything else is imported.
"""

import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

ROOT = Path(os.environ.get("KAGGLE_ROOT", "/kaggle"))  # elsewhere in a simulation
INPUT, SCRATCH = ROOT / "input", ROOT / "temp"  # SCRATCH is not kept when the kernel ends
DEPTH = 4  # folders below INPUT that are searched; all of it may take minutes
MANIFEST = "MANIFEST.json"
OFFLINE = {  # libraries read these when they are imported, then fail at once, not after a minute
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "PIP_NO_INDEX": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}


class NotReady(Exception):
    """What this kernel lacks, and how to mend it."""


def prepare(inputs, *, python, gpu):
    """Leave a kernel in which the kit can be imported; tell the cells below where things lie.

    They find that as JSON in the variable ENTREP_INPUTS: a folder by the name of each input,
    and "scratch".

    Args:
        inputs: by name a dictionary: "kind" (dataset, competition, kernel or model), "ref"
            ("owner/slug", as in the metadata), and of a bundle of the kit "marker" (a file in
            it) and "manifest" (the SHA-256 of its MANIFEST.json; "" where any will do).
        python: oldest version, and the first that is too new, such as ("3.11", "3.14").
        gpu: whether a GPU is needed.
    """
    os.environ.update(OFFLINE)
    check_python(python)
    places = {name: find_input(**source) for name, source in inputs.items()}
    for name, source in inputs.items():
        if source.get("marker"):
            check_manifest(places[name], source["ref"], source.get("manifest", ""))
    if gpu:
        check_gpu()
    SCRATCH.mkdir(parents=True, exist_ok=True)
    found = {name: str(unpack(places[name], SCRATCH / name)) for name in places}
    install(places["kit"])
    os.environ["ENTREP_INPUTS"] = json.dumps({**found, "scratch": str(SCRATCH)})
    report(found)


def check_python(limits):
    """Stop on a Python that the kit's wheel does not install on."""
    oldest, too_new = (tuple(map(int, limit.split("."))) for limit in limits)
    if not oldest <= sys.version_info[:2] < too_new:
        raise NotReady(
            f"This image has Python {sys.version.split()[0]}; the kit needs {limits[0]} or later, "
            f"before {limits[1]}. Choose another environment in the notebook's settings, or "
            "build the bundle with a newer kit."
        )


def find_input(kind, ref, marker="", manifest=""):
    """The folder where Kaggle mounted a source: by its newer layout, its older one, or `marker`."""
    owner, _, rest = ref.partition("/")
    folder = {"dataset": "datasets", "competition": "competitions"}
    folder |= {"kernel": "notebooks", "model": "models"}
    exact = [INPUT / folder[kind] / ref, INPUT / (rest or owner)]
    for place in exact:
        if place.is_dir() and (place / marker).exists():
            return place
    holders = walk_for(marker) if marker else []
    if len(holders) == 1:
        return holders[0]
    looked = " and ".join(map(str, exact))
    if marker:
        looked += f", and for {marker} down to {DEPTH} folders below {INPUT}"
        looked += f" (it is in each of {', '.join(map(str, holders))})" if holders else ""
    there = sorted(place.name for place in INPUT.iterdir()) if INPUT.is_dir() else []
    raise NotReady(
        f"The {kind} {ref} is not mounted. Looked at {looked}; mounted are: "
        f"{', '.join(there) or 'none'}. Add it by 'Add Input' in the editor, or push it and then "
        "this kernel again (entrep kaggle push)."
    )


def walk_for(marker):
    """The folders that hold a file called `marker`, at most `DEPTH` folders below `INPUT`."""
    holders = []
    for folder, below, files in os.walk(INPUT):
        below.sort()
        if len(Path(folder).relative_to(INPUT).parts) >= DEPTH or marker in files:
            below.clear()
        if marker in files:
            holders.append(Path(folder))
    return holders


def check_manifest(folder, ref, expected=""):
    """Compare every file of a bundle with the manifest that it was built with."""
    mend = f"Upload {ref} again (entrep kaggle build, entrep kaggle push), wait until it is ready"
    path = folder / MANIFEST
    if not path.is_file():
        raise NotReady(f"{path} is missing. {mend}, and run this kernel again.")
    if expected and digest(path) != expected:
        raise NotReady(
            f"{folder} is not the {ref} that this kernel was built with: {MANIFEST} differs. "
            f"{mend}, and push this kernel again."
        )
    files = json.loads(path.read_text("utf-8"))["files"]
    print(f"Checking {len(files)} files of {ref} ...", flush=True)
    for name, recorded in files.items():
        if not (folder / name).is_file():
            raise NotReady(f"{folder / name} is missing. {mend}, and run this kernel again.")
        if digest(folder / name) != recorded:
            raise NotReady(
                f"{folder / name} was altered: its SHA-256 is not the manifest's. {mend}, "
                "and run this kernel again."
            )


def digest(path):
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_gpu():
    """Stop where PyTorch sees no GPU, or one that it cannot compute on."""
    import torch

    if not torch.cuda.is_available():
        raise NotReady(
            "This kernel needs a GPU, and PyTorch sees none. Choose 'GPU T4 x2' as accelerator in "
            "the notebook's settings, or build for CPUs: entrep kaggle build --accelerator cpu."
        )
    try:
        torch.ones(2, device="cuda").sum().item()
    except RuntimeError as error:
        raise NotReady(
            f"This image's PyTorch cannot use its {torch.cuda.get_device_name(0)} ({error}). "
            "Choose 'GPU T4 x2' as accelerator in the notebook's settings."
        ) from error


def unpack(folder, target):
    """Unpack a bundle's `.bin` archives, each into `target` / its name; gives where things are."""
    archives = sorted(folder.glob("*.bin"))
    for archive in archives:
        with zipfile.ZipFile(archive) as content:
            content.extractall(target / archive.stem)
    return target if archives else folder


def install(kit):
    """Install the kit, and of the other wheels those that are missing or too old; never torch."""
    before = version_of("torch")
    wheels = {path.name.split("-")[0]: path for path in sorted(kit.glob("*.whl"))}
    pip(kit, ["--force-reinstall", str(wheels.pop("entrep"))])
    importlib.invalidate_caches()
    needs = [re.match(r"([\w.-]+)>=([\d.]+)$", line) for line in metadata.requires("entrep")]
    floors = {plain(need[1]): need[2] for need in needs if need}
    wanted = [path for name, path in wheels.items() if not meets(name, floors.get(plain(name)))]
    if wanted:
        pip(kit, map(str, wanted))
        importlib.invalidate_caches()
    lacking = [f"{name}>={floor}" for name, floor in floors.items() if not meets(name, floor)]
    if lacking:
        have = [f"{need.split('>=')[0]} {version_of(need.split('>=')[0])}" for need in lacking]
        raise NotReady(
            f"The image lacks {', '.join(lacking)} (it has {', '.join(have)}), and the bundle "
            "brings no wheel for that. Add it to WHEELS in kaggle/kernels.py and build again."
        )
    if version_of("torch") != before:
        raise NotReady(
            f"Installing changed torch from {before} to {version_of('torch')}, which breaks its "
            "GPUs. Remove the wheel that did it from the bundle."
        )


def pip(kit, wheels):
    """`pip install` of wheels, without any index and without what they depend on."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    done = subprocess.run(
        [*command, "--find-links", str(kit), *wheels], capture_output=True, text=True
    )
    if done.returncode:
        raise NotReady(f"pip could not install from {kit}:\n{done.stderr.strip()}")


def plain(name):
    """A package's name, however it is spelt."""
    return re.sub(r"[-_.]+", "-", name).lower()


def version_of(package):
    """Its installed version; "none" without one."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def meets(package, floor):
    """Whether a package is installed, and not older than `floor`, if there is one."""
    found = version_of(package)
    numbers = [tuple(map(int, re.findall(r"\d+", text)[:3])) for text in (found, floor or "0")]
    return found != "none" and numbers[0] >= numbers[1]


def report(found):
    """Print what the cells below work with."""
    import torch

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    packages = ("entrep", "torch", "torchvision", "timm", "open_clip_torch", "numpy", "pillow")
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs, GPUs: {devices or 'none'}")
    print(", ".join(f"{name} {version_of(name)}" for name in packages))
    for name, place in found.items():
        print(f"{name}: {place}")
