"""The commands `entrep kaggle …`: build, simulate, push and what comes back."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

from entrep.cli_command import add_command

# Imports stand in the commands, as in `cli`.


def add_kaggle_commands(
    commands: argparse._SubParsersAction, common: argparse.ArgumentParser
) -> None:
    """Add `kaggle` with its commands.

    Args:
        commands: of the parser of `entrep`.
        common: the options that all commands take.
    """
    text = "Kaggle kernels: build them from the one table, with the data sets they mount."
    kaggle = commands.add_parser("kaggle", help=text, description=text).add_subparsers(
        title="commands", metavar="COMMAND", required=True
    )
    command = partial(add_command, kaggle, common)

    sub = command("build", _build, "Render the kernels and gather what they mount.")
    sub.add_argument("--out", default="", metavar="DIR", help="folder to make (kaggle/build)")
    sub.add_argument("--run", default="", metavar="DIR", help="run whose artefacts to submit from")
    sub.add_argument("--owner", default="owner", metavar="NAME", help="Kaggle user, to push")
    sub.add_argument("--data", default="", metavar="SOURCE", help="pictures there: OWNER/SLUG")
    sub.add_argument("--packs", default="", metavar="DIR", help="folder with model packs")
    sub.add_argument("--accelerator", default="gpu", choices=("gpu", "cpu"), help="(gpu)")
    sub.add_argument("--wheels", default="", metavar="DIR", help="wheels, instead of a download")
    sub.add_argument("-p", dest="parameters", action="append", default=[], metavar="NAME=VALUE")

    _simulate_parser(command)
    _push_parsers(command)


def _simulate_parser(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command("simulate", _simulate, "Run a built kernel here as Kaggle would run it.")
    sub.add_argument("kernel", metavar="KERNEL", help="its slug, such as entrep-submit")
    sub.add_argument("--out", default="runs/kaggle", metavar="DIR", help="outputs (runs/kaggle)")
    sub.add_argument("--layout", default="new", choices=("new", "old"), help="of inputs (new)")
    sub.add_argument("--data", default="", metavar="DIR", help="stands for the source not built")
    sub.add_argument("--compare", default="", metavar="RUN", help="whose submissions it must give")
    sub.add_argument("--accelerator", default="", choices=("cpu", "gpu"), help="(as built)")
    sub.add_argument("--rerun", action="store_true", help="as in a competition's scoring rerun")
    sub.add_argument(
        "--level",
        default="auto",
        choices=("auto", "root", "user", "plain"),
        help="isolation: namespaces made as root or as a user, or none (the best that works)",
    )
    sub.add_argument(
        "--timeout-s", type=float, default=12 * 3600, metavar="N", help="time limit (12 hours)"
    )
    _build_option(sub)


def _push_parsers(command: Callable[..., argparse.ArgumentParser]) -> None:
    versioned = "its slug, or OWNER/SLUG; /VERSION after it, else the newest"

    def timeout(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--timeout-min", type=float, default=120, help="to wait at most (120)")

    sub = command("push", _push, "Show what a push sends; with --yes, send and run it.")
    sub.add_argument("kernel", metavar="KERNEL", help="its slug, such as entrep-submit")
    sub.add_argument("--yes", action="store_true", help="really send it")
    sub.add_argument("--datasets", action="store_true", help="its data sets first, if they changed")
    sub.add_argument("--wait", action="store_true", help="until the run has ended")
    timeout(sub)
    _build_option(sub)

    sub = command("status", _status, "Show how a kernel's run goes; 1 if it failed.")
    sub.add_argument("kernel", metavar="KERNEL", help=versioned)
    sub.add_argument("--wait", action="store_true", help="until the run has ended")
    timeout(sub)
    _build_option(sub)

    sub = command("output", _output, "Fetch what a kernel's run wrote.")
    sub.add_argument("kernel", metavar="KERNEL", help=versioned)
    sub.add_argument("--to", required=True, metavar="DIR", help="new or empty folder")
    sub.add_argument(
        "--compare",
        default="",
        metavar="RUN",
        help="run with the same submissions",
    )
    _build_option(sub)

    sub = command("submit-kernel", _submit_kernel, "Submit an output to a code competition.")
    sub.add_argument("kernel", metavar="KERNEL/VERSION", help="as a push printed it")
    sub.add_argument("--competition", required=True, metavar="SLUG")
    sub.add_argument("--file", required=True, help="output, such as submissions/track1.zip")
    sub.add_argument("-m", "--message", required=True, help="description of the submission")
    sub.add_argument("--yes", action="store_true", help="really submit it")
    _build_option(sub)


def _build_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--build", default="", metavar="DIR", help="built folder (kaggle/build)")


def _build(options: argparse.Namespace) -> int:
    from entrep.kaggle_build import build
    from entrep.pipeline import parse_parameters

    folder = build(
        options.out,
        owner=options.owner,
        run_folder=options.run,
        data=options.data,
        packs=options.packs,
        accelerator=options.accelerator,
        wheels=options.wheels,
        parameters=parse_parameters(options.parameters),
    )
    print(f"Built: {folder}")
    return 0


def _simulate(options: argparse.Namespace) -> int:
    from entrep.simulate import describe_simulation, simulate

    result = simulate(
        options.kernel,
        build=options.build,
        out=options.out,
        layout=options.layout,
        data=options.data,
        compare=options.compare,
        accelerator=options.accelerator,
        rerun=options.rerun,
        level=options.level,
        time_limit_s=options.timeout_s,
    )
    print(describe_simulation(result))
    return 1 if result.problems else 0


def _push(options: argparse.Namespace) -> int:
    from entrep.kaggle_plan import describe_plan, load_plan

    plan = load_plan(options.build, options.kernel)
    print(describe_plan(plan, datasets=options.datasets))
    if not options.yes:
        return _dry_run()
    from entrep.kaggle_client import log_in
    from entrep.kaggle_push import await_run, push

    api, timeout_s = log_in(), options.timeout_min * 60
    version = push(api, plan, datasets=options.datasets, timeout_s=timeout_s)
    if options.wait:
        await_run(api, f"{plan.ref}/{version}", timeout_s=timeout_s)
    return 0


def _dry_run() -> int:
    print("Dry run: nothing was sent. With --yes it is.")
    return 0


def _status(options: argparse.Namespace) -> int:
    from entrep.kaggle_client import log_in
    from entrep.kaggle_plan import kernel_ref
    from entrep.kaggle_push import await_run, show_run

    ref = kernel_ref(options.kernel, options.build)
    if options.wait:
        await_run(log_in(), ref, timeout_s=options.timeout_min * 60)
    else:
        show_run(log_in(), ref)
    return 0


def _output(options: argparse.Namespace) -> int:
    from entrep.comparison import (
        compare_submissions,
        expected_submissions,
        find_differences,
        find_submissions,
    )
    from entrep.kaggle_client import KaggleError, log_in
    from entrep.kaggle_plan import kernel_ref
    from entrep.kaggle_push import fetch_output

    ref = kernel_ref(options.kernel, options.build)
    expected = expected_submissions(options.compare) if options.compare else {}
    fetch_output(log_in(), ref, options.to)
    print(f"Fetched: {options.to}")
    fetched = find_submissions(options.to)
    if not expected:
        print("\n".join(f"{name}  {digest}" for name, digest in fetched.items()))
        return 0
    print(compare_submissions(fetched, expected))
    different = find_differences(fetched, expected)
    if different:
        raise KaggleError(
            f"{', '.join(different)}: not the bytes of the local run. Were both made from the "
            "same artefacts? Run 'entrep kaggle build --run' with that run, push with --datasets, "
            "and compare again."
        )
    return 0


def _submit_kernel(options: argparse.Namespace) -> int:
    from entrep.kaggle_plan import kernel_ref

    ref = kernel_ref(options.kernel, options.build, versioned=True)
    print(f"Submission of {options.file} of kernel {ref} to {options.competition}")
    print(f"  described as {options.message}")
    if not options.yes:
        return _dry_run()
    from entrep.kaggle_client import log_in
    from entrep.kaggle_push import submit_kernel

    given = {"competition": options.competition, "file": options.file, "message": options.message}
    submit_kernel(log_in(), ref, **given)
    return 0
