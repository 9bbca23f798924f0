"""A stand-in for Kaggle's image: an interpreter with only the packages that are there already.

Nothing is installed again: the listed packages, and what they need, are links into the
environment that runs this.
"""

from __future__ import annotations

import csv
import os
import shutil
import sysconfig
import venv
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from entrep import unplugged

# Of the kit's needs, what Kaggle's image surely brings. The rest comes with the bundle, and so do
# accelerate and peft, which its base happens to have.
PREINSTALLED = (
    "filelock",
    "huggingface_hub",
    "ipykernel",
    "jupyter_client",
    "matplotlib",
    "nbclient",
    "numpy",
    "packaging",
    "pandas",
    "papermill",
    "pillow",
    "pip",
    "psutil",
    "pyarrow",
    "pyyaml",
    "safetensors",
    "scikit-learn",
    "scipy",
    "seaborn",
    "threadpoolctl",
    "timm",
    "torch",
    "torchvision",
    "tqdm",
    "transformers",
)


def find_distributions(names: Iterable[str]) -> dict[str, metadata.Distribution]:
    """Installed packages by name: the listed ones and, all the way down, what they require.

    Raises:
        ValueError: if a listed package is not installed, or not in a way that lists its files.
    """
    found: dict[str, metadata.Distribution] = {}
    listed = {canonicalize_name(name) for name in names}
    wanted = [(name, "") for name in listed]  # with an extra: CUDA's libraries hang on some
    seen = set()
    while wanted:
        name, extra = wanted.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            if name in listed:
                raise ValueError(
                    f"{name} is on Kaggle, but not installed here; install the kit's "
                    "requirements (python kit.py setup)."
                ) from None
            continue  # its package does without, or fails here as there
        if not _files_of(distribution):
            raise ValueError(f"{name}: there is no list of its files; install it with pip or uv.")
        found[name] = distribution
        for requirement in map(Requirement, distribution.requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                needed = canonicalize_name(requirement.name)
                wanted += [(needed, more) for more in ("", *requirement.extras)]
    return found


def make_interpreter(folder: Path, names: Iterable[str] = PREINSTALLED) -> tuple[Path, ...]:
    """Make an environment of this Python that has only the named packages and their needs.

    These lie in a folder behind the environment's own, as links that nothing writes through: what
    pip installs goes in front of them, and it removes none. Whenever this Python starts, it runs
    `unplugged` first.

    Args:
        folder: where to make `venv` and `image`; it may be moved, no file in it names it.
        names: packages; "pip" is made from Python's own copy if it is not installed here.

    Returns:
        The folders that the links lead to: the environment works where they can be read.

    Raises:
        ValueError: as `find_distributions`.
    """
    names = set(names)
    has_pip = any(metadata.distributions(name="pip"))
    found = find_distributions(name for name in names if has_pip or name != "pip")
    builder = venv.EnvBuilder(symlinks=True, with_pip="pip" in names and not has_pip)
    builder.create(folder / "venv")
    _link_packages(found, folder / "image")
    base = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
    packages = Path(sysconfig.get_path("purelib", "venv", vars=base))
    way = os.path.relpath(folder / "image", packages)
    shutil.copyfile(unplugged.__file__, packages / "unplugged.py")
    # Not as `sitecustomize`: some systems have one already, which comes first.
    (packages / "image.pth").write_text(f"{way}\nimport unplugged\n", encoding="utf-8")
    return tuple(sorted({Path(d.locate_file("")).absolute() for d in found.values()}))


def _link_packages(found: Mapping[str, metadata.Distribution], image: Path) -> None:
    """Link whole folders, but file by file those that other packages share (namespaces)."""
    others = [d for d in metadata.distributions() if canonicalize_name(d.name) not in found]
    shared = {_top_of(file) for distribution in others for file in _files_of(distribution)}
    image.mkdir()
    for distribution in found.values():
        files = _files_of(distribution)
        for place in {file if _top_of(file) in shared else _top_of(file) for file in files}:
            target = image / place
            # Left out: programs (in ..), which would start the other Python; a folder that
            # another of the listed packages brought already.
            if _top_of(place) != ".." and not target.is_symlink():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(os.path.abspath(distribution.locate_file(place)))


def _files_of(distribution: metadata.Distribution) -> list[str]:
    """Its files as installers record them; `distribution.files` takes seconds for PyTorch."""
    record = distribution.read_text("RECORD") or ""
    return [row[0] for row in csv.reader(record.splitlines())]


def _top_of(file: str) -> str:
    return file.split("/", 1)[0]
