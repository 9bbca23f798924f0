"""The commands `entrep models …`: the encoders, and the packs that they are kept in."""

from __future__ import annotations

import argparse
from functools import partial

from entrep.cli_command import add_command

# Imports stand in the commands, as in `cli`.


def add_models_commands(
    commands: argparse._SubParsersAction, common: argparse.ArgumentParser
) -> None:
    """Add `models` with its commands.

    Args:
        commands: of the parser of `entrep`.
        common: the options that all commands take.
    """
    text = "Encoders and their model packs: folders that load anywhere, without a network."
    models = commands.add_parser("models", help=text, description=text).add_subparsers(
        title="commands", metavar="COMMAND", required=True
    )
    command = partial(add_command, models, common)

    sub = command("list", _list, "List the encoders: input, width, licence, source.")
    sub.add_argument("--packs", default="", metavar="DIR", help="and the packs below this folder")

    sub = command("show", _show, "Show all that is known of one encoder.")
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("--packs", default="", metavar="DIR", help="folder with model packs")

    sub = command("fetch", _fetch, "Download an encoder from its hub and pack it.")
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("--to", required=True, metavar="DIR", help="new folder for the pack")
    sub.add_argument("--revision", default="", help="commit of the repository (the registry's)")

    sub = command("pack", _pack, "Make a pack of files that are here.")
    sub.add_argument("name", metavar="NAME")
    sub.add_argument(
        "--from",
        dest="sources",
        required=True,
        nargs="+",
        metavar="FILES",
        help="weights, or folders: a hub's snapshot or cache, a mounted data set",
    )
    sub.add_argument("--to", required=True, metavar="DIR", help="new folder for the pack")
    sub.add_argument("--revision", default="", help="commit that the files come from")

    sub = command("verify", _verify, "Check every file of a pack and one forward pass.")
    sub.add_argument("folders", nargs="+", metavar="DIR")


def _list(options: argparse.Namespace) -> int:
    from entrep.registry import ENCODERS, OPEN_NAMES, find_packs

    packs = find_packs(options.packs) if options.packs else {}
    here = {name: folder for folder, name in packs.items()}
    for spec in ENCODERS.values():
        where = str(here.pop(spec.name, "")) or spec.source
        print(
            f"{spec.name:18} {spec.family:5} {spec.image_size:4} px {spec.width:5}-d  "
            f"{spec.licence:16} {where}"
        )
    for name, folder in here.items():
        print(f"{name:18} {folder}")
    print(f"and any {', '.join(OPEN_NAMES)}; @PIXELS behind a name asks for another input size")
    return 0


def _show(options: argparse.Namespace) -> int:
    import dataclasses

    from entrep.registry import find_home

    home, spec = find_home(options.name, options.packs, needed=False)
    for key, value in {**dataclasses.asdict(spec), "terms": spec.terms}.items():
        print(f"{key:12} {', '.join(map(str, value)) if isinstance(value, tuple) else value}")
    print(f"{'pack':12} {home or 'none here'}")
    return 0


def _fetch(options: argparse.Namespace) -> int:
    from entrep.packs import fetch_pack

    print(f"Packed: {fetch_pack(options.name, options.to, revision=options.revision)}")
    return 0


def _pack(options: argparse.Namespace) -> int:
    from entrep.packs import make_pack

    folder = make_pack(options.name, options.sources, options.to, revision=options.revision)
    print(f"Packed: {folder}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from entrep.packs import verify_pack

    for folder in options.folders:
        print(verify_pack(folder))
    return 0
