"""The one table of Kaggle kernels: which notebook becomes which kernel, and what it is given.

Rendered notebooks and metadata are build products of this table (`kaggle/build/`, not in git).
There is no `__init__.py` here: it would hide the installed `kaggle` client.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Kernel:
    """One kernel: its notebook, its title, and the kernels whose output it reads."""

    notebook: str  # stem in notebooks/
    title: str  # Kaggle derives the slug from it
    gpu: bool = False
    reads: tuple[str, ...] = ()  # stems

    @property
    def slug(self) -> str:
        """Lower case, everything else than letters and digits to single hyphens: Kaggle's rule."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


KERNELS = (
    Kernel("01_eda", "ENTRep 01 Look at the data"),
    Kernel("02_prototypes", "ENTRep 02 Prototypes", gpu=True, reads=("01_eda",)),
    Kernel("03_dinov2_finetune", "ENTRep 03 Fine-tune DINOv2", gpu=True, reads=("01_eda",)),
    Kernel(
        "04_hybrid",
        "ENTRep 04 Hybrid",
        reads=("01_eda", "02_prototypes", "03_dinov2_finetune"),
    ),
    Kernel("05_retrieval", "ENTRep 05 Retrieval", gpu=True, reads=("01_eda", "04_hybrid")),
    Kernel(
        "06_submission",
        "ENTRep 06 Submission",
        reads=("01_eda", "02_prototypes", "03_dinov2_finetune", "04_hybrid", "05_retrieval"),
    ),
)
BUNDLE_SLUG = "entrep-kit"  # the data set that carries the package and its weights


def kernel_metadata(kernel: Kernel, owner: str, data_sources: tuple[str, ...] = ()) -> dict:
    """The content of `kernel-metadata.json`.

    Args:
        kernel: a row of `KERNELS`.
        owner: the Kaggle user who pushes.
        data_sources: "owner/slug" of the data sets with the challenge's pictures.
    """
    slugs = {other.notebook: other.slug for other in KERNELS}
    return {
        "id": f"{owner}/{kernel.slug}",
        "title": kernel.title,
        "code_file": f"{kernel.notebook}.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": kernel.gpu,
        "enable_tpu": False,
        "enable_internet": False,  # the client's default is true, whatever its manual says
        "dataset_sources": [f"{owner}/{BUNDLE_SLUG}", *data_sources],
        "competition_sources": [],
        "kernel_sources": [f"{owner}/{slugs[name]}" for name in kernel.reads],
        "model_sources": [],
    }


def dataset_metadata(owner: str) -> dict:
    """The content of `dataset-metadata.json` of the bundle."""
    return {
        "title": "ENTRep kit",
        "id": f"{owner}/{BUNDLE_SLUG}",
        "licenses": [{"name": "other"}],  # code and embedded weights: MIT
    }
