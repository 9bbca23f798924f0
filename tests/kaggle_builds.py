"""A small build for Kaggle, as `entrep kaggle build` leaves it, for tests."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

WHEEL = "entrep-0.1-py3-none-any.whl"


def write_build(
    folder: Path, owner: str = "alice", weights: bytes = bytes(range(256)) * 40
) -> Path:
    """One kernel `entrep-submit` with two data sets of ours and one of somebody else."""
    write_kernel(folder, owner)
    write_dataset(folder, f"{owner}/entrep-kit", {WHEEL: b"wheel", "empty.txt": b""})
    write_dataset(folder, f"{owner}/entrep-packs", {"weights.bin": weights})
    return folder


def write_kernel(folder: Path, owner: str = "alice", **changes: object) -> None:
    kernel = folder / "kernels" / "entrep-submit"
    kernel.mkdir(parents=True, exist_ok=True)
    cell = {
        "cell_type": "code",
        "execution_count": None,
        "id": "a",
        "metadata": {},
        "outputs": [],
        "source": ["import entrep\n", "print(1)"],
    }
    notebook = {
        "cells": [cell],
        "metadata": {"kernelspec": {"name": "python3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    (kernel / "06_submission.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    metadata = {
        "id": f"{owner}/entrep-submit",
        "title": "ENTRep submit",
        "code_file": "06_submission.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": False,
        "enable_tpu": False,
        "enable_internet": False,
        "keywords": [],
        "dataset_sources": [f"{owner}/entrep-kit", f"{owner}/entrep-packs", "bob/pictures"],
        "competition_sources": [],
        "kernel_sources": [f"{owner}/entrep-train"],
        "model_sources": [],
    }
    text = json.dumps({**metadata, **changes})
    (kernel / "kernel-metadata.json").write_text(text, encoding="utf-8")


def write_dataset(folder: Path, ref: str, files: dict[str, bytes]) -> Path:
    dataset = folder / "datasets" / ref.split("/")[1]
    dataset.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (dataset / name).write_bytes(content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    manifest = json.dumps({"format": 1, "files": digests})
    (dataset / "MANIFEST.json").write_text(manifest, encoding="utf-8")
    title = dataset.name.replace("-", " ")
    metadata = {"title": title, "id": ref, "licenses": [{"name": "apache-2.0"}]}
    (dataset / "dataset-metadata.json").write_text(json.dumps(metadata), encoding="utf-8")
    return dataset
