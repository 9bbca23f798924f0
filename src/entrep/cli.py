"""The command `entrep`: thin commands over functions that exist anyway."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial

from entrep import __version__
from entrep.cli_command import add_command
from entrep.cli_kaggle import add_kaggle_commands
from entrep.cli_models import add_models_commands
from entrep.cli_search import add_search_commands
from entrep.cli_sweep import add_sweep_commands

# Imports stand in the commands: `entrep --help` answers without loading pandas or PyTorch.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit status.

    0: done; 1: a notebook failed, or a submission is not valid; 2: wrong arguments or data;
    130: interrupted. Our own errors print one message; `--traceback` shows where they arose.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a console may lack a character of a file's name
            stream.reconfigure(errors="replace")
    options = _parser().parse_args(arguments)
    # A polite kill (a batch system's time limit) cleans up as Ctrl-C does.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return options.command(options)
    except KeyboardInterrupt:
        print("\nentrep: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        if options.traceback or os.environ.get("ENTREP_DEBUG"):
            raise
        if not _is_ours(error):
            raise
        print(f"entrep: error: {error}", file=sys.stderr)
        return 1 if isinstance(error, RuntimeError) else 2
    finally:
        signal.signal(signal.SIGTERM, previous)


def _is_ours(error: Exception) -> bool:
    """Whether our code raised it with a message of its own, not a library in passing."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    # An OSError of the system (a full disk, no permission) says enough by itself.
    return isinstance(error, OSError) or (
        trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("entrep")
    )


def _run(options: argparse.Namespace) -> int:
    from entrep.config import load_config
    from entrep.pipeline import parse_parameters
    from entrep.runner import run
    from entrep.saved_run import save_run

    run(
        options.profile,
        data=options.data,
        out=options.out,
        only=options.only.split(","),
        parameters=parse_parameters(options.parameters),
        force=options.force,
        notebooks=options.notebooks,
    )
    save_run(load_config(options.profile, work_dir=options.out or None).work_dir)
    return 0


def _phantom(options: argparse.Namespace) -> int:
    from entrep.phantom import draw_dataset

    draw_dataset(
        options.folder, size=options.size, seed=options.seed, difficulty=options.difficulty
    )
    print(f"Drawn: {options.folder}")
    return 0


def _check_data(options: argparse.Namespace) -> int:
    from entrep.data import find_challenge

    report = find_challenge(options.folder).report
    print(report.to_string(index=False))
    return 0


def _check_submission(options: argparse.Namespace) -> int:
    from entrep.data import find_challenge
    from entrep.submission import check_submission

    challenge = find_challenge(options.data)
    problems = check_submission(options.file, options.track, challenge, split=options.split)
    for problem in problems:
        print(f"{options.file}: {problem}")
    if not problems:
        print(f"{options.file}: valid for track {options.track}")
    return 1 if problems else 0


def _evaluate(options: argparse.Namespace) -> int:
    from entrep.artifacts import write_json
    from entrep.config import describe_config, load_config
    from entrep.evaluate import describe_evaluation, evaluate
    from entrep.pipeline import parse_parameters

    given = {"data_path": options.data, "work_dir": options.out, "folds": options.folds}
    config = load_config(options.profile, **{**given, **parse_parameters(options.parameters)})
    print(describe_config(config))
    found = evaluate(config, repeats=options.repeats)
    print(describe_evaluation(found))
    if options.json:
        write_json(options.json, found)
    return 0


def _submit(options: argparse.Namespace) -> int:
    from entrep.saved_run import submit_run, unpack_run

    folder = unpack_run(options.artifacts, options.out)
    submit_run(
        folder,
        data=options.data,
        weights_dir=options.weights_dir,
        notebooks=options.notebooks,
    )
    return 0


def _demo_weights(options: argparse.Namespace) -> int:
    from entrep.pretrain import train_demo_weights

    train_demo_weights(options.folder, seed=options.seed, device=options.device)
    return 0


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--traceback", action="store_true", help="show where an error arose")
    parser = argparse.ArgumentParser(
        prog="entrep", description="Kit for the ENTRep challenge: endoscopy of ear, nose, throat."
    )
    parser.add_argument("--version", action="version", version=f"entrep {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    command = partial(add_command, commands, common)

    sub = command("run", _run, "Run the notebooks, from the pictures to the three submissions.")
    sub.add_argument(
        "--profile",
        default="demo",
        help="demo: drawn pictures and the embedded encoders (default); mini: real pictures "
        "without a model hub; full: the reference's encoders",
    )
    sub.add_argument("--data", default="", metavar="DIR", help="the challenge's folder")
    sub.add_argument("--out", default="", metavar="DIR", help="run folder (runs/PROFILE)")
    sub.add_argument("--only", default="", metavar="03,04", help="only these notebooks")
    sub.add_argument(
        "-p",
        dest="parameters",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter of the notebooks, such as -p epochs=8; may be repeated",
    )
    sub.add_argument("--force", action="store_true", help="run even what has not changed")
    sub.add_argument("--notebooks", metavar="DIR", help="folder of the notebooks")

    sub = command("submit", _submit, "Make the submissions again from a run's artifacts.bin.")
    sub.add_argument("artifacts", metavar="FILE")
    sub.add_argument("--out", required=True, metavar="DIR", help="new folder to unpack into")
    sub.add_argument("--data", default="", metavar="DIR", help="pictures to measure noise with")
    sub.add_argument("--weights-dir", default="", metavar="DIR", help="folder with model packs")
    sub.add_argument("--notebooks", metavar="DIR", help="folder of the notebooks")

    sub = command("evaluate", _evaluate, "Score frozen features, the reference and ours.")
    sub.add_argument("--data", required=True, metavar="DIR", help="folder with labelled pictures")
    sub.add_argument("--profile", default="mini", help="mini (default) or full")
    sub.add_argument("--folds", type=int, default=5, help="of a cross-validation (5)")
    sub.add_argument("--repeats", type=int, default=2, help="cross-validations (2)")
    sub.add_argument("--json", default="", metavar="FILE", help="write the scores here too")
    sub.add_argument("--out", default="runs/evaluate", metavar="DIR", help="(runs/evaluate)")
    sub.add_argument("-p", dest="parameters", action="append", default=[], metavar="NAME=VALUE")

    sub = command("phantom", _phantom, "Draw a data set in the challenge's layout.")
    sub.add_argument("folder", metavar="DIR", help="new or empty folder")
    sub.add_argument("--size", type=float, default=0.25, help="share of the real counts (0.25)")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--difficulty", type=float, default=0.4, help="0 easy to 1 hard (0.4)")

    sub = command("check-data", _check_data, "Say what a data folder holds and what is wrong.")
    sub.add_argument("folder", metavar="DIR")

    sub = command("check-submission", _check_submission, "Check a submission, JSON or zip.")
    sub.add_argument("file", metavar="FILE")
    sub.add_argument("--track", type=int, choices=(1, 2, 3), required=True)
    sub.add_argument("--data", required=True, metavar="DIR", help="the challenge's folder")
    sub.add_argument("--split", default="auto", choices=("auto", "public", "private", "test"))

    add_sweep_commands(commands, common)
    add_search_commands(commands, common)
    add_models_commands(commands, common)
    add_kaggle_commands(commands, common)

    sub = command("demo-weights", _demo_weights, "Train the two embedded encoders anew.")
    sub.add_argument("folder", nargs="?", default="weights", metavar="DIR", help="(weights)")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--device", default="cpu")
    return parser
