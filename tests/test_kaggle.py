"""The table of Kaggle kernels agrees with the notebooks and with Kaggle's rules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from entrep.runner import NOTEBOOKS

FOLDER = Path(__file__).resolve().parents[1] / "kaggle"
spec = importlib.util.spec_from_file_location("kernels", FOLDER / "kernels.py")
kernels = importlib.util.module_from_spec(spec)
sys.modules["kernels"] = kernels  # dataclasses looks its module up there
spec.loader.exec_module(kernels)


def test_kernels_are_the_notebooks_with_the_runners_order_and_inputs():
    rows = [(kernel.notebook, kernel.reads) for kernel in kernels.KERNELS]
    assert rows == [(step.name, step.upstream) for step in NOTEBOOKS]


@pytest.mark.parametrize("kernel", kernels.KERNELS, ids=lambda kernel: kernel.notebook)
def test_a_kernel_keeps_to_kaggles_limits(kernel):
    assert 5 <= len(kernel.title) <= 50
    assert len(kernel.slug) >= 5
    data = kernels.kernel_metadata(kernel, "someone", ("entrep/pictures",))
    assert data["id"] == f"someone/{kernel.slug}"
    assert data["enable_internet"] is False
    assert data["dataset_sources"] == ["someone/entrep-kit", "entrep/pictures"]
    assert all(source.count("/") == 1 for source in data["kernel_sources"])


def test_the_folder_does_not_hide_the_kaggle_client():
    assert not (FOLDER / "__init__.py").exists()
