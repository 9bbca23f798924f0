"""The six notebooks in order, through papermill: what is unchanged is skipped, what fails is named.

A run folder belongs to one configuration. `manifest.json` in it records, for every finished
notebook, what went in (source, package, parameters, upstream artefacts, data, versions) and the
SHA-256 of every file that came out. A notebook is skipped when both still hold, so an interrupted
run goes on where it stopped, and a changed parameter reruns only what depends on it.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from filelock import FileLock, Timeout

from entrep import __version__
from entrep.artifacts import (
    hash_folder,
    read_json,
    sha256_file,
    sha256_json,
    write_json,
    write_text,
)
from entrep.config import RunConfig, load_config, need_pictures
from entrep.notebook import (
    Progress,
    RunError,
    declared_parameters,
    execute_notebook,
    hash_code,
    kernel_environment,
)
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


ARTIFACTS = "artifacts.bin"  # in a run folder: what `saved_run.pack_run` makes of it
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
# Other versions of these may give other numbers, so a notebook runs again with them.
VERSIONED = ("torch", "torchvision", "timm", "open_clip_torch", "numpy", "scikit-learn", "pillow")
OPTIONS = {"profile": "--profile", "data_path": "--data", "work_dir": "--out"}
BASE_PARAMETERS = ("profile", "data_path", "work_dir", "seed", "device")
_ENCODERS = ("prototype_encoder", "text_encoder", "backbone")
# Where things lie: a run folder and its cache may be moved, and go on where they are.
PLACES = ("work_dir", "cache_dir")


def run(
    profile: str = "demo",
    *,
    data: str | Path = "",
    out: str | Path = "",
    only: Sequence[str] = (),
    parameters: Mapping[str, object] | None = None,
    force: bool = False,
    notebooks: str | Path | None = None,
    steps: Sequence[Step] = NOTEBOOKS,
) -> dict[str, str]:
    """Run the notebooks whose inputs changed and gather their results in one run folder.

    Args:
        profile: "demo", "mini" or "full".
        data: the challenge's folder; empty: notebook 01 draws pictures (demo only).
        out: the run folder; empty: the profile's, below the current folder.
        only: stems or numbers ("03") of the notebooks to run; empty: all.
        parameters: further fields of `RunConfig`, passed to the notebooks that declare them.
        force: run the selected notebooks even if nothing changed.
        notebooks: folder of the notebooks; None: `notebooks/` of the checkout.
        steps: the notebooks' table, in running order.

    Returns:
        Per selected notebook "unchanged" or why it ran: "new", "parameters changed", …

    Raises:
        ValueError: for a parameter or a notebook that is not there, or for data on which a
            run could not be right, before anything is written.
        FileNotFoundError: if the data, the notebooks or needed artefacts are missing.
        RunError: if a notebook fails; its partial copy stays in `notebooks/`.
    """
    job = _prepare(profile, data, out, only, parameters, notebooks, steps)
    if job.config.data_path and NOTEBOOKS[0] in job.selected:
        # Bad data is one error before anything is written, not a failed notebook.
        from entrep.data import find_challenge

        find_challenge(job.config.data_path)
    with claim_folder(job.out):
        return job.run(surroundings(job.config.data_path), force=force)


def stale(
    profile: str = "demo",
    *,
    data: str | Path = "",
    out: str | Path = "",
    only: Sequence[str] = (),
    parameters: Mapping[str, object] | None = None,
    notebooks: str | Path | None = None,
    steps: Sequence[Step] = NOTEBOOKS,
    around: Mapping[str, object] | None = None,
) -> dict[str, str]:
    """Say why `run` with these arguments would run each selected notebook; run nothing.

    `around` is what `surroundings` gave for these data, where many folders are asked about.

    Returns:
        Per selected notebook the reason, as far as it can be told from what lies there now;
        empty text for what need not run.

    Raises:
        ValueError, FileNotFoundError, RunError: as `run` does before it writes anything.
    """
    job = _prepare(profile, data, out, only, parameters, notebooks, steps)
    job.look(surroundings(job.config.data_path) if around is None else around)
    return {step.name: job.stale(step, job.inputs(step)) for step in job.selected}


def surroundings(data_path: str) -> dict[str, object]:
    """What every notebook depends on beside itself: package, versions and the data's content."""
    return {
        "package": _hash_package(),
        "data": _fingerprint(data_path),
        "versions": {name: _version(name) for name in VERSIONED},
    }


