"""The six notebooks as a table: their order, what each reads, writes and may be given.

Nothing here runs a notebook or writes a file: what cannot work is refused before `runner` does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from entrep.config import RunConfig
from entrep.notebook import RunError, declared_parameters
from entrep.registry import find_home, pack_digest


@dataclass(frozen=True)
class Step:
    """One notebook: its file's stem, the steps whose artefacts it reads, the folders it owns."""

    name: str
    upstream: tuple[str, ...] = ()
    extra_outputs: tuple[str, ...] = ()  # beside the folder of its own name
    kept: str = ""  # files in its folder that it checks itself before it uses them again
    encoders: bool = True  # whether it cannot run without the encoders' weights

    @property
    def outputs(self) -> tuple[str, ...]:
        """Folders of the run folder that this notebook alone writes."""
        return (self.name, *self.extra_outputs)


DRAWN = "data"  # the folder of the drawn pictures; ours only when no data were given
NOTEBOOKS = (
    Step("01_eda", extra_outputs=(DRAWN,), encoders=False),
    Step("02_prototypes", upstream=("01_eda",)),
    Step("03_dinov2_finetune", upstream=("01_eda",), kept="fold*"),
    Step("04_hybrid", upstream=("01_eda", "02_prototypes", "03_dinov2_finetune"), encoders=False),
    Step("05_retrieval", upstream=("01_eda", "04_hybrid"), kept="learned_*"),
    Step(
        "06_submission",
        upstream=("01_eda", "02_prototypes", "03_dinov2_finetune", "04_hybrid", "05_retrieval"),
        extra_outputs=("submissions",),
        encoders=False,
    ),
)
OPTIONS = {"profile": "--profile", "data_path": "--data", "work_dir": "--out"}
BASE_PARAMETERS = ("profile", "data_path", "work_dir", "seed", "device")
_ENCODERS = ("prototype_encoder", "text_encoder", "backbone")
# Where things lie: a run folder and its cache may be moved, and go on where they are.
PLACES = ("work_dir", "cache_dir")


def select_steps(only: Sequence[str], steps: Sequence[Step] = NOTEBOOKS) -> tuple[Step, ...]:
    """The steps that `only` names, by stem or by number, in running order; all if it is empty."""
    names = [name.strip().removesuffix(".ipynb") for name in only if name.strip()]
    for name in names:
        if not any(_is_called(step, name) for step in steps):
            known = ", ".join(step.name for step in steps)
            raise ValueError(f"--only: there is no notebook {name!r}; there are {known}.")
    return tuple(s for s in steps if not names or any(_is_called(s, name) for name in names))


def _is_called(step: Step, name: str) -> bool:
    number = step.name.split("_")[0]
    return name == step.name or (name.isdigit() and name.zfill(2) == number)


def find_notebooks(folder: str | Path | None, steps: Iterable[Step]) -> Path:
    """The folder that holds the notebooks of `steps`; None: the one beside `src/`."""
    found = Path(folder) if folder else Path(__file__).resolve().parents[2] / "notebooks"
    for step in steps:
        if not (found / f"{step.name}.ipynb").is_file():
            raise FileNotFoundError(
                f"{found / step.name}.ipynb is not there. The notebooks come with the "
                "repository, not with the package: give their folder with --notebooks DIR."
            )
    return found.resolve()


def parse_parameters(pairs: Iterable[str]) -> dict[str, object]:
    """Turn `name=value` texts into values of the type that `RunConfig` has for that name.

    A name that `RunConfig` does not know keeps its text: `load_config` refuses it with a hint.
    """
    types = {field.name: type(field.default) for field in dataclasses.fields(RunConfig)}
    values: dict[str, object] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name, text = name.strip(), text.strip()
        if not equals or not name:
            raise ValueError(f"-p {pair}: expected name=value, such as -p epochs=8.")
        expected = types.get(name, str)
        try:
            values[name] = _BOOLEANS[text.lower()] if expected is bool else expected(text)
        except (KeyError, ValueError):
            wanted = "true or false" if expected is bool else expected.__name__
            raise ValueError(f"{name}: expected {wanted}, got {text!r}.") from None
    return values


