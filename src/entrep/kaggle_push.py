"""Kernels sent to Kaggle, watched, submitted, and their results fetched."""

from __future__ import annotations

import io
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from entrep.artifacts import sha256_file
from entrep.kaggle_client import RENAME, KaggleError, code_of, explained, wait_for
from entrep.kaggle_plan import DataSet, Plan
from entrep.kaggle_rules import MANIFEST_FILE

if TYPE_CHECKING:
    from kaggle.api.kaggle_api_extended import KaggleApi

LISTED_S = 120.0  # after which a submission must be in the list
AS_BUILT = "as built"  # the state of a data set that needs no sending
_INVALID = {
    "invalid_dataset_sources": "data sets: not there, not shared with you, or not ready yet; "
    "'--datasets' sends those of the build, other names stand in kaggle/kernels.py",
    "invalid_competition_sources": "competitions: misspelt, or their rules not accepted on "
    "Kaggle's page yet",
    "invalid_kernel_sources": "kernels: push these first and let them run to COMPLETE",
    "invalid_model_sources": "models: must be OWNER/MODEL/FRAMEWORK/VARIATION/VERSION and "
    "shared with you",
    "invalid_tags": "keywords: take them out of the metadata, Kaggle knows only its own",
}


def push(api: KaggleApi, plan: Plan, *, datasets: bool, timeout_s: float) -> int:
    """Send a kernel, after its data sets; Kaggle starts to run it.

    Args:
        api: of `log_in`.
        plan: of `load_plan`.
        datasets: send the data sets that Kaggle lacks or has in another version. Otherwise
            such a data set is an error.
        timeout_s: for Kaggle to take in one data set.

    Returns:
        The number of the kernel's new version.

    Raises:
        KaggleError: if anything is refused. A data set that was sent before stays, and the next
            push does not send it again.
    """
    _check_owner(api, plan)
    for dataset in plan.datasets:
        _bring_up_to_date(api, dataset, send=datasets, timeout_s=timeout_s)
    what = f"Kernel {plan.ref}"
    with explained(what):
        answer = api.kernels_push(str(plan.folder))
    if answer.error:
        raise KaggleError(
            f"{what}: Kaggle says: {answer.error}\nNothing runs. Mend that and push again; two "
            "GPU runs at a time are the most that Kaggle takes."
        )
    faults = [
        f"{', '.join(getattr(answer, key))} ({mend})"
        for key, mend in _INVALID.items()
        if getattr(answer, key)
    ]
    if faults:
        raise KaggleError(
            f"{what}: Kaggle left out {'; '.join(faults)}. Version {answer.version_number} runs "
            f"without them: cancel it at {answer.url or 'its page'}, mend that and push again."
        )
    if not answer.version_number:
        raise KaggleError(f"{what}: Kaggle named no version; see its page before you push again.")
    print(f"{what}: version {answer.version_number} is on its way, {answer.url}")
    return answer.version_number


def show_run(api: KaggleApi, ref: str) -> None:
    """Print the state of a kernel's run.

    Raises:
        KaggleError: if the run failed or was cancelled.
    """
    with explained(f"Kernel {ref}"):
        print(f"Kernel {ref}: {_run_state(api, ref)[0]}")


def await_run(api: KaggleApi, ref: str, *, timeout_s: float) -> None:
    """Wait until a kernel's run is COMPLETE, and show its state meanwhile.

    Args:
        api: of `log_in`.
        ref: OWNER/SLUG or OWNER/SLUG/VERSION.
        timeout_s: to wait at most.

    Raises:
        KaggleError: if the run failed, was cancelled or has not ended in time.
    """
    wait_for(f"Kernel {ref}", lambda: _run_state(api, ref), timeout_s=timeout_s)


def fetch_output(api: KaggleApi, ref: str, to: str | Path) -> None:
    """Download all that a kernel's run wrote, and its log.

    Args:
        api: of `log_in`.
        ref: OWNER/SLUG or OWNER/SLUG/VERSION.
        to: new or empty folder; it appears when everything is there.

    Raises:
        ValueError: if the folder holds something.
        KaggleError: if the download fails, or a file's name would leave the folder.
    """
    to = Path(to)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ValueError(f"{to}: there is something already; give a new or empty folder.")
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{to.name}-", dir=to.parent) as temporary:
        whole = Path(temporary, "output")
        with explained(f"Output of {ref}"):
            # The client refuses names that lead out of the folder, and follows the pages.
            api.kernels_output(ref, str(whole), quiet=False, page_size=200)
        if to.is_dir():
            to.rmdir()
        whole.rename(to)