def _prepare(
    profile: str,
    data: str | Path,
    out: str | Path,
    only: Sequence[str],
    parameters: Mapping[str, object] | None,
    notebooks: str | Path | None,
    steps: Sequence[Step],
) -> _Job:
    """Check the arguments of `run`; nothing is written."""
    parameters = dict(parameters or {})
    for name, option in OPTIONS.items():
        if name in parameters:
            raise ValueError(f"{name}: give it with {option}.")
    if data and not Path(data).is_dir():
        raise FileNotFoundError(f"{data}: there is no such folder; --data wants the challenge's.")
    # Absolute: a kernel works in another folder than this process.
    config = load_config(
        profile,
        data_path=str(Path(data).resolve()) if data else "",
        work_dir=str(out) or None,
        **parameters,
    )
    folders = {name: getattr(config, name) for name in (*PLACES, "weights_dir")}
    absolute = {name: str(Path(folder).resolve()) for name, folder in folders.items() if folder}
    config = dataclasses.replace(config, **absolute)
    selected = select_steps(only, steps)
    source = find_notebooks(notebooks, selected)
    passed = choose_parameters(config, parameters, selected, source, steps)
    job = _Job(config, source, passed, tuple(steps), selected)
    _check_run_folder(job)
    if steps[0] in selected:
        need_pictures(config)
    for step in selected:
        check_encoders(config, step, source)
    return job


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


class _Job:
    """One call of `run`, its arguments checked: decides, executes, records."""

    def __init__(
        self,
        config: RunConfig,
        source: Path,
        passed: Mapping[str, Mapping[str, object]],
        steps: tuple[Step, ...],
        selected: tuple[Step, ...],
    ) -> None:
        self.config, self.source, self.passed = config, source, passed
        self.steps, self.selected = steps, selected
        self.out = Path(config.work_dir)
        self.copies = self.out / "notebooks"
        self._outputs: dict[str, dict[str, str]] = {}  # hashes on disk, by step, once read

    def look(self, around: Mapping[str, object]) -> None:
        """Read what the folder's notebooks were made of, and take what there is now."""
        self.manifest = read_manifest(self.out)
        self.around = dict(around)

    def run(self, around: Mapping[str, object], *, force: bool) -> dict[str, str]:
        self.look(around)
        results = {}
        for step in self.selected:
            number = f"{self.steps.index(step) + 1}/{len(self.steps)} {step.name:20}"
            inputs = self.inputs(step)
            reason = self.stale(step, inputs) or ("forced" if force else "")
            results[step.name] = reason or "unchanged"
            if reason:
                self._execute(step, inputs, number, reason)
            else:
                print(f"{number} unchanged", flush=True)
        self._finish()
        return results

    def inputs(self, step: Step) -> dict[str, object]:
        """All that the notebook's result follows from."""
        given = self.passed[step.name].items()
        return {
            "notebook": hash_code(self.source / f"{step.name}.ipynb"),
            "parameters": {name: value for name, value in given if name not in PLACES},
            "upstream": sha256_json({name: self._hash_outputs(name) for name in step.upstream}),
            "encoders": check_encoders(self.config, step, self.source),
            **self.around,
        }

    def stale(self, step: Step, inputs: Mapping[str, object]) -> str:
        """Why a notebook must run; empty if it need not."""
        entry = self.manifest.get(step.name)
        if not entry:
            return "new"
        before = entry.get("inputs", {})
        changed = [name for name, value in inputs.items() if before.get(name) != value]
        if changed:
            return f"{' and '.join(changed)} changed"
        whole = (self.copies / f"{step.name}.ipynb").is_file()
        whole = whole and entry.get("outputs") == self._hash_outputs(step.name)
        return "" if whole else "outputs changed"

    def _hash_outputs(self, name: str) -> dict[str, str]:
        if name not in self._outputs:
            step = next(step for step in self.steps if step.name == name)
            hashes = {}
            for folder in owned_folders(step, self.config.data_path):
                files = hash_folder(self.out / folder)
                if folder == DRAWN:  # hundreds of pictures: one line will do
                    hashes[f"{folder}/"] = sha256_json(files)
                else:
                    hashes |= {f"{folder}/{file}": digest for file, digest in files.items()}
            self._outputs[name] = hashes
        return self._outputs[name]

    def _execute(self, step: Step, inputs: dict[str, object], number: str, reason: str) -> None:
        self.copies.mkdir(exist_ok=True)
        done = self.copies / f"{step.name}.ipynb"
        partial = self.copies / f"{step.name}.partial.ipynb"
        # Old sums must not vouch for new files, nor old files mix with new ones.
        sums = [self.out / name for name in ("SHA256SUMS", "metrics.json", ARTIFACTS)]
        for path in (done, partial, *sums):
            path.unlink(missing_ok=True)
        self.manifest.pop(step.name, None)
        for folder in [self.out / name for name in owned_folders(step, self.config.data_path)]:
            # A `data` folder that the kit did not draw is somebody's: never remove that.
            if folder.exists() and (folder.name != DRAWN or (folder / "phantom.json").is_file()):
                _empty(folder, kept=step.kept)
        self._remove_temporary(step)

        notebook = self.source / f"{step.name}.ipynb"
        started = time.monotonic()
        with Progress(number, notebook) as progress:
            try:
                with kernel_environment(self.config.profile):
                    execute_notebook(notebook, partial, self.passed[step.name], self.out, progress)
            except BaseException:  # Ctrl-C too
                progress.result = "stopped"
                self._remove_temporary(step)
                raise
            seconds = round(time.monotonic() - started, 1)
            progress.result = f"{seconds:7.1f} s" + (f"  ({reason})" if reason != "new" else "")
        os.replace(partial, done)
        self._outputs.pop(step.name, None)
        self.manifest[step.name] = {
            "inputs": inputs,
            "seconds": seconds,
            "outputs": self._hash_outputs(step.name),
        }
        self._write_manifest()

    def _remove_temporary(self, step: Step) -> None:
        """Remove what a killed kernel left behind: the temporary names of atomic writes."""
        for folder in owned_folders(step, self.config.data_path):
            left = [*self.out.glob(f".{folder}-*"), *(self.out / folder).rglob(".*")]
            for path in left:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def _write_manifest(self) -> None:
        ordered = {s.name: self.manifest[s.name] for s in self.steps if s.name in self.manifest}
        write_json(self.out / "manifest.json", {"entrep": __version__, "notebooks": ordered})

    def _finish(self) -> None:
        """Write what sums up the run folder, and say where things lie."""
        write_json(self.out / "config.json", dataclasses.asdict(self.config))
        system = {
            "entrep": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
        }
        write_json(self.out / "versions.json", system | self.around["versions"])
        scores = {step.name: self.out / step.name / "metrics.json" for step in self.steps}
        merged = {name: read_json(path) for name, path in scores.items() if path.is_file()}
        write_json(self.out / "metrics.json", merged)

        sums = {name: sha256_file(self.out / name) for name in _ROOT_FILES}
        for step in self.steps:
            sums |= self._hash_outputs(step.name)
        sums.pop(f"{DRAWN}/", None)
        lines = [f"{digest}  {name}\n" for name, digest in sorted(sums.items())]
        write_text(self.out / "SHA256SUMS", "".join(lines))

        submissions = [line for line in lines if "  submissions/" in line]
        print()
        if submissions:
            print("Submissions:\n" + "".join(f"  {line}" for line in submissions), end="")
        elif self.steps[-1] in self.selected:
            print("No submission: the data has no test lists. The scores are in metrics.json.")
        print(f"Run folder: {self.out} (metrics.json, notebooks/, SHA256SUMS)")
        behind = [s.name for s in self.steps if s not in self.selected and self._is_behind(s)]
        if behind:
            print(f"Not up to date any more: {', '.join(behind)}; run without --only.")
        sys.stdout.flush()

    def _is_behind(self, step: Step) -> bool:
        upstream = sha256_json({name: self._hash_outputs(name) for name in step.upstream})
        entry = self.manifest.get(step.name)
        return entry is not None and entry["inputs"]["upstream"] != upstream


