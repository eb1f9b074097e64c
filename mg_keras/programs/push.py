"""Sends descriptors into a vector database: mg-keras push --from features/ --to qdrant:http://localhost:6333/photos.

--from takes what mg-keras embed --out wrote: folders of shards and files in .parquet. --to is a collection, which is
made where there is none, one of

* milvus:http://HOST:19530/COLLECTION, or milvus:FILE.db/COLLECTION for milvus-lite on this machine;
* qdrant:http://HOST:6333/COLLECTION, or qdrant:FOLDER/COLLECTION for Qdrant's local mode on this machine.

A server's key or token is read from QDRANT_API_KEY or MILVUS_TOKEN in the environment. The same command after Ctrl-C, a
crash or `kill -9` sends what is left; again, it changes nothing. Descriptors of another model are refused.
"""

from collections.abc import Sequence

from mg_keras.programs.common import Parser, number


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments, the push, and what came of it."""
    parser = Parser("mg-keras push", __doc__)
    parser.add_argument(
        "--from", type=str, nargs="+", required=True, help="features/ or features.parquet, one or several"
    )
    parser.add_argument("--to", type=str, required=True, help="DATABASE:PLACE/COLLECTION, as above")
    parser.add_argument("--batch", type=number(int, at_least=1), help="photos of a request; default: 256")
    options = parser.parse_args(arguments)
    from mg_keras.databases import open_collection
    from mg_keras.databases.pushing import BATCH, patiently, push

    # some databases' clients connect when they are opened
    with patiently(lambda: open_collection(options.to)) as collection:
        pushed = push(options["from"], collection, options.batch or BATCH, label="photos")
    print(
        f"pushed: {options.to}, {pushed.sent:,} photos sent, {pushed.there:,} were there already; "
        f"it holds {pushed.count:,}"
    )
    if pushed.unusable:
        print(f"{pushed.unusable:,} photos have no descriptor and were left out: the column error says why")
