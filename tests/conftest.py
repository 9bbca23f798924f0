"""What all tests share: the `gpu` marker, axes, closed figures, the real sample."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

_SHARED = "PYTEST_XDIST_WORKER" in os.environ
if _SHARED:  # each worker has one core; read when torch is imported, and by kernels
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip_gpu = pytest.mark.skip(reason="runs where PyTorch sees a GPU")
    for item in items:
        if "gpu" in item.keywords and not _has_gpu():
            item.add_marker(skip_gpu)
    # Quick answers first; where other workers give those, the longest file starts at once.
    items.sort(key=lambda item: (item.path.name == "test_notebooks.py") != _SHARED)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(autouse=True)
def _same_threads():
    """Weights depend on the number of threads, and a run sets it for the whole process."""
    before = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    yield
    if before is not None:
        sys.modules["torch"].set_num_threads(before)


@pytest.fixture
def ax():
    """An empty figure's axes."""
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained")[1]


@pytest.fixture
def real_sample() -> Path:
    """The folder of real pictures that ENTREP_SAMPLE names; the test is skipped without it."""
    folder = os.environ.get("ENTREP_SAMPLE", "")
    if not Path(folder).is_dir() or not folder:
        pytest.skip("runs where ENTREP_SAMPLE names a folder with real pictures")
    return Path(folder)


@pytest.fixture(scope="module")
def study():
    """28 random pictures, four a class: prepared, class_index, fold, sha256."""
    rng = np.random.default_rng(0)
    prepared = rng.integers(0, 255, (28, 56, 56, 3), np.uint8)
    fold = np.repeat([0, 1, -1, 0], 7)
    return prepared, np.tile(np.arange(7), 4), fold, [f"{i:064x}" for i in range(28)]
