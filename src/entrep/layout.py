"""Which of the challenge's files lie below a folder, and what each is for.

Downloads of the challenge differ in their folders, so nothing here knows a tree. Training files
are known by their names, test lists by theirs and by their folders' names. A picture belongs to
the split that the nearest telling folder above it names, else to the training set.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from entrep.readers import PICTURE_SUFFIXES, DataError, first_three

TRAIN_FILES = ("cls.json", "i2i.json", "t2i.json", "data.json")
TRACKS = ("cls", "i2i", "t2i")
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")


@dataclass
class FoundFiles:
    """The files below `root` by their use, as POSIX paths relative to it, sorted."""

    root: Path
    pictures: list[str] = field(default_factory=list)
    train: dict[str, list[str]] = field(default_factory=dict)  # by name, shallowest first
    lists: dict[tuple[str, str], list[str]] = field(default_factory=dict)  # by (split, track)
    archives: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)  # tables that are no list of a test set
    rubbish: list[str] = field(default_factory=list)

    @property
    def hint(self) -> str:
        """What may be the reason when something is missing."""
        if not self.archives:
            return ""
        return f" Still packed there: {first_three(self.archives)}; unpack if it is in there."


def find_files(root: str | Path) -> FoundFiles:
    """Sort the files below `root` by their use; rubbish of archivers and desktops is set aside.

    Raises:
        FileNotFoundError: if there is no such folder.
        DataError: if it is a file, a part of it cannot be listed, or no picture is in it.
    """
    if not str(root):
        raise DataError("The data folder's name is empty; give the challenge's folder.")
    root = Path(root).expanduser()
    if root.is_file():
        packed = "; unpack it first" if root.suffix.lower() in _ARCHIVES else ""
        raise DataError(f"{root} is a file{packed}; give the folder with the challenge's files.")
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: there is no such folder; give the challenge's folder.")

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}.") from error

    found = FoundFiles(root)
    seen = {os.path.realpath(root)}
    for folder, subfolders, names in os.walk(root, onerror=refuse, followlinks=True):
        base = Path(folder).relative_to(root)
        kept = []
        for name in sorted(subfolders):
            if name == "__MACOSX" or name.startswith("."):
                found.rubbish.append((base / name).as_posix() + "/")
                continue
            target = os.path.realpath(os.path.join(folder, name))
            if target not in seen:  # a link may lead back up
                seen.add(target)
                kept.append(name)
        subfolders[:] = kept
        for name in names:
            _sort_file(found, base / name)
    for paths in (found.pictures, found.archives, found.unread, found.rubbish):
        paths.sort()
    for paths in (*found.train.values(), *found.lists.values()):
        paths.sort(key=lambda path: (path.count("/"), path))
    if not found.pictures:
        raise DataError(f"{root}: no picture ({', '.join(PICTURE_SUFFIXES)}) in it.{found.hint}")
    return found


def _sort_file(found: FoundFiles, path: Path) -> None:
    name, text = path.name.lower(), path.as_posix()
    if name.startswith(".") or name in ("thumbs.db", "desktop.ini"):
        found.rubbish.append(text)
    elif name.endswith(PICTURE_SUFFIXES):
        found.pictures.append(text)
    elif name in TRAIN_FILES:
        found.train.setdefault(name, []).append(text)
    elif name.endswith(".csv"):
        track, split = _track(path), split_above(PurePosixPath(text), default="test")
        if track and split != "train":
            found.lists.setdefault((split, track), []).append(text)
        else:
            found.unread.append(text)
    elif name.endswith(_ARCHIVES):
        found.archives.append(text)


def _track(path: Path) -> str:
    words = re.split(r"[^a-z0-9]+", path.stem.lower())
    for track in TRACKS:
        if track in words:
            return track
    number = re.search(r"track[ _-]?([123])", path.as_posix().lower())
    return TRACKS[int(number[1]) - 1] if number else ""


def split_above(path: PurePosixPath, *, default: str, train_folders: Iterable[str] = ()) -> str:
    """The split that the nearest telling name says: the file's own, then its folders' upwards."""
    for place in (path, *path.parents):
        if str(place) in train_folders:
            return "train"
        for split in ("private", "public", "train"):
            if split in place.name.lower():
                return split
        if re.search(r"(?:^|[^A-Za-z])[Tt][Ee][Ss][Tt]|Test", place.name):
            return "test"
    return default
