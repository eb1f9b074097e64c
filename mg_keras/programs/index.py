"""Makes an index of millions of descriptors: mg-keras index --from features/ --out INDEX --shards 8.

--from are folders or files of Parquet, as mg-keras embed writes them; they stay where they are, and the index points
into them. Processes make the shards side by side; the same command after Ctrl-C, a crash or `kill -9` goes on with
those that are made. mg-keras search INDEX photo.jpg and Index.open(INDEX).search(...) find neighbours in it.

mg-keras index --plan 50e6 prints memory, disk, recall and time of three choices beforehand.
"""

import os
from collections.abc import Sequence

from mg_keras.errors import UserError
from mg_keras.files import check_writable, in_home, printable_name
from mg_keras.programs.common import Parser, number


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments, and the index or the plan."""
    parser = Parser("mg-keras index", __doc__)
    parser.add_argument("--from", type=str, nargs="+", help="folders or files of Parquet, of mg-keras embed")
    parser.add_argument("--out", type=str, help="the index's folder")
    parser.add_argument(
        "--shards", type=number(int, at_least=1), help="default: one for each four million, and one a worker if large"
    )
    parser.add_argument("--workers", type=number(int, at_least=1), help="processes; default: one a core")
    parser.add_argument(
        "--bytes",
        type=number(int, at_least=1),
        help="of a descriptor in memory; default: an eighth of the values; as many as values: 8 bits; twice: float16",
    )
    parser.add_argument("--cells", type=number(int, at_least=1), help="of the inverted file; default: about 4 sqrt(N)")
    parser.add_argument("--seed", type=number(int, at_least=0), help="of the sample that is learned from; default: 0")
    parser.add_argument("--plan", type=number(float, at_least=1), help="descriptors to plan for, such as 50e6")
    parser.add_argument("--dimensions", type=number(int, at_least=32), help="with --plan: values of each; default: 512")
    parser.add_argument("--cores", type=number(int, at_least=1), help="with --plan: to build with; default: those here")
    options = parser.parse_args(arguments)
    if options.plan is not None:
        for name in ("from", "out", "workers", "bytes", "cells", "seed"):
            if getattr(options, name) is not None:
                raise UserError(f"--plan builds nothing, and shows choices of bytes and cells: it takes no --{name}")
        _show_plan(options)
        return
    if options.dimensions or options.cores:
        raise UserError("--dimensions and --cores are for --plan")
    sources = getattr(options, "from")
    if not sources or not options.out:
        raise UserError("--from PARQUET and --out INDEX are needed, or --plan N")
    from mg_keras.search.index import Index
    from mg_keras.search.sharded import build

    out = in_home(options.out)
    check_writable(out)
    build(sources, out, options.shards, options.workers, options.bytes, options.cells, options.seed or 0, show=True)
    with Index.open(out) as index:
        about = index.about
        found = about["neighbors"]
        size = sum(file.stat().st_size for file in out.iterdir())
        print(
            f"written: {printable_name(out)}, {len(index):,} descriptors of {about['dimensions']} values in "
            f"{about['shards']} shards, {size / 1e6:,.0f} MB"
        )
        print(
            f"recall@10 {found['recall']:.3f} by {'turned ' if found['rotated'] else ''}codes of {about['bytes']} "
            f"bytes: {found['effort']} of {found['cells']:,} cells a query, {10 * found['reranked']} answers ranked "
            "exactly"
        )


def _show_plan(options):
    from mg_keras.search import planning
    from mg_keras.search.sharded import default_shards

    cores = options.cores or os.cpu_count() or 1
    rows, dimensions = int(options.plan), options.dimensions or 512
    shards = options.shards or default_shards(rows, cores)
    choices = planning.choices(rows, dimensions, cores, shards)
    print(f"{rows:,} descriptors of {dimensions} values, {shards} shards, built by {cores} cores")
    print(f"{'':26}  --bytes  memory   disk     to build with  recall@10  build     query     cells  ranked")
    for each in choices:
        print(
            f"{each.name:26}  {each.bytes:7}  {_size(each.memory):7}  {_size(each.disk):7}  {_size(each.building):13}  "
            f"{each.recall:9.3f}  {_time(each.seconds):8}  {f'{1000 * each.query_seconds:.1f} ms':8}  "
            f"{each.effort:5}  {10 * each.reranked:6}"
        )
    print(f"The Parquet files stay, and are read by each query: {_size(2 * rows * dimensions)} in float16.")
    print(
        f"Recall is of generated descriptors, extrapolated from {planning.MEASURED_SIZES[-1]:,}; a query takes one "
        "core, looks at so many cells and ranks so many answers exactly, each a read: of a disk, add its time."
    )


def _size(count):
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _time(seconds):
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} m" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"
