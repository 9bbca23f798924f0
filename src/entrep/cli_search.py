"""The commands `entrep embed`, `index` and `search`: one's own pictures, and what is like them."""

from __future__ import annotations

import argparse
import sys
from functools import partial

from entrep.cli_command import add_command, add_ray_option

# Imports stand in the commands, as in `cli`.


def add_search_commands(
    commands: argparse._SubParsersAction, common: argparse.ArgumentParser
) -> None:
    """Add `embed`, `index` and `search`.

    Args:
        commands: of the parser of `entrep`.
        common: the options that all commands take.
    """
    command = partial(add_command, commands, common)

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
    add_ray_option(sub)

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
