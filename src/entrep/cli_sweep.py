"""The commands `entrep sweep` and `entrep compare`: many runs, and which of them is better."""

from __future__ import annotations

import argparse
from functools import partial

from entrep.cli_command import add_command, add_ray_option

# Imports stand in the commands, as in `cli`.


def add_sweep_commands(
    commands: argparse._SubParsersAction, common: argparse.ArgumentParser
) -> None:
    """Add `sweep` and `compare`.

    Args:
        commands: of the parser of `entrep`.
        common: the options that all commands take.
    """
    command = partial(add_command, commands, common)

    sub = command("sweep", _sweep, "Run the notebooks with every combination of parameters.")
    sub.add_argument("spec", nargs="?", metavar="SPEC.yaml", help="file with the same keys")
    sub.add_argument(
        "-p",
        dest="parameters",
        action="append",
        default=[],
        metavar="NAME=A,B,C",
        help="values of a parameter, such as -p epochs=4,8; may be repeated",
    )
    sub.add_argument("--seeds", metavar="0-4", help="values of the parameter seed")
    sub.add_argument("--folds", metavar="3,5", help="values of the parameter folds")
    sub.add_argument("--only", metavar="03,04", help="only these notebooks and those upstream")
    sub.add_argument("--profile", help="demo (default), mini or full")
    sub.add_argument("--data", metavar="DIR", help="the challenge's folder")
    sub.add_argument("--out", metavar="DIR", help="the sweep's folder; the same one goes on")
    sub.add_argument("--jobs", type=int, metavar="N", help="notebooks at a time (2)")
    sub.add_argument("--threads", type=int, metavar="N", help="of each (cores / jobs)")
    sub.add_argument(
        "--memory-gb", type=float, metavar="GB", help="for all jobs together; each has its part"
    )
    sub.add_argument("--retries", type=int, metavar="N", help="of a notebook that failed (0)")
    sub.add_argument("--max-runs", type=int, metavar="N", help="refuse more than that (1000)")
    sub.add_argument("--notebooks", metavar="DIR", help="folder of the notebooks")
    add_ray_option(sub)
    sub.add_argument("--plan", action="store_true", help="only check, and show what would run")
    sub.add_argument(
        "--mlflow", default="", metavar="DIR", help="log the runs to MLflow's file store there"
    )
    sub.add_argument(
        "--like",
        action="append",
        default=[],
        metavar="DIR",
        help="an earlier run or sweep to estimate the time from; may be repeated",
    )

    sub = command("compare", _compare, "Compare runs on the same out-of-fold pictures.")
    sub.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or a sweep's folder")
    sub.add_argument(
        "--notebook",
        default="",
        choices=("02_prototypes", "03_dinov2_finetune", "04_hybrid"),
        help="whose answers (the last of them that all runs have)",
    )


def _sweep(options: argparse.Namespace) -> int:
    from entrep.sweep import LISTED, count_cores, describe_plan, earlier_seconds, make_plan
    from entrep.sweep_node import LocalProcesses
    from entrep.sweep_run import choose_threads, find_finished, open_sweep, run_sweep
    from entrep.sweep_spec import Spec, make_axes, make_spec, read_spec, split_pair
    from entrep.sweep_table import read_sweep_table
    from entrep.tracking import find_mlflow, log_to_mlflow

    if options.mlflow:
        find_mlflow()
    if options.ray:
        from entrep.ray_cluster import find_ray
        from entrep.ray_sweep import ray_tasks

        find_ray()
    pairs = [split_pair(pair) for pair in options.parameters]
    asked = {name: getattr(options, name) for name in vars(Spec()) if name != "axes"}
    asked["axes"] = make_axes(pairs, options.seeds, options.folds)
    spec = make_spec(read_spec(options.spec) if options.spec else {}, asked)
    plan = make_plan(
        spec.axes,
        spec.out,
        profile=spec.profile,
        data=spec.data,
        only=spec.only.split(","),
        threads=choose_threads(spec.out, spec.threads, spec.jobs),
        notebooks=spec.notebooks,
        max_runs=spec.max_runs,
    )
    seconds = earlier_seconds([*options.like, *([spec.out] if plan.out.is_dir() else [])])
    rows = len(plan.runs) if options.plan else LISTED
    cores = count_cores() if options.ray in ("", "local") else None  # a cluster has its own
    said = describe_plan(plan, find_finished(plan), seconds, spec.jobs, rows=rows, cores=cores)
    print(said, flush=True)
    if options.plan:
        return 0
    executor = LocalProcesses(spec.jobs, spec.memory_gb)
    if options.ray:
        executor = ray_tasks(options.ray, plan, spec.jobs, spec.memory_gb)
    with open_sweep(plan), executor as processes:
        reasons = run_sweep(plan, processes.submit, jobs=spec.jobs, retries=spec.retries)
    failed = sum(map(bool, reasons))
    print(f"\nRuns: {len(reasons) - failed} done, {failed} failed")
    print(f"Sweep: {plan.out} (table.csv, table.parquet, runs/)")
    if options.mlflow:
        new = log_to_mlflow(read_sweep_table(plan.out), options.mlflow, plan.out.name)
        print(f"MLflow: {new} new runs in {options.mlflow}")
    if failed:
        print("The same command tries those that failed again; steps/*.log say more.")
    return 1 if failed else 0


def _compare(options: argparse.Namespace) -> int:
    from entrep.compare import compare_runs, describe_comparison, find_runs

    found = compare_runs(find_runs(options.runs), notebook=options.notebook)
    print(describe_comparison(found))
    return 0
