"""The command `entrep`: thin commands over functions that exist anyway."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence

from entrep import __version__
from entrep.cli_kaggle import add_kaggle_commands

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


def _sweep(options: argparse.Namespace) -> int:
    from entrep.sweep import describe_plan, earlier_seconds, make_plan
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
    rows = len(plan.runs) if options.plan else 12
    print(describe_plan(plan, find_finished(plan), seconds, spec.jobs, rows=rows), flush=True)
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


def _index(options: argparse.Namespace) -> int:
    from entrep.archive import build_index, caveat, describe_report

    report = build_index(
        options.pictures,
        options.out,
        encoder=options.encoder,
        weights_dir=options.weights_dir,
        device=options.device,
        batch_size=options.batch_size,
        dtype=options.dtype,
        crop=options.crop,
        approximate=options.approximate,
    )
    print(describe_report(report))
    if caveat(report.index):
        print(f"Note: {caveat(report.index)}")
    return 0


def _embed(options: argparse.Namespace) -> int:
    from contextlib import nullcontext

    from entrep.archive import caveat, describe_report
    from entrep.bulk import ShardEncoder, embed_folder

    encoders = nullcontext(ShardEncoder)
    if options.ray:
        from entrep.ray_embed import ray_encoders

        encoders = ray_encoders(options.ray, options.jobs)
    with encoders as start:
        report = embed_folder(
            options.pictures,
            options.out,
            encoder=options.encoder,
            weights_dir=options.weights_dir,
            device=options.device,
            batch_size=options.batch_size,
            dtype=options.dtype,
            crop=options.crop,
            shard_size=options.shard_size,
            cache=options.cache,
            start=start,
        )
    print(describe_report(report))
    if caveat(report.index):
        print(f"Note: {caveat(report.index)}")
    return 0


def _search(options: argparse.Namespace) -> int:
    from entrep.archive import caveat, search_index
    from entrep.index import display_name, open_index
    from entrep.search_page import write_page

    index = open_index(options.index)
    hits = search_index(
        index,
        image=options.image,
        text=options.text,
        k=options.k,
        weights_dir=options.weights_dir,
        device=options.device,
        approximate=options.approximate,
        copies=options.copies,
    )
    notes = [caveat(index)] if caveat(index) else []
    if index.unfinished:
        notes.append(
            f"The index is unfinished: {index.unfinished} pictures are not in it yet. "
            "'entrep index' goes on with them."
        )
    if options.approximate:
        notes.append(
            f"Approximate: {index.approximate.recall:.3f} of the 10 nearest were found when "
            "the index was checked."
        )
    for rank, hit in enumerate(hits, start=1):
        print(f"{rank:3}  {hit.similarity:.4f}  {display_name(hit.name)}")
    for note in notes:
        print(f"Note: {note}", file=sys.stderr)
    if options.html:
        query = {"image": options.image, "text": options.text or ""}
        write_page(options.html, hits, index.pictures, notes=notes, **query)
        print(f"Written: {options.html}")
    return 0


def _models_list(options: argparse.Namespace) -> int:
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


def _models_show(options: argparse.Namespace) -> int:
    import dataclasses

    from entrep.registry import find_home

    home, spec = find_home(options.name, options.packs, needed=False)
    for key, value in {**dataclasses.asdict(spec), "terms": spec.terms}.items():
        print(f"{key:12} {', '.join(map(str, value)) if isinstance(value, tuple) else value}")
    print(f"{'pack':12} {home or 'none here'}")
    return 0


def _models_fetch(options: argparse.Namespace) -> int:
    from entrep.packs import fetch_pack

    print(f"Packed: {fetch_pack(options.name, options.to, revision=options.revision)}")
    return 0


def _models_pack(options: argparse.Namespace) -> int:
    from entrep.packs import make_pack

    folder = make_pack(options.name, options.sources, options.to, revision=options.revision)
    print(f"Packed: {folder}")
    return 0


def _models_verify(options: argparse.Namespace) -> int:
    from entrep.packs import verify_pack

    for folder in options.folders:
        print(verify_pack(folder))
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

    def command(name: str, function, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, parents=[common])
        sub.set_defaults(command=function)
        return sub

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

    _sweep_parsers(command)
    _embed_parser(command)
    _search_parsers(command)
    _models_parser(commands, common)
    add_kaggle_commands(commands, common)

    sub = command("demo-weights", _demo_weights, "Train the two embedded encoders anew.")
    sub.add_argument("folder", nargs="?", default="weights", metavar="DIR", help="(weights)")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--device", default="cpu")
    return parser


def _sweep_parsers(command: Callable[..., argparse.ArgumentParser]) -> None:
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
    _ray_option(sub)
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


def _search_parsers(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command("index", _index, "Make an index of one's own pictures, or bring it up to date.")
    sub.add_argument("pictures", metavar="PICTURES", help="folder, with all its subfolders")
    sub.add_argument("--out", required=True, metavar="INDEX", help="new folder, or an index")
    _index_options(sub)
    sub.add_argument(
        "--approximate", action="store_true", help="add a FAISS index, for big collections"
    )

    sub = command("search", _search, "Find the pictures of an index that fit a picture or phrase.")
    sub.add_argument("index", metavar="INDEX")
    query = sub.add_mutually_exclusive_group(required=True)
    query.add_argument("--image", metavar="FILE", help="find what looks like this picture")
    query.add_argument("--text", metavar="PHRASE", help="find what fits this phrase")
    sub.add_argument("-k", type=int, default=5, help="answers (5)")
    sub.add_argument("--html", default="", metavar="FILE", help="write a page with thumbnails")
    sub.add_argument(
        "--no-copies",
        dest="copies",
        action="store_false",
        help="leave out pictures with the very bytes of the query",
    )
    sub.add_argument(
        "--approximate", action="store_true", help="ask the FAISS index, not every vector"
    )
    _encoder_options(sub)


def _embed_parser(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command("embed", _embed, "Embed many pictures, in shards, into an index.")
    sub.add_argument("pictures", metavar="PICTURES", help="folder, with all its subfolders")
    sub.add_argument("--out", required=True, metavar="INDEX", help="the same one goes on")
    _index_options(sub)
    sub.add_argument("--shard-size", type=int, default=2048, help="pictures of a shard (2048)")
    sub.add_argument(
        "--cache", default="", metavar="DIR", help="keep the vectors here, too, as runs do"
    )
    sub.add_argument(
        "--jobs", type=int, default=0, metavar="N", help="encoders on Ray (one for each core)"
    )
    _ray_option(sub)


def _ray_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--ray",
        default="",
        metavar="ADDRESS",
        help="work on Ray: local (started for this), auto (the one that runs here), or HOST:PORT",
    )


def _index_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--encoder", default="", metavar="NAME", help="the index's own, or demo-clip")
    sub.add_argument("--dtype", default="", choices=("fp16", "fp32"), help="on disk (fp16)")
    sub.add_argument(
        "--no-crop",
        dest="crop",
        action="store_const",
        const=False,
        help="embed whole frames, not their lit discs",
    )
    sub.add_argument("--batch-size", type=int, default=32, help="pictures a pass at most (32)")
    _encoder_options(sub)


def _encoder_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--weights-dir", default="", metavar="DIR", help="folder with model packs")
    sub.add_argument("--device", default="auto", help="auto (default), cpu, cuda, mps")


def _models_parser(commands: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    text = "Encoders and their model packs: folders that load anywhere, without a network."
    models = commands.add_parser("models", help=text, description=text).add_subparsers(
        title="commands", metavar="COMMAND", required=True
    )

    def command(name: str, function, text: str) -> argparse.ArgumentParser:
        sub = models.add_parser(name, help=text, description=text, parents=[common])
        sub.set_defaults(command=function)
        return sub

    sub = command("list", _models_list, "List the encoders: input, width, licence, source.")
    sub.add_argument("--packs", default="", metavar="DIR", help="and the packs below this folder")

    sub = command("show", _models_show, "Show all that is known of one encoder.")
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("--packs", default="", metavar="DIR", help="folder with model packs")

    sub = command("fetch", _models_fetch, "Download an encoder from its hub and pack it.")
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("--to", required=True, metavar="DIR", help="new folder for the pack")
    sub.add_argument("--revision", default="", help="commit of the repository (the registry's)")

    sub = command("pack", _models_pack, "Make a pack of files that are here.")
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

    sub = command("verify", _models_verify, "Check every file of a pack and one forward pass.")
    sub.add_argument("folders", nargs="+", metavar="DIR")
