"""Modules import from lower layers only, never from their neighbours."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "entrep"
LAYERS = (
    ("labels", "config", "artifacts"),
    # one file read; strokes; what can be found, and its words; encoders and files of them
    (
        "readers",
        "brush",
        "findings",
        "vocabulary",
        "registry",
        "checkpoints",
        "cache",
        "index",
        "kaggle_rules",
        "wheels",
        "unplugged",
        "namespace",
        "comparison",
        "ray_cluster",
    ),
    # the folder's parts; the endoscope's view; phrases read; search in an index
    ("layout", "scope", "disc", "sources", "phrases", "exact", "search_page"),
    ("preinstalled", "sandbox"),  # Kaggle's image and machine, as far as that goes here
    ("anatomy", "approximate"),
    ("data", "folds", "phantom", "preprocess", "metrics", "heads", "lessons"),
    ("encoders", "decode", "augment", "ranking_metrics"),
    ("embed", "packs", "network", "appearance"),
    ("probe", "attribution", "archive"),
    ("training", "bulk"),
    (
        "adapter",
        "phrase_probe",
        "prototypes",
        "finetune",
        "warmstart",
        "hybrid",
        "trust",
        "retrieval",
        "ray_embed",
    ),
    ("rerank",),
    ("spaces",),
    ("matching",),
    ("questions",),
    ("submission", "plots", "pretrain", "evaluate", "summary", "margins", "notebook"),
    ("pipeline", "classification_plots"),
    ("runner",),
    ("saved_run",),
    ("kaggle_build", "mounts"),
    ("simulate", "kaggle_plan", "kaggle_client"),
    ("kaggle_push",),
    ("sweep_spec", "sweep", "sweep_node"),
    ("sweep_table",),
    ("sweep_run", "compare", "sweep_plots", "tracking", "ray_sweep"),
    ("cli_command",),
    ("cli_sweep", "cli_search", "cli_models", "cli_kaggle"),
    ("cli",),
    ("__main__",),
)
LAYER_OF = {name: index for index, names in enumerate(LAYERS) for name in names}
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def imports_of(module: str) -> set[str]:
    """Modules of ours that a module imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: write imports in full, not relative"
            if node.module == "entrep":
                found |= {alias.name for alias in node.names} & LAYER_OF.keys()
            elif node.module.startswith("entrep."):
                found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found |= {name[1] for name in names if name[0] == "entrep" and name[1:]}
    return found


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_lower_layers_only(module):
    assert module in LAYER_OF, f"give {module} a layer in {Path(__file__).name}"
    wrong = {name for name in imports_of(module) if LAYER_OF[name] >= LAYER_OF[module]}
    assert not wrong, f"{module} imports {wrong}: move the code down or pass the thing in"


@pytest.mark.parametrize(
    "module",
    [
        "metrics",
        "ranking_metrics",
        "data",
        "folds",
        "phantom",
        "phrases",
        "retrieval",
        "rerank",
        "lessons",
        "phrase_probe",
        "notebook",
        "pipeline",
        "runner",
    ],
)
def test_these_modules_do_without_pytorch(module):
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    assert not found & {"torch", "torchvision", "timm", "open_clip"}
