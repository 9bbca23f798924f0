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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from entrep.notebook import Progress, RunError, execute_notebook, hash_code, kernel_environment
from entrep.pipeline import (
    DRAWN,
    NOTEBOOKS,
    OPTIONS,
    PLACES,
    Step,
    check_encoders,
    check_run_folder,
    choose_parameters,
    find_notebooks,
    owned_folders,
    select_steps,
)

ARTIFACTS = "artifacts.bin"  # in a run folder: what `saved_run.pack_run` makes of it
_ROOT_FILES = ("config.json", "metrics.json", "versions.json")
# Other versions of these may give other numbers, so a notebook runs again with them.
VERSIONED = ("torch", "torchvision", "timm", "open_clip_torch", "numpy", "scikit-learn", "pillow")


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
    check_run_folder(config, selected, steps)
    if steps[0] in selected:
        need_pictures(config)
    for step in selected:
        check_encoders(config, step, source)
    return _Job(config, source, passed, tuple(steps), selected)


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
