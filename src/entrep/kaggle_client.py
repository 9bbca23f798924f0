"""Kaggle's official client: logged in, asked with patience, and its errors with their mends.

The client's own command ends with status 0 when the server reports an error, and some reports it
does not show at all. Here each of them is a `KaggleError` that says how to mend it.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

from tqdm import tqdm

# The client logs in when it is imported, and it is not always installed: import it in functions.
if TYPE_CHECKING:
    from kaggle.api.kaggle_api_extended import KaggleApi
    from requests import RequestException, Response

POLL_S = 15.0  # between two questions while something goes on at Kaggle
RENAME = "change the title in kaggle/kernels.py and run 'entrep kaggle build' again"
_LOGIN = (
    "Make a token at https://www.kaggle.com/settings/api and give it to Kaggle's client: in "
    "~/.kaggle/access_token, or as KAGGLE_API_TOKEN; 'kaggle auth login', kaggle.json and "
    "KAGGLE_USERNAME with KAGGLE_KEY do, too."
)
_MENDS = {
    400: "Kaggle takes about 0.9 MB of notebook, and known names in the metadata only; make the "
    "notebook smaller or mend its row in kaggle/kernels.py, and run 'entrep kaggle build' again.",
    401: f"Kaggle does not accept the login. {_LOGIN}",
    403: "The login may not do that, or the name is misspelt. Is it the login of the owner in the "
    "name, is the account verified by telephone, are the competition's rules accepted? If the "
    f"token is old: {_LOGIN}",
    404: "Kaggle does not know it. Check the name: Kaggle makes a slug from the title when it "
    f"first sees it; if the two differ, {RENAME}.",
    409: "The slug is taken: a kernel must not share it with another kernel or a data set of "
    f"yours; {RENAME}.",
    429: "Kaggle asks to wait before the next request; run the same command again later.",
}
_TROUBLE = "Kaggle is in trouble; run the same command again later."
_PASSING = (429, 500, 502, 503, 504)  # answers after which waiting goes on


class KaggleError(RuntimeError):
    """Kaggle refused something or did not answer; the message says what to do about it."""


def log_in() -> KaggleApi:
    """Kaggle's client, logged in with what it finds where it always looks.

    Raises:
        KaggleError: if the client is not installed, finds no login, or cannot check it.
    """
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            from kaggle.api.kaggle_api_extended import KaggleApi

            api = KaggleApi()
            # With VERBOSE in the environment it prints each request, the login included.
            api.args = [argument for argument in api.args if argument != "--verbose"]
            with explained("Login"):
                api.authenticate()
    except ImportError as error:
        raise KaggleError(
            f"Kaggle's client is not installed ({error}): pip install 'entrep[kaggle]'"
        ) from error
    except SystemExit:
        raise KaggleError(f"There is no valid login for Kaggle. {_LOGIN}") from None
    for line in dict.fromkeys(said.getvalue().splitlines()):
        if line.startswith("Warning"):  # such as: others may read the key
            print(line, file=sys.stderr)
    return api


def wait_for(what: str, ask: Callable[[], tuple[str, bool]], *, timeout_s: float) -> str:
    """Ask until it is done, and show the state and how long it has taken.

    Args:
        what: begins every line and message.
        ask: gives a state in words, and whether that is the end.
        timeout_s: to wait at most.

    Returns:
        The last state.

    Raises:
        KaggleError: if the time is over, or Kaggle refuses to answer. Once there was an answer,
            a missing one is waited for: a short failure must not give up a long run.
    """
    import requests

    start, state = time.monotonic(), ""
    with explained(what), tqdm(bar_format="{desc} [{elapsed}]", desc=what) as bar:
        while True:
            try:
                state, done = ask()
            except requests.RequestException as error:
                refused = error.response is not None and code_of(error.response) not in _PASSING
                if refused or not state:
                    raise
                state, done = f"no answer ({type(error).__name__})", False
            bar.set_description_str(f"{what}: {state}")
            if done:
                return state
            if time.monotonic() - start >= timeout_s:
                raise KaggleError(
                    f"{what}: {state} after {timeout_s / 60:.0f} min. It may still go on at "
                    "Kaggle: look at its page, or ask again later."
                )
            time.sleep(POLL_S)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn what the client raises into one message of ours."""
    import requests

    try:
        yield
    except requests.RequestException as error:
        raise KaggleError(f"{what}: {_describe(error)}") from error
    except ValueError as error:
        # The client puts its own guess over some answers; the answer itself says more.
        answer = error.__context__
        if not isinstance(answer, requests.RequestException):
            raise KaggleError(f"{what}: {error}") from error
        raise KaggleError(f"{what}: {_describe(answer)}") from error


def _describe(error: RequestException) -> str:
    if error.response is None:  # not "if not": a response is false when it reports an error
        return (
            f"no connection to Kaggle ({type(error).__name__}); check the network and the "
            "proxy's settings, and run the same command again."
        )
    code = code_of(error.response)
    said = _body(error.response).get("message") or error.response.reason or "no reason given"
    wait = error.response.headers.get("Retry-After")
    wait = f", Retry-After {wait}" if wait else ""
    return f"Kaggle says: {str(said)[:300]} ({code}{wait})\n{_MENDS.get(code, _TROUBLE)}"


def code_of(response: Response) -> int:
    """The error's number: a 200 may carry another one in its body."""
    code = _body(response).get("code")
    return code if isinstance(code, int) and code >= 400 else response.status_code


def _body(response: Response) -> dict:
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