_BOOLEANS = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}


def choose_parameters(
    config: RunConfig,
    overrides: Iterable[str],
    selected: Sequence[Step],
    source: Path,
    steps: Sequence[Step],
) -> dict[str, dict[str, object]]:
    """What each selected notebook is given: the five that all take, and the overrides it declares.

    papermill only warns about a parameter that a notebook does not declare; here it is refused.
    """
    declared = {step.name: declared_parameters(source / f"{step.name}.ipynb") for step in selected}
    for step in selected:
        missing = [name for name in BASE_PARAMETERS if name not in declared[step.name]]
        if missing:
            raise ValueError(
                f"{step.name}.ipynb: its cell tagged 'parameters' lacks {', '.join(missing)}."
            )
    for name in overrides:
        if any(name in names for names in declared.values()):
            continue
        others = [source / f"{step.name}.ipynb" for step in steps if step not in selected]
        takers = [
            path.stem for path in others if path.is_file() and name in declared_parameters(path)
        ]
        hint = f"{', '.join(takers)} does; --only leaves it out" if takers else "no notebook does"
        chosen = ", ".join(step.name for step in selected)
        raise ValueError(f"{name}: none of {chosen} takes this parameter; {hint}.")
    wanted = {*BASE_PARAMETERS, *overrides}
    return {
        name: {key: getattr(config, key) for key in names if key in wanted}
        for name, names in declared.items()
    }


def check_encoders(config: RunConfig, step: Step, source: Path) -> dict[str, str]:
    """Digest of each encoder that a notebook in the folder `source` cannot do without, by name.

    Raises:
        FileNotFoundError, ValueError: for an encoder that is not here; the message says how to
            get it.
    """
    declared = declared_parameters(source / f"{step.name}.ipynb") if step.encoders else ()
    names = sorted({getattr(config, field) for field in _ENCODERS if field in declared})
    for name in names:
        find_home(name, config.weights_dir)
    return {name: pack_digest(name, config.weights_dir) for name in names}


def owned_folders(step: Step, data_path: str) -> list[str]:
    """Folders of the run folder that the notebook writes; `data` only if it draws the pictures."""
    return [name for name in step.outputs if name != DRAWN or not data_path]


def check_run_folder(config: RunConfig, selected: Sequence[Step], steps: Sequence[Step]) -> None:
    """Refuse a run folder whose content the run could destroy, mistake for its own or miss.

    Args:
        config: with absolute places.
        selected: the steps that are to run.
        steps: the whole table; a folder with one of its outputs is a run's.

    Raises:
        ValueError: for a folder inside the data.
        RunError: for a file, and for a folder of somebody else's.
        FileNotFoundError: for a folder without what a selected notebook reads.
    """
    out, data = Path(config.work_dir), config.data_path
    if data and out.is_relative_to(data):
        raise ValueError(
            f"--out: {out} lies inside the data; its figures would pass for pictures. "
            "Choose a folder outside."
        )
    if out.exists() and not out.is_dir():
        raise RunError(f"--out: {out} is a file; choose a folder.")
    own = {"manifest.json", ".lock", *(step.name for step in steps)}
    content = {path.name for path in out.iterdir()} if out.exists() else set()
    if content and not content & own:
        raise RunError(
            f"--out: {out} is not empty and is no run folder ({sorted(content)[0]} is in it); "
            "choose another, so that nothing of yours is overwritten."
        )
    running = {step.name for step in selected}
    for step in selected:
        for name in step.upstream:
            if name not in running and not (out / name).is_dir():
                raise FileNotFoundError(
                    f"{step.name} needs what {name} writes, and {out / name} is not there; "
                    f"run {name} first, or all without --only."
                )