def submit_kernel(api: KaggleApi, ref: str, *, competition: str, file: str, message: str) -> None:
    """Submit an output file of a kernel's version to a code competition.

    Args:
        api: of `log_in`.
        ref: OWNER/SLUG/VERSION.
        competition: its slug.
        file: name of the output file, such as "track1.zip".
        message: the submission's description.

    Raises:
        KaggleError: if it is refused or does not appear in the list of submissions.
    """
    what = f"Submission of {ref} to {competition}"
    kernel, _, version = ref.rpartition("/")
    with explained(what):
        before = {entry.ref for entry in api.competition_submissions(competition) or ()}
        answer = api.competition_submit_code(
            file, message, competition, kernel, int(version), quiet=True
        )

    def listed() -> tuple[str, bool]:
        for entry in api.competition_submissions(competition) or ():
            if entry.ref not in before and entry.description.strip() == message.strip():
                if entry.status.name == "ERROR":
                    reason = entry.error_description or "no reason given"
                    raise KaggleError(f"{what}: Kaggle could not score it: {reason}")
                return f"listed, {entry.status.name}", True
        return f"not in the list yet ({answer.message or 'no message'})", False

    wait_for(what, listed, timeout_s=LISTED_S)


def _check_owner(api: KaggleApi, plan: Plan) -> None:
    owner, user = plan.ref.split("/")[0], api.get_config_value(api.CONFIG_NAME_USER)
    if user and user.lower() != owner.lower():
        raise KaggleError(
            f"{plan.folder} is built for {owner}, but the login is that of {user}: run 'entrep "
            f"kaggle build --owner {user}', or log in as {owner}."
        )


def _bring_up_to_date(api: KaggleApi, dataset: DataSet, *, send: bool, timeout_s: float) -> None:
    """See to it that Kaggle has a data set as it was built, and ready."""
    what = f"Data set {dataset.ref}"
    state = wait_for(what, lambda: _dataset_state(api, dataset), timeout_s=timeout_s)
    if state == AS_BUILT:
        return
    if not send:
        raise KaggleError(f"{what}: {state} on Kaggle; send it with --datasets.")
    with explained(what):
        if state == "not there":
            answer = api.dataset_create_new(str(dataset.folder))
        else:
            answer = api.dataset_create_version(str(dataset.folder), "entrep kaggle push")
    if answer.error or answer.status == "error":
        raise KaggleError(
            f"{what}: Kaggle says: {answer.error or 'error'}\nIf the name is taken, {RENAME}."
        )

    def taken_in() -> tuple[str, bool]:
        state, _ = _dataset_state(api, dataset)
        if state == "failed" or state.startswith("without "):
            raise KaggleError(f"{what}: {state} on Kaggle; see its page there, then push again.")
        return state, state == AS_BUILT

    wait_for(what, taken_in, timeout_s=timeout_s)


def _dataset_state(api: KaggleApi, dataset: DataSet) -> tuple[str, bool]:
    """How a data set stands, in words of ours or Kaggle's, and whether Kaggle is done with it.

    After an upload Kaggle may call the previous version ready for a while, so it is the manifest
    that tells versions apart.
    """
    import requests

    status = ""
    try:
        status = api.dataset_status(dataset.ref)
        if status != "ready":
            return status.replace("_", " "), status in ("failed", "deleted")
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
            api.dataset_download_file(dataset.ref, MANIFEST_FILE, folder, force=True, unzip=True)
            (served,) = Path(folder).iterdir()
            if sha256_file(served) != dataset.files[MANIFEST_FILE]:
                return "another version", True
        missing = sorted(dataset.files.keys() - _listed_files(api, dataset.ref))
    except requests.HTTPError as error:
        if code_of(error.response) not in (403, 404):  # 403: also for what is not there
            raise
        return "another version" if status else "not there", True
    return f"without {', '.join(missing)}" if missing else AS_BUILT, True


def _listed_files(api: KaggleApi, ref: str) -> set[str]:
    names, page = set(), None
    while True:
        answer = api.dataset_list_files(ref, page, page_size=200)
        names.update(file.name for file in answer.dataset_files)
        page = answer.next_page_token
        if not page:
            return names


def _run_state(api: KaggleApi, ref: str) -> tuple[str, bool]:
    answer = api.kernels_status(ref)
    state = answer.status.name
    if state in ("ERROR", "CANCEL_REQUESTED", "CANCEL_ACKNOWLEDGED"):
        reason = f": {answer.failure_message}" if answer.failure_message else ""
        raise KaggleError(
            f"Kernel {ref}: its run ended with {state}{reason}\n"
            f"'entrep kaggle output {ref} --to DIR' fetches its log and what it wrote."
        )
    return state, state == "COMPLETE"