def read_manifest(folder: Path) -> dict[str, dict]:
    """What a run folder knows of its finished notebooks: inputs, seconds, outputs' hashes."""
    try:
        return dict(read_json(folder / "manifest.json")["notebooks"])
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):
        # Somebody's edit: knowing nothing costs a rerun, guessing could cost a result.
        print("manifest.json cannot be read; every notebook runs again.", flush=True)
        return {}


def _empty(folder: Path, *, kept: str) -> None:
    """Remove a folder, or all that is in it but the files whose name matches `kept`."""
    if not kept:
        shutil.rmtree(folder)
        return
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif not path.match(kept):
            path.unlink()


_ROOT_FILES = ("config.json", "metrics.json", "versions.json")


def _check_run_folder(job: _Job) -> None:
    """Refuse a folder whose content this run could destroy or mistake for its own."""
    out, data = job.out, job.config.data_path
    if data and out.is_relative_to(data):
        raise ValueError(
            f"--out: {out} lies inside the data; its figures would pass for pictures. "
            "Choose a folder outside."
        )
    if out.exists() and not out.is_dir():
        raise RunError(f"--out: {out} is a file; choose a folder.")
    own = {"manifest.json", ".lock", *(step.name for step in job.steps)}
    content = {path.name for path in out.iterdir()} if out.exists() else set()
    if content and not content & own:
        raise RunError(
            f"--out: {out} is not empty and is no run folder ({sorted(content)[0]} is in it); "
            "choose another, so that nothing of yours is overwritten."
        )
    running = {step.name for step in job.selected}
    for step in job.selected:
        for name in step.upstream:
            if name not in running and not (out / name).is_dir():
                raise FileNotFoundError(
                    f"{step.name} needs what {name} writes, and {out / name} is not there; "
                    f"run {name} first, or all without --only."
                )


@contextmanager
def claim_folder(out: Path) -> Iterator[None]:
    """Make a run's or a sweep's folder and hold its lock, so that two never share it."""
    lock = FileLock(out / ".lock", timeout=0)  # its holder's death frees it
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise RunError(
            f"{out}: another run or sweep is at work in this folder; choose another --out."
        ) from None
    except OSError as error:
        raise RunError(
            f"--out: cannot write to {out} ({error.strerror}); choose another folder."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _hash_package() -> str:
    """SHA-256 over the package's files: code and embedded weights."""
    files = hash_folder(Path(__file__).parent)
    return sha256_json({n: digest for n, digest in files.items() if "__pycache__" not in n})


def _fingerprint(data_path: str) -> str:
    if not data_path:
        return ""
    from entrep.data import fingerprint

    return fingerprint(data_path)
