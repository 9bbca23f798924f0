"""Wheels for a machine without a network: the kit's own, and those that its image may lack."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from entrep import __version__
from entrep.artifacts import list_files, write_zip

PYTHONS = ("3.11", "3.12", "3.13")
# Whose torch it is, is the image's affair: another one breaks its CUDA.
NEVER = ("torch", "torchvision", "torchaudio", "triton", "nvidia")
_WHEEL = re.compile(
    r"(?P<name>[^-]+)-(?P<version>[^-]+)(-\d[^-]*)?-(?P<python>[^-]+)-(?P<abi>[^-]+)-[^-]+\.whl"
)


def build_wheel(root: str | Path, folder: str | Path) -> Path:
    """Write the kit's wheel: code and embedded weights; the same source gives the same bytes.

    Plain Python in one folder needs no build tool, and so no network: a wheel is a zip of the
    files, with what `pyproject.toml` says in the metadata's words.

    Args:
        root: the checkout, with `pyproject.toml` and `src/entrep`.
        folder: where the wheel is written.

    Returns:
        The wheel, `entrep-VERSION-py3-none-any.whl`.
    """
    source = Path(root) / "src"
    project = tomllib.loads((Path(root) / "pyproject.toml").read_text("utf-8"))["project"]
    about = f"{project['name']}-{__version__}.dist-info"
    members: dict[str, bytes | Path] = {
        path.relative_to(source).as_posix(): path
        for path in list_files(source / "entrep")
        if path.suffix != ".pyc"
    }
    scripts = "".join(f"{name} = {place}\n" for name, place in project["scripts"].items())
    members[f"{about}/METADATA"] = _metadata(project).encode()
    members[f"{about}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: entrep\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    members[f"{about}/entry_points.txt"] = f"[console_scripts]\n{scripts}".encode()
    members[f"{about}/licenses/LICENSE"] = Path(root) / "LICENSE"
    record = [_record(name, content) for name, content in sorted(members.items())]
    record.append(f"{about}/RECORD,,")
    members[f"{about}/RECORD"] = ("\n".join(record) + "\n").encode()
    wheel = Path(folder) / f"{project['name']}-{__version__}-py3-none-any.whl"
    write_zip(wheel, members)
    return wheel


def _metadata(project: Mapping) -> str:
    lines = [
        "Metadata-Version: 2.4",
        f"Name: {project['name']}",
        f"Version: {__version__}",
        f"Summary: {project['description']}",
        f"License-Expression: {project['license']['text']}",
        "License-File: LICENSE",
        f"Requires-Python: {project['requires-python']}",
    ]
    lines += [f"Requires-Dist: {requirement}" for requirement in project["dependencies"]]
    for extra, requirements in project["optional-dependencies"].items():
        lines.append(f"Provides-Extra: {extra}")
        for requirement in requirements:
            name, _, marker = requirement.partition(";")
            condition = f"({marker.strip()}) and " if marker else ""
            lines.append(f"Requires-Dist: {name.strip()}; {condition}extra == '{extra}'")
    return "\n".join(lines) + "\n"


def _record(name: str, content: bytes | Path) -> str:
    data = content if isinstance(content, bytes) else content.read_bytes()
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(data)}"


def pin_requirements(names: Iterable[str], requirements: str | Path) -> list[str]:
    """`name==version` of each, the versions from a requirements file where a name has none.

    Raises:
        ValueError: for a name that the file does not pin.
    """
    text = Path(requirements).read_text("utf-8")
    pins = dict(re.findall(r"^([\w.-]+)==([^\s;#]+)", text, re.MULTILINE))
    pinned = []
    for name in names:
        if "==" not in name and name not in pins:
            raise ValueError(f"{requirements} does not pin {name}; write it as {name}==VERSION.")
        pinned.append(name if "==" in name else f"{name}=={pins[name]}")
    return pinned


def gather_wheels(pinned: Sequence[str], folder: str | Path) -> list[Path]:
    """The wheels of these requirements in a folder, for every Python of `PYTHONS`.

    Raises:
        FileNotFoundError: names the requirements that have no wheel for a Python.
        ValueError: if one of them is of PyTorch and its libraries.
    """
    there = {path: _parts(path.name) for path in sorted(Path(folder).glob("*.whl"))}
    found = {
        requirement: [path for path, parts in there.items() if _is_of(parts, requirement)]
        for requirement in pinned
    }
    for requirement, paths in found.items():
        if plain_name(requirement.partition("==")[0]).split("-")[0] in NEVER:
            raise ValueError(
                f"{requirement}: a kernel takes PyTorch from its image; never ship it."
            )
        lacking = [p for p in PYTHONS if not any(_fits(there[path], p) for path in paths)]
        if lacking:
            raise FileNotFoundError(
                f"{folder}: no wheel of {requirement} for Python {', '.join(lacking)}. Get it "
                f"with a network: pip download --only-binary :all: --no-deps --python-version "
                f"{lacking[0]} -d {folder} {requirement}"
            )
    return sorted({path for paths in found.values() for path in paths})


def download_wheels(pinned: Sequence[str], folder: str | Path) -> list[Path]:
    """`gather_wheels`, with what is not there downloaded into `folder` first.

    Raises:
        RuntimeError: if pip cannot reach its index; says what to do without a network.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    try:
        return gather_wheels(pinned, folder)
    except FileNotFoundError:
        print(f"Downloading {len(pinned)} wheels into {folder} ...", flush=True)
    for python in PYTHONS:
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
        command += ["--quiet", "--only-binary", ":all:", "--no-deps", "--python-version", python]
        command += ["--platform", "manylinux2014_x86_64", "--dest", str(folder), *pinned]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise RuntimeError(
                f"the wheels for Kaggle could not be downloaded ({last}). They need the package "
                f"registry, once. Without a network give a folder that holds them with "
                f"--wheels DIR: {', '.join(pinned)}."
            )
    return gather_wheels(pinned, folder)


def copy_wheels(wheels: Iterable[Path], folder: str | Path) -> None:
    """Copy wheels into a folder under their own names."""
    for wheel in wheels:
        shutil.copyfile(wheel, Path(folder) / wheel.name)


def plain_name(name: str) -> str:
    """A distribution's name as PEP 503 compares it: lower case, single hyphens."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _parts(wheel: str) -> Mapping[str, str]:
    """Name, version and tags of a wheel by its file's name; empty if it is not named like one."""
    match = _WHEEL.fullmatch(wheel)
    return match.groupdict() if match else {}


def _is_of(parts: Mapping[str, str], requirement: str) -> bool:
    name, _, version = requirement.partition("==")
    same = plain_name(parts.get("name", "")) == plain_name(name)
    return same and parts["version"] == version


def _fits(parts: Mapping[str, str], python: str) -> bool:
    """Whether a wheel's tags admit a Python: pure, stable ABI of an older one, or its own."""
    tags, minor = parts["python"].split("."), int(python.split(".")[1])
    if parts["abi"] == "none":
        return not {"py3", f"py3{minor}", f"cp3{minor}"}.isdisjoint(tags)
    if parts["abi"] == "abi3":
        return any(tag.startswith("cp3") and int(tag[3:]) <= minor for tag in tags)
    return f"cp3{minor}" in tags
