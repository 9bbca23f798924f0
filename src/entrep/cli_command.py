"""One command of `entrep` in the parser, and the option that several take."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def add_command(
    commands: argparse._SubParsersAction,
    common: argparse.ArgumentParser,
    name: str,
    function: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    """Add a command and give its parser, for its own options.

    Args:
        commands: of the parser of `entrep`, or of a group such as `models`.
        common: the options that all commands take.
        name: what the user types.
        function: does the work and gives the exit status.
        text: one sentence for the help.
    """
    sub = commands.add_parser(name, help=text, description=text, parents=[common])
    sub.set_defaults(command=function)
    return sub


def add_ray_option(sub: argparse.ArgumentParser) -> None:
    """Add `--ray ADDRESS`; empty text where it is not given."""
    sub.add_argument(
        "--ray",
        default="",
        metavar="ADDRESS",
        help="work on Ray: local (started for this), auto (the one that runs here), or HOST:PORT",
    )
