"""Makes an index of millions of descriptors: mg-keras index --from features/ --out INDEX --shards 8.

--from are folders or files of Parquet, as mg-keras embed writes them; they stay where they are, and the index points
into them. Processes make the shards side by side; the same command after Ctrl-C, a crash or `kill -9` goes on with
those that are made. mg-keras search INDEX photo.jpg and Index.open(INDEX).search(...) find neighbours in it.
"""

from collections.abc import Sequence
from pathlib import Path

from mg_keras.errors import UserError
from mg_keras.files import check_writable, printable_name
from mg_keras.programs.common import Parser, number


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments, and the index."""
    parser = Parser("mg-keras index", __doc__)
    parser.add_argument("--from", type=str, nargs="+", help="folders or files of Parquet, of mg-keras embed")
    parser.add_argument("--out", type=str, help="the index's folder")
    parser.add_argument("--shards", type=number(int, at_least=1), help="default: one for each four million")
    parser.add_argument("--workers", type=number(int, at_least=1), help="processes; default: one a core")
    parser.add_argument(
        "--bytes",
        type=number(int, at_least=1),
        help="of a descriptor in memory; default: an eighth of the values; as many as values: 8 bits; twice: float16",
    )
    parser.add_argument("--cells", type=number(int, at_least=1), help="of the inverted file; default: about 4 sqrt(N)")
    parser.add_argument("--seed", type=number(int, at_least=0), default=0, help="of the sample that is learned from")
    options = parser.parse_args(arguments)
    sources = getattr(options, "from")
    if not sources or not options.out:
        raise UserError("--from PARQUET and --out INDEX are needed")
    from mg_keras.search.index import Index
    from mg_keras.search.sharded import build

    out = Path(options.out).expanduser()
    check_writable(out)
    build(sources, out, options.shards, options.workers, options.bytes, options.cells, options.seed, show=True)
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
